"""Scoring a folder: a loop, client and server, 1 to N workers: python -m benchmarks.batch

Each reads the same tiles from disk, finds their defects and writes their masks. `start` is the time until the
first tile is done; the rest is of the second half of the tiles, when all workers are up.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import psutil

from benchmarks.models import NAME, exported_model, jpeg_files, model_folder, spread, tile_file
from benchmarks.timing import core_count

__all__ = ["main"]

CONCURRENCY = 4
"""Requests in flight, the client's default."""

BATCH = 8
"""Tiles that a worker gets at once."""


def main(argv: list[str] | None = None) -> int:
    """Prints one line for each way; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batch", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add(
        "--model_base_path", type=model_folder, metavar="DIR", help="default: the network with random weights"
    )
    add("--tiles", type=int, default=256, metavar="N", help="default: 256")
    add("--images", type=jpeg_files, metavar="DIR", help="JPEG files, again and again (default: drawn noise)")
    add("--workers", type=int, nargs="+", default=[1, 2], metavar="N", help="default: 1 2")
    add("--rounds", type=int, default=1, metavar="N", help="of which medians are taken (default: 1)")
    args = parser.parse_args(argv)
    if args.tiles < 2 * BATCH:
        parser.error(f"--tiles must be at least {2 * BATCH}: a batch until the start, and one to measure")
    with exported_model(args.model_base_path) as base_path, tempfile.TemporaryDirectory() as folder:
        tiles = Path(folder, "tiles")
        tiles.mkdir()
        for number, data in zip(range(args.tiles), _tiles(args.images, args.tiles), strict=False):
            (tiles / f"{number:06}.jpg").write_bytes(data)
        ways: dict[str, Callable[[Path, Path, Path], Iterator[int]]] = {
            "loop, all cores": _loop,
            "client and server": _client,
            **{f"{n} worker{'s' * (n > 1)}": partial(_batch, workers=n) for n in args.workers},
        }
        times: dict[str, list[tuple[float, ...]]] = {name: [] for name in ways}
        for _ in range(args.rounds):
            for name, way in ways.items():
                with tempfile.TemporaryDirectory(dir=folder) as out:
                    times[name].append(_measure(way(base_path, tiles, Path(out)), args.tiles))
        medians = {
            name: [*map(statistics.median, zip(*rounds, strict=True))] for name, rounds in times.items()
        }
        rates = [rate for _, rate, _ in medians.values()]
        print(f"{core_count()} cores, {args.tiles} tiles, {args.rounds} round(s)")
        print(f"{'':18}  start  tiles/s  of the loop  of {args.workers[0]} worker(s)  CPU a tile")
        for name, (start, rate, cpu) in medians.items():
            ratios = f"{rate / rates[0]:12.2f} {rate / rates[2]:16.2f}"
            print(f"{name:18} {start:4.0f} s {rate:8.1f} {ratios} {1000 * cpu:8.0f} ms")
    return 0


def _tiles(images: list[Path] | None, count: int) -> Iterator[bytes]:
    if images is None:
        return map(tile_file, itertools.count())
    return (path.read_bytes() for path in itertools.cycle(spread(images, count)))


def _measure(done: Iterator[int], total: int) -> tuple[float, float, float]:
    """Seconds until the first tile is done; from half of them on, tiles a second and CPU seconds a tile."""
    begin = now = time.perf_counter()
    start, count, half, since, cpu, used = 0.0, 0, 0, 0.0, 0.0, 0.0
    for new in done:
        now = time.perf_counter()
        start = start or now - begin
        count += new
        if not half and count >= total / 2:
            half, since, cpu = count, now, _cpu_seconds()
        elif count == total:  # while the processes are there
            used = _cpu_seconds() - cpu
    # Up to the last tile: after it, Ray or the server is shut down.
    return start, (count - half) / (now - since), used / (count - half)


def _cpu_seconds() -> float:
    """Of this process and all below it."""
    this = psutil.Process()
    times = [one.cpu_times() for one in (this, *this.children(recursive=True))]
    return float(sum(one.user + one.system for one in times))


def _loop(base_path: Path, tiles: Path, out: Path) -> Iterator[int]:
    """What one writes first: a model, a loop."""
    from serving.batch.scorer import pixels
    from serving.local.model import Model
    from serving.postprocessing import find_defects

    model = Model(_version(base_path))
    for path in sorted(tiles.iterdir()):
        files = np.array([path.read_bytes()], np.object_)
        answer = model.predict("segment", {"image_bytes": files})
        (out / f"{path.stem}.png").write_bytes(answer["mask_bytes"][0])
        find_defects(pixels(answer["mask_bytes"][0]), pixels(answer["probability_bytes"][0]))
        yield 1
    model.close()


def _client(base_path: Path, tiles: Path, out: Path) -> Iterator[int]:
    from serving.client import TileClient
    from serving.client.inputs import collect
    from serving.client.job import Job
    from serving.client.ordered import ordered_map
    from serving.client.results import Results
    from serving.up import running_server

    with running_server(base_path, NAME) as url, TileClient(url, NAME) as client, Results(out) as results:
        job = Job(client, results)
        for outcome in ordered_map(job.do, collect([str(tiles)]), CONCURRENCY):
            job.record(outcome)
            yield 1


def _batch(base_path: Path, tiles: Path, out: Path, workers: int) -> Iterator[int]:
    from serving.batch.job import connected, score
    from serving.batch.model import ExportedModel
    from serving.batch.results import Results
    from serving.batch.scorer import Settings
    from serving.batch.storage import Folder

    source, folder = Folder.of(str(tiles)), Folder.of(str(out))
    model = ExportedModel.load(Folder.of(str(base_path)))
    results = Results(folder, {"version": model.version, "threshold": model.threshold})
    images = source.images(without=folder)
    results.begin(images)
    settings = Settings(source, folder, None, batch_size=BATCH, threads=1)
    with connected(None, workers, sum(map(len, model.files.values()))):
        done = score(images, model.files, settings, results, workers=workers, gpus=0, seconds=30.0)
        yield from map(len, done)


def _version(base_path: Path) -> Path:
    return max(base_path.glob("*/saved_model.pb"), key=lambda path: int(path.parent.name)).parent


if __name__ == "__main__":
    sys.exit(main())
