"""The picture that people look at: a tile with its defects tinted, outlined and boxed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from serving.postprocessing import Defect

__all__ = ["overlay"]

# Orange and sky blue are told apart with any colour vision (Okabe and Ito, 2008).
FOUND = (230, 159, 0)
TRUTH = (86, 180, 233)
TINT = 0.35
MIN_WIDTH = 256


def overlay(
    gray: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    *,
    truth: NDArray[np.uint8] | None = None,
    defects: Sequence[Defect] = (),
) -> Image.Image:
    """Draws a mask over its tile; orange is what was found, blue the outline of what is there.

    Args:
        gray: (H, W) uint8, 0-255.
        mask: (H, W) uint8, any value but 0 is defect.
        truth: (H, W) uint8 true mask, if known.
        defects: get a box each.

    Returns:
        RGB picture of the tile's size, or a multiple of it if the tile is narrower than 256.
    """
    factor = max(1, -(-MIN_WIDTH // gray.shape[1]))
    picture = np.repeat(_enlarge(gray, factor)[..., None], 3, axis=2).astype(np.float32)
    found = _enlarge(mask, factor) > 0
    picture[found] = (1 - TINT) * picture[found] + TINT * np.array(FOUND)
    picture[_outline(found)] = FOUND
    if truth is not None:
        picture[_outline(_enlarge(truth, factor) > 0)] = TRUTH
    image = Image.fromarray(picture.astype(np.uint8), "RGB")
    draw = ImageDraw.Draw(image)
    for defect in defects:
        left, top, width, height = (side * factor for side in defect.box)
        draw.rectangle([left - 3, top - 3, left + width + 2, top + height + 2], outline=FOUND)
        draw.text((left, max(0, top - 14)), f"{defect.area} px", fill=FOUND)
    return image


def _enlarge(plane: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    return plane.repeat(factor, axis=0).repeat(factor, axis=1)


def _outline(area: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of the area with a neighbour outside of it."""
    padded = np.pad(area, 1, mode="edge")
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return np.logical_and(area, np.logical_not(inside))
