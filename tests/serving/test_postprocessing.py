"""Thresholds, masks and components, counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from serving.postprocessing import Defect, find_defects, label, mask_at, mask_levels, score, threshold_level


@pytest.mark.parametrize("level", range(1, 256))
def test_a_threshold_of_k_255ths_is_level_k(level: int) -> None:
    assert threshold_level(level / 255) == level


@pytest.mark.parametrize("threshold", [1e-9, 0.001, 0.1, 0.25, 0.4])
def test_the_mask_is_where_the_probability_reaches_a_low_threshold(threshold: float) -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(mask_at(levels, threshold) > 0, levels / 255 >= threshold)


@pytest.mark.parametrize("threshold", [0.401, 0.5, 0.7, 0.999, 1.0])
def test_a_high_threshold_decides_on_the_tile_and_not_on_the_outline(threshold: float) -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(mask_at(levels, threshold) > 0, levels / 255 >= 0.4)
    below = np.minimum(levels, threshold_level(threshold) - 1).astype(np.uint8)
    assert not mask_at(below, threshold).any()


@pytest.mark.parametrize("peak", [0, 90, 101, 102, 103, 254, 255])
def test_levels_of_the_mask_tell_the_masks_of_all_thresholds(peak: int) -> None:
    levels = (np.random.default_rng(peak).integers(0, peak + 1, (30, 40))).astype(np.uint8)
    levels[3, 4] = peak
    reached = mask_levels(levels)
    assert reached.dtype == np.uint8
    for level in range(1, 256):
        assert np.array_equal(reached >= level, mask_at(levels, level / 255) > 0)


@pytest.mark.parametrize("threshold", [0.0, -0.1, 1.0001, float("nan")])
def test_thresholds_out_of_range_are_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold must be above 0"):
        threshold_level(threshold)


def test_defects_are_measured_as_counted_by_hand() -> None:
    mask = np.zeros((10, 20), np.uint8)
    mask[1:4, 2:7] = 255  # 3 x 5 pixels
    mask[6, 10] = mask[7, 11] = 255  # two that touch at a corner are one
    mask[9, 19] = 255  # one at the edge
    levels = np.where(mask > 0, np.uint8(200), np.uint8(10))
    levels[2, 3] = 255

    large, pair, dot = find_defects(mask, levels)

    assert (large.box, large.area, large.centroid) == ((2, 1, 5, 3), 15, (4.0, 2.0))
    assert large.area_percent == pytest.approx(7.5)
    assert large.peak_probability == 1.0
    assert (pair.box, pair.area, pair.centroid) == ((10, 6, 2, 2), 2, (10.5, 6.5))
    assert pair.peak_probability == pytest.approx(200 / 255)
    assert (dot.box, dot.area) == ((19, 9, 1, 1), 1)


def test_a_large_defect_does_not_overflow() -> None:
    mask = np.full((300, 400), 255, np.uint8)
    [whole] = find_defects(mask, mask)
    assert (whole.area, whole.area_percent, whole.centroid) == (120_000, 100.0, (199.5, 149.5))


def test_defects_cover_the_mask_exactly() -> None:
    mask = np.where(np.random.default_rng(3).random((60, 50)) > 0.8, np.uint8(255), np.uint8(0))
    defects = find_defects(mask, mask)
    assert sum(defect.area for defect in defects) == (mask > 0).sum()
    assert [defect.area for defect in defects] == sorted((d.area for d in defects), reverse=True)


def test_label_and_score() -> None:
    levels = np.zeros((5, 5), np.uint8)
    assert (find_defects(levels, levels), label(levels), score(levels)) == ([], "good", 0.0)
    levels[2, 2] = 51
    assert (label(mask_at(levels, 0.2)), label(mask_at(levels, 0.21)), score(levels)) == (
        "defect",
        "good",
        0.2,
    )


def test_lengths_in_millimetres() -> None:
    defect = Defect((2, 4, 6, 8), 10, 1.0, (3.5, 5.0), 0.9)
    found = defect.in_mm(0.5)
    assert (found.box_mm, found.area_mm2, found.centroid_mm) == ((1, 2, 3, 4), 2.5, (1.75, 2.5))
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="mm per pixel must be above 0"):
            defect.in_mm(wrong)
