"""Examples and batches: nothing is cropped, nothing thin is lost, every epoch is drawn as promised."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from stages.dataset import Batches, Examples, load_examples, read_mask


def unchanged(
    images: np.ndarray, masks: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    return images, masks


def examples(defects: int, good: int) -> Examples:
    """Tiles whose only grey level is their number; the good ones come last."""
    count = defects + good
    images = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 4, 4, 1)).copy()
    masks = np.zeros_like(images)
    masks[:defects, 0, 0] = 255
    masks[:defects, 1, 1] = 51
    return Examples(images, masks, np.arange(count) >= defects)


def epoch(batches: Batches) -> list[int]:
    return [int(image[0, 0, 0]) for index in range(len(batches)) for image in batches[index][0]]


@pytest.fixture
def tile(tmp_path: Path) -> tuple[Path, SimpleNamespace]:
    """A tile of 200 x 100 pixels with a crack of one pixel at its lower end."""
    image = np.full((200, 100), 120, np.uint8)
    mask = np.zeros_like(image)
    mask[190, 10:90] = 255
    image[190, 10:90] = 20
    Image.fromarray(image).save(tmp_path / "a.png")
    Image.fromarray(mask).save(tmp_path / "a_mask.png")
    return tmp_path, SimpleNamespace(image="a.png", mask="a_mask.png")


def test_a_tile_is_shrunk_whole_and_its_thin_crack_fades_but_stays(
    tile: tuple[Path, SimpleNamespace],
) -> None:
    root, row = tile
    loaded = load_examples(root, [row], (64, 64))
    assert loaded.images.shape == loaded.masks.shape == (1, 64, 64, 1)
    assert loaded.images.dtype == loaded.masks.dtype == np.uint8
    mask = loaded.masks[0, ..., 0]
    rows, columns = np.nonzero(mask)
    assert rows.min() >= 58
    assert columns.max() < 32
    # It keeps its mass: 80 pixels at a scale of 0.32 in both directions.
    assert mask.sum() / 255 == pytest.approx(80 * 0.32**2, rel=0.05)
    assert 30 < mask.max() < 255
    assert not loaded.images[0, :, 33:].any(), "beside the tile there is nothing"


def test_a_small_tile_is_padded_as_it_is(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(1, 255, (20, 30), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    row = SimpleNamespace(image="a.png", mask="a.png")
    loaded = load_examples(tmp_path, [row], (32, 64))
    assert np.array_equal(loaded.images[0, :20, :30, 0], pixels)
    assert np.array_equal(loaded.images, loaded.masks)
    assert loaded.images.sum() == pixels.sum()


def test_tiles_without_a_defect_pixel_are_good(tile: tuple[Path, SimpleNamespace]) -> None:
    root, row = tile
    Image.fromarray(np.zeros((200, 100), np.uint8)).save(root / "empty.png")
    empty = SimpleNamespace(image="a.png", mask="empty.png")
    assert load_examples(root, [row, empty], (32, 32)).good.tolist() == [False, True]


def test_a_mask_is_read_as_levels(tile: tuple[Path, SimpleNamespace]) -> None:
    root, row = tile
    mask = read_mask(root / row.mask)
    assert mask.shape == (200, 100)
    assert set(np.unique(mask)) == {0, 255}


def test_without_augmentation_all_tiles_come_once_and_in_order() -> None:
    batches = Batches(examples(3, 7), 4)
    assert len(batches) == 3
    assert epoch(batches) == list(range(10))
    batches.epoch = 1
    assert epoch(batches) == list(range(10))


def test_images_and_masks_have_their_ranges() -> None:
    images, masks = Batches(examples(3, 1), 4)[0]
    assert images.dtype == masks.dtype == np.float32
    assert images.max() == 3
    assert np.unique(masks).tolist() == pytest.approx([0, 0.2, 1])


@pytest.mark.parametrize(("ratio", "good"), [(0.0, 0), (0.5, 2), (1.0, 4), (2.0, 8), (100.0, 12)])
def test_every_epoch_has_all_defects_and_the_asked_share_of_good_tiles(ratio: float, good: int) -> None:
    batches = Batches(examples(4, 12), 3, augment=unchanged, good_ratio=ratio)
    for batches.epoch in range(3):
        drawn = epoch(batches)
        assert sorted(one for one in drawn if one < 4) == [0, 1, 2, 3]
        assert len(set(drawn)) == len(drawn) == 4 + good
        assert len(batches) == -(-(4 + good) // 3)


def test_epochs_differ_in_order_and_in_good_tiles_but_not_between_equal_seeds() -> None:
    first, again, other = (
        Batches(examples(4, 40), 4, augment=unchanged, good_ratio=2.0, seed=seed) for seed in (1, 1, 2)
    )
    one, two = epoch(first), epoch(again)
    assert one == two != epoch(other)
    first.epoch = again.epoch = 1
    assert epoch(first) == epoch(again) != one
    assert {x for x in epoch(first) if x >= 4} != {x for x in one if x >= 4}


def test_a_batch_depends_on_seed_epoch_and_place_alone() -> None:
    def chance(images: np.ndarray, masks: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
        return images, rng.random()

    def drawn(batches: Batches) -> list[tuple[int, float]]:
        return [(int(images[0, 0, 0, 0]), value) for images, value in map(batches.__getitem__, range(5))]

    through, gone_on = (Batches(examples(4, 40), 4, augment=chance, good_ratio=5.0, seed=1) for _ in range(2))
    epochs = []
    for through.epoch in range(3):
        epochs.append(drawn(through))
    gone_on.epoch = 2
    assert gone_on[3][1] == epochs[2][3][1]
    assert drawn(gone_on) == epochs[2]
    values = [value for epoch in epochs for _, value in epoch]
    assert len(set(values)) == 15


def test_image_and_mask_of_a_batch_belong_together() -> None:
    batches = Batches(examples(5, 5), 3, augment=unchanged)
    for images, masks in (batches[index] for index in range(len(batches))):
        for image, mask in zip(images, masks, strict=True):
            assert (image[0, 0, 0] < 5) == mask.any()
