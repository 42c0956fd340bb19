"""Where the decision threshold comes from: the point that the user works at, found on validation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from serving.postprocessing import OUTLINE, mask_levels, threshold_level
from stages.errors import StageError
from stages.metrics import count_levels, curve, levels_of_discovery
from stages.params import MaxFalseAlarmRate, MinRecall, OperatingPoint

__all__ = [
    "Evidence",
    "best_balanced_level",
    "best_dice_level",
    "choose_level",
    "gather_evidence",
    "too_few_to_tell",
    "wilson_interval",
]

NEAR = 0.01
"""Difference of Dice that tells nothing of the tiles to come."""


@dataclass
class Evidence:
    """What a model does to tiles at every threshold.

    Attributes:
        counts: (2, 256), sum of `count_levels`, of what `mask_levels` gives.
        alarms: highest level of each good tile; at thresholds up to it, the tile is a false alarm.
        catches: highest level of each tile with a defect; at thresholds up to it, the tile is caught.
        discoveries: of each true defect, the highest threshold level at which it counts as found.
    """

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros((2, 256), np.int64))
    alarms: list[int] = field(default_factory=list)
    catches: list[int] = field(default_factory=list)
    discoveries: list[int] = field(default_factory=list)


def gather_evidence(
    predictions: Iterable[tuple[NDArray[np.uint8], NDArray[np.uint8], bool]], overlap: float
) -> Evidence:
    """Adds up what there is to know of predictions.

    Args:
        predictions: of each tile, its probability levels and its true mask, both (H, W) uint8, and
            whether it is of the good class; with a defect in its mask it is none of the good tiles.
        overlap: share of a defect's pixels that must be found to count it as found.
    """
    evidence = Evidence()
    for levels, truth, good in predictions:
        reached = mask_levels(levels)
        evidence.counts += count_levels(reached, truth)
        evidence.discoveries += levels_of_discovery(reached, truth, overlap)
        if truth.any():
            evidence.catches.append(int(levels.max()))
        elif good:
            evidence.alarms.append(int(levels.max()))
    return evidence


def choose_level(point: OperatingPoint, evidence: Evidence) -> int:
    """The threshold level, 1-255, of an operating point.

    `best_balanced_accuracy`: the level that tells tiles with a defect from good ones best.
    `best_dice`: the best pooled Dice. `max_false_alarm_rate`: the lowest level at which no larger
    share of the good tiles has any defect pixel, which finds the most that this rate allows.
    `min_recall`: the highest level at which that share of the defects is found.

    Raises:
        StageError: if no level reaches the point, or nothing tells.
    """
    if isinstance(point, MaxFalseAlarmRate):
        if not evidence.alarms:
            raise StageError("evaluate.operating_point: there is no good tile in validation")
        rates = _share_from(evidence.alarms)
        reached = np.flatnonzero(rates <= point.max_false_alarm_rate)
        if not len(reached):
            raise StageError(
                f"evaluate: max_false_alarm_rate {point.max_false_alarm_rate:g} is out of reach: "
                f"{rates[-1]:.2%} of the good validation tiles have a pixel of probability 1; train longer "
                "or with more good tiles (train.good_ratio), or allow more"
            )
        return int(reached[0]) + 1
    if isinstance(point, MinRecall):
        if not evidence.discoveries:
            raise StageError("evaluate.operating_point: no defect in validation tells the recall")
        recalls = _share_from(evidence.discoveries)
        reached = np.flatnonzero(recalls >= point.min_recall)
        if not len(reached):
            raise StageError(
                f"evaluate: min_recall {point.min_recall:g} is out of reach: {recalls[0]:.2%} of "
                "the validation defects have any probability; train longer, or ask for less"
            )
        return int(reached[-1]) + 1
    if point == "best_dice":
        return best_dice_level(evidence.counts)
    if not evidence.alarms or not evidence.catches:
        lacking = "good tile" if not evidence.alarms else "tile with a defect"
        raise StageError(
            f"evaluate.operating_point: best_balanced_accuracy needs good tiles and defects in validation, "
            f"and there is no {lacking}; best_dice does without"
        )
    return best_balanced_level(evidence.alarms, evidence.catches)


def too_few_to_tell(point: OperatingPoint, evidence: Evidence) -> str | None:
    """Says that validation is too small for a rate that is asked for; None where it is not.

    It is where the rate is less than one image or defect: then none may be wrong, whatever the rate.
    """
    if isinstance(point, MaxFalseAlarmRate):
        rate, number, of = point.max_false_alarm_rate, len(evidence.alarms), "good images"
        asked, wrong = f"max_false_alarm_rate {rate:g}", "a false alarm"
    elif isinstance(point, MinRecall):
        rate, number, of = 1 - point.min_recall, len(evidence.discoveries), "defects"
        asked, wrong = f"min_recall {point.min_recall:g}", "missed"
    else:
        return None
    if rate == 0 or rate * number >= 1 - 1e-9:
        return None
    interval = wilson_interval(0.0, number)
    high = interval["high"] if interval else 1.0
    return (
        f"{asked} asks for more than {number} {of} in validation can tell: none of them is {wrong} at this "
        f"threshold, but up to {high:.0%} of others may be"
    )


def best_balanced_level(alarms: Sequence[int], catches: Sequence[int]) -> int:
    """The level 1-255 of the best balanced accuracy.

    Where several have it, the middle one, or the next from `OUTLINE` on, which cuts off no outline.

    Balanced accuracy is (c + 1 - a) / 2, c the share of the tiles with a defect that are caught, a that of
    the good ones with a false alarm; it is highest where Youden's index c - a is. Youden, "Index for rating
    diagnostic tests", 1950.

    Args:
        alarms: highest level of each good tile, not empty.
        catches: highest level of each tile with a defect, not empty.
    """
    # In whole numbers, as levels tie.
    index = _number_from(catches) * len(alarms) - _number_from(alarms) * len(catches)
    best = np.flatnonzero(index == index.max()) + 1
    middle = best[len(best) // 2]
    deciding = best[best >= max(middle, threshold_level(OUTLINE))]
    return int(deciding[0] if len(deciding) else middle)


def best_dice_level(counts: NDArray[np.int64]) -> int:
    """The level 1-255 of the best pooled Dice, or the one within `NEAR` of it that finds the most.

    From `OUTLINE` on, a level decides on tiles alone, and Dice, in which large defects count most, is flat
    there: its very top is chance, and may lie where small ones are all missed. So it is the lowest level
    there that is as good; where none there is, the middle one of those below.
    """
    dice = curve(counts)["dice"]
    good = np.flatnonzero(dice >= dice.max() - NEAR) + 1
    deciding = good[good >= threshold_level(OUTLINE)]
    return int(deciding[0] if len(deciding) else good[len(good) // 2])


def wilson_interval(rate: float | None, number: int) -> dict[str, float] | None:
    """95 % confidence interval of a rate; None where there is none.

    Wilson, "Probable inference, the law of succession, and statistical inference", 1927.

    Args:
        rate: 0-1, measured.
        number: of independent observations. Photographs of one tile are not independent, so for
            tiles with several exposures this is the number of tiles.
    """
    if rate is None or not number:
        return None
    z = 1.959964
    centre = rate + z * z / (2 * number)
    spread = z * math.sqrt(rate * (1 - rate) / number + (z / (2 * number)) ** 2)
    scale = 1 + z * z / number
    return {"low": max(0.0, (centre - spread) / scale), "high": min(1.0, (centre + spread) / scale)}


def _share_from(levels: Sequence[int]) -> NDArray[np.float64]:
    """Share of the values that are at least k, for k = 1 ... 255."""
    shares: NDArray[np.float64] = _number_from(levels) / len(levels)
    return shares


def _number_from(levels: Sequence[int]) -> NDArray[np.int64]:
    """Number of the values that are at least k, for k = 1 ... 255."""
    numbers: NDArray[np.int64] = np.bincount(levels, minlength=256)[::-1].cumsum()[::-1][1:]
    return numbers
