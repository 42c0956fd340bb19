"""The commands of `python -m serving.client`: predict, status, doctor."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from serving.client import DEFAULT_MODEL, DEFAULT_URL, SEGMENT, TileClient
from serving.errors import ImageError, RequestRefused, ServingError
from serving.inputs import Input, collect
from serving.ordered import ordered_map
from serving.outputs import as_json, write_pictures
from serving.postprocessing import DEFECT, threshold_level
from serving.tile import Tile

__all__ = ["main", "run"]

NO_DEFECT, ERROR, DEFECTS_FOUND, INTERRUPTED, PIPE_CLOSED = 0, 1, 3, 130, 141

DESCRIPTION = "Finds defects on magnetic tiles with a model server (see `python -m serving.up`)."
EPILOG = """\
examples:
  python -m serving.client predict tile.jpg                 a table of the defects
  python -m serving.client predict tiles/ --out results/    masks and overlays of a whole folder
  python -m serving.client predict 'tiles/**/*.png' --json  one JSON object per tile
  python -m serving.client status                           versions of the model on the server
  python -m serving.client doctor                           what is wrong with the server, and how to mend it

exit codes:
  0    no defect found (status, doctor: all is well)
  1    an image could not be used, or the server failed; other images were still done
  2    the command line is wrong
  3    all images were done, and defects were found (0 with --exit-zero)
  130  interrupted with Ctrl-C
  141  whoever read the output stopped reading
"""
PREDICT_EPILOG = """\
examples:
  python -m serving.client predict a.jpg b.tif
  python -m serving.client predict tiles/ --out results/ --threshold 0.7
  python -m serving.client predict tiles/ --json | jq -r 'select(.label == "defect").image'
  python -m serving.client predict tile.jpg --url http://inspection:8501 --model-version 20261124080000

An image that can't be used gives one line on stderr (with --json: an object with "error"), and the
others go on. If the server is down or has no such model, the command stops with one line.
Exit codes: 0 no defect, 1 error, 2 usage, 3 defects found, 130 interrupted.
"""
MARKS = {"ok": ("green", "✓"), "hint": ("yellow", "!"), "failed": ("red", "✗")}


@dataclass(frozen=True)
class Outcome:
    """What became of one image: facts of its prediction, or an error; no pixels."""

    image: str
    error: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def document(self) -> dict[str, Any]:
        return {"image": self.image, **({"error": self.error} if self.error else self.facts)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names may hold any bytes
    warnings.filterwarnings("ignore", module="PIL")  # of damaged metadata in a sound picture
    options = _parser().parse_args(arguments)
    try:
        client = TileClient(
            options.url,
            options.model,
            options.model_version,
            getattr(options, "signature", SEGMENT),
            getattr(options, "threshold", None),
            timeout=options.timeout,
            retries=options.retries,
        )
        with client:
            code: int = options.command(client, options)
        sys.stdout.flush()
        return code
    except ServingError as error:
        if getattr(options, "json", False):
            print(json.dumps({"error": str(error)}), flush=True)
        print(f"error: {error}", file=sys.stderr)
        return ERROR


def run() -> NoReturn:
    """Runs as a program: ends at once after Ctrl-C, and quietly when its output is not read."""
    try:
        code = main()
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted; what was written is complete\n")
        sys.stderr.flush()
        os._exit(INTERRUPTED)  # without waiting for requests in flight
    except BrokenPipeError:
        os._exit(PIPE_CLOSED)
    sys.exit(code)


def predict(client: TileClient, options: argparse.Namespace) -> int:
    """Predicts all images; see the module's help."""
    inputs = collect(options.images, without=options.out)
    outcomes = ordered_map(lambda one: _outcome(client, one, options.out), inputs, options.concurrency)
    done: list[Outcome] = []
    any_error = any_defect = False
    for outcome in _with_progress(outcomes, len(inputs), enabled=len(inputs) > 1):
        any_error |= bool(outcome.error)
        any_defect |= outcome.facts.get("label") == DEFECT
        if options.json:
            print(json.dumps(outcome.document), flush=True)
        elif outcome.error:
            _say(f"{outcome.image}: {outcome.error}")
        else:
            done.append(outcome)
    if done:
        _print_table(done, options.out)
    if any_error:
        return ERROR
    return DEFECTS_FOUND if any_defect and not options.exit_zero else NO_DEFECT


def status(client: TileClient, options: argparse.Namespace) -> int:
    """Prints the versions of the model; error if none is available."""
    versions = client.status()
    print(f"{client.model} at {client.url}")
    for version in versions:
        print(f"  {version.version}  {version.state}  {version.error}".rstrip())
    return NO_DEFECT if any(version.state == "AVAILABLE" for version in versions) else ERROR


def doctor(client: TileClient, options: argparse.Namespace) -> int:
    """Prints what it finds about a server; error if anything failed."""
    from rich.console import Console
    from rich.text import Text

    from serving.doctor import examine

    console, failed = Console(soft_wrap=True), False
    for check in examine(client):
        failed |= check.state == "failed"
        colour, mark = MARKS[check.state]
        console.print(Text.assemble((mark, colour), f" {check.text}"))
        if check.mend:
            console.print(Text(f"  to mend: {check.mend}"))
    return ERROR if failed else NO_DEFECT


