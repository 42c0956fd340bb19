"""From the probabilities of the model to a mask and its defects, once for evaluation and serving.

Probabilities are kept as 8-bit levels (round(255 p)), so that a mask can always be made
again from a stored probability image, with any threshold, without asking the model.

The threshold decides whether a tile has a defect: it has where any pixel reaches it. Where the defects
are is another question: on such a tile, wherever a defect is more likely than none. So a threshold that
allows few false alarms does not shrink what is found to the few pixels that the model is surest of.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serving.preprocessing import Placement, resize

__all__ = [
    "Defect",
    "DefectInMm",
    "find_defects",
    "label",
    "mask_at",
    "mask_levels",
    "probability_levels",
    "score",
    "threshold_level",
]

GOOD, DEFECT = LABELS = ("good", "defect")

OUTLINE = 0.4
"""Probability from which pixels are in the mask of a tile with a defect, unless the threshold is lower.

Below one half, as networks are too careful on pieces that they have not seen; docs/quality.md has figures."""

PNG_COMPRESSION = 1
"""Of masks, probabilities and overlays, 0-9. The usual 6 takes four times as long, for an overlay nearly as
long as the network, and makes files a seventh to a quarter smaller."""


@dataclass(frozen=True)
class Defect:
    """One connected component (8 neighbours) of a mask; lengths in pixels of the tile.

    Attributes:
        box: left, top, width, height.
        area: pixels.
        area_percent: share of the tile, 0-100.
        centroid: x, y; the centre of the top left pixel is (0, 0).
        peak_probability: largest probability within the component, 0-1.
    """

    box: tuple[int, int, int, int]
    area: int
    area_percent: float
    centroid: tuple[float, float]
    peak_probability: float

    def in_mm(self, mm_per_pixel: float) -> DefectInMm:
        """Its lengths on the tile, for a picture whose pixels are squares of a known side.

        Raises:
            ValueError: if the side is not above 0.
        """
        if not 0.0 < mm_per_pixel < math.inf:
            raise ValueError(f"mm per pixel must be above 0. Received: {mm_per_pixel}")
        left, top, width, height = (value * mm_per_pixel for value in self.box)
        x, y = self.centroid
        return DefectInMm(
            (left, top, width, height), self.area * mm_per_pixel**2, (x * mm_per_pixel, y * mm_per_pixel)
        )


@dataclass(frozen=True)
class DefectInMm:
    """Lengths of a `Defect` in millimetres, from the top left corner of the tile.

    Attributes:
        box_mm: left, top, width, height.
        area_mm2: square millimetres.
        centroid_mm: x, y.
    """

    box_mm: tuple[float, float, float, float]
    area_mm2: float
    centroid_mm: tuple[float, float]


def probability_levels(
    probabilities: NDArray[np.float32], place: Placement, height: int, width: int
) -> NDArray[np.uint8]:
    """Brings the probabilities of one tile back to its own size.

    Args:
        probabilities: (H, W) or (H, W, 1) float32, 0-1, as the model gives them.
        place: where the tile lies in them.
        height: of the tile, in pixels.
        width: of the tile, in pixels.

    Returns:
        (height, width) uint8, round(255 p).
    """
    plane = np.asarray(probabilities, np.float32).reshape(probabilities.shape[:2])
    tile = resize(np.ascontiguousarray(plane[: place.height, : place.width]), Placement(height, width))
    levels: NDArray[np.uint8] = np.floor(np.clip(tile, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
    return levels


def threshold_level(threshold: float) -> int:
    """The lowest level that counts as defect for a threshold on the probability, 1-255.

    Raises:
        ValueError: if the threshold is not above 0 and at most 1.
    """
    if not 0.0 < threshold <= 1.0:
        raise ValueError(f"threshold must be above 0 and at most 1. Received: {threshold}")
    # The small amount keeps k/255 at level k in spite of rounding.
    return max(1, math.ceil(threshold * 255 - 1e-6))


def mask_at(levels: NDArray[np.uint8], threshold: float) -> NDArray[np.uint8]:
    """Mask of a tile: nothing unless a pixel reaches the threshold, else all from `OUTLINE` on, or from it.

    Args:
        levels: (H, W) uint8 of `probability_levels`.
        threshold: above 0, at most 1.

    Returns:
        (H, W) uint8: 255 where there is a defect, else 0.
    """
    reached = mask_levels(levels) >= threshold_level(threshold)
    mask: NDArray[np.uint8] = np.where(reached, np.uint8(255), np.uint8(0))
    return mask


def mask_levels(levels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """For each pixel, the highest level of a threshold whose mask has it; so one count gives all masks.

    Args:
        levels: (H, W) uint8 of `probability_levels`.

    Returns:
        (H, W) uint8: the largest level of the tile from `OUTLINE` on, and the pixel's own below.
    """
    reached: NDArray[np.uint8] = np.where(levels >= threshold_level(OUTLINE), levels.max(), levels)
    return reached


def score(levels: NDArray[np.uint8]) -> float:
    """Score of the tile: its largest probability, 0-1."""
    return int(levels.max()) / 255


def label(mask: NDArray[np.uint8]) -> str:
    """`defect` if the mask has any pixel, else `good`."""
    return DEFECT if mask.any() else GOOD


def find_defects(mask: NDArray[np.uint8], levels: NDArray[np.uint8]) -> list[Defect]:
    """Lists the defects of a mask, the largest first.

    Args:
        mask: (H, W) uint8, any value but 0 is defect.
        levels: (H, W) uint8 of `probability_levels`.
    """
    if not mask.any():
        return []
    from scipy import ndimage  # here, because it takes most of the client's start

    components, count = ndimage.label(mask > 0, structure=np.ones((3, 3), int))
    rows, columns = np.nonzero(components)
    owners = components[rows, columns] - 1
    areas = np.bincount(owners)
    peaks = np.zeros(count, np.uint8)
    np.maximum.at(peaks, owners, levels[rows, columns])
    centroids = [np.bincount(owners, weights=places) / areas for places in (rows, columns)]
    defects = [
        Defect(
            box=(across.start, down.start, across.stop - across.start, down.stop - down.start),
            area=int(area),
            area_percent=100.0 * int(area) / mask.size,
            centroid=(float(x), float(y)),
            peak_probability=float(peak) / 255,
        )
        for (down, across), area, y, x, peak in zip(
            ndimage.find_objects(components), areas, *centroids, peaks, strict=True
        )
    ]
    return sorted(defects, key=lambda defect: (-defect.area, defect.box))
