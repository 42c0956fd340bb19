"""Every figure of the project, defined once.

"Pooled" means: pixels of all images are counted together, then the ratio is taken. Ratios
without anything to divide (no defect predicted and none there) are 1 for Dice and IoU,
since nothing is wrong, and NaN for recall and rates, since nothing was asked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

__all__ = [
    "OUTCOMES",
    "Components",
    "PixelCounts",
    "PooledDice",
    "component_areas",
    "count_components",
    "count_levels",
    "count_pixels",
    "curve",
    "levels_of_discovery",
]

OUTCOMES = ("found", "missed", "false")


@dataclass(frozen=True)
class PixelCounts:
    """Pixels found rightly (tp), found wrongly (fp), missed (fn)."""

    tp: int = 0
    fp: int = 0
    fn: int = 0

    def __add__(self, other: PixelCounts) -> PixelCounts:
        return PixelCounts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn)

    @property
    def dice(self) -> float:
        """2 tp / (2 tp + fp + fn); 1 if there is nothing to find and nothing found."""
        total = 2 * self.tp + self.fp + self.fn
        return 2 * self.tp / total if total else 1.0

    @property
    def iou(self) -> float:
        """tp / (tp + fp + fn); 1 if there is nothing to find and nothing found."""
        total = self.tp + self.fp + self.fn
        return self.tp / total if total else 1.0


@dataclass(frozen=True)
class Components:
    """Defects (8-connected components) found and missed, and predicted ones that touch none."""

    found: int = 0
    missed: int = 0
    false: int = 0

    def __add__(self, other: Components) -> Components:
        return Components(self.found + other.found, self.missed + other.missed, self.false + other.false)

    @classmethod
    def of(cls, areas: Mapping[str, Sequence[int]]) -> Components:
        """Counts what `component_areas` gives."""
        return cls(**{outcome: len(areas[outcome]) for outcome in OUTCOMES})

    @property
    def recall(self) -> float:
        """found / (found + missed); NaN without any defect."""
        total = self.found + self.missed
        return self.found / total if total else float("nan")


class PooledDice(keras.metrics.Metric):  # type: ignore[misc]
    """Pooled Dice over all batches of an epoch, prediction and truth cut at 0.5."""

    def __init__(self, name: str = "dice", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.overlap = self.add_weight(name="overlap", initializer="zeros")
        self.total = self.add_weight(name="total", initializer="zeros")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        truth = ops.cast(y_true >= 0.5, "float32")
        found = ops.cast(y_pred >= 0.5, "float32")
        self.overlap.assign_add(ops.sum(truth * found))
        self.total.assign_add(ops.sum(truth) + ops.sum(found))

    def result(self) -> Any:
        return (2.0 * self.overlap + 1e-7) / (self.total + 1e-7)


def count_pixels(mask: NDArray[np.uint8], truth: NDArray[np.uint8]) -> PixelCounts:
    """Counts pixels of two masks (H, W), any value but 0 is defect."""
    found, there = mask > 0, truth > 0
    tp = int(np.count_nonzero(found & there))
    return PixelCounts(tp, int(np.count_nonzero(found)) - tp, int(np.count_nonzero(there)) - tp)


def count_levels(levels: NDArray[np.uint8], truth: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Histograms of probability levels over pixels without (row 0) and with (row 1) a defect.

    All threshold curves follow from their sum over images, exactly and in constant memory.

    Returns:
        (2, 256) int64.
    """
    there = truth > 0
    return np.stack([np.bincount(levels[side], minlength=256) for side in (~there, there)])


def curve(counts: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """Pooled precision, recall and Dice when the mask is `level >= k`, for k = 1 ... 255.

    Args:
        counts: (2, 256), a sum of `count_levels`.
    """
    wrong, right = counts[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:].astype(np.float64)
    defects = float(counts[1].sum())
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(right + wrong > 0, right / (right + wrong), 1.0)
        recall = np.where(defects > 0, right / defects, np.nan)
        dice = np.where(right + wrong + defects > 0, 2 * right / (right + wrong + defects), 1.0)
    return {"precision": precision, "recall": recall, "dice": dice}


def count_components(mask: NDArray[np.uint8], truth: NDArray[np.uint8], overlap: float) -> Components:
    """Counts the defects of `component_areas`, which explains the arguments."""
    return Components.of(component_areas(mask, truth, overlap))


def component_areas(
    mask: NDArray[np.uint8], truth: NDArray[np.uint8], overlap: float
) -> dict[str, list[int]]:
    """Areas, in pixels, of the defects that were found, of those missed, and of false ones.

    A true component is found if at least `overlap` of its pixels are in the mask, else missed; a
    predicted component is false if none of its pixels is a defect.

    Args:
        mask: (H, W), any value but 0 is defect.
        truth: (H, W), any value but 0 is defect.
        overlap: above 0, at most 1.

    Returns:
        Areas by outcome, one of `OUTCOMES`: of the true component, or of the predicted one if false.
    """
    from scipy import ndimage

    neighbours = np.ones((3, 3), int)
    true_labels, true_count = ndimage.label(truth > 0, structure=neighbours)
    found_labels, found_count = ndimage.label(mask > 0, structure=neighbours)
    true_areas = np.bincount(true_labels.ravel(), minlength=true_count + 1)[1:]
    covered = np.bincount(true_labels[mask > 0], minlength=true_count + 1)[1:]
    found_areas = np.bincount(found_labels.ravel(), minlength=found_count + 1)[1:]
    touching = np.bincount(found_labels[truth > 0], minlength=found_count + 1)[1:]
    found = covered >= overlap * true_areas
    return {
        "found": true_areas[found].tolist(),
        "missed": true_areas[~found].tolist(),
        "false": found_areas[touching == 0].tolist(),
    }


def levels_of_discovery(levels: NDArray[np.uint8], truth: NDArray[np.uint8], overlap: float) -> list[int]:
    """For each true component, the highest k at which the mask `level >= k` finds it, 0-255.

    It is found as in `component_areas`: at least `overlap` of its pixels are in the mask.

    Args:
        levels: (H, W) uint8, probability levels.
        truth: (H, W), any value but 0 is defect.
        overlap: above 0, at most 1.
    """
    from scipy import ndimage

    labels = ndimage.label(truth > 0, structure=np.ones((3, 3), int))[0]
    found = []
    for index, box in enumerate(ndimage.find_objects(labels), start=1):
        inside = np.sort(levels[box][labels[box] == index])[::-1]
        found.append(int(inside[math.ceil(overlap * len(inside) - 1e-9) - 1]))
    return found