def _outcome(client: TileClient, one: Input, out: Path | None) -> Outcome:
    """Reads, predicts and writes one image, in a thread."""
    try:
        if one.problem:
            raise ImageError(one.problem)
        tile = Tile.load(one.path)
        prediction = client.predict(tile)
    except (ImageError, RequestRefused) as error:
        return Outcome(str(one.path), str(error))
    facts = as_json(prediction)
    if out is not None:
        facts |= write_pictures(tile, prediction, out, one.name)
    return Outcome(str(one.path), facts=facts)


def _with_progress(outcomes: Iterator[Outcome], total: int, *, enabled: bool) -> Iterator[Outcome]:
    from tqdm import tqdm

    # None: only where stderr is a terminal.
    yield from tqdm(outcomes, total=total, unit="tile", file=sys.stderr, disable=None if enabled else True)


def _say(line: str) -> None:
    """An error on stderr, above the progress bar if there is one."""
    from tqdm import tqdm

    tqdm.write(f"error: {line}", file=sys.stderr)


def _print_table(outcomes: list[Outcome], out: Path | None) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("image", "label", box=None, header_style="bold", pad_edge=False)
    for heading in ("score", "defects", "largest [px]", "tile [%]"):
        table.add_column(Text(heading), justify="right", no_wrap=True)
    table.columns[0].overflow = "fold"
    for outcome in outcomes:
        facts = outcome.facts
        defects = facts["defects"]
        found = facts["label"] == DEFECT
        table.add_row(
            Text(outcome.image),
            Text(facts["label"], "bold red" if found else "green"),
            f"{facts['score']:.2f}",
            str(len(defects)),
            f"{defects[0]['area']:,}" if defects else "-",
            f"{sum(defect['area_percent'] for defect in defects):.2f}" if defects else "-",
        )
    console = Console(file=sys.stdout)
    console.print(table)
    defective = sum(outcome.facts["label"] == DEFECT for outcome in outcomes)
    plural = "tile" if len(outcomes) == 1 else "tiles"
    where = f"; masks and overlays are in {out}" if out else ""
    console.print(
        Text(f"{len(outcomes)} {plural}: {defective} with defects, {len(outcomes) - defective} good{where}")
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m serving.client",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    server = _server_options()
    predicting = commands.add_parser(
        "predict",
        parents=[server],
        help="find the defects of tiles",
        description="Finds the defects of tiles: files, folders (searched to the bottom) and globs.",
        epilog=PREDICT_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    predicting.set_defaults(command=predict)
    _add_predict_options(predicting)
    for name, command, text in (
        ("status", status, "versions of the model on the server, and their states"),
        ("doctor", doctor, "check a server step by step, and say how to mend it"),
    ):
        commands.add_parser(
            name, parents=[server], help=text, description=f"{text.capitalize()}."
        ).set_defaults(command=command)
    return parser


def _server_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    group = parser.add_argument_group("server")
    url = os.environ.get("MAGNETIC_TILES_URL", DEFAULT_URL)
    group.add_argument(
        "--url", default=url, help="of the REST API (environment: MAGNETIC_TILES_URL; %(default)s)"
    )
    group.add_argument("--model", default=DEFAULT_MODEL, help="name on the server (%(default)s)")
    group.add_argument("--model-version", type=_natural, metavar="N", help="version (the latest)")
    group.add_argument(
        "--timeout", type=_positive, default=60.0, metavar="S", help="seconds to wait for an answer (60)"
    )
    group.add_argument(
        "--retries",
        type=_natural,
        default=3,
        metavar="N",
        help="after connection errors and 503 (%(default)s)",
    )
    return parser


def _add_predict_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="file, folder or glob")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write <name>_mask.png and <name>_overlay.png here"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per line instead of a table")
    parser.add_argument(
        "--threshold", type=_threshold, metavar="P", help="on the probability, 0-1 (the model's own)"
    )
    parser.add_argument(
        "--signature",
        default=SEGMENT,
        metavar="NAME",
        help="segment: files in, masks out (default); serving_default: numbers in, probabilities out",
    )
    parser.add_argument(
        "--concurrency", type=_counting, default=4, metavar="N", help="requests in flight (%(default)s)"
    )
    parser.add_argument("--exit-zero", action="store_true", help="exit with 0 though defects were found")


def _number(text: str, lowest: float, rule: str, kind: type[int] | type[float] = int) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = lowest - 1
    if not lowest <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be {rule}. Received: {text}")
    return value


def _natural(text: str) -> int:
    return int(_number(text, 0, "a whole number, 0 or more"))


def _counting(text: str) -> int:
    return int(_number(text, 1, "a whole number, 1 or more"))


def _positive(text: str) -> float:
    return float(_number(text, 1e-3, "a number of seconds above 0", float))


def _threshold(text: str) -> float:
    try:
        value = float(text)
        threshold_level(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError("must be a number above 0 and at most 1") from error
    return value
