"""The commands: predict (and its --watch), status, doctor. Each returns an exit code."""
# ruff: noqa: T201

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

from serving.client import report
from serving.client.blocking import TileClient
from serving.client.conversation import AVAILABLE, VersionStatus
from serving.client.doctor import examine
from serving.client.inputs import Names, collect
from serving.client.job import Job, Outcome
from serving.client.ordered import ordered_map
from serving.client.results import Results
from serving.client.watch import follow

__all__ = ["DEFECTS_FOUND", "ERROR", "NO_DEFECT", "doctor", "make_client", "predict", "status"]

NO_DEFECT, ERROR, DEFECTS_FOUND = 0, 1, 3


def make_client(options: argparse.Namespace) -> TileClient:
    """The client that the options describe.

    Raises:
        ServerError: see `TileClient`.
    """
    settings: dict[str, Any] = {
        name: getattr(options, name) for name in ("signature", "threshold") if hasattr(options, name)
    }
    return TileClient(
        options.url,
        options.model,
        options.model_version,
        label=options.model_label,
        timeout=options.timeout,
        retries=options.retries,
        api_key=os.environ.get("MAGNETIC_TILES_API_KEY"),  # other users can see the command line
        ca_file=options.ca_file,
        **settings,
    )


def predict(client: TileClient, options: argparse.Namespace) -> int:
    """Predicts images, or all that a folder gets."""
    with ExitStack() as stack:
        results = None
        if options.out is not None:
            in_mm = options.mm_per_pixel is not None
            results = stack.enter_context(Results(options.out, in_mm=in_mm))
        job = Job(client, results, mm_per_pixel=options.mm_per_pixel, again=options.force)
        if options.watch is not None and results is not None:
            return _watch(job, results, options)
        return _batch(job, results, options)


def status(client: TileClient, options: argparse.Namespace) -> int:
    """Prints the versions of the model, or the one that is named; error if none of them is available."""
    versions = client.status()
    named = client.version if client.label is None else client.current_version()
    if named is not None:
        there = ", ".join(str(version.version) for version in versions)
        versions = [version for version in versions if version.version == named] or [
            VersionStatus(named, "UNKNOWN", f"there: {there}")
        ]
    print(f"{client.model} at {client.url}")
    for version in versions:
        print(f"  {version.version}  {version.state}  {version.error}".rstrip())
    return NO_DEFECT if any(version.state == AVAILABLE for version in versions) else ERROR


def doctor(client: TileClient, options: argparse.Namespace) -> int:
    """Prints what it finds about a server; error if anything failed."""
    failed = False
    for check in examine(client):
        failed |= check.state == "failed"
        report.print_check(check)
    return ERROR if failed else NO_DEFECT


def _batch(job: Job, results: Results | None, options: argparse.Namespace) -> int:
    names = Names(results.names if results else None)
    inputs = collect(options.images, without=options.out, names=names)
    summary = report.Summary()
    for outcome in report.progress(ordered_map(job.do, inputs, options.concurrency), len(inputs)):
        job.record(outcome)
        summary.add(outcome)
        if options.json:
            _print_json(outcome, options.out)
        elif outcome.error:
            report.warn(f"{outcome.image}: {outcome.error}")
    if not options.json:
        summary.print(options.out, in_mm=options.mm_per_pixel is not None)
    if summary.errors:
        return ERROR
    return DEFECTS_FOUND if summary.defective and not options.exit_zero else NO_DEFECT


def _watch(job: Job, results: Results, options: argparse.Namespace) -> int:
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    stop = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        if stop.is_set():  # asked twice
            raise KeyboardInterrupt
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    print(f"watching {options.watch}; ^C ends", file=sys.stderr)
    summary = report.Summary()
    for outcome in follow(options.watch, job, results, stop, concurrency=options.concurrency):
        summary.add(outcome)
        if options.json:
            _print_json(outcome, options.out)
        else:
            print(report.as_line(outcome), flush=True)
    print(
        f"ended: {summary.tiles:,} tiles done, {summary.defective:,} with defects; "
        f"{summary.errors:,} could not be used; all is in {options.out}",
        file=sys.stderr,
    )
    return NO_DEFECT


def _print_json(outcome: Outcome, out: Path | None) -> None:
    document = outcome.document
    if out is not None:
        document |= {key: str(out / document[key]) for key in ("mask", "overlay") if key in document}
    print(json.dumps(document), flush=True)
