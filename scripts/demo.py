"""The main job on synthetic tiles, from nothing to defects found by a server: `make demo`.

It works in `demo/`, a git repository of its own with a copy of the project, so that data,
models and experiments of the checkout stay as they are.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

from PIL import Image

from scripts.montage import montage
from serving.up import running_server
from stages.own import start_anew
from stages.tiles import Tile, read_tiles

ROOT = Path(__file__).resolve().parent.parent
WORKSPACE = ROOT / "demo"
SETTINGS = (
    "data_load.source=synthetic",
    "pretrain.steps=0",
    "pretrain.weights=pretrained/slim18.weights.h5",
    "train.backbone=slim18",
    "train.backbone_weights=none",
    "train.image_size=[96,96]",
    "train.decoder_filters=[128,64,32,16,16]",
    "train.learning_rate=0.001",
    "train.epochs=5",
)
TILES_PER_CLASS = 2
NAME = "magnetic-tiles"

NEXT = """\
Look:   {overlays}
        {pictures}/
Next, from the root of the project, after `source .venv/bin/activate`:
  make real DATA=<zip or folder>     train on real tiles (README, "Real data")
  python -m serving.up --model_base_path {models}
                                     serve this model; with Docker, TensorFlow Serving does it
  python -m serving.client predict demo/data/tiles/images --out found
  cd demo && dvc exp run -S train.epochs=10 && dvc exp show --only-changed
"""


def main() -> int:
    """Runs the demo; returns the exit code."""
    argparse.ArgumentParser(
        prog="python -m scripts.demo",
        description=__doc__,
        epilog="A second run keeps what has not changed; delete demo/ to start anew.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    start = time.monotonic()
    _step(1, "copying the project to demo/, a git repository of its own")
    _make_workspace()
    _step(2, "dvc exp run: synthetic tiles, split, training, evaluation, export, validation")
    _run(sys.executable, "-m", "dvc", "exp", "run", *(flag for value in SETTINGS for flag in ("-S", value)))
    models = WORKSPACE / "models" / NAME
    _step(3, f"serving {models.relative_to(ROOT)}, and asking about test tiles")
    chosen = [WORKSPACE / "data/tiles" / tile.image for tile in _some_of_each_class()]
    pictures = WORKSPACE / "predictions"
    shutil.rmtree(pictures, ignore_errors=True)
    images = [str(path.relative_to(WORKSPACE)) for path in chosen]
    with running_server(models, NAME) as url:
        client = (sys.executable, "-m", "serving.client", "predict", "--url", url, "--exit-zero")
        _run(*client, "--out", "predictions", *images)
    overlays = WORKSPACE / "overlays.png"
    montage([Image.open(path) for path in sorted(pictures.rglob("*_overlay.png"))]).save(overlays)
    metrics = json.loads((WORKSPACE / "results/evaluate/metrics.json").read_text())
    print(
        f"\nOn {metrics['images']} synthetic test tiles: Dice {metrics['dice_pooled']:.2f}, "
        f"{metrics['component_recall']:.0%} of the defects found, "
        f"{metrics['false_alarm_rate']:.0%} false alarms on good tiles ({time.monotonic() - start:.0f} s)\n"
    )
    print(
        NEXT.format(
            overlays=overlays.relative_to(ROOT),
            pictures=pictures.relative_to(ROOT),
            models=models.relative_to(ROOT),
        )
    )
    return 0


def _step(number: int, text: str) -> None:
    print(f"\n[{number}/3] {text}", flush=True)


def _run(*command: str) -> None:
    # Packages and `python` of this environment, also for the commands that DVC starts.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    subprocess.run(command, cwd=WORKSPACE, env={**os.environ, "PATH": path}, check=True)


def _make_workspace() -> None:
    """Brings the copy up to date, and keeps what earlier demos computed there."""
    listing = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    try:
        names = subprocess.run(listing, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    except subprocess.CalledProcessError:
        sys.exit(f"error: git can't list {ROOT}, see above; the demo needs a git clone of the project")
    kept = ("data/", "dvc.lock", "environment.txt", "results/")  # of the demo's own data
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file() and not name.startswith(kept):
            (WORKSPACE / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, WORKSPACE / name)
    if not (WORKSPACE / "data/own.sha256").exists():
        start_anew(WORKSPACE / "data")
    who = ("-c", "user.name=demo", "-c", "user.email=demo@localhost", "-c", "commit.gpgsign=false")
    if not (WORKSPACE / ".git").exists():
        _run("git", "init", "--quiet")
    _run("git", "add", "--all")
    _run("git", *who, "commit", "--quiet", "--allow-empty", "--message", "The project, as the demo found it")


def _some_of_each_class() -> list[Tile]:
    by_class: dict[str, list[Tile]] = defaultdict(list)
    for tile in read_tiles(WORKSPACE / "data/split/test.csv"):
        by_class[tile.class_].append(tile)
    return [tile for _, tiles in sorted(by_class.items()) for tile in tiles[:TILES_PER_CLASS]]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        sys.exit(f"error: the demo stopped, `{' '.join(map(str, error.cmd[:6]))} ...` failed; see above")
    except KeyboardInterrupt:
        sys.exit(130)
