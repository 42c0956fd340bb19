"""Figures counted by hand; conventions for empty masks; curves against brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stages.metrics import (
    Components,
    PixelCounts,
    PooledDice,
    component_areas,
    count_components,
    count_levels,
    count_pixels,
    curve,
)

masks = arrays(np.uint8, (5, 6), elements=st.sampled_from([0, 255]))
levels_of = arrays(np.uint8, (5, 6), elements=st.integers(0, 255))


def picture(*rows: str) -> np.ndarray:
    """`#` is defect."""
    return np.array([[255 * (sign == "#") for sign in row] for row in rows], np.uint8)


def test_pixels_by_hand() -> None:
    truth = picture("##..", "##..")
    mask = picture(".##.", ".#..")
    counts = count_pixels(mask, truth)
    assert counts == PixelCounts(tp=2, fp=1, fn=2)
    assert counts.dice == pytest.approx(4 / 7)
    assert counts.iou == pytest.approx(2 / 5)


def test_any_grey_level_above_zero_is_defect() -> None:
    assert count_pixels(np.array([[1, 128]], np.uint8), np.array([[255, 1]], np.uint8)) == PixelCounts(tp=2)


def test_nothing_to_find_and_nothing_found_is_perfect() -> None:
    empty = picture("...")
    counts = count_pixels(empty, empty)
    assert (counts.dice, counts.iou) == (1.0, 1.0)


def test_something_found_where_nothing_is_scores_zero() -> None:
    counts = count_pixels(picture("#.."), picture("..."))
    assert (counts.dice, counts.iou) == (0.0, 0.0)


def test_pooling_counts_pixels_not_images() -> None:
    # Dice 1 on a tile of 1 pixel and 0 on a tile of 99: the mean would say 0.5.
    assert (PixelCounts(tp=1) + PixelCounts(fn=99)).dice == pytest.approx(2 / 101)


@given(mask=masks, truth=masks)
def test_pixel_counts_agree_with_sets(mask: np.ndarray, truth: np.ndarray) -> None:
    found, there = set(np.flatnonzero(mask)), set(np.flatnonzero(truth))
    counts = count_pixels(mask, truth)
    assert (counts.tp, counts.fp, counts.fn) == (
        len(found & there),
        len(found - there),
        len(there - found),
    )
    assert counts.iou == pytest.approx(counts.dice / (2 - counts.dice))


# Components


def test_components_by_hand() -> None:
    truth = picture(
        "##....#",
        "##....#",
        ".......",
        "....###",
    )
    mask = picture(
        "#......",
        ".......",
        "#......",
        "....##.",
    )
    # Of three defects two are hit (1 of 4 and 2 of 3 pixels); a false one lies at the left.
    assert count_components(mask, truth, overlap=0.25) == Components(found=2, missed=1, false=1)
    assert count_components(mask, truth, overlap=0.26) == Components(found=1, missed=2, false=1)
    assert count_components(mask, truth, overlap=1.0) == Components(found=0, missed=3, false=1)


def test_neighbours_at_a_corner_are_one_defect() -> None:
    diagonal = picture("#..", ".#.", "..#")
    assert count_components(diagonal, diagonal, 0.1) == Components(found=1)


def test_one_prediction_can_find_several_defects() -> None:
    assert count_components(picture("#####"), picture("#.#.#"), 1.0) == Components(found=3)


def test_recall_by_hand_and_without_a_defect() -> None:
    assert (Components(3, 1, 2) + Components(0, 4, 1)).recall == pytest.approx(3 / 8)
    assert math.isnan(count_components(picture("#."), picture(".."), 0.1).recall)
    assert count_components(picture("#."), picture(".."), 0.1).false == 1


def test_areas_are_those_of_the_true_defect_and_of_the_false_find() -> None:
    truth = picture("##...#", "##....", "......")
    mask = picture(".##...", "......", "...###")
    assert component_areas(mask, truth, 0.25) == {"found": [4], "missed": [1], "false": [3]}


def test_without_any_defect_or_find_there_is_no_area() -> None:
    empty = picture("...")
    assert component_areas(empty, empty, 0.1) == {"found": [], "missed": [], "false": []}


# Thresholds


@settings(max_examples=50, deadline=None)
@given(levels=levels_of, truth=masks)
def test_curves_agree_with_brute_force(levels: np.ndarray, truth: np.ndarray) -> None:
    counts = count_levels(levels, truth)
    curves = curve(counts)
    for level in range(1, 256):
        pixels = count_pixels((levels >= level).astype(np.uint8), truth)
        found, there = pixels.tp + pixels.fp, pixels.tp + pixels.fn
        assert curves["dice"][level - 1] == pytest.approx(pixels.dice)
        assert curves["precision"][level - 1] == pytest.approx(pixels.tp / found if found else 1.0)
        assert curves["recall"][level - 1] == pytest.approx(
            pixels.tp / there if there else math.nan, nan_ok=True
        )


def test_level_histograms_add_up_over_images_of_any_size() -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (size, 7), np.uint8) for size in (3, 9)]
    truths = [rng.integers(0, 2, (size, 7)).astype(np.uint8) for size in (3, 9)]
    together = count_levels(np.concatenate(images), np.concatenate(truths))
    apart = [count_levels(*pair) for pair in zip(images, truths, strict=True)]
    assert np.array_equal(together, sum(apart))
    assert together.sum() == 12 * 7


# During training


@settings(max_examples=25, deadline=None)
@given(
    truth=arrays(np.float32, (6, 3, 3, 1), elements=st.sampled_from([0.0, 0.4, 0.5, 1.0])),
    found=arrays(np.float32, (6, 3, 3, 1), elements=st.floats(0, 1, width=32)),
    cut=st.integers(1, 5),
)
def test_dice_of_batches_pooled_is_dice_of_the_whole(truth: np.ndarray, found: np.ndarray, cut: int) -> None:
    metric = PooledDice()
    metric.update_state(truth[:cut], found[:cut])
    metric.update_state(truth[cut:], found[cut:])
    expected = count_pixels((found >= 0.5).astype(np.uint8), (truth >= 0.5).astype(np.uint8)).dice
    assert float(metric.result()) == pytest.approx(expected, abs=1e-5)


def test_pooled_dice_starts_anew_after_a_reset() -> None:
    metric = PooledDice()
    assert float(metric.result()) == pytest.approx(1.0), "nothing to find, nothing found"
    metric.update_state(np.ones((1, 2, 2, 1)), np.zeros((1, 2, 2, 1)))
    assert float(metric.result()) == pytest.approx(0.0, abs=1e-6)
    metric.reset_state()
    metric.update_state(np.ones((1, 2, 2, 1)), np.ones((1, 2, 2, 1)))
    assert float(metric.result()) == pytest.approx(1.0)
