"""Operating points, on evidence that can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from serving.postprocessing import mask_at
from stages.errors import StageError
from stages.metrics import count_components, count_levels
from stages.operating_point import (
    Evidence,
    best_balanced_level,
    best_dice_level,
    choose_level,
    gather_evidence,
    too_few_to_tell,
    wilson_interval,
)
from stages.params import MaxFalseAlarmRate, MinRecall

# Four good tiles, the highest level of each; four defects, the highest level that finds each.
EVIDENCE = Evidence(alarms=[3, 50, 90, 255], discoveries=[0, 40, 80, 200])


@pytest.mark.parametrize(("rate", "level"), [(0.25, 91), (0.49, 91), (0.5, 51), (0.75, 4), (1.0, 1)])
def test_a_false_alarm_rate_gives_the_lowest_level_that_keeps_it(rate: float, level: int) -> None:
    assert choose_level(MaxFalseAlarmRate(max_false_alarm_rate=rate), EVIDENCE) == level


@pytest.mark.parametrize(("recall", "level"), [(0.75, 40), (0.51, 40), (0.5, 80), (0.25, 200)])
def test_a_recall_gives_the_highest_level_that_keeps_it(recall: float, level: int) -> None:
    assert choose_level(MinRecall(min_recall=recall), EVIDENCE) == level


def test_a_point_out_of_reach_is_an_error_that_says_how_far_it_is() -> None:
    with pytest.raises(StageError, match=r"max_false_alarm_rate 0\.2 is out of reach: 25\.00% of the good"):
        choose_level(MaxFalseAlarmRate(max_false_alarm_rate=0.2), EVIDENCE)
    with pytest.raises(
        StageError, match=r"min_recall 0\.8 is out of reach: 75\.00% of the validation defects"
    ):
        choose_level(MinRecall(min_recall=0.8), EVIDENCE)


def test_without_tiles_that_tell_it_is_an_error() -> None:
    with pytest.raises(StageError, match="no good tile"):
        choose_level(MaxFalseAlarmRate(max_false_alarm_rate=0.01), Evidence())
    with pytest.raises(StageError, match="no defect"):
        choose_level(MinRecall(min_recall=0.9), Evidence())
    with pytest.raises(StageError, match="there is no good tile; best_dice does without"):
        choose_level("best_balanced_accuracy", Evidence(catches=[200]))
    with pytest.raises(StageError, match="there is no tile with a defect; best_dice does without"):
        choose_level("best_balanced_accuracy", Evidence(alarms=[20]))


def test_a_rate_that_so_few_tiles_or_defects_cannot_tell_is_doubted() -> None:
    doubt = too_few_to_tell(MaxFalseAlarmRate(max_false_alarm_rate=0.2), EVIDENCE)
    assert doubt == (
        "max_false_alarm_rate 0.2 asks for more than 4 good images in validation can tell: none of them is a "
        "false alarm at this threshold, but up to 49% of others may be"
    )
    assert "none of them is missed" in (too_few_to_tell(MinRecall(min_recall=0.8), EVIDENCE) or "")
    for enough in (MaxFalseAlarmRate(max_false_alarm_rate=0.25), MinRecall(min_recall=0.75)):
        assert too_few_to_tell(enough, EVIDENCE) is None
    for asked in (MinRecall(min_recall=1), MaxFalseAlarmRate(max_false_alarm_rate=0), "best_dice"):
        assert too_few_to_tell(asked, EVIDENCE) is None


@pytest.mark.parametrize("overlap", [0.01, 0.1, 0.3, 0.5, 1.0])
def test_a_defect_is_found_up_to_its_level_and_no_further(overlap: float) -> None:
    rng = np.random.default_rng(1)
    levels = rng.integers(0, 256, (40, 40)).astype(np.uint8)
    truth = np.zeros((40, 40), np.uint8)
    truth[2:9, 3:10], truth[20, 5:25], truth[30:32, 30:32] = 255, 255, 255
    evidence = gather_evidence([(levels, truth, False)], overlap)
    assert len(evidence.discoveries) == 3
    assert evidence.alarms == []
    for level in range(1, 256):
        found = count_components(mask_at(levels, level / 255), truth, overlap).found
        assert found == sum(one >= level for one in evidence.discoveries)


def test_the_threshold_of_the_best_dice_leaves_out_what_only_good_tiles_reach() -> None:
    """A good tile with a faint stain, a defect with a sure middle: the outline stays, the stain goes."""
    truth = np.zeros((20, 20), np.uint8)
    truth[5:10, 5:10] = 255
    defective = np.where(truth > 0, 150, 0).astype(np.uint8)
    defective[7, 7] = 240
    stained = np.zeros((20, 20), np.uint8)
    stained[2:8, 2:8] = 170
    evidence = gather_evidence([(defective, truth, False), (stained, np.zeros_like(truth), True)], 0.5)
    level = choose_level("best_dice", evidence)
    assert level == 171, "the lowest that leaves the stain out"
    assert np.array_equal(mask_at(defective, level / 255), truth)
    assert not mask_at(stained, level / 255).any()
    assert choose_level(MaxFalseAlarmRate(max_false_alarm_rate=0.0), evidence) == 171
    assert choose_level(MinRecall(min_recall=1.0), evidence) == 240
    assert choose_level("best_balanced_accuracy", evidence) == (171 + 240) // 2 + 1, "far from both"


def test_the_best_balanced_accuracy_by_hand() -> None:
    # 1 - 2/4 at 60, 2/3 - 1/4 at 120, 1/3 - 0 at 200: it is best from 51 to 60.
    alarms, catches = [3, 50, 90, 150], [60, 120, 200]
    assert best_balanced_level(alarms, catches) == 56
    # A rate counts, not how many tiles there are of a kind.
    assert best_balanced_level(alarms * 100, catches) == 56
    assert best_balanced_level(alarms, catches * 100) == 56


def test_where_many_levels_tell_all_tiles_apart_none_is_chosen_that_would_change_outlines() -> None:
    assert best_balanced_level([20], [250]) == 136, "the middle of 21 to 250"
    assert best_balanced_level([20], [150]) == 102, "not 86"
    assert best_balanced_level([20], [100]) == 61, "none from 102 on does it"


@pytest.mark.parametrize("seed", range(5))
def test_no_level_has_a_better_balanced_accuracy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    alarms, catches = rng.integers(0, 180, 40), rng.integers(60, 256, 15)
    truth = np.r_[np.zeros(40, int), np.ones(15, int)]
    scores = np.r_[alarms, catches]
    accuracy = {k: balanced_accuracy_score(truth, scores >= k) for k in range(1, 256)}
    chosen = best_balanced_level(alarms.tolist(), catches.tolist())
    assert accuracy[chosen] == pytest.approx(max(accuracy.values()))


def test_a_defect_of_no_pixels_is_neither_caught_nor_a_false_alarm() -> None:
    levels, empty = np.full((2, 2), 90, np.uint8), np.zeros((2, 2), np.uint8)
    evidence = gather_evidence([(levels, empty, False), (levels, ~empty, False), (levels, empty, True)], 0.5)
    assert (evidence.alarms, evidence.catches) == ([90], [90])


def test_the_interval_of_a_rate() -> None:
    # 10 of 100: Newcombe, "Interval estimation for the difference between independent proportions", 1998.
    assert wilson_interval(0.1, 100) == pytest.approx({"low": 0.0552, "high": 0.1744}, abs=1e-4)
    assert wilson_interval(0.0, 100) == pytest.approx({"low": 0.0, "high": 0.0370}, abs=1e-4)
    assert wilson_interval(None, 100) is None


def test_of_levels_that_only_decide_on_tiles_the_lowest_is_chosen() -> None:
    # Every level from 91 to 200 is perfect; those from 102 on decide on tiles.
    levels = np.array([[200, 200, 90, 90]], np.uint8)
    assert best_dice_level(count_levels(levels, np.array([[255, 255, 0, 0]], np.uint8))) == 102


def test_of_levels_that_outline_the_middle_is_chosen() -> None:
    # Every level from 11 to 90 is perfect.
    levels = np.array([[90, 90, 10, 10]], np.uint8)
    assert best_dice_level(count_levels(levels, np.array([[255, 255, 0, 0]], np.uint8))) == 51


def test_a_difference_that_tells_nothing_does_not_move_it() -> None:
    # 5 pixels beside 1,000 are found wrongly up to 230, and a defect of that level would be missed above.
    levels = np.zeros((1, 2000), np.uint8)
    levels[0, :1000], levels[0, 1000:1005] = 250, 230
    truth = np.zeros((1, 2000), np.uint8)
    truth[0, :1000] = 255
    assert best_dice_level(count_levels(levels, truth)) == 102
    levels[0, 1000:1100] = 230  # 5 % of Dice do tell
    assert best_dice_level(count_levels(levels, truth)) == 231


def test_without_a_defect_the_level_keeps_all_background_out() -> None:
    levels = np.array([[10, 120]], np.uint8)
    assert best_dice_level(count_levels(levels, np.zeros((1, 2), np.uint8))) > 120
