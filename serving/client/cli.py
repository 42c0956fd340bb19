"""The command line of `python -m serving.client`. It imports little, so that `--help` comes at once."""
# ruff: noqa: T201

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from serving.client.arguments import counting, label, millimetres, natural, seconds, threshold
from serving.client.defaults import DEFAULT_MODEL, DEFAULT_URL
from serving.errors import ServingError
from serving.program import ERROR, run_program

__all__ = ["main", "run"]


DESCRIPTION = "Finds defects on magnetic tiles with a model server (see `python -m serving.up`)."
EPILOG = """\
examples:
  python -m serving.client predict tile.jpg                 a table of the defects
  python -m serving.client predict tiles/ --out results/    masks and overlays of a whole folder
  python -m serving.client predict 'tiles/**/*.png' --json  one JSON object per tile
  python -m serving.client predict --watch in/ --out done/  each tile that a camera drops, until ^C
  python -m serving.client status                           versions of the model on the server
  python -m serving.client doctor                           what is wrong with the server, and how to mend it

exit codes:
  0    no defect found (status, doctor: all is well; --watch: ended with ^C or SIGTERM)
  1    an image could not be used, or the server failed; other images were still done
  2    the command line is wrong
  3    all images were done, and defects were found (0 with --exit-zero)
  130  interrupted with ^C or SIGTERM; with --out, the same command goes on where it stopped
  141  whoever read the output stopped reading
"""
PREDICT_EPILOG = """\
examples:
  python -m serving.client predict a.jpg b.tif
  python -m serving.client predict tiles/ --out results/ --threshold 0.7
  python -m serving.client predict tiles/ --json | jq -r 'select(.label == "defect").image'
  python -m serving.client predict tile.jpg --url http://inspection:8501 --model-version 20261124080000
  python -m serving.client predict tile.jpg --model-label stable  # not a newer canary

An image that can't be used gives one line on stderr (with --json: an object with "error"), and the
others go on. If the server is down or has no such model, the command stops with one line; --watch
waits for it. A run with --out that was stopped, even killed, is completed by running it again: what
is done is not asked again, unless the file, the model's version or an option that counts has changed.
Exit codes: 0 no defect, 1 error, 2 usage, 3 defects found, 130 interrupted.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names may hold any bytes
    warnings.filterwarnings("ignore", module="PIL")  # of damaged metadata in a sound picture
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command == "predict":
        _check_predict(parser, options)
    from serving.client import commands

    try:
        with commands.make_client(options) as client:
            code: int = getattr(commands, options.command)(client, options)
        sys.stdout.flush()
        return code
    except ServingError as error:
        if getattr(options, "json", False):
            print(json.dumps({"error": str(error)}), flush=True)
        print(f"error: {error}", file=sys.stderr)
        return ERROR


def run() -> NoReturn:
    """Runs as a program: ends at once after ^C or SIGTERM, and quietly when its output is not read."""
    run_program(main, "what was written is complete, and with --out a new run goes on from it")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m serving.client",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    predicting = commands.add_parser(
        "predict",
        help="find the defects of tiles",
        description="Finds the defects of tiles: files, folders (searched to the bottom) and globs.",
        epilog=PREDICT_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    predicting.set_defaults(command="predict")
    _add_server_options(predicting)
    _add_predict_options(predicting)
    for name, text in (
        ("status", "versions of the model on the server, and their states"),
        ("doctor", "check a server step by step, and say how to mend it"),
    ):
        command = commands.add_parser(name, help=text, description=f"{text.capitalize()}.")
        command.set_defaults(command=name)
        _add_server_options(command)
    return parser


def _check_predict(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Ends with a message if options of predict don't go together."""
    if bool(options.images) == (options.watch is not None):
        parser.error("predict: name images, or a folder to --watch")
    if options.watch is not None and (options.out is None or options.force):
        parser.error("predict: --watch needs --out, which remembers what is done, and goes without --force")
    sources = options.images if options.watch is None else [options.watch]
    if options.out and any(os.path.realpath(source) == os.path.realpath(options.out) for source in sources):
        parser.error(
            f"predict: --out is {options.out} too, where results would be taken for images and overwrite "
            f"them; name another folder, such as {options.out / 'results'}"
        )
    if options.force and options.out is None:
        parser.error("predict: --force says to ignore what is done in --out, so it needs --out")


def _add_server_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "server",
        "An API key, if a proxy asks for one, goes into the environment: MAGNETIC_TILES_API_KEY.",
    )
    url = os.environ.get("MAGNETIC_TILES_URL") or DEFAULT_URL
    group.add_argument(
        "--url",
        default=url,
        help="http://host:8501 (REST) or grpc://host:8500 (environment: MAGNETIC_TILES_URL; %(default)s)",
    )
    group.add_argument(
        "--ca-file",
        default=os.environ.get("MAGNETIC_TILES_CA_FILE"),
        metavar="FILE",
        help="certificates (PEM) to trust, as of a CA of your own (environment: MAGNETIC_TILES_CA_FILE)",
    )
    group.add_argument("--model", default=DEFAULT_MODEL, help="name on the server (%(default)s)")
    choice = group.add_mutually_exclusive_group()
    choice.add_argument(
        "--model-version", type=natural, metavar="N", help="version (the latest, which may be one on trial)"
    )
    choice.add_argument(
        "--model-label",
        type=label,
        metavar="LABEL",
        help="the version that has this label, such as stable (set with `python -m serving.labels`)",
    )
    group.add_argument(
        "--timeout", type=seconds, default=60.0, metavar="S", help="seconds to wait for an answer (60)"
    )
    group.add_argument(
        "--retries",
        type=natural,
        default=3,
        metavar="N",
        help="after connection errors, 429 and 503 (%(default)s)",
    )


def _add_predict_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="file, folder or glob")
    parser.add_argument(
        "--watch", type=Path, metavar="DIR", help="do what lies in a folder, and what comes, until ^C"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write masks, overlays, results.jsonl and results.csv here"
    )
    parser.add_argument("--force", action="store_true", help="do again what is done in --out")
    parser.add_argument(
        "--mm-per-pixel", type=millimetres, metavar="MM", help="side of a pixel: gives sizes in mm too"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per line instead of a table")
    parser.add_argument(
        "--threshold", type=threshold, metavar="P", help="probability that makes a defect (the model's own)"
    )
    parser.add_argument(
        "--signature",
        default="segment",
        metavar="NAME",
        help="segment: files in, masks out (default); serving_default: numbers in, probabilities out",
    )
    parser.add_argument(
        "--concurrency", type=counting, default=4, metavar="N", help="requests in flight (%(default)s)"
    )
    parser.add_argument("--exit-zero", action="store_true", help="exit with 0 though defects were found")
