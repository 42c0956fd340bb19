"""Augmentation: image and mask stay aligned, off means off, thin cracks survive."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
import pytest

from stages.augmentation import Augmentation
from stages.params import AugmentParams, load_params

OFF = AugmentParams(
    flip=False, rotation=0.0, shift=0.0, zoom=0.0, gamma=0.0, brightness=0.0, contrast=0.0, noise=0.0
)
STRONG = {
    "flip": True,
    "rotation": 0.15,
    "shift": 0.2,
    "zoom": 0.3,
    "gamma": 0.5,
    "brightness": 0.4,
    "contrast": 0.5,
    "noise": 10.0,
}
LIGHT = ("gamma", "brightness", "contrast", "noise")
GEOMETRY = ("flip", "rotation", "shift", "zoom")
COMMITTED = load_params(Path(__file__).parents[2] / "params.yaml").train.augment


def only(*names: str) -> AugmentParams:
    return OFF.model_copy(update={name: STRONG[name] for name in names})


def augment(
    params: AugmentParams, images: np.ndarray, masks: np.ndarray, seed: int = 3
) -> tuple[np.ndarray, np.ndarray]:
    return Augmentation(params)(images, masks, np.random.default_rng(seed))


@pytest.fixture
def masks() -> np.ndarray:
    """Rectangles of half to full defect away from the edge, 8 masks of 64 x 64."""
    rng = np.random.default_rng(0)
    masks = np.zeros((8, 64, 64, 1), np.float32)
    for mask in masks:
        y, x = rng.integers(20, 34, 2)
        mask[y : y + 12, x : x + 8] = rng.uniform(0.5, 1)
    return masks


@pytest.mark.parametrize("names", [*((name,) for name in GEOMETRY), GEOMETRY])
def test_image_and_mask_are_moved_alike(masks: np.ndarray, names: tuple[str, ...]) -> None:
    images, changed = augment(only(*names), 255 * masks, masks)
    assert images.shape == changed.shape == masks.shape
    assert not np.array_equal(changed, masks), "nothing has moved"
    # An image that is its own mask must stay so, except where an outline is interpolated otherwise.
    outline = np.abs(images / 255 - changed)
    assert np.mean(outline > 0.3) < 0.01
    both = 2 * np.sum(images / 255 * changed) / np.sum((images / 255) ** 2 + changed**2)
    assert both > 0.9


@pytest.mark.parametrize("name", LIGHT)
def test_light_changes_the_image_but_not_the_mask(masks: np.ndarray, name: str) -> None:
    before = 100 + 60 * masks
    images, changed = augment(only(name), before, masks)
    assert np.array_equal(changed, masks)
    assert np.abs(images - before).max() > 5


def test_what_is_no_tile_stays_black_and_tells_nothing_of_the_light(masks: np.ndarray) -> None:
    tiles = 30 + 60 * masks
    tiles[:, 50:] = tiles[:, :, 40:] = 0
    images, _ = augment(only(*LIGHT), tiles, masks)
    assert np.array_equal(images > 0, tiles > 0)
    alone, _ = augment(only("contrast"), tiles, masks)
    inside = alone[:, :50, :40].mean(axis=(1, 2)), tiles[:, :50, :40].mean(axis=(1, 2))
    assert np.allclose(*inside, atol=0.01), "contrast is about the mean of the tile"


def test_strengths_of_zero_change_nothing(masks: np.ndarray) -> None:
    images, changed = augment(OFF, 255 * masks, masks)
    assert np.array_equal(images, 255 * masks)
    assert np.array_equal(changed, masks)


def test_a_batch_depends_on_the_generator_and_not_on_what_was_drawn_before(masks: np.ndarray) -> None:
    for name in STRONG:
        one = Augmentation(only(name))
        first, other = (one(100 + 60 * masks, masks, np.random.default_rng(seed)) for seed in (3, 4))
        again = one(100 + 60 * masks, masks, np.random.default_rng(3))
        fresh = augment(only(name), 100 + 60 * masks, masks, seed=3)
        for repeated in (again, fresh):
            assert np.array_equal(first[0], repeated[0])
            assert np.array_equal(first[1], repeated[1])
        assert not np.array_equal(first[0], other[0])


def test_threads_that_share_one_get_what_each_would_get_alone(masks: np.ndarray) -> None:
    shared = Augmentation(only(*GEOMETRY))

    def batch(seed: int) -> np.ndarray:
        return shared(100 + 60 * masks, masks, np.random.default_rng(seed))[1]

    alone = [batch(seed) for seed in range(40)]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(batch, range(40)))
    assert all(np.array_equal(one, other) for one, other in zip(alone, together, strict=True))


def test_steps_are_drawn_independently() -> None:
    masks = np.zeros((64, 32, 32, 1), np.float32)
    masks[:, 12:20, 6:10] = 1  # left, and in the middle between top and bottom
    _, changed = augment(only("flip", "shift"), 255 * masks, masks)
    down, right = (
        (changed.sum(axis=(other, 3)) * np.arange(32)).sum(axis=1) / changed.sum(axis=(1, 2, 3)) - 15.5
        for other in (2, 1)
    )
    for side in (right < 0, right > 0):
        assert 16 < side.sum() < 48
        assert down[side].min() < -1
        assert down[side].max() > 1


@pytest.mark.usefixtures("half_precision")
def test_a_network_in_half_precision_gets_the_same_batches(masks: np.ndarray) -> None:
    half = augment(only(*STRONG), 255 * masks, masks)
    keras.mixed_precision.set_global_policy("float32")
    single = augment(only(*STRONG), 255 * masks, masks)
    assert np.array_equal(half[0], single[0])
    assert np.array_equal(half[1], single[1])


def test_images_and_masks_stay_in_their_ranges(masks: np.ndarray) -> None:
    for level in (0.0, 127.0, 255.0):
        images, changed = augment(only(*STRONG), np.full_like(masks, level), masks)
        assert images.dtype == changed.dtype == np.float32
        assert images.min() >= 0
        assert images.max() <= 255
        assert changed.min() >= 0
        assert changed.max() <= 1


@pytest.mark.parametrize("params", [COMMITTED, only(*GEOMETRY)], ids=["committed", "strong"])
@pytest.mark.parametrize("strength", [1.0, 0.3])
def test_thin_cracks_survive_even_where_shrinking_has_faded_them(
    params: AugmentParams, strength: float
) -> None:
    masks = np.zeros((8, 96, 96, 1), np.float32)
    for index, mask in enumerate(masks):
        mask[30:66, 40 + 2 * index] = strength
    _, changed = augment(params, 255 * masks, masks)
    kept = changed.sum(axis=(1, 2, 3)) / masks.sum(axis=(1, 2, 3))
    assert kept.min() > 0.4
    assert changed.max(axis=(1, 2, 3)).min() > strength / 3
