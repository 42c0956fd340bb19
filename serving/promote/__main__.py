"""Puts a model into the serving folder if it may be served, labels it, and takes it back.

    python -m serving.promote                            the newest version of the working tree
    python -m serving.promote v1.2.0 --label canary      that of a commit, branch, tag or experiment, on trial
    python -m serving.promote --stage prod               what `gto assign` put into that stage
    python -m serving.promote --rollback                 back to the version before

A version may be served if `validate` has passed for that very model, and its metrics are not worse than
those of the version now serving, within the tolerances of serving/promotion.toml. The reasons
are kept with it in assets.extra/blessing.json.

exit codes:
  0    done
  1    it can't be done; one line says why, and nothing is changed
  2    wrong arguments
  3    refused; one line for each criterion that is not met, and nothing is changed
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
from functools import partial
from pathlib import Path

from serving.errors import ConfigError
from serving.labels import CONFIG, MODEL
from serving.promote.candidate import fetch, revision_of_stage
from serving.promote.criteria import read_criteria
from serving.promote.deployment import Deployment
from serving.promote.steps import CANARY, STABLE, Target, promote, roll_back

__all__ = ["main"]

REFUSED = 3


def main(argv: list[str] | None = None) -> int:
    """Promotes or rolls back; returns the exit code."""
    args = _parse(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    base_path = args.to or Path("deploy") / args.model_name
    try:
        target = Target(Deployment(base_path), args.config, args.model_name, args.grace)
        if args.rollback:
            bad, now = roll_back(target, args.label, check_only=args.check)
            out, is_now = ("would leave", "would be") if args.check else ("is out of", "is")
            sys.stdout.write(f"version {bad} {out} {base_path}; {STABLE} {is_now} version {now}\n")
            return 0
        return _promote(args, target)
    except (ConfigError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1


def _promote(args: argparse.Namespace, target: Target) -> int:
    root = Path.cwd()
    rev = revision_of_stage(root, args.model_name, args.stage) if args.stage else args.rev
    verdict = promote(
        target,
        partial(fetch, root, args.model_name, rev),
        read_criteria(args.criteria),
        label=args.label,
        keep=args.keep,
        check_only=args.check,
    )
    for finding in verdict.findings:
        if finding.passed:
            sys.stdout.write(f"ok: {finding.text}\n")
        else:
            sys.stderr.write(f"refused: {finding.text}\n")
    for note in verdict.notes:
        sys.stdout.write(f"note: {note}\n")
    if not verdict.passed:
        return REFUSED
    where = "could be" if args.check else "is"
    sys.stdout.write(f"version {verdict.number} {where} {args.label} in {target.deployment.base_path}\n")
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m serving.promote",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "rev", nargs="?", type=_name, metavar="REV", help="git revision (default: the working tree)"
    )
    source.add_argument("--stage", type=_name, metavar="STAGE", help="stage of GTO, such as prod")
    source.add_argument("--rollback", action="store_true", help="take the labelled version out of service")
    add("--label", choices=(STABLE, CANARY), default=STABLE, help=f"default: {STABLE}")
    add("--check", action="store_true", help="say what would be done, and change nothing")
    add("--to", type=Path, metavar="DIR", help="folder of the versions (default: deploy/NAME)")
    add(
        "--config",
        type=Path,
        default=CONFIG,
        metavar="FILE",
        help=f"file with the labels (default: {CONFIG})",
    )
    add("--model_name", default=MODEL, metavar="NAME", help=f"default: {MODEL}")
    add(
        "--criteria",
        type=Path,
        default=Path("serving/promotion.toml"),
        metavar="FILE",
        help="default: serving/promotion.toml",
    )
    add("--keep", type=_count, default=2, metavar="N", help="newest versions that stay (default: 2)")
    add(
        "--grace",
        type=_seconds,
        default=15.0,
        metavar="S",
        help="seconds until all servers have read the labels again; a rollback waits so long before "
        "the version leaves the folder (default: 15)",
    )
    return parser.parse_args(argv)


def _name(text: str) -> str:
    if not text:  # of a variable that is not set, say; the working tree would be promoted in its place
        raise argparse.ArgumentTypeError("an empty text names no version")
    return text


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds, at least 0")
    return seconds


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of versions, at least 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
