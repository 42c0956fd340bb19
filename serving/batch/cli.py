"""The command line of `python -m serving.batch`. It imports little, so that `--help` comes at once."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from serving.client.arguments import counting, natural, seconds, threshold
from serving.errors import ServingError
from serving.program import ERROR, run_program

__all__ = ["batch_parser", "main", "run"]

DESCRIPTION = """\
Scores all tiles of a folder with an exported model, on all cores of this machine or a Ray cluster.
It needs no server. For a handful of tiles, `python -m serving.client` is quicker to start.
"""
EPILOG = """\
examples:
  python -m serving.batch tiles --out scored
  python -m serving.batch s3://line3/tiles --out s3://line3/scored --model s3://models/magnetic-tiles
  python -m serving.batch s3://line3/tiles --out s3://line3/scored --address auto    within a Ray cluster

in --out:
  masks/<image>.png    255 where there is a defect; the very file that a server answers
  tiles/*.parquet      a row per tile: image, label, score, width, height, defects (number), mask, error
  defects/*.parquet    a row per defect: image, box, area, centroid, peak probability
  manifest.json        the model, the threshold, and the Parquet files that count

A run that was stopped, even killed, is completed by running it again: each tile has one row in the end.
Done again are tiles whose file has changed, and those that could not be used. A folder of results is of
one model version and one threshold; another one is refused.

exit codes:
  0    no defect found
  1    an image could not be used, or the run failed; other images were still done
  2    the command line is wrong
  3    all images were done, and defects were found (0 with --exit-zero)
  130  interrupted with ^C or SIGTERM; the same command goes on where it stopped
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Scores a folder and returns the exit code."""
    options = batch_parser().parse_args(arguments)
    from serving.batch.command import score_folder

    try:
        return score_folder(options)
    except ServingError as error:
        sys.stderr.write(f"error: {error}\n")
        return ERROR


def run() -> NoReturn:
    """Runs as a program: ends at once after ^C or SIGTERM."""
    run_program(main, "the same command goes on where it stopped")


def batch_parser() -> argparse.ArgumentParser:
    """What `main` takes."""
    parser = argparse.ArgumentParser(
        prog="python -m serving.batch",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("source", metavar="SOURCE", help="folder, searched to the bottom: a path or s3://bucket/folder")
    add("--out", required=True, metavar="DEST", help="folder of the results: a path or s3://bucket/folder")
    add(
        "--model", default="models/magnetic-tiles", metavar="DIR", help="folder of its versions (%(default)s)"
    )
    add("--version", type=natural, metavar="N", help="of the model (the newest)")
    add("--threshold", type=threshold, metavar="P", help="probability that makes a defect (the model's own)")
    add("--exit-zero", action="store_true", help="exit with 0 though defects were found")
    group = parser.add_argument_group("workers")
    add = group.add_argument
    add("--address", metavar="A", help="of a Ray cluster (RAY_ADDRESS; without one, this machine alone)")
    add("--workers", type=counting, metavar="N", help="how many (as many as there is room for at the start)")
    add("--cpus-per-worker", type=counting, default=1, metavar="N", help="threads of each (%(default)s)")
    add("--gpus-per-worker", type=natural, default=0, metavar="N", help="GPUs of each (%(default)s)")
    add("--batch-size", type=counting, default=8, metavar="N", help="tiles at a time (%(default)s)")
    add(
        "--commit-every",
        type=seconds,
        default=30.0,
        metavar="S",
        help="seconds from one part of the tables to the next, which a kill may cost (30)",
    )
    return parser
