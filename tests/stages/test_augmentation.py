"""Augmentation: image and mask stay aligned, off means off, thin cracks survive."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

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


def test_noise_has_its_deviation_and_differs_between_images(masks: np.ndarray) -> None:
    params = OFF.model_copy(update={"noise": 6.0})
    images, _ = augment(params, np.full_like(masks, 128), masks)
    assert (images - 128).std() == pytest.approx(6, rel=0.05)
    assert len({image.tobytes() for image in images}) == len(images)


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


def test_flips_are_exact_and_of_all_four_kinds(masks: np.ndarray) -> None:
    many = np.repeat(masks[:1], 32, axis=0)
    many[:, :5, :9] = 0.5  # in a corner, so that all four differ
    _, changed = augment(only("flip"), 255 * many, many)
    ways = [many[0], many[0, ::-1], many[0, :, ::-1], many[0, ::-1, ::-1]]
    kinds = [next(kind for kind, way in enumerate(ways) if np.array_equal(one, way)) for one in changed]
    assert set(kinds) == {0, 1, 2, 3}


def test_steps_have_their_sizes_and_directions() -> None:
    """A dot that is off the middle tells what has moved it, each step by as much as its strength allows."""
    dots = np.zeros((400, 101, 101, 1), np.float32)
    dots[:, 47:54, 67:74] = 1  # 20 pixels right of the middle

    def reach(name: str, strength: float) -> tuple[np.ndarray, np.ndarray]:
        _, changed = augment(OFF.model_copy(update={name: strength}), 255 * dots, dots)
        total = changed.sum(axis=(1, 2, 3))
        y, x = ((changed.sum(axis=(other, 3)) * np.arange(101)).sum(axis=1) / total for other in (2, 1))
        return y - 50, x - 50

    down, right = reach("shift", 0.1)
    assert np.abs(down).max() == pytest.approx(10.1, abs=0.6)
    assert np.ptp(right) == pytest.approx(20.2, abs=0.8)
    down, right = reach("zoom", 0.2)
    assert np.abs(down).max() < 0.01
    assert (right.min(), right.max()) == pytest.approx((20 / 1.2, 20 / 0.8), abs=0.3)
    down, right = reach("rotation", 0.125)  # an eighth of a turn
    assert np.hypot(down, right) == pytest.approx(20, abs=0.2)
    assert np.abs(np.arctan2(down, right)).max() == pytest.approx(np.pi / 4, abs=0.05)


def test_it_needs_neither_keras_nor_tensorflow() -> None:
    """So it runs beside JAX and torch, and its processes start fast."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['keras', 'keras_cv', 'tensorflow']))\n"
        "import numpy as np\n"
        "from stages.augmentation import Augmentation\n"
        "from stages.params import load_params\n"
        "one = np.full((2, 32, 32, 1), 9, np.float32)\n"
        "images, _ = Augmentation(load_params().train.augment)(one, one / 9, np.random.default_rng(0))\n"
        "assert not np.array_equal(images, one)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


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
