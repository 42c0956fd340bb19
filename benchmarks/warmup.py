"""What warm-up requests are worth: python -m benchmarks.warmup

Starts a server for a model with its warm-up requests and one for the same model without, and prints how
long their first and tenth requests took. Starts each server --rounds times and takes the medians.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.models import NAME, exported_model, model_folder, tile_file
from serving.client import TileClient
from serving.up import BACKENDS, running_server
from stages.export import latest_version

__all__ = ["main"]

REQUESTS = 10
WARMUP = Path("assets.extra", "tf_serving_warmup_requests")


def main(argv: list[str] | None = None) -> int:
    """Prints one line with and one without warm-up; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.warmup", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add(
        "--model_base_path", type=model_folder, metavar="DIR", help="default: the network with random weights"
    )
    add("--backend", default="auto", choices=("auto", *BACKENDS), help="default: auto")
    add("--rounds", type=int, default=3, metavar="N", help="default: 3")
    args = parser.parse_args(argv)
    with exported_model(args.model_base_path) as base_path, tempfile.TemporaryDirectory() as folder:
        cold = Path(folder, NAME)
        newest = latest_version(base_path)
        shutil.copytree(newest, cold / newest.name, ignore=shutil.ignore_patterns(WARMUP.name))
        print("warm-up      first    tenth   first / tenth")
        for name, path in (("with", base_path), ("without", cold)):
            rounds = [_times(path, args.backend) for _ in range(args.rounds)]
            first, tenth = (statistics.median(times[index] for times in rounds) for index in (0, -1))
            print(f"{name:10}  {first:4.0f} ms  {tenth:4.0f} ms   {first / tenth:13.2f}", flush=True)
    return 0


def _times(base_path: Path, backend: str) -> list[float]:
    """Milliseconds that each of the first requests took that a server ever got."""
    data, times = tile_file(), []
    with running_server(base_path, NAME, backend=backend) as url, TileClient(url, NAME) as client:
        client.status()  # connects, so that the first request is as the others
        for _ in range(REQUESTS):
            start = time.perf_counter()
            client.predict(data)
            times.append(1000 * (time.perf_counter() - start))
    return times


if __name__ == "__main__":
    sys.exit(main())
