"""Lifelike drawings: every kind of tile and of defect, exact masks, all from the generator."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from stages.lifelike import DRAWINGS, draw_any_defect, draw_lifelike_defect, draw_lifelike_tile


@pytest.fixture(scope="module")
def tiles() -> list[np.ndarray]:
    return [draw_lifelike_tile(np.random.default_rng(seed)) for seed in range(40)]


def test_tiles_stand_and_lie_in_many_lights(tiles: list[np.ndarray]) -> None:
    assert {tile.dtype for tile in tiles} == {np.dtype(np.uint8)}
    assert {tile.shape[0] > tile.shape[1] for tile in tiles} == {True, False}
    assert all(70 <= min(tile.shape) <= 130 for tile in tiles)
    means = [tile.mean() for tile in tiles]
    assert min(means) < 80
    assert max(means) > 170
    assert min(tile.min() for tile in tiles) > 0, "black is what is no tile"


def test_some_tiles_have_edges_rounded_off_into_the_dark(tiles: list[np.ndarray]) -> None:
    shares = [
        np.concatenate([tile[0], tile[-1], tile[:, 0], tile[:, -1]]).mean() / tile[20:-20, 20:-20].mean()
        for tile in tiles
    ]
    assert np.mean(np.array(shares) < 0.7) > 0.1
    assert np.mean(np.array(shares) > 0.9) > 0.1


def test_some_tiles_have_bright_scratches_that_are_no_defects(tiles: list[np.ndarray]) -> None:
    """Lines that stand out from what is beside them, by more deviations than the grain ever does."""
    heights = []
    for tile in tiles:
        lines = ndimage.uniform_filter1d(tile[8:-8, 8:-8].astype(float), 15, axis=0)
        sharp = lines - ndimage.median_filter(lines, (1, 7))
        heights.append(sharp.max() / sharp.std())
    assert np.mean(np.array(heights) > 7) > 0.25
    assert np.mean(np.array(heights) < 5.5) > 0.25


def test_the_generator_decides_all() -> None:
    first, again, other = (draw_lifelike_tile(np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_defect_changes_the_picture_where_its_mask_says(tiles: list[np.ndarray], name: str) -> None:
    drawn = 0
    for seed, tile in enumerate(tiles):
        changed, mask = draw_lifelike_defect(tile, name, np.random.default_rng(seed))
        assert changed.shape == mask.shape == tile.shape
        assert set(np.unique(mask)) <= {0, 255}
        outside = ndimage.binary_dilation(mask > 0, iterations=4)
        assert np.array_equal(changed[~outside], tile[~outside])
        drawn += bool(mask.any())
        if mask.any():
            assert np.abs(changed.astype(int) - tile)[mask > 0].mean() > 2
    assert drawn > 30


@pytest.mark.parametrize(("name", "smallest", "largest"), [("Crack", 0.0005, 0.06), ("Uneven", 0.03, 0.7)])
def test_sizes_are_those_of_the_class(
    tiles: list[np.ndarray], name: str, smallest: float, largest: float
) -> None:
    shares = [
        (draw_lifelike_defect(tile, name, np.random.default_rng(seed))[1] > 0).mean()
        for seed, tile in enumerate(tiles)
    ]
    assert smallest < np.median(shares) < largest


def test_plain_and_lifelike_ones_are_mixed(tiles: list[np.ndarray]) -> None:
    plain, both = (draw_any_defect(tiles[0], np.random.default_rng(3), share) for share in (1.0, 0.0))
    assert not np.array_equal(plain[0], both[0])
