"""Results of a prediction on disk: mask and overlay as PNG, each written whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from serving.client import Prediction
from serving.errors import ServingError
from serving.overlay import overlay
from serving.tile import Tile

__all__ = ["as_json", "write_pictures"]


def write_pictures(tile: Tile, prediction: Prediction, folder: Path, name: str) -> dict[str, str]:
    """Writes `<name>_mask.png` and `<name>_overlay.png`.

    Args:
        tile: what was asked.
        prediction: what was answered.
        folder: made if it is missing, with the folders that the name contains.
        name: relative to the folder.

    Returns:
        Their paths, as `mask` and `overlay`.

    Raises:
        ServingError: if the disk refuses.
    """
    pictures = {
        "mask": Image.fromarray(prediction.mask),
        "overlay": overlay(tile.gray, prediction.mask, defects=prediction.defects),
    }
    paths = {kind: folder / f"{name}_{kind}.png" for kind in pictures}
    for kind, picture in pictures.items():
        _save(picture, paths[kind])
    return {kind: str(path) for kind, path in paths.items()}


def as_json(prediction: Prediction) -> dict[str, Any]:
    """All of a prediction but its images, for `json.dumps`."""
    height, width = prediction.mask.shape
    return {
        "label": prediction.label,
        "score": round(prediction.score, 4),
        "width": width,
        "height": height,
        "version": prediction.version,
        "defects": [asdict(defect) for defect in prediction.defects],
    }


def _save(picture: Image.Image, path: Path) -> None:
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(part, "PNG")
        os.replace(part, path)
    except OSError as error:
        with suppress(OSError):  # the folder may be none
            part.unlink()
        raise ServingError(f"can't write {path}: {error.strerror or error}") from error
