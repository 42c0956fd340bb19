"""Stage `data_load`: images, binary masks and the index `tiles.csv`, from any source, all or nothing.

Images that people added (`data/own`) join those of the source, and take the place of a source's
image that is the same picture. What `data/pins.csv` says is deleted stays out.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from tqdm import tqdm

from stages.errors import StageError, run_stage
from stages.manifest import differences, read_manifest
from stages.pairs import find_pairs, is_mostly_defect, misplaced, problems_error, read_pair
from stages.params import DataLoadParams, load_params
from stages.pins import deleted_images, read_pins
from stages.sources import FolderSource, Source, open_source
from stages.synthetic import write_synthetic
from stages.tiles import GOOD_CLASS, Tile, group_exposures, write_tiles

__all__ = ["data_load"]

log = logging.getLogger(__name__)

MANIFEST = Path(__file__).with_name("manifest.sha256")
PINNED = re.compile(r"Magnetic-tile-defect-datasets\.-cc4eb530b57b9cb7225bf76023873043ffd50655")


def data_load(
    params: DataLoadParams,
    out: Path,
    cache: Path = Path("data/.download"),
    own: Path | None = None,
    deleted: Mapping[str, str] = MappingProxyType({}),
) -> list[Tile]:
    """Loads the tiles into `out`, replacing what is there once everything has been checked.

    Args:
        params: source, threshold of masks, and size of the synthetic set.
        out: folder to write: `images/<Class>/`, `masks/<Class>/`, `tiles.csv`.
        cache: folder for downloads.
        own: folder of images that join those of the source.
        deleted: images to leave out, `<Class>/<name>` by SHA-256. Numbers in their names still
            count: without its first image a tile is the same tile.

    Returns:
        Rows of the index.

    Raises:
        StageError: names all files that are missing, unreadable or mismatched.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    for leftover in out.parent.glob(f".{out.name}-*"):  # of a run that was killed
        shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        source, fresh = params.source, Path(scratch) / "tiles"
        tiles: list[Tile] = []
        problems: list[str] = []
        if own:
            tiles, problems = _load(FolderSource(own), params.mask_threshold, fresh, deleted)
        if source == "synthetic":
            source = f"{scratch}/synthetic"
            write_synthetic(params.synthetic, Path(source))
        if source != "none":
            skipped = {*deleted, *(tile.image_sha256 for tile in tiles)}
            with open_source(source, cache) as files:
                names = files.names()
                if PINNED.search(source) or any(PINNED.match(name) for name in names[:1]):
                    problems += _manifest_problems(files, names)
                else:
                    problems += _misplaced(names)
                found, more = _load(files, params.mask_threshold, fresh, skipped)
            tiles, problems = tiles + found, problems + more
        problems += _contradictions(tiles)
        if problems:
            raise problems_error(problems)
        if not tiles:
            raise StageError("the source has no images; expected MT_<Class>/Imgs/*.jpg or <Class>/*.jpg")
        identities = group_exposures({*deleted.values(), *(tile.key for tile in tiles)})
        tiles = [replace(tile, tile=identities[tile.key]) for tile in tiles]
        tiles.sort(key=lambda tile: tile.image)
        write_tiles(fresh / "tiles.csv", tiles)
        if out.exists():  # moved away in one step, so that never half of it is there
            os.replace(out, Path(scratch) / "old")
        os.replace(fresh, out)
    return tiles


def _load(files: Source, threshold: int, out: Path, skipped: Collection[str]) -> tuple[list[Tile], list[str]]:
    """Writes the images of a source and their masks below `out`; answers their rows, and all problems."""
    pairs, problems = find_pairs(files.names())
    tiles = []
    for pair in tqdm(pairs, desc="checking tiles", unit="tile") if pairs else []:
        try:
            tile, image, mask = read_pair(files, pair, threshold)
        except StageError as error:
            problems.append(str(error))
            continue
        if tile.image_sha256 in skipped:
            continue
        if (out / tile.mask).exists():
            problems.append(f"{pair.image}: another picture in data/own has its name")
        for path, content in ((tile.image, image), (tile.mask, mask)):
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            (out / path).write_bytes(content)
        tiles.append(tile)
    return tiles, problems


def _misplaced(names: Iterable[str]) -> list[str]:
    """Pictures of a source of one's own that nobody would miss before the model did."""
    problems, others = misplaced(names)
    if others:
        log.warning("%d pictures are in no folder of a class and left out, as %s", len(others), others[0])
    return problems


def _contradictions(tiles: Iterable[Tile]) -> Iterator[str]:
    """One picture twice, with different classes or masks."""
    seen: dict[str, Tile] = {}
    for tile in tiles:
        first = seen.setdefault(tile.image_sha256, tile)
        if (first.class_, first.mask_sha256) != (tile.class_, tile.mask_sha256):
            yield f"{tile.key}: the same picture as {first.key}, with another class or mask"


def _manifest_problems(files: Source, names: Sequence[str]) -> list[str]:
    """How the pinned commit's images and masks differ from the manifest."""
    found = {
        name[name.index("MT_") :]: name for name in names if re.search(r"MT_\w+/Imgs/.+\.(jpg|png)$", name)
    }
    return differences(files, found, read_manifest(MANIFEST))


def main() -> None:
    """Runs the stage on params.yaml."""
    params, deleted = load_params().data_load, deleted_images(read_pins(Path("data/pins.csv")))
    tiles = data_load(params, Path("data/tiles"), own=Path("data/own"), deleted=deleted)
    empty = Counter(tile.class_ for tile in tiles if tile.class_ != GOOD_CLASS and not tile.defect_pixels)
    for name, count in empty.items():
        log.warning("%d images of class %s have an empty mask: they train as good ones", count, name)
    if marked := [tile.key for tile in tiles if tile.class_ == GOOD_CLASS and tile.defect_pixels]:
        log.warning(
            "%d images of class %s have a defect in their mask, as %s", len(marked), GOOD_CLASS, marked[0]
        )
    if covered := [tile.key for tile in tiles if is_mostly_defect(tile)]:
        log.warning(
            "%d masks have more than half of the image as defect, as %s: inverted, or a copy of the image?",
            len(covered),
            covered[0],
        )
    classes = ", ".join(f"{name} {count}" for name, count in Counter(tile.class_ for tile in tiles).items())
    pieces = len({tile.tile for tile in tiles})
    log.info("%d images of %d tiles in data/tiles: %s", len(tiles), pieces, classes)


if __name__ == "__main__":
    run_stage(main)
