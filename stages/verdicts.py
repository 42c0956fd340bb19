"""What evaluation says of each test image and of each defect: the tables `images.csv` and `defects.csv`."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields

from pydantic import TypeAdapter

from serving.postprocessing import DEFECT, GOOD
from stages.metrics import PixelCounts, size_of
from stages.tiles import Tile

__all__ = ["DefectRow", "ImageRow", "as_csv", "defect_rows", "image_row", "read_image_rows"]


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
