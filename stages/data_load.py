"""Stage `data_load`: images, binary masks and the index `tiles.csv`, from any source, all or nothing."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from serving.errors import ImageError
from serving.preprocessing import open_image
from stages.errors import StageError, run_stage
from stages.params import DataLoadParams, load_params
from stages.sources import Source, open_source
from stages.synthetic import write_synthetic
from stages.tiles import CLASSES, GOOD_CLASS, Tile, exposure_of, group_exposures, write_tiles

__all__ = ["data_load"]

log = logging.getLogger(__name__)

MANIFEST = Path(__file__).with_name("manifest.sha256")
PINNED = re.compile(r"Magnetic-tile-defect-datasets\.-cc4eb530b57b9cb7225bf76023873043ffd50655")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
# `MT_<Class>/Imgs/name.jpg`, as the real set has it, or `<Class>/name.jpg`.
PLACE = re.compile(rf"(?:^|/)(?:MT_)?({'|'.join(CLASSES)})/(?:Imgs/)?([^/]+)(\.\w+)$")


def data_load(params: DataLoadParams, out: Path, cache: Path = Path("data/.download")) -> list[Tile]:
    """Loads the tiles into `out`, replacing what is there once everything has been checked.

    Args:
        params: source, threshold of masks, and size of the synthetic set.
        out: folder to write: `images/<Class>/`, `masks/<Class>/`, `tiles.csv`.
        cache: folder for downloads.

    Returns:
        Rows of the index.

    Raises:
        StageError: names all files that are missing, unreadable or mismatched.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    for leftover in out.parent.glob(f".{out.name}-*"):  # of a run that was killed
        shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        source = params.source
        if source == "synthetic":
            source = f"{scratch}/synthetic"
            write_synthetic(params.synthetic, Path(source))
        fresh = Path(scratch) / "tiles"
        with open_source(source, cache) as files:
            tiles = _convert(files, params.mask_threshold, fresh, pinned=bool(PINNED.search(source)))
        if out.exists():  # moved away in one step, so that never half of it is there
            os.replace(out, Path(scratch) / "old")
        os.replace(fresh, out)
    return tiles


def _convert(files: Source, threshold: int, out: Path, *, pinned: bool) -> list[Tile]:
    names = files.names()
    pairs, problems = _pair(names)
    if pinned or any(PINNED.match(name) for name in names[:1]):
        problems += _manifest_problems(files, names)
    if not pairs and not problems:
        raise StageError("the source has no images; expected MT_<Class>/Imgs/*.jpg or <Class>/*.jpg")
    identities = group_exposures(pairs)
    tiles = []
    for key, (image, mask) in tqdm(pairs.items(), desc="checking tiles", unit="tile"):
        try:
            tiles.append(_write(files, key, identities[key], image, mask, threshold, out))
        except (ImageError, StageError) as error:
            problems.append(str(error))
    if problems:
        unique = sorted(set(problems))
        raise StageError("\n  ".join([f"{len(unique)} problem(s) in the data:", *unique]))
    tiles.sort(key=lambda tile: tile.image)
    write_tiles(out / "tiles.csv", tiles)
    return tiles


def _pair(names: Sequence[str]) -> tuple[dict[str, tuple[str, str | None]], list[str]]:
    """Image and mask of each `<Class>/<name>`, and what has no partner or two."""
    images: dict[str, list[str]] = defaultdict(list)
    masks: dict[str, str] = {}
    for name in names:
        if match := PLACE.search(name):
            key = f"{match[1]}/{match[2]}"
            if match[3].lower() in IMAGE_SUFFIXES:
                images[key].append(name)
            elif match[3].lower() == ".png":
                masks[key] = name
    problems = [f"{masks[key]}: mask without an image" for key in masks if key not in images]
    problems += [f"{', '.join(paths)}: same name twice" for paths in images.values() if len(paths) > 1]
    problems += [
        f"{paths[0]}: no mask {key.rpartition('/')[2]}.png beside it"
        for key, paths in images.items()
        # A good tile of one's own needs no mask: it would be empty.
        if key not in masks and not key.startswith(f"{GOOD_CLASS}/")
    ]
    pairs = {
        key: (paths[0], masks.get(key))
        for key, paths in sorted(images.items())
        if key in masks or key.startswith(f"{GOOD_CLASS}/")
    }
    return pairs, problems


def _manifest_problems(files: Source, names: Sequence[str]) -> list[str]:
    """How the pinned commit's images and masks differ from the manifest."""
    expected = {
        path: digest for digest, path in (line.split("  ", 1) for line in MANIFEST.read_text().splitlines())
    }
    found = {
        name[name.index("MT_") :]: name for name in names if re.search(r"MT_\w+/Imgs/.+\.(jpg|png)$", name)
    }
    problems = [f"{path}: missing, the manifest has it" for path in expected.keys() - found.keys()]
    problems += [f"{path}: not in the manifest" for path in found.keys() - expected.keys()]
    shared = sorted(expected.keys() & found.keys())
    for path in tqdm(shared, desc="verifying manifest", unit="file"):
        try:
            if hashlib.sha256(files.read(found[path])).hexdigest() != expected[path]:
                problems.append(f"{path}: content differs from the manifest")
        except StageError as error:
            problems.append(str(error))
    return problems


def _write(
    files: Source, key: str, identity: str, image: str, mask: str | None, threshold: int, out: Path
) -> Tile:
    """Checks one pair, writes it below `out`, and answers its row."""
    data = files.read(image)
    width, height = _open(data, image).size
    levels = np.zeros((height, width), np.uint8)
    if mask is not None:
        levels = _mask_levels(files.read(mask), mask)
    if levels.shape != (height, width):
        raise StageError(
            f"{mask}: {levels.shape[1]} x {levels.shape[0]} pixels, its image has {width} x {height}"
        )
    binary = ((levels > threshold) * np.uint8(255)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(binary).save(buffer, "PNG", optimize=False)
    suffix = Path(image).suffix.lower()
    paths = (f"images/{key}{suffix}", f"masks/{key}.png")
    for path, content in zip(paths, (data, buffer.getvalue()), strict=True):
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        (out / path).write_bytes(content)
    exposure, number = exposure_of(key) or (0, 0)
    return Tile(
        image=paths[0],
        mask=paths[1],
        class_=key.partition("/")[0],
        exposure=exposure,
        number=number,
        tile=identity,
        width=width,
        height=height,
        defect_pixels=int(np.count_nonzero(binary)),
        image_sha256=hashlib.sha256(data).hexdigest(),
        mask_sha256=hashlib.sha256(buffer.getvalue()).hexdigest(),
    )


def _open(data: bytes, name: str) -> Image.Image:
    try:
        return open_image(data)
    except ImageError as error:
        raise StageError(f"{name}: {error}") from error


def _mask_levels(data: bytes, name: str) -> NDArray[np.uint8]:
    return np.asarray(_open(data, name).convert("L"), np.uint8)


def main() -> None:
    """Runs the stage on params.yaml."""
    tiles = data_load(load_params().data_load, Path("data/tiles"))
    log.info("%d images of %d tiles in data/tiles", len(tiles), len({tile.tile for tile in tiles}))


if __name__ == "__main__":
    run_stage(main)
