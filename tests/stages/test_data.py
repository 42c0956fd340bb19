"""Loading and splitting: all or nothing, every problem named, no leak in a grouped split."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages import data_split as split_stage
from stages.data_load import data_load
from stages.data_split import data_split, leaks
from stages.errors import StageError
from stages.own import start_anew
from stages.params import DataLoadParams, DataSplitParams, SyntheticParams
from stages.tiles import Tile, exposure_of, group_exposures, read_tiles, write_tiles

ROOT = Path(__file__).parents[2]

SMALL = SyntheticParams(tiles_per_class=6, good_tiles=8, exposures=3, height=40, width=40, seed=1)
SPLIT = DataSplitParams(strategy="grouped", test_fraction=0.2, val_fraction=0.2, lookalike=0.85, seed=1)


def load(source: str, out: Path) -> list:
    params = DataLoadParams(source=source, mask_threshold=0, synthetic=SMALL)
    return data_load(params, out, out.parent / "cache")


def test_synthetic_tiles_are_paired_grouped_and_repeatable(tmp_path: Path) -> None:
    tiles = load("synthetic", tmp_path / "a")
    assert len(tiles) == 3 * (5 * 6 + 8)
    assert len({tile.tile for tile in tiles}) == 5 * 6 + 8
    assert all((tile.defect_pixels > 0) == (tile.class_ != "Free") for tile in tiles)
    assert tiles == load("synthetic", tmp_path / "b") == read_tiles(tmp_path / "a" / "tiles.csv")


def test_all_problems_are_named_and_nothing_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "source" / "Crack"
    folder.mkdir(parents=True)
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(folder / "lonely.jpg")
    for name, side in (("small", 10), ("broken", 20)):
        Image.fromarray(np.zeros((20, 20), np.uint8)).save(folder / f"{name}.jpg")
        Image.fromarray(np.zeros((side, side), np.uint8)).save(folder / f"{name}.png")
    (folder / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(StageError) as caught:
        load(str(tmp_path / "source"), tmp_path / "out")
    assert all(name in str(caught.value) for name in ("lonely.jpg", "small.png", "broken.jpg"))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def many(folder: Path, draw: Callable[[int], np.ndarray], count: int = 30) -> list[Tile]:
    for index in range(count):
        class_ = "Crack" if index % 2 else "Free"
        (folder / "source" / class_).mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw(index)).save(folder / "source" / class_ / f"{index}.png")
        if index % 2:
            mask = np.zeros((40, 40), np.uint8)
            mask[5:9, 5:9] = 255
            Image.fromarray(mask).save(folder / "source" / class_ / f"{index}_mask.png")
    return load(str(folder / "source"), folder / "tiles")


def test_parts_with_one_print_say_that_they_count_as_one_piece(tmp_path: Path) -> None:
    print_ = np.kron(np.random.default_rng(0).integers(60, 200, (10, 10)), np.ones((4, 4)))

    def part(index: int) -> np.ndarray:
        return (print_ + np.random.default_rng(index).normal(0, 3, (40, 40))).clip(0, 255).astype(np.uint8)

    tiles = many(tmp_path, part)
    with pytest.raises(
        StageError, match=r"30 tiles count as 1 piece\(s\) by their look; raise data_split.lookalike"
    ):
        data_split(SPLIT, tmp_path / "tiles", tiles, tmp_path / "split")
    data_split(SPLIT.model_copy(update={"lookalike": 1}), tmp_path / "tiles", tiles, tmp_path / "split")


def test_identical_pictures_without_structure_are_named_where_they_leak(tmp_path: Path) -> None:
    def part(index: int) -> np.ndarray:
        levels = np.random.default_rng(index).integers(0, 255, (40, 40), np.uint8)
        return np.full_like(levels, 255) if index in (1, 3, 5, 7, 9, 11, 13) else levels

    tiles = many(tmp_path, part)
    with pytest.raises(
        StageError, match="take all but one out of the source: Crack/1, Crack/11, Crack/13, Crack/3"
    ):
        data_split(SPLIT, tmp_path / "tiles", tiles, tmp_path / "split")


@pytest.mark.parametrize(
    ("class_", "lacks"), [("Free", "no image with a defect"), ("Crack", "no good image")]
)
def test_the_stage_says_which_side_has_no_defect_or_nothing_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, class_: str, lacks: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    tiles = many(
        tmp_path / "data", lambda index: np.random.default_rng(index).integers(0, 255, (40, 40), np.uint8)
    )
    write_tiles(tmp_path / "data" / "tiles" / "tiles.csv", [t for t in tiles if t.class_ == class_])
    start_anew(tmp_path / "data")
    split_stage.main()
    said = [message for message in caplog.messages if lacks in message]
    assert [message.split()[0] for message in said] == ["train", "val", "test"]


def test_a_zip_that_leads_out_of_itself_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("../MT_Free/Imgs/a.jpg", b"x")
    with pytest.raises(StageError, match="leads out of the archive"):
        load(str(tmp_path / "evil.zip"), tmp_path / "out")


def test_exposures_ascend_within_a_tile_and_a_jump_starts_another() -> None:
    names = ["Free/exp1_num_10", "Crack/exp2_num_20", "Free/exp1_num_30", "Free/exp2_num_900", "Free/own"]
    tiles = group_exposures(names)
    assert tiles[names[0]] == tiles[names[1]]
    assert len({tiles[name] for name in names[1:]}) == 4


def test_names_of_ones_own_tell_tile_and_exposure_where_they_end_so() -> None:
    names = ["Crack/7_exp1", "Free/7_exp12", "Crack/7_exposed", "Free/7_exposed"]
    assert [exposure_of(name) for name in names] == [(1, 0), (12, 0), (0, 0), (0, 0)]
    tiles = group_exposures(names)
    assert [tiles[name] for name in names] == ["7", "7", "Crack/7_exposed", "Free/7_exposed"]


def test_grouped_split_keeps_each_tile_on_one_side_with_all_classes(tmp_path: Path) -> None:
    tiles = load("synthetic", tmp_path / "a")
    summary = data_split(SPLIT, tmp_path / "a", tiles[::-1], tmp_path / "split")
    sides = {side: read_tiles(tmp_path / "split" / f"{side}.csv") for side in ("train", "val", "test")}
    assert not any(leaks(sides, {tile.tile: tile.tile for tile in tiles}).values())
    assert sum(map(len, sides.values())) == len(tiles)
    assert all(min(counts.values()) > 0 for counts in summary["images"].values())


def test_random_split_reports_its_leaks(tmp_path: Path) -> None:
    tiles = load("synthetic", tmp_path / "a")
    summary = data_split(
        SPLIT.model_copy(update={"strategy": "random"}), tmp_path / "a", tiles, tmp_path / "split"
    )
    assert summary["leaks"]["test_images_with_sibling_in_train"] > 0


def test_a_piece_that_is_there_under_two_names_stays_on_one_side(tmp_path: Path) -> None:
    tiles = load("synthetic", tmp_path / "a")
    # Another tile's name, and other light: the same piece, photographed again.
    again = []
    for tile in [tile for tile in tiles if tile.exposure == 1][::4]:
        picture = np.asarray(Image.open(tmp_path / "a" / tile.image), np.float32)
        name = f"images/{tile.class_}/again-{tile.number}.png"
        Image.fromarray(np.clip(20 + 0.8 * picture, 0, 255).astype(np.uint8)).save(tmp_path / "a" / name)
        again.append(replace(tile, image=name, tile=f"again-{tile.number}", image_sha256=name))
    summary = data_split(SPLIT, tmp_path / "a", [*tiles, *again], tmp_path / "split")
    merged = [set(names) for names in summary["merged_tiles"]]
    for number, tile in ((int(tile.tile.removeprefix("again-")), tile) for tile in again):
        first = next(other.tile for other in tiles if other.number == number)
        assert any({first, tile.tile} <= names for names in merged)
    assert len(merged) == len(again)
    assert not any(summary["leaks"].values())
    off = SPLIT.model_copy(update={"lookalike": 1.0})
    assert data_split(off, tmp_path / "a", [*tiles, *again], tmp_path / "off")["merged_tiles"] == []
