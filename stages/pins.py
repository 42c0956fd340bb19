"""`data/pins.csv`: what is settled of an image: the side of the split it is on, or that it is deleted.

Git keeps it. `data_split` puts pinned images where they were and divides the rest, so that what
has judged models goes on doing so. `stages.data_add` and `stages.data_delete` write it before
they change anything; `python -m stages.pins` alone pins the present split, before a change of
another kind. Images are known by their SHA-256: another name or class is no other picture.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from ruamel.yaml import YAML

from stages.errors import StageError, run_command
from stages.tiles import Tile, read_tiles

__all__ = [
    "SIDES",
    "Pin",
    "deleted_images",
    "pinned_sides",
    "present_split",
    "read_pins",
    "settle",
    "was_made",
    "write_pins",
]

log = logging.getLogger(__name__)

SIDES = ("train", "val", "test")
"""In ascending order of strictness: where two are claimed, the later one holds."""


@dataclass(frozen=True)
class Pin:
    """What is settled of an image, a row of `pins.csv`.

    Attributes:
        image: `<Class>/<name>` when it was last seen.
        image_sha256: of the image file; what it is known by.
        side: one of `SIDES`, empty where there was no split yet.
        deleted: `yes` or empty; the side stays known, should the image come back.
    """

    image: str
    image_sha256: str
    side: str = ""
    deleted: str = ""


COLUMNS = [field.name for field in fields(Pin)]
Pins = dict[str, Pin]
"""Pins by the SHA-256 of their image."""


def read_pins(path: Path) -> Pins:
    """Reads the pins.

    Raises:
        StageError: if the file is missing, or a row is none of it.
    """
    try:
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames != COLUMNS:
                raise StageError(f"{path} has columns {reader.fieldnames}, expected {COLUMNS}")
            rows = [Pin(**{name: row[name] or "" for name in COLUMNS}) for row in reader]
    except FileNotFoundError as error:
        raise StageError(f"no {path}; `git checkout -- {path}` brings it back") from error
    for number, pin in enumerate(rows, start=2):
        if pin.side not in ("", *SIDES) or pin.deleted not in ("", "yes") or len(pin.image_sha256) != 64:
            raise StageError(
                f"{path}, line {number}: side is {', '.join(SIDES)} or empty, deleted is yes or empty"
            )
    return {pin.image_sha256: pin for pin in rows}


def write_pins(path: Path, pins: Mapping[str, Pin]) -> None:
    """Writes the pins, sorted by image, in one step."""
    scratch = path.with_name(f".{path.name}")
    with scratch.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        rows = sorted(pins.values(), key=lambda pin: (pin.image, pin.image_sha256))
        writer.writerows(asdict(pin).values() for pin in rows)
    os.replace(scratch, path)


def pinned_sides(pins: Mapping[str, Pin]) -> dict[str, str]:
    """Side by SHA-256 of the image, where it is settled."""
    return {digest: pin.side for digest, pin in pins.items() if pin.side}


def deleted_images(pins: Mapping[str, Pin]) -> dict[str, str]:
    """`<Class>/<name>` by SHA-256 of what is deleted."""
    return {digest: pin.image for digest, pin in pins.items() if pin.deleted}


def settle(pins: Mapping[str, Pin], sides: Mapping[str, Iterable[Tile]]) -> Pins:
    """Adds a split to the pins. An image that is pinned elsewhere goes to the stricter side."""
    settled = dict(pins)
    for side, tiles in sides.items():
        for tile in tiles:
            old = settled.get(tile.image_sha256, Pin(tile.key, tile.image_sha256))
            strict = max(side, old.side or side, key=SIDES.index)
            settled[tile.image_sha256] = replace(old, image=tile.key, side=strict)
    return settled


def present_split(data: Path) -> dict[str, list[Tile]]:
    """Rows of `data/split` by side; none if there has been no split yet.

    Raises:
        StageError: if there has been one that is not here, or it was made at random.
    """
    split = data / "split"
    if not was_made(split, "data_split"):
        return {}
    if json.loads((split / "summary.json").read_text())["strategy"] != "grouped":
        raise StageError(
            f"{split} was made by data_split.strategy=random and leaks; it can't be pinned. "
            "`dvc repro data_split` with strategy grouped first"
        )
    return {side: read_tiles(split / f"{side}.csv") for side in SIDES}


def was_made(out: Path, stage: str) -> bool:
    """Whether the output of a stage is here; False if the stage has never run.

    Args:
        out: path of the output, or of a file in it, two levels or more below the root of the project.
        stage: name of the stage.

    Raises:
        StageError: if the stage has run, but its output is not here.
    """
    if out.exists():
        return True
    locks = [folder / "dvc.lock" for folder in out.parents if (folder / "dvc.lock").exists()]
    if locks and stage in YAML(typ="safe").load(locks[0]).get("stages", {}):
        raise StageError(f"no {out}, though its stage has run; `dvc pull --with-deps data_split` first")
    return False


def main() -> None:
    """Pins the present split."""
    argparse.ArgumentParser(
        prog="python -m stages.pins",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    run_command(_pin)


def _pin() -> None:
    data = Path("data")
    pins = settle(read_pins(data / "pins.csv"), present_split(data))
    write_pins(data / "pins.csv", pins)
    log.info("data/pins.csv holds %d images on their sides", len(pinned_sides(pins)))


if __name__ == "__main__":
    main()
