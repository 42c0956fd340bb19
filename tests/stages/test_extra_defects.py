"""More defects: pasted ones come from other tiles and stay as they are, drawn ones on good tiles alone."""

from __future__ import annotations

import numpy as np
import pytest

from stages.dataset import Examples
from stages.extra_defects import ExtraDefects

SIDE = 64
TILE = (slice(0, 60), slice(0, 50))


def tiles(number: int, level: int) -> np.ndarray:
    images = np.zeros((number, SIDE, SIDE, 1), np.uint8)
    noise = np.random.default_rng(0).integers(-5, 6, (number, 60, 50, 1))
    images[:, *TILE] = level + noise
    return images


@pytest.fixture
def examples() -> Examples:
    """A dark blot of 6 x 8 in the middle of a tile of level 120, and a good tile."""
    images, masks = tiles(2, 120), np.zeros((2, SIDE, SIDE, 1), np.uint8)
    images[0, 20:26, 20:28], masks[0, 20:26, 20:28] = 40, 255
    return Examples(images, masks, np.array([False, True]))


def batch(level: int = 120, number: int = 16) -> tuple[np.ndarray, np.ndarray]:
    return tiles(number, level).astype(np.float32), np.zeros((number, SIDE, SIDE, 1), np.float32)


def test_shares_of_zero_change_nothing(examples: Examples) -> None:
    images, masks = batch()
    found = ExtraDefects(examples, 0.0, 0.0)(images, masks, np.random.default_rng(1))
    assert np.array_equal(found[0], images)
    assert np.array_equal(found[1], masks)


@pytest.mark.parametrize("level", [60, 120, 200])
def test_a_pasted_defect_has_its_size_and_the_light_of_the_tile(examples: Examples, level: int) -> None:
    images, masks = batch(level)
    changed, where = ExtraDefects(examples, 1.0, 0.0)(images, masks, np.random.default_rng(1))
    assert not masks.any(), "the batch itself stays as it was"
    assert where.sum(axis=(1, 2, 3)) == pytest.approx(6 * 8)
    places = {tuple(np.argwhere(one[..., 0] > 0.5)[0]) for one in where}
    assert len(places) > 8
    assert changed[where > 0.5].mean() == pytest.approx(level / 3, rel=0.25)
    assert not changed[:, 60:].any()
    assert not where[:, :, 50:].any()


def test_a_defect_at_an_edge_is_pasted_at_an_edge() -> None:
    images, masks = tiles(1, 120), np.zeros((1, SIDE, SIDE, 1), np.uint8)
    images[0, :5, 20:30], masks[0, :5, 20:30] = 30, 255
    paste = ExtraDefects(Examples(images, masks, np.array([False])), 1.0, 0.0)
    _, where = paste(*batch(), np.random.default_rng(1))
    rows = where[..., 0].any(axis=2)
    assert rows.any(axis=1).all()
    assert (rows[:, 0] | rows[:, 59]).all()
    assert rows[:, 0].any()
    assert rows[:, 59].any(), "mirrored, too"


def test_what_fills_much_of_a_tile_is_not_pasted() -> None:
    masks = np.zeros((1, SIDE, SIDE, 1), np.uint8)
    masks[0, :40, :50] = 255
    images, empty = batch()
    paste = ExtraDefects(Examples(tiles(1, 120), masks, np.array([False])), 1.0, 0.0)
    changed, where = paste(images, empty, np.random.default_rng(1))
    assert np.array_equal(changed, images)
    assert not where.any()


def test_drawings_go_on_good_tiles_alone(examples: Examples) -> None:
    images, masks = batch()
    masks[:8, 5, 5] = 1
    changed, where = ExtraDefects(examples, 0.0, 1.0)(images, masks, np.random.default_rng(1))
    assert np.array_equal(changed[:8], images[:8])
    assert np.array_equal(where[:8], masks[:8])
    assert where[8:].any(axis=(1, 2, 3)).all()
    assert not changed[:, 60:].any()


def test_the_generator_decides_all(examples: Examples) -> None:
    extra = ExtraDefects(examples, 0.5, 0.5)
    first, again, other = (extra(*batch(), np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[1], other[1])


def test_a_black_picture_stays_black(examples: Examples) -> None:
    black = np.zeros((4, SIDE, SIDE, 1), np.float32)
    changed, where = ExtraDefects(examples, 1.0, 0.0)(black, black, np.random.default_rng(1))
    assert not changed.any()
    assert not where.any()
