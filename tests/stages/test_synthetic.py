"""Synthetic tiles: repeatable, each class with its own look, masks that say exactly where the defect is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from stages.params import SyntheticParams
from stages.synthetic import draw_defect, draw_surface, write_synthetic
from stages.tiles import CLASSES, GOOD_CLASS, group_exposures

DEFECTS = [name for name in CLASSES if name != GOOD_CLASS]
PARAMS = SyntheticParams(tiles_per_class=2, good_tiles=2, exposures=2, height=40, width=48, seed=3)


def written(folder: Path, **changes: int) -> dict[str, bytes]:
    write_synthetic(PARAMS.model_copy(update=changes), folder)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*g")}


def pairs(folder: Path, name: str) -> list[tuple[np.ndarray, np.ndarray]]:
    return [
        (np.asarray(Image.open(path)), np.asarray(Image.open(path.with_suffix(".png"))))
        for path in sorted((folder / f"MT_{name}" / "Imgs").glob("*.jpg"))
    ]


def drawn(name: str, seed: int, height: int = 90, width: int = 90) -> tuple[np.ndarray, np.ndarray]:
    """Change of grey levels by a defect, and its mask."""
    rng = np.random.default_rng(seed)
    plain = np.clip(130 + draw_surface(height, width, rng), 0, 255).astype(np.uint8)
    changed, mask = draw_defect(plain, name, rng)
    return changed.astype(int) - plain, mask


def test_a_seed_gives_the_same_files_and_another_seed_gives_others(tmp_path: Path) -> None:
    first = written(tmp_path / "a")
    assert written(tmp_path / "b") == first
    other = written(tmp_path / "c", seed=4)
    assert other.keys() == first.keys()
    assert not {data for name, data in first.items() if name.endswith(".jpg")} & set(other.values())


def test_the_set_has_the_layout_and_the_numbers_of_the_real_one(tmp_path: Path) -> None:
    names = {name[:-4] for name in written(tmp_path, exposures=3)}
    assert len(names) == 3 * 2 * len(CLASSES)
    assert {name.partition("/")[0] for name in names} == {f"MT_{name}" for name in CLASSES}
    tiles = group_exposures(name.removeprefix("MT_").replace("/Imgs", "") for name in names)
    assert len(set(tiles.values())) == 2 * len(CLASSES)


def test_a_tile_does_not_depend_on_how_many_are_made(tmp_path: Path) -> None:
    few = written(tmp_path / "few")
    more = written(tmp_path / "more", tiles_per_class=4, good_tiles=3)
    assert set(few.values()) <= set(more.values())


def test_a_tile_has_one_mask_and_another_brightness_under_each_exposure(tmp_path: Path) -> None:
    written(tmp_path, tiles_per_class=1, exposures=6)
    for name in DEFECTS:
        images, masks = zip(*pairs(tmp_path, name), strict=True)
        assert all(np.array_equal(mask, masks[0]) for mask in masks)
        assert masks[0].any()
        means = sorted(float(image.mean()) for image in images)
        assert min(np.diff(means)) > 3
        assert means[-1] - means[0] > 90


def test_sizes_vary_by_about_15_percent(tmp_path: Path) -> None:
    written(tmp_path, tiles_per_class=8, exposures=1, height=100, width=200)
    shapes = {image.shape for name in DEFECTS for image, _ in pairs(tmp_path, name)}
    assert len(shapes) > 20
    assert all(85 <= height <= 115 and 170 <= width <= 230 for height, width in shapes)


def test_good_tiles_have_empty_masks_of_their_size(tmp_path: Path) -> None:
    written(tmp_path)
    good = pairs(tmp_path, GOOD_CLASS)
    assert len(good) == 4
    assert all(image.shape == mask.shape and not mask.any() for image, mask in good)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(DEFECTS),
    seed=st.integers(0, 2**31),
    height=st.integers(24, 130),
    width=st.integers(24, 130),
)
def test_no_defect_is_empty_or_all_of_the_tile(name: str, seed: int, height: int, width: int) -> None:
    change, mask = drawn(name, seed, height, width)
    assert change.shape == mask.shape == (height, width)
    assert set(np.unique(mask)) == {0, 255}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", DEFECTS)
def test_the_mask_is_where_the_tile_differs_from_its_twin_without_defect(name: str, seed: int) -> None:
    change, mask = drawn(name, seed)
    # A lens softens the outline; three pixels further nothing may have changed.
    near = ndimage.binary_dilation(mask > 0, np.ones((3, 3)), iterations=3)
    assert not change[~near].any()
    assert np.abs(change[mask > 0]).mean() > 12


def test_the_files_show_the_defect_where_the_mask_is(tmp_path: Path) -> None:
    written(tmp_path, exposures=1, height=90, width=90)
    for name in ("Blowhole", "Break", "Crack"):
        for image, mask in pairs(tmp_path, name):
            near = ndimage.binary_dilation(mask > 0, np.ones((3, 3)), iterations=6)
            around = image[near & ~ndimage.binary_dilation(mask > 0, iterations=3)]
            assert image[mask > 0].mean() < around.mean() - 10


SEEDS = range(8)


def test_blowholes_are_small_and_dark() -> None:
    for change, mask in (drawn("Blowhole", seed) for seed in SEEDS):
        assert np.mean(mask > 0) < 0.03
        assert change[mask > 0].mean() < -30


def test_breaks_touch_the_edge_and_are_dark() -> None:
    for change, mask in (drawn("Break", seed) for seed in SEEDS):
        assert np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]]).any()
        assert change[mask > 0].mean() < -20


def test_cracks_are_thin_long_and_dark() -> None:
    for change, mask in (drawn("Crack", seed) for seed in SEEDS):
        assert ndimage.distance_transform_edt(mask).max() < 3
        rows, columns = np.nonzero(mask)
        assert np.hypot(np.ptp(rows), np.ptp(columns)) > 15
        assert change[mask > 0].mean() < -30


def test_frayed_patches_are_bright_and_dark() -> None:
    for change, mask in (drawn("Fray", seed) for seed in SEEDS):
        assert np.mean(change[mask > 0] > 5) > 0.1
        assert np.mean(change[mask > 0] < -5) > 0.1


def test_uneven_regions_are_large_and_smooth() -> None:
    for change, mask in (drawn("Uneven", seed) for seed in SEEDS):
        assert np.mean(mask > 0) > 0.08
        inside = change[ndimage.binary_erosion(mask > 0, iterations=4)]
        assert np.ptp(inside) <= 2


def test_a_defect_can_be_drawn_on_any_picture() -> None:
    white = np.full((60, 70), 255, np.uint8)
    changed, mask = draw_defect(white, "Crack", np.random.default_rng(0))
    assert changed.dtype == mask.dtype == np.uint8
    assert changed.shape == mask.shape == white.shape
    assert (white == 255).all(), "the picture itself is left alone"
