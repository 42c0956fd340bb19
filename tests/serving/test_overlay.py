"""The overlay shows what was found where it is."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from serving.overlay import FOUND, TRUTH, overlay


def is_colour(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return (picture == colour).all(axis=-1)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (64, 64), (324, 270), (120, 632), (900, 1300)])
def test_the_picture_is_a_whole_multiple_of_the_tile(height: int, width: int) -> None:
    picture = overlay(np.full((height, width), 128, np.uint8), np.zeros((height, width), np.uint8))
    factor = picture.width // width
    assert picture.mode == "RGB"
    assert picture.size == (factor * width, factor * height)
    assert factor == 1 or max(picture.size) < 1000
    assert (np.asarray(picture) == 128).all(), "a good tile stays grey"


def test_one_pixel_is_outlined_and_boxed_where_it_is() -> None:
    mask = np.zeros((700, 700), np.uint8)
    mask[300, 400] = 255
    painted = is_colour(np.asarray(overlay(np.full_like(mask, 90), mask)), FOUND)
    rows, columns = np.nonzero(painted)
    assert painted.sum() > 20
    assert abs(rows.mean() - 300) < 1
    assert abs(columns.mean() - 400) < 1


def test_truth_has_a_colour_of_its_own_and_shows_where_both_agree() -> None:
    mask = np.zeros((100, 100), np.uint8)
    mask[40:60, 40:60] = 255
    picture = np.asarray(overlay(np.full_like(mask, 90), mask, truth=mask))
    assert is_colour(picture, FOUND).any()
    assert is_colour(picture, TRUTH).any()
    assert not is_colour(np.asarray(overlay(np.full_like(mask, 90), mask)), TRUTH).any()


def test_any_value_but_zero_is_a_defect() -> None:
    mask = np.zeros((100, 100), np.uint8)
    mask[40:60, 40:60] = 1
    gray = np.full_like(mask, 90)
    assert np.array_equal(np.asarray(overlay(gray, mask)), np.asarray(overlay(gray, mask * 255)))


def test_hundreds_of_defects_at_the_edges_are_drawn() -> None:
    mask = np.zeros((60, 60), np.uint8)
    mask[::3, ::3] = 255
    assert is_colour(np.asarray(overlay(np.zeros_like(mask), mask)), FOUND).any()


def test_contours_are_two_pixels_wide_outside_what_was_found_and_inside_the_truth() -> None:
    mask = np.zeros((700, 800), np.uint8)
    mask[100:200, 300:500] = 255
    mask[600:, :50] = 255  # closed along the edge of the tile where it is the truth, open where it was found
    gray = np.full_like(mask, 90)

    found = is_colour(np.asarray(overlay(gray, mask, defects=[])), FOUND)
    expected = ndimage.binary_dilation(mask, np.ones((5, 5))) & (mask == 0)
    assert np.array_equal(found, expected)

    truth = is_colour(np.asarray(overlay(gray, np.zeros_like(mask), truth=mask, defects=[])), TRUTH)
    expected = (mask > 0) & ~ndimage.binary_erosion(mask, np.ones((5, 5)))
    assert np.array_equal(truth, expected)
