"""Pipeline, start-up, and how they grow with the data: python -m benchmarks.pipeline

Draws archives of --images tiles times each of --scales, and runs each step as its own process, so that
its peak of memory is its own. With --archive also on the real tiles.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.models import NAME, exported_model, model_folder, spread, tile_file
from benchmarks.timing import measure
from serving.client import TileClient
from serving.up import running_server
from stages.params import SyntheticParams
from stages.synthetic import write_synthetic
from tests.clone import ROOT, Clone

__all__ = ["main"]

SIDE = 96
EXPOSURES = 6
DEFECTS = 0.3
"""Share of images with a defect, as in the public set."""


def main(argv: list[str] | None = None) -> int:
    """Prints the tables; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pipeline", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--model_base_path", type=model_folder, metavar="DIR", help="default: random weights")
    add("--archive", type=Path, metavar="ZIP", help="the real tiles")
    add("--images", type=int, default=1344, metavar="N", help="of scale 1 (default: 1344, as the real set)")
    add("--scales", type=int, nargs="+", default=[1, 10], metavar="N", help="default: 1 10; 100 takes hours")
    add("--rounds", type=int, default=10, metavar="N", help="of a training step (default: 10)")
    args = parser.parse_args(argv)
    if args.archive and not args.archive.exists():
        parser.error(f"no {args.archive}")
    with exported_model(args.model_base_path) as base_path, tempfile.TemporaryDirectory() as folder:
        _print_start(base_path)
        print("\nimages  step                        wall      CPU   peak memory")
        archives = [(args.archive.resolve(), Path(folder, "real"))] if args.archive else []
        for scale in args.scales:
            place = Path(folder, str(scale))
            archives.append((_draw(args.images * scale, place / "drawn"), place))
        for archive, place in archives:
            _print_growth(
                archive, Clone.of_project(place / "project", {"data_load": {"source": str(archive)}})
            )
        _print_step(place / "project", args.rounds)
    return 0


def _print_start(base_path: Path) -> None:
    print("start                               wall")
    start = time.perf_counter()
    with running_server(base_path, NAME) as url, TileClient(url, NAME) as client:
        client.predict(tile_file())
        print(f"server, to its first answer     {time.perf_counter() - start:6.2f} s")
        with tempfile.TemporaryDirectory() as folder:
            tile = Path(folder, "tile.jpg")
            tile.write_bytes(tile_file())
            predict = ["predict", str(tile), "--url", url, "--model", NAME, "--exit-zero"]
            for command in (["--help"], predict):
                wall, _, peak = _run(["-m", "serving.client", *command], ROOT)
                print(f"client, {command[0]:22}  {wall:6.2f} s, {peak:.0f} MB", flush=True)


def _draw(images: int, folder: Path) -> Path:
    """A folder of tiles in the public set's layout."""
    defects = max(1, round(images * DEFECTS / EXPOSURES / 5))
    good = max(1, math.ceil(images / EXPOSURES) - 5 * defects)
    params = SyntheticParams(
        tiles_per_class=defects, good_tiles=good, exposures=EXPOSURES, height=SIDE, width=SIDE, seed=1
    )
    write_synthetic(params, folder)
    return folder


def _print_growth(archive: Path, project: Clone) -> None:
    steps: Mapping[str, list[str]] = {
        "data_load": ["-m", "stages.data_load"],
        "data_split": ["-m", "stages.data_split"],
        "load_examples": ["-c", _LOAD],
        "dvc repro, the same anew": ["-m", "dvc", "repro", "-q", "data_split"],
        "dvc repro, nothing to do": ["-m", "dvc", "repro", "-q", "data_split"],
    }
    for name, command in steps.items():
        wall, cpu, peak = _run(command, project.folder)
        count = len((project.folder / "data/tiles/tiles.csv").read_text().splitlines()) - 1
        print(f"{count:6}  {name:24} {wall:6.1f} s {cpu:6.1f} s {peak:10.0f} MB", flush=True)


MAKE_REAL = {
    "backbone": "efficientnet_lite0",
    "backbone_weights": "none",  # they cost the same
    "decoder_filters": (128, 64, 32, 16, 16),
    "image_size": (320, 512),
}

_LOAD = """
from pathlib import Path
from stages.dataset import load_examples
from stages.tiles import read_tiles
load_examples(Path("data/tiles"), read_tiles(Path("data/split/train.csv")), (128, 128))
"""
"""What `train` holds in memory."""


def _print_step(project: Path, rounds: int) -> None:
    """The part of a step of `train` that makes its batch, with the network and the size of `make real`."""
    from stages.dataset import load_examples
    from stages.fitting import compile_model
    from stages.model import build_unet
    from stages.params import load_params
    from stages.tiles import read_tiles
    from stages.train import training_batches

    params = load_params().train.model_copy(update=MAKE_REAL)
    tiles = spread(read_tiles(project / "data/split/train.csv"), 256)
    examples = load_examples(project / "data/tiles", tiles, params.image_size)
    batches = training_batches(params, examples)
    model = build_unet(params)
    compile_model(model, params, params.learning_rate, 1000, 0)
    constant, places = batches[0], itertools.cycle(range(len(batches) - 1))
    times = measure(
        {"batch": lambda: batches[next(places)], "step": lambda: model.train_on_batch(*constant)},
        rounds,
    )
    batch, step = times["batch"], times["step"]
    height, width = params.image_size
    print(
        f"\ntraining, {params.backbone}, {height} x {width}, batches of {params.batch_size}: "
        f"batch {1000 * batch.cpu:.0f} ms CPU, forward and backward {1000 * step.cpu:.0f} ms CPU: "
        f"{batch.cpu / (batch.cpu + step.cpu):.1%} of a step is input"
    )


def _run(arguments: list[str], folder: Path) -> tuple[float, float, float]:
    """Runs Python; returns seconds by the clock and of CPU, and the peak of memory in MB."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # dvc.yaml says `python`
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(folder), "TF_CPP_MIN_LOG_LEVEL": "3"}
    start = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=folder, env=environment, stdout=output, stderr=output
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise RuntimeError(f"{' '.join(arguments)} failed: {output.read().decode()[-2000:]}")
    wall = time.perf_counter() - start
    per_mb = 2**20 if sys.platform == "darwin" else 2**10
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / per_mb


if __name__ == "__main__":
    sys.exit(main())
