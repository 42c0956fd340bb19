"""The command: what is to do, progress, summary, exit code."""

from __future__ import annotations

import argparse
import os
import sys

import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from serving.batch.model import ExportedModel
from serving.batch.results import Results
from serving.batch.scorer import Settings
from serving.batch.storage import Folder
from serving.errors import ServingError

__all__ = ["score_folder"]

NO_DEFECT, ERROR, DEFECTS_FOUND = 0, 1, 3
MOST_ERRORS = 20
"""Bad files that are printed; all are in the table."""


def score_folder(options: argparse.Namespace) -> int:
    """Scores what has no result yet, and returns the exit code.

    Raises:
        ServingError: the run can't go on; what is in the results stays.
    """
    source, out = Folder.of(options.source), Folder.of(options.out)
    if out.contains(source):
        raise ServingError(f"--out {out.url} would be among the tiles; name a folder for the results alone")
    model = ExportedModel.load(Folder.of(options.model), options.version)
    threshold = model.threshold if options.threshold is None else options.threshold
    run = {"source": source.url, "model": model.name, "version": model.version}
    results = Results(out, {**run, "fingerprint": model.fingerprint, "threshold": threshold})
    images = source.images(without=out)
    todo = results.left_to_do(images)
    if len(todo):
        results.begin(todo)
        _run_workers(options, source, out, model, results, todo, len(images))
    counts = results.counts(images)  # what has left the source is in the tables alone
    tiles = counts["defect"] + counts["good"]
    sys.stdout.write(
        f"{tiles:,} tiles: {counts['defect']:,} with defects, {counts['good']:,} good; "
        f"{counts['error']:,} files could not be used\n"
        f"{len(images) - len(todo):,} of them were done by an earlier run; all is in {out.url}\n"
    )
    if counts["error"]:
        return ERROR
    return DEFECTS_FOUND if counts["defect"] and not options.exit_zero else NO_DEFECT


def _run_workers(
    options: argparse.Namespace,
    source: Folder,
    out: Folder,
    model: ExportedModel,
    results: Results,
    todo: pa.Table,
    total: int,
) -> None:
    """Scores what is left to do, and shows how far it is."""
    sys.stderr.write(f"{len(todo):,} of {total:,} tiles to do; starting workers\n")
    from serving.batch.job import connected, score  # here, because Ray takes seconds to import

    settings = Settings(source, out, options.threshold, options.batch_size, options.cpus_per_worker)
    cpus = options.workers and options.workers * options.cpus_per_worker
    address = options.address or os.environ.get("RAY_ADDRESS")
    errors = 0
    with (
        connected(address, cpus, sum(map(len, model.files.values()))),
        # In a log of a job, a line every half minute.
        tqdm(total=len(todo), unit="tile", mininterval=0.1 if sys.stderr.isatty() else 30) as bar,
    ):
        for rows in score(
            todo,
            model.files,
            settings,
            results,
            workers=options.workers,
            gpus=options.gpus_per_worker,
            seconds=options.commit_every,
        ):
            for row in rows.filter(pc.is_valid(rows["error"])).to_pylist():
                errors += 1
                if errors <= MOST_ERRORS:
                    bar.write(f"error: {row['image']}: {row['error']}", file=sys.stderr)
            bar.update(len(rows))
    if errors > MOST_ERRORS:
        sys.stderr.write(
            f"... and {errors - MOST_ERRORS:,} more; see the column `error` of tiles/*.parquet\n"
        )
