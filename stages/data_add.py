"""Adds images of your own to the data, or relabels some: `python -m stages.data_add FOLDER`.

FOLDER, or a zip, has `<Class>/name.jpg` and the mask `<Class>/name.png` beside it (or name.png and
name_mask.png); good images, Free, need no mask. Images of one tile are named `<tile>_exp<E>`. All
are checked before one is added. `dvc repro data_split` then divides the new ones: what shows a
piece that is there goes to its side, and what was there stays where it was.

With --relabel they are pictures that are there already, by the same name, and get the class and
mask that they have in FOLDER.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from stages.errors import StageError, run_command
from stages.own import SCRATCH, change_own, known_images, own_files, read_own
from stages.pairs import doubt, find_pairs, misplaced, problems_error, read_pair
from stages.params import load_params
from stages.pins import deleted_images, present_split, read_pins, settle, write_pins
from stages.sources import open_source
from stages.tiles import CLASSES, Tile, group_exposures

__all__ = ["data_add"]

log = logging.getLogger(__name__)


def data_add(source: str, data: Path, threshold: int, *, relabel: bool = False) -> list[Tile]:
    """Puts images into `data/own`, all or none, and pins the split of those that are there.

    Args:
        source: folder or zip of the images.
        data: folder that has `own`, `own.sha256`, `pins.csv`, and what the stages made.
        threshold: a mask pixel is a defect if its grey level is above it, 0-254.
        relabel: whether the images are there already, with another class or mask.

    Returns:
        Rows of the images, in which `tile` takes the images that are there into account.

    Raises:
        StageError: names all problems; nothing has changed then.
    """
    listed = read_own(data)
    known, pins = known_images(data, listed), settle(read_pins(data / "pins.csv"), present_split(data))
    deleted = deleted_images(pins)
    there = {key: digest for key, digest in known.items() if digest not in deleted}
    tiles: list[Tile] = []
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=data) as scratch:
        with open_source(source, data / ".download", "FOLDER") as files:
            pairs, problems = find_pairs(files.names())
            wrong, others = misplaced(files.names())
            problems += wrong
            problems += [
                f"{name}: not in a folder named {', '.join(CLASSES[:-1])} or {CLASSES[-1]}" for name in others
            ]
            for pair in pairs:
                try:
                    tiles.append(read_pair(files, pair, threshold)[0])
                except StageError as error:
                    problems.append(str(error))
                    continue
                for path, name in pair.files.items():
                    (Path(scratch) / path).parent.mkdir(exist_ok=True)
                    (Path(scratch) / path).write_bytes(files.read(name))
        problems += _clashes(tiles, there, relabel)
        added = {tile.image_sha256 for tile in tiles}
        names = {*deleted.values(), *(key for key, digest in there.items() if digest not in added)}
        identities = group_exposures({*names, *(tile.key for tile in tiles)})
        if not relabel:
            problems += _broken_up(names, identities)
        if problems:
            raise problems_error(problems)
        if not tiles:
            raise StageError(f"{source} has no images; expected <Class>/*.jpg, with {', '.join(CLASSES)}")
        # First the pins: by themselves they say no more than the split that is there.
        write_pins(data / "pins.csv", pins)
        old = {path for key, paths in own_files(listed).items() if known[key] in added for path in paths}
        change_own(data, listed, old, Path(scratch))
        back = {digest: replace(pins[digest], deleted="") for digest in added & pins.keys()}
        write_pins(data / "pins.csv", pins | back)
    return [replace(tile, tile=identities[tile.key]) for tile in tiles]


def _clashes(tiles: Sequence[Tile], there: Mapping[str, str], relabel: bool) -> Iterator[str]:
    """Pictures and names that are there already; with `relabel`, those that are not."""
    keys = {digest: key for key, digest in there.items()}
    seen: dict[str, str] = {}
    for tile in tiles:
        old = keys.get(tile.image_sha256)
        if first := seen.get(tile.image_sha256):
            yield f"{tile.key}: the same picture as {first}"
        elif relabel and old is None:
            yield f"{tile.key}: this picture is not there yet; add it without --relabel"
        elif relabel and old and old.partition("/")[2] != tile.key.partition("/")[2]:
            yield f"{tile.key}: this picture is there as {old}; it keeps its name"
        elif old and not relabel:
            yield f"{tile.key}: this picture is there already, as {old}; --relabel changes its class or mask"
        elif there.get(tile.key, tile.image_sha256) != tile.image_sha256:
            yield f"{tile.key}: another picture has this name; give it one of its own"
        seen[tile.image_sha256] = tile.key


def _broken_up(names: Iterable[str], identities: Mapping[str, str]) -> Iterator[str]:
    """Tiles that new numbers, `exp<E>_num_<M>`, would divide in two."""
    if broken := sorted({tile for key, tile in group_exposures(names).items() if identities[key] != tile}):
        yield f"numbers in new names fall into those of {', '.join(broken[:5])}; name images <tile>_exp<E>"


def main() -> None:
    """Adds images, and says what to do next."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.data_add",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", metavar="FOLDER", help="folder or zip of the images")
    parser.add_argument("--relabel", action="store_true", help="they are there; change class and mask")
    options = parser.parse_args()
    run_command(lambda: _add(options.folder, options.relabel))


def _add(folder: str, relabel: bool) -> None:
    tiles = data_add(folder, Path("data"), load_params().data_load.mask_threshold, relabel=relabel)
    for tile in tiles:
        if odd := doubt(tile):
            log.warning("look at %s: %s", tile.key, odd)
    classes = ", ".join(f"{name} {count}" for name, count in Counter(tile.class_ for tile in tiles).items())
    done, pieces = "relabelled" if relabel else "added", len({tile.tile for tile in tiles})
    log.info("%s %d images of %d tiles: %s", done, len(tiles), pieces, classes)
    log.info("next: dvc repro data_split && git add data/own.sha256 data/pins.csv dvc.lock")


if __name__ == "__main__":
    main()
