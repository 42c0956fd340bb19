"""The picture of an answer: the tile in grey, its defects tinted, outlined, boxed and measured.

Colours are those of Okabe and Ito, which people with any kind of colour blindness can tell
apart: orange for what the model found, sky blue for the ground truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from serving.postprocessing import Defect, find_defects

__all__ = ["overlay"]

FOUND = (230, 159, 0)
TRUTH = (86, 180, 233)
TINT = 0.30
LONG_SIDE = 640
"""Pixels; smaller tiles are enlarged by a whole factor to about this, unless told otherwise."""

MAX_BOXES = 24
"""Boxes drawn, those of the largest defects; more would hide the tile."""

TEXT, TEXT_BACK = (255, 255, 255), (20, 20, 20)
TEXT_SIZE, PADDING, GAP = 13, 3, 6

Box = tuple[int, int, int, int]  # left, top, right, bottom


def overlay(
    gray: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    truth: NDArray[np.uint8] | None = None,
    *,
    defects: Sequence[Defect] | None = None,
    long_side: int = LONG_SIDE,
) -> Image.Image:
    """Draws what was found on a tile.

    Args:
        gray: (H, W) uint8, 0-255, the tile.
        mask: (H, W) uint8, any value but 0 is a defect that was found.
        truth: (H, W) uint8, the same for the true defects, drawn as a contour.
        defects: of the mask, the largest first; found again if None.
        long_side: about what smaller tiles are enlarged to, in pixels.

    Returns:
        RGB, k times the size of the tile, where k is a whole number: 1 for large tiles.
    """
    if defects is None:
        defects = find_defects(mask, mask)
    factor = max(1, round(long_side / max(gray.shape)))
    size = (gray.shape[1] * factor, gray.shape[0] * factor)
    found = _enlarged(mask, size)
    picture = Image.fromarray(gray).resize(size, Image.Resampling.BICUBIC).convert("RGB")
    picture.paste(FOUND, mask=found.point(lambda level: round(level * TINT)))
    picture.paste(FOUND, mask=_rim(found, outside=True))
    if truth is not None:
        # Inside, so that both contours show where they agree.
        picture.paste(TRUTH, mask=_rim(_enlarged(truth, size), outside=False))
    _draw_boxes(picture, defects[:MAX_BOXES], factor)
    return picture


def _enlarged(mask: NDArray[np.uint8], size: tuple[int, int]) -> Image.Image:
    binary = np.where(mask > 0, np.uint8(255), np.uint8(0))
    return Image.fromarray(binary).resize(size, Image.Resampling.NEAREST)


def _rim(mask: Image.Image, *, outside: bool) -> Image.Image:
    """A contour two pixels wide, just outside or just inside of a mask, as a mask."""
    pixels = np.asarray(mask)
    if outside:
        return Image.fromarray(_grown(pixels, beyond=0) & ~pixels)
    # Beyond the edge of the tile there is no defect, so that contours close there.
    return Image.fromarray(pixels & _grown(~pixels, beyond=255))


def _grown(pixels: NDArray[np.uint8], beyond: int) -> NDArray[np.uint8]:
    """The largest of 5 x 5 pixels that are 0 or 255."""
    height, width = pixels.shape
    framed = np.pad(pixels, 2, constant_values=beyond)
    # By columns, then by rows: Pillow's filter takes 28 times as long.
    columns = reduce(np.bitwise_or, (framed[row : row + height] for row in range(5)))
    return reduce(np.bitwise_or, (columns[:, column : column + width] for column in range(5)))


def _draw_boxes(picture: Image.Image, defects: Sequence[Defect], factor: int) -> None:
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(TEXT_SIZE)
    boxes = [_frame(defect, factor, picture.size) for defect in defects]
    for box in boxes:
        draw.rectangle(box, outline=FOUND)
    taken: list[Box] = []
    for defect, box in zip(defects, boxes, strict=True):
        text = f"{defect.area:,} px"
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        width, height = int(right - left) + 2 * PADDING, int(bottom - top) + 2 * PADDING
        place = _free_place(box, (width, height), picture.size, taken)
        if place is None:
            continue
        taken.append(place)
        draw.rectangle(place, fill=TEXT_BACK)
        draw.text((place[0] + PADDING - left, place[1] + PADDING - top), text, fill=TEXT, font=font)


def _frame(defect: Defect, factor: int, size: tuple[int, int]) -> Box:
    """Box around a defect, a little apart from its contour, within the picture."""
    left, top, width, height = (factor * value for value in defect.box)
    return (
        max(0, left - GAP),
        max(0, top - GAP),
        min(size[0] - 1, left + width + GAP - 1),
        min(size[1] - 1, top + height + GAP - 1),
    )


def _free_place(box: Box, size: tuple[int, int], picture: tuple[int, int], taken: list[Box]) -> Box | None:
    """Where a text of a size fits beside a box: above, below, right or left of it, else within."""
    left, top, right, bottom = box
    width, height = size
    flush = max(0, min(left, picture[0] - width))
    corners = [
        (flush, top - height),
        (flush, bottom + 1),
        (right + 1, top),
        (left - width, top),
        (left + 1, top + 1),
    ]
    for x, y in corners:
        place = (x, y, x + width - 1, y + height - 1)
        inside = x >= 0 and y >= 0 and place[2] < picture[0] and place[3] < picture[1]
        if inside and not any(_overlap(place, other) for other in taken):
            return place
    return None


def _overlap(one: Box, other: Box) -> bool:
    return one[0] <= other[2] and other[0] <= one[2] and one[1] <= other[3] and other[1] <= one[3]
