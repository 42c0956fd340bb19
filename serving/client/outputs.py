"""Results of a prediction: JSON, table rows, and pictures on disk, each written whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from serving.client.conversation import Prediction
from serving.client.tile import Tile
from serving.errors import ImageError, ServingError
from serving.overlay import overlay
from serving.postprocessing import PNG_COMPRESSION

__all__ = [
    "COLUMNS",
    "COLUMNS_MM",
    "NO_NAME",
    "as_json",
    "as_rows",
    "picture_paths",
    "replacing",
    "write_pictures",
]

KINDS = ("mask", "overlay")

NO_NAME = (errno.ENAMETOOLONG, errno.EILSEQ)
"""What a file system says of a name that no file can have."""

COLUMNS = (
    *("image", "version", "threshold", "defect", "left", "top", "width", "height"),
    *("area", "area_percent", "centroid_x", "centroid_y", "peak_probability"),
)
"""Of a table of defects; lengths in pixels, `defect` counts those of an image from 1, the largest first."""

COLUMNS_MM = (*("left_mm", "top_mm", "width_mm", "height_mm", "area_mm2", "centroid_x_mm", "centroid_y_mm"),)
"""What is added where the size of a pixel is known."""


def as_json(prediction: Prediction, mm_per_pixel: float | None = None) -> dict[str, Any]:
    """All of a prediction but its images, for `json.dumps`."""
    height, width = prediction.mask.shape
    return {
        "label": prediction.label,
        "score": round(prediction.score, 4),
        "width": width,
        "height": height,
        "version": prediction.version,
        "defects": [
            asdict(defect) | ({} if mm_per_pixel is None else asdict(defect.in_mm(mm_per_pixel)))
            for defect in prediction.defects
        ],
    }


def as_rows(document: dict[str, Any], *, in_mm: bool) -> Iterator[list[Any]]:
    """A row per defect of a document that `as_json` made; see `COLUMNS`."""
    for number, defect in enumerate(document.get("defects", ()), start=1):
        row = [document["image"], document["version"], document["threshold"], number]
        row += [*defect["box"], defect["area"], f"{defect['area_percent']:.4f}"]
        row += [f"{value:.2f}" for value in defect["centroid"]]
        row.append(f"{defect['peak_probability']:.4f}")
        if in_mm:
            values = (
                (*defect["box_mm"], defect["area_mm2"], *defect["centroid_mm"]) if "box_mm" in defect else ()
            )
            row += [f"{value:.6g}" for value in values] or [""] * len(COLUMNS_MM)
        yield row


def picture_paths(name: str) -> dict[str, str]:
    """Paths of the pictures of an image, relative to the folder of results."""
    return {kind: f"{name}_{kind}.png" for kind in KINDS}


def write_pictures(tile: Tile, prediction: Prediction, folder: Path, name: str) -> dict[str, str]:
    """Writes `<name>_mask.png` and `<name>_overlay.png`.

    Args:
        tile: what was asked.
        prediction: what was answered.
        folder: made if it is missing, with the folders that the name contains.
        name: relative to the folder.

    Returns:
        Their paths relative to the folder, as `mask` and `overlay`.

    Raises:
        ImageError: no file can have such a name.
        ServingError: if the disk refuses.
    """
    paths = picture_paths(name)
    pictures = {
        "mask": Image.fromarray(prediction.mask),
        "overlay": overlay(tile.gray, prediction.mask, defects=prediction.defects),
    }
    for kind, picture in pictures.items():
        with replacing(folder / paths[kind]) as part:
            picture.save(part, "PNG", compress_level=PNG_COMPRESSION)
    return paths


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` at the end of the block, unless it fails.

    Raises:
        ImageError: no file can have such a name.
        ServingError: if the disk refuses.
    """
    # The name itself may be as long as names can be.
    part = path.with_name(f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, path)
    except BaseException as error:
        with suppress(OSError):  # the folder may be none
            part.unlink()
        if isinstance(error, OSError):
            kind = ImageError if error.errno in NO_NAME else ServingError
            raise kind(f"can't write {path}: {error.strerror or error}") from error
        raise
