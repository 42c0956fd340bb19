"""What is known of each test image after it was compared with its mask, and the figures of them all."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import roc_auc_score

from serving.postprocessing import score
from stages.metrics import (
    OUTCOMES,
    Components,
    PixelCounts,
    component_areas,
    count_pixels,
)
from stages.operating_point import wilson_interval
from stages.tiles import CLASSES, GOOD_CLASS, Tile
from stages.verdicts import SIZES, compare_exposures, defect_rows

__all__ = ["Judged", "figures", "judge"]

ORIGINAL_SIDE = 224
"""Pixels; the original project resized the shorter side to it and cropped the centre square."""


@dataclass(frozen=True)
class Judged:
    """What is known of one test image after it was compared with its mask.

    Attributes:
        tile: the image.
        pixels: of its masks.
        original: of the part that the original project looks at.
        areas: of its defects, as `component_areas` gives them.
        score: largest probability, 0-1.
        any_found: whether its predicted mask has any pixel.
    """

    tile: Tile
    pixels: PixelCounts
    original: PixelCounts
    areas: Mapping[str, Sequence[int]]
    score: float
    any_found: bool

    @property
    def components(self) -> Components:
        return Components.of(self.areas)


def judge(
    tile: Tile, levels: NDArray[np.uint8], mask: NDArray[np.uint8], truth: NDArray[np.uint8], overlap: float
) -> Judged:
    """Compares one image with its mask.

    Args:
        tile: the image.
        levels: (H, W) uint8, probability levels.
        mask: (H, W) uint8, predicted.
        truth: (H, W) uint8.
        overlap: share of a defect's pixels that must be found to count it as found.
    """
    return Judged(
        tile=tile,
        pixels=count_pixels(mask, truth),
        original=count_pixels(_centre(mask), _centre(truth)),
        areas=component_areas(mask, truth, overlap),
        score=score(levels),
        any_found=bool(mask.any()),
    )


def _centre(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The part that the original project looks at, at its resolution, nearest neighbour."""
    height, width = mask.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = Image.fromarray(np.ascontiguousarray(mask[top : top + side, left : left + side]))
    return np.asarray(square.resize((ORIGINAL_SIDE, ORIGINAL_SIDE), Image.Resampling.NEAREST))


def figures(judged: Sequence[Judged], threshold: float) -> dict[str, Any]:
    """The metrics of the test side, as `results/evaluate/metrics.json` has them; None where nothing tells."""
    pooled = sum((one.pixels for one in judged), PixelCounts())
    original = sum((one.original for one in judged if one.tile.class_ != GOOD_CLASS), PixelCounts())
    components = sum((one.components for one in judged), Components())
    by_class: dict[str, list[Judged]] = defaultdict(list)
    for one in judged:
        by_class[one.tile.class_].append(one)
    classes = {
        name: _class_metrics(by_class[name]) for name in CLASSES if name != GOOD_CLASS and by_class[name]
    }
    good = [one for one in by_class[GOOD_CLASS] if not one.tile.defect_pixels]
    false_alarm_rate = _mean([one.any_found for one in good])
    recall = _number(components.recall)
    return {
        "threshold": threshold,
        "images": len(judged),
        "dice_pooled": pooled.dice,
        "iou_pooled": pooled.iou,
        "dice_class_mean": _mean([values["dice"] for values in classes.values()]),
        "component_recall": recall,
        "component_recall_interval": wilson_interval(recall, _tiles(judged, defective=True)),
        "false_components": components.false,
        "false_components_on_good": sum(one.components.false for one in good),
        "auroc": _auroc(judged),
        "false_alarm_rate": false_alarm_rate,
        "false_alarm_rate_interval": wilson_interval(false_alarm_rate, _tiles(good)),
        "missed_image_rate": _mean([not one.any_found for one in judged if one.tile.defect_pixels]),
        "exposure_agreement": _number(_exposure_agreement(judged)),
        "original_protocol": {"dice_pooled": original.dice, "iou_pooled": original.iou},
        "class": classes,
        "size": _by_size(judged),
    }


def _tiles(judged: Sequence[Judged], *, defective: bool = False) -> int:
    """Number of tiles, whatever their exposures; `defective`: those with any defect pixel."""
    return len({one.tile.tile for one in judged if one.tile.defect_pixels or not defective})


def _class_metrics(judged: Sequence[Judged]) -> dict[str, float | int | None]:
    pixels = sum((one.pixels for one in judged), PixelCounts())
    components = sum((one.components for one in judged), Components())
    return {
        "images": len(judged),
        "dice": pixels.dice,
        "iou": pixels.iou,
        "component_recall": _number(components.recall),
        **asdict(components),
    }


def _by_size(judged: Sequence[Judged]) -> dict[str, dict[str, float | int | None]]:
    """Defects of each size that occurs."""
    counts = Counter((row.size, row.outcome) for one in judged for row in defect_rows(one.tile, one.areas))
    by_size = {size: Components(**{o: counts[size, o] for o in OUTCOMES}) for size in SIZES}
    return {
        size: {"component_recall": _number(components.recall), **asdict(components)}
        for size, components in by_size.items()
        if components != Components()
    }


def _exposure_agreement(judged: Sequence[Judged]) -> float:
    return compare_exposures(
        (one.tile.tile, one.tile.defect_pixels > 0, one.any_found) for one in judged
    ).agreement


def _auroc(judged: Sequence[Judged]) -> float | None:
    """Area under the ROC curve of the score, images with a defect pixel against those without."""
    truth = [one.tile.defect_pixels > 0 for one in judged]
    if len(set(truth)) < 2:
        return None
    return float(roc_auc_score(truth, [one.score for one in judged]))


def _mean(values: Sequence[Any]) -> float | None:
    return float(np.mean([float(value) for value in values])) if values else None


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value
