"""Augmentation: image and mask stay aligned, off means off, thin cracks survive."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

from stages.augmentation import Augmentation
from stages.params import AugmentParams, load_params

OFF = AugmentParams(flip=False, rotation=0.0, shift=0.0, zoom=0.0, brightness=0.0, contrast=0.0, noise=0.0)
STRONG = {
    "flip": True,
    "rotation": 0.15,
    "shift": 0.2,
    "zoom": 0.3,
    "brightness": 0.4,
    "contrast": 0.5,
    "noise": 10.0,
}
GEOMETRY = ("flip", "rotation", "shift", "zoom")
COMMITTED = load_params(Path(__file__).parents[2] / "params.yaml").train.augment


def only(*names: str) -> AugmentParams:
    return OFF.model_copy(update={name: STRONG[name] for name in names})


def augmentation(params: AugmentParams, seed: int = 3) -> Augmentation:
    keras.utils.set_random_seed(seed)  # as training does; some layers draw from the global generator
    return Augmentation(params, seed)


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
    images, changed = augmentation(only(*names))(255 * masks, masks)
    assert images.shape == changed.shape == masks.shape
    assert not np.array_equal(changed, masks), "nothing has moved"
    # An image that is its own mask must stay so, except where an outline is interpolated otherwise.
    outline = np.abs(images / 255 - changed)
    assert np.mean(outline > 0.3) < 0.01
    both = 2 * np.sum(images / 255 * changed) / np.sum((images / 255) ** 2 + changed**2)
    assert both > 0.9


@pytest.mark.parametrize("name", ["brightness", "contrast", "noise"])
def test_light_changes_the_image_but_not_the_mask(masks: np.ndarray, name: str) -> None:
    before = 100 + 60 * masks
    images, changed = augmentation(only(name))(before, masks)
    assert np.array_equal(changed, masks)
    assert np.abs(images - before).max() > 5


def test_strengths_of_zero_change_nothing(masks: np.ndarray) -> None:
    images, changed = augmentation(OFF)(255 * masks, masks)
    assert np.array_equal(images, 255 * masks)
    assert np.array_equal(changed, masks)


def test_the_same_seed_gives_the_same_batches_and_another_gives_others(masks: np.ndarray) -> None:
    runs = []
    for seed in (3, 3, 4):
        augment = augmentation(only(*STRONG), seed)
        runs.append([augment(255 * masks, masks) for _ in range(2)])
    for one, two, three in zip(*runs, strict=True):
        assert np.array_equal(one[0], two[0])
        assert np.array_equal(one[1], two[1])
        assert not np.array_equal(one[0], three[0])
    assert not np.array_equal(runs[0][0][0], runs[0][1][0]), "each batch is drawn anew"


@pytest.mark.usefixtures("half_precision")
def test_a_network_in_half_precision_gets_the_same_batches(masks: np.ndarray) -> None:
    half = augmentation(only(*STRONG))(255 * masks, masks)
    keras.mixed_precision.set_global_policy("float32")
    single = augmentation(only(*STRONG))(255 * masks, masks)
    assert np.array_equal(half[0], single[0])
    assert np.array_equal(half[1], single[1])


def test_images_and_masks_stay_in_their_ranges(masks: np.ndarray) -> None:
    augment = augmentation(only(*STRONG))
    for level in (0.0, 127.0, 255.0):
        images, changed = augment(np.full_like(masks, level), masks)
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
    _, changed = augmentation(params)(255 * masks, masks)
    kept = changed.sum(axis=(1, 2, 3)) / masks.sum(axis=(1, 2, 3))
    assert kept.min() > 0.4
    assert changed.max(axis=(1, 2, 3)).min() > strength / 3
