"""What evaluation says of each test image, each defect and each tile: `images.csv`, `defects.csv`, exposures.

Free of Keras, so that a report of what has been evaluated is there at once.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from serving.postprocessing import DEFECT, GOOD
from stages.tiles import Tile

if TYPE_CHECKING:
    from stages.metrics import PixelCounts

__all__ = [
    "SIZES",
    "DefectRow",
    "Exposures",
    "ImageRow",
    "as_csv",
    "compare_exposures",
    "defect_rows",
    "image_row",
    "read_image_rows",
    "size_of",
]

SIZES = {"1-9": 1, "10-99": 10, "100-999": 100, "1000-9999": 1_000, "10000+": 10_000}
"""Sizes of defects, in pixels of the tile as photographed, and the least area of each."""


@dataclass(frozen=True)
class ImageRow:
    """One test image after it was compared with its mask.

    Attributes:
        image: path of the image, relative to the data.
        class_: of its folder.
        tile: identity of the tile.
        exposure: number of the exposure.
        truth: `defect` if the true mask has any pixel, else `good`.
        answer: the same for the mask that was found.
        score: largest probability, 0-1.
        dice: of its pixels.
        wrong: share of its pixels that are wrong, 0-1.
        found: defects found.
        missed: defects missed.
        false: predicted defects that touch none.
    """

    image: str
    class_: str
    tile: str
    exposure: int
    truth: str
    answer: str
    score: float
    dice: float
    wrong: float
    found: int
    missed: int
    false: int


@dataclass(frozen=True)
class DefectRow:
    """One defect, true or predicted.

    Attributes:
        image: path of the image, relative to the data.
        class_: of the image's folder.
        outcome: `found`, `missed` or `false`.
        area: pixels; of the true defect, or of the predicted one if false.
        size: name in `SIZES`.
    """

    image: str
    class_: str
    outcome: str
    area: int
    size: str


def image_row(tile: Tile, pixels: PixelCounts, areas: Mapping[str, Sequence[int]], score: float) -> ImageRow:
    """The row of an image.

    Args:
        tile: the image.
        pixels: counted on it.
        areas: of `component_areas`.
        score: largest probability, 0-1.
    """
    return ImageRow(
        image=tile.image,
        class_=tile.class_,
        tile=tile.tile,
        exposure=tile.exposure,
        truth=DEFECT if pixels.tp + pixels.fn else GOOD,
        answer=DEFECT if pixels.tp + pixels.fp else GOOD,
        score=round(score, 4),
        dice=round(pixels.dice, 4),
        wrong=round((pixels.fp + pixels.fn) / (tile.width * tile.height), 6),
        found=len(areas["found"]),
        missed=len(areas["missed"]),
        false=len(areas["false"]),
    )


def defect_rows(tile: Tile, areas: Mapping[str, Sequence[int]]) -> list[DefectRow]:
    """The rows of an image's defects, `areas` as `component_areas` gives them."""
    return [
        DefectRow(tile.image, tile.class_, outcome, area, size_of(area))
        for outcome, of_outcome in areas.items()
        for area in of_outcome
    ]


def as_csv(row_type: type[ImageRow] | type[DefectRow], rows: Sequence[ImageRow | DefectRow]) -> str:
    """A table with a header, also where there is no row."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name.rstrip("_") for field in fields(row_type))
    writer.writerows(asdict(row).values() for row in rows)
    return text.getvalue()


def read_image_rows(text: str) -> list[ImageRow]:
    """Reads `images.csv`.

    Raises:
        pydantic.ValidationError: it has other columns or values.
    """
    rows = [
        {f"{k}_" if k == "class" else k: v for k, v in row.items()}
        for row in csv.DictReader(io.StringIO(text))
    ]
    return TypeAdapter(list[ImageRow]).validate_python(rows)


def size_of(area: int) -> str:
    """The name in `SIZES` of a defect's area, in pixels, at least 1."""
    return [name for name, least in SIZES.items() if area >= least][-1]


@dataclass(frozen=True)
class Exposures:
    """Tiles that were photographed more than once, by the answers to their images.

    Attributes:
        agreeing: all images got one answer, good or defect.
        disagreeing: they got both.
        undecided: the true masks themselves differ, empty and not, so that no one answer is right.
    """

    agreeing: list[str]
    disagreeing: list[str]
    undecided: list[str]

    @property
    def agreement(self) -> float:
        """agreeing / (agreeing + disagreeing); NaN without any such tile."""
        total = len(self.agreeing) + len(self.disagreeing)
        return len(self.agreeing) / total if total else float("nan")


def compare_exposures(images: Iterable[tuple[str, bool, bool]]) -> Exposures:
    """Tells for which tiles the exposure decides the answer.

    Args:
        images: of each image its tile, whether it has a defect, and whether one was found.
    """
    by_tile: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    for tile, there, found in images:
        by_tile[tile].append((there, found))
    exposures = Exposures([], [], [])
    for tile, seen in sorted(by_tile.items()):
        if len({there for there, _ in seen}) > 1:
            exposures.undecided.append(tile)
        elif len(seen) > 1:
            one_answer = len({found for _, found in seen}) == 1
            (exposures.agreeing if one_answer else exposures.disagreeing).append(tile)
    return exposures
