"""The index of the data, `tiles.csv`: one row an image, and which images show the same tile.

The real set has each tile under up to six exposures, named `exp<E>_num_<M>.jpg`: the number
was counted up while a tile went through its exposures, so that images of one tile follow each
other in `num` with ascending `exp`. A tile therefore starts anew where the exposure does not
ascend, or the number jumps by `MAX_GAP` or more. Class folders are looked at together,
since some tiles are good under one exposure and defective under another.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from stages.errors import StageError

__all__ = [
    "CLASSES",
    "GOOD_CLASS",
    "Tile",
    "data_version",
    "group_exposures",
    "prediction_path",
    "read_tiles",
    "write_tiles",
]

GOOD_CLASS = "Free"
CLASSES = ("Blowhole", "Break", "Crack", "Fray", "Uneven", GOOD_CLASS)

EXPOSURE_NAME = re.compile(r"exp(\d+)_num_(\d+)$")
OWN_NAME = re.compile(r"([^/]+)_exp(\d+)$")
MAX_GAP = 400


@dataclass(frozen=True)
class Tile:
    """One image of a tile, a row of `tiles.csv`.

    Attributes:
        image: path of the image, relative to the index.
        mask: path of the mask, relative to the index.
        class_: class of the folder the image came in.
        exposure: number of the exposure, 0 where the name has none.
        number: running number in the name, 0 where the name has none.
        tile: identity of the tile; images that share it show the same piece.
        width: pixels.
        height: pixels.
        defect_pixels: pixels of the mask above 0.
        image_sha256: of the image file.
        mask_sha256: of the mask file.
    """

    image: str
    mask: str
    class_: str
    exposure: int
    number: int
    tile: str
    width: int
    height: int
    defect_pixels: int
    image_sha256: str
    mask_sha256: str

    @property
    def key(self) -> str:
        """`<Class>/<name>`, without suffix."""
        return self.mask.removeprefix("masks/").removesuffix(".png")


COLUMNS = [field.name.rstrip("_") for field in fields(Tile)]
INTEGERS = ("exposure", "number", "width", "height", "defect_pixels")


def exposure_of(name: str) -> tuple[int, int]:
    """Exposure and number of a name without suffix, each 0 where it has none."""
    if match := EXPOSURE_NAME.search(name):
        return int(match[1]), int(match[2])
    own = OWN_NAME.search(name)
    return int(own[2]) if own else 0, 0


def group_exposures(names: Iterable[str]) -> dict[str, str]:
    """Finds out which images show the same tile.

    Args:
        names: `<Class>/<name>` without suffix, in any order.

    Returns:
        Identity of the tile for each name. Names without exposure are a tile each; with
        `<tile>_exp<E>` they share the part before `_exp`.
    """
    tiles: dict[str, str] = {}
    numbered = []
    for name in sorted(names):
        stem = name.rpartition("/")[2]
        if EXPOSURE_NAME.search(stem):
            exposure, number = exposure_of(stem)
            numbered.append((number, exposure, name))
        else:
            own = OWN_NAME.search(stem)
            tiles[name] = own[1] if own else name
    previous: tuple[int, int] | None = None
    current = ""
    for number, exposure, name in sorted(numbered):
        if previous is None or exposure <= previous[1] or number - previous[0] >= MAX_GAP:
            current = f"tile{number:06d}"
        tiles[name] = current
        previous = (number, exposure)
    return tiles


def write_tiles(path: Path, tiles: Iterable[Tile]) -> None:
    """Writes rows, sorted by image, to a CSV file that is the same for the same rows."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(asdict(tile).values() for tile in sorted(tiles, key=lambda tile: tile.image))


def read_tiles(path: Path) -> list[Tile]:
    """Reads the rows of `tiles.csv` or of a split.

    Raises:
        StageError: if the file is missing or has other columns.
    """
    try:
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames != COLUMNS:
                raise StageError(f"{path} has columns {reader.fieldnames}, expected {COLUMNS}")
            return [_row(row) for row in reader]
    except FileNotFoundError as error:
        raise StageError(f"no {path}; run `dvc repro data_split`") from error


def data_version(path: Path) -> str:
    """SHA-256 of an index: it names every image and mask with its own hash."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def prediction_path(folder: Path, tile: Tile) -> Path:
    """Where the probability image of a tile is kept; its mask follows from the threshold."""
    return folder / Path(tile.mask).relative_to("masks")


def select(tiles: Sequence[Tile], chosen: Iterable[int]) -> list[Tile]:
    """Rows at the given positions, in the order of the index."""
    return [tiles[index] for index in sorted(chosen)]


def _row(row: dict[str, str]) -> Tile:
    values: dict[str, str | int] = {
        name if name != "class" else "class_": int(value) if name in INTEGERS else value
        for name, value in row.items()
    }
    return Tile(**values)  # type: ignore[arg-type]
