"""Evaluation with a model whose answer is known: every figure here has been counted by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image

from serving.postprocessing import mask_at
from stages.evaluate import choose_threshold, evaluate, predict_levels
from stages.params import EvaluateParams, MaxFalseAlarmRate
from stages.tiles import Tile, prediction_path
from stages.verdicts import read_image_rows

PARAMS = EvaluateParams(operating_point="best_dice", batch_size=2, component_overlap=0.5, overlays=3)
SIZE = (32, 64)


@pytest.fixture(scope="module")
def model() -> keras.Model:
    """Grey level 0-255 -> probability 0-1, so that a tile says what is found on it."""
    images = keras.Input((*SIZE, 1))
    return keras.Model(images, keras.layers.Rescaling(1 / 255)(images))


class Tiles:
    """Tiles on disk whose grey levels are what the model finds."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def add(self, class_: str, name: str, found: np.ndarray, truth: np.ndarray) -> Tile:
        paths = (f"images/{class_}/{name}.png", f"masks/{class_}/{name}.png")
        for path, pixels in zip(paths, (found, np.where(truth, 255, 0).astype(np.uint8)), strict=True):
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(self.root / path)
        height, width = found.shape
        return Tile(*paths, class_, 0, 0, name, width, height, int(np.count_nonzero(truth)), "", "")


def levels(height: int, width: int, **rows: int) -> np.ndarray:
    """Background 10; `r3=200` sets the first ten pixels of row 3."""
    pixels = np.full((height, width), 10, np.uint8)
    for row, level in rows.items():
        pixels[int(row[1:]), :10] = level
    return pixels


def rows(height: int, width: int, *numbers: int) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[list(numbers), :10] = True
    return mask


@pytest.fixture
def tiles(tmp_path: Path) -> Tiles:
    return Tiles(tmp_path / "tiles")


@pytest.fixture
def val(tiles: Tiles) -> list[Tile]:
    """Defects at 200, background at 90 at most: all levels from 91 to 200 are perfect."""
    found = levels(20, 30, r2=200, r8=90)
    return [tiles.add("Crack", "val", found, rows(20, 30, 2))]


@pytest.fixture
def test_side(tiles: Tiles) -> list[Tile]:
    """Four tiles whose own best threshold would be another: many of their defects are at 95.

    Crack/half: rows 2 and 8 are defects, row 2 is found: 10 tp, 10 fn, 1 of 2 components.
    Fray/wrong: row 2 is a defect at 95, row 15 is found for none: 10 fp, 10 fn, 1 false component.
    Free/clean: nothing. Free/alarm: row 5 is found: 10 fp, a false alarm.
    """
    return [
        tiles.add("Crack", "half", levels(20, 30, r2=220, r8=95), rows(20, 30, 2, 8)),
        tiles.add("Fray", "wrong", levels(24, 40, r2=95, r15=180), rows(24, 40, 2)),
        tiles.add("Free", "clean", levels(32, 64), rows(32, 64)),
        tiles.add("Free", "alarm", levels(20, 20, r5=160), rows(20, 20)),
    ]


@pytest.fixture
def metrics(
    model: keras.Model, tiles: Tiles, val: list[Tile], test_side: list[Tile], tmp_path: Path
) -> dict[str, Any]:
    return evaluate(PARAMS, model, tiles.root, val, test_side, tmp_path / "out")


def test_the_threshold_is_chosen_on_validation_alone(
    metrics: dict[str, Any], model: keras.Model, tiles: Tiles, test_side: list[Tile]
) -> None:
    assert metrics["threshold"] == pytest.approx(102 / 255), "the lowest that only decides on tiles"
    assert choose_threshold(PARAMS, model, tiles.root, test_side) < 96 / 255, "the test side wants another"


def test_pooled_figures_by_hand(metrics: dict[str, Any]) -> None:
    # tp 10; fp 10 + 10; fn 10 + 10.
    assert metrics["images"] == 4
    assert metrics["dice_pooled"] == pytest.approx(20 / (20 + 20 + 20))
    assert metrics["iou_pooled"] == pytest.approx(10 / 50)


def test_figures_of_each_class_by_hand(metrics: dict[str, Any]) -> None:
    assert metrics["class"] == {
        "Crack": {
            **{"images": 1, "dice": 2 / 3, "iou": 0.5},
            **{"component_recall": 0.5, "found": 1, "missed": 1, "false": 0},
        },
        "Fray": {
            **{"images": 1, "dice": 0.0, "iou": 0.0},
            **{"component_recall": 0.0, "found": 0, "missed": 1, "false": 1},
        },
    }
    assert metrics["dice_class_mean"] == pytest.approx(1 / 3)


def test_defects_and_false_alarms_by_hand(metrics: dict[str, Any]) -> None:
    assert metrics["component_recall"] == pytest.approx(1 / 3)
    assert metrics["false_components"] == 2
    assert metrics["false_components_on_good"] == 1
    assert metrics["false_alarm_rate"] == pytest.approx(1 / 2)
    assert metrics["missed_image_rate"] == 0.0, "something is found on both images with defects"
    # Of two tiles of each kind: Wilson's interval of 1/3 and of 1/2.
    assert metrics["component_recall_interval"] == pytest.approx({"low": 0.0453, "high": 0.8406}, abs=1e-3)
    assert metrics["false_alarm_rate_interval"] == pytest.approx({"low": 0.0945, "high": 0.9055}, abs=1e-3)


def test_defects_of_each_size_by_hand(
    model: keras.Model, tiles: Tiles, val: list[Tile], test_side: list[Tile], tmp_path: Path
) -> None:
    # All defects so far have 10 pixels; here are one of 3 (missed) and one of 100 (found).
    truth, found = np.zeros((30, 60), bool), np.full((30, 60), 10, np.uint8)
    truth[1, :3], truth[10:20, 20:30] = True, True
    found[10:20, 20:30] = 250
    sizes = tiles.add("Break", "sizes", found, truth)
    metrics = evaluate(PARAMS, model, tiles.root, val, [*test_side, sizes], tmp_path / "out")
    assert metrics["size"] == {
        "1-9": {"component_recall": 0.0, "found": 0, "missed": 1, "false": 0},
        "10-99": {"component_recall": 1 / 3, "found": 1, "missed": 2, "false": 2},
        "100-999": {"component_recall": 1.0, "found": 1, "missed": 0, "false": 0},
    }
    bars = json.loads((tmp_path / "out" / "plots" / "sizes.json").read_text())
    assert [(bar["size"], bar["recall"]) for bar in bars] == [("1-9", 0), ("10-99", 1 / 3), ("100-999", 1)]


def test_exposures_of_a_tile_should_get_one_answer(
    model: keras.Model, tiles: Tiles, val: list[Tile], tmp_path: Path
) -> None:
    # a: found under one exposure of two; b: found under both; c: seen once, which tells nothing.
    seen = [("a", 1, 220), ("a", 2, 90), ("b", 1, 220), ("b", 2, 200), ("c", 1, 220)]
    images = [
        replace(
            tiles.add("Crack", f"{name}_exp{exposure}", levels(20, 30, r2=level), rows(20, 30, 2)), tile=name
        )
        for name, exposure, level in seen
    ]
    metrics = evaluate(PARAMS, model, tiles.root, val, images, tmp_path / "out")
    assert metrics["exposure_agreement"] == 0.5
    assert metrics["missed_image_rate"] == pytest.approx(1 / 5)
    assert evaluate(PARAMS, model, tiles.root, val, images[-1:], tmp_path)["exposure_agreement"] is None


def test_tables_tell_of_each_image_and_each_defect(metrics: dict[str, Any], tmp_path: Path) -> None:
    written = read_image_rows((tmp_path / "out" / "images.csv").read_text())
    assert [(Path(row.image).stem, row.truth, row.answer) for row in written] == [
        ("half", "defect", "defect"),
        ("wrong", "defect", "defect"),
        ("clean", "good", "good"),
        ("alarm", "good", "defect"),
    ]
    half, wrong, clean, alarm = written
    assert (half.found, half.missed, half.false, half.wrong) == (1, 1, 0, pytest.approx(10 / 600, abs=1e-6))
    assert (wrong.score, wrong.dice) == (round(180 / 255, 4), 0.0)
    assert (clean.dice, clean.false, alarm.dice, alarm.false) == (1.0, 0, 0.0, 1)
    assert (tmp_path / "out" / "defects.csv").read_text().splitlines() == [
        "image,class,outcome,area,size",
        "images/Crack/half.png,Crack,found,10,10-99",
        "images/Crack/half.png,Crack,missed,10,10-99",
        "images/Fray/wrong.png,Fray,missed,10,10-99",
        "images/Fray/wrong.png,Fray,false,10,10-99",
        "images/Free/alarm.png,Free,false,10,10-99",
    ]


def test_the_threshold_follows_the_operating_point(
    model: keras.Model, tiles: Tiles, val: list[Tile], test_side: list[Tile], tmp_path: Path
) -> None:
    # Good tiles reach 10 and 160; defects are found up to 220, 95 and 95.
    point = EvaluateParams.model_validate(
        PARAMS.model_dump() | {"operating_point": {"max_false_alarm_rate": 0.0}}
    )
    assert choose_threshold(point, model, tiles.root, test_side) == pytest.approx(161 / 255)
    # Their tiles reach 220 and 180: from 161 to 180 a level tells all of them apart.
    point = EvaluateParams.model_validate(PARAMS.model_dump() | {"operating_point": "best_balanced_accuracy"})
    assert choose_threshold(point, model, tiles.root, test_side) == pytest.approx(171 / 255)
    point = EvaluateParams.model_validate(PARAMS.model_dump() | {"operating_point": {"min_recall": 0.9}})
    assert choose_threshold(point, model, tiles.root, test_side) == pytest.approx(95 / 255)
    metrics = evaluate(point, model, tiles.root, test_side, test_side, tmp_path / "out")
    assert metrics["component_recall"] == 1.0
    assert metrics["false_alarm_rate"] == 0.5


def test_a_threshold_that_stands_on_too_few_tiles_is_said_to(
    model: keras.Model, tiles: Tiles, val: list[Tile], caplog: pytest.LogCaptureFixture
) -> None:
    good = tiles.add("Free", "good", levels(20, 30), rows(20, 30))
    params = PARAMS.model_copy(update={"operating_point": MaxFalseAlarmRate(max_false_alarm_rate=0.01)})
    choose_threshold(params, model, tiles.root, [*val, good])
    assert "max_false_alarm_rate 0.01 asks for more than 1 good images in validation can tell" in caplog.text


def test_auroc_by_hand(metrics: dict[str, Any]) -> None:
    # Scores 220 and 180 with a defect, 10 and 160 without: every pair is in order.
    assert metrics["auroc"] == 1.0


def test_auroc_counts_an_empty_mask_as_good_whatever_its_class(
    model: keras.Model, tiles: Tiles, val: list[Tile], test_side: list[Tile], tmp_path: Path
) -> None:
    # Its score of 250 is above both defects: 4 of 6 pairs are in order.
    empty = tiles.add("Uneven", "empty", levels(20, 30, r2=250), rows(20, 30))
    metrics = evaluate(PARAMS, model, tiles.root, val, [*test_side, empty], tmp_path / "out")
    assert metrics["auroc"] == pytest.approx(4 / 6)
    assert metrics["class"]["Uneven"]["component_recall"] is None
    assert metrics["false_alarm_rate"] == pytest.approx(1 / 2), "good tiles are those of the class Free"


def test_a_tile_with_a_defect_in_its_mask_is_no_false_alarm_whatever_its_class(
    model: keras.Model, tiles: Tiles, val: list[Tile], test_side: list[Tile], tmp_path: Path
) -> None:
    marked = tiles.add("Free", "marked", levels(20, 30, r2=250), rows(20, 30, 2))
    good = tiles.add("Free", "good", levels(20, 30, r2=120), rows(20, 30))
    point = {"operating_point": MaxFalseAlarmRate(max_false_alarm_rate=0.0)}
    params = PARAMS.model_copy(update=point)
    metrics = evaluate(
        params, model, tiles.root, [*val, marked, good], [*test_side, marked], tmp_path / "out"
    )
    assert metrics["threshold"] == pytest.approx(121 / 255), "of the good tile alone"
    assert metrics["false_alarm_rate"] == pytest.approx(1 / 2), "Free/alarm and Free/clean"
    assert metrics["missed_image_rate"] == 0.0


def test_the_original_protocol_looks_at_the_centre_of_defect_tiles_alone(
    model: keras.Model, tiles: Tiles, val: list[Tile], tmp_path: Path
) -> None:
    # 20 x 60: the centre square is columns 20 to 39. The defect lies left of it, what is found lies in it.
    truth, found = np.zeros((20, 60), bool), np.full((20, 60), 10, np.uint8)
    truth[5:15, :10], truth[5:15, 25:35] = True, True
    found[5:15, 25:35] = 200
    wide = tiles.add("Crack", "wide", found, truth)
    good = tiles.add("Free", "alarm", np.full((20, 20), 200, np.uint8), np.zeros((20, 20), bool))
    metrics = evaluate(PARAMS, model, tiles.root, val, [wide, good], tmp_path / "out")
    assert metrics["original_protocol"] == {"dice_pooled": 1.0, "iou_pooled": 1.0}
    assert metrics["class"]["Crack"]["dice"] == pytest.approx(2 / 3)


def test_without_good_tiles_or_defects_what_cannot_be_said_is_left_open(
    model: keras.Model, tiles: Tiles, val: list[Tile], test_side: list[Tile], tmp_path: Path
) -> None:
    only_good = evaluate(PARAMS, model, tiles.root, val, test_side[2:3], tmp_path / "good")
    assert only_good["component_recall"] is None
    assert only_good["auroc"] is None
    assert only_good["dice_class_mean"] is None
    assert only_good["dice_pooled"] == 1.0
    only_defects = evaluate(PARAMS, model, tiles.root, val, test_side[:2], tmp_path / "defects")
    assert only_defects["false_alarm_rate"] is None
    for name in ("good", "defects"):
        assert "NaN" not in (tmp_path / name / "metrics.json").read_text()


def test_predictions_are_kept_at_the_size_of_the_tile(
    metrics: dict[str, Any], tiles: Tiles, test_side: list[Tile], tmp_path: Path
) -> None:
    for tile in test_side:
        path = prediction_path(tmp_path / "out" / "predictions", tile)
        kept = np.asarray(Image.open(path))
        assert path.name == f"{tile.tile}.png"
        assert kept.shape == (tile.height, tile.width)
        assert np.array_equal(kept, np.asarray(Image.open(tiles.root / tile.image)))


def test_a_tile_that_is_larger_than_the_input_comes_back_at_its_own_size(
    model: keras.Model, tiles: Tiles
) -> None:
    found = np.full((100, 90), 10, np.uint8)
    found[80:, 60:] = 240
    ((_, answer),) = predict_levels(model, tiles.root, [tiles.add("Break", "big", found, found > 99)], 1)
    assert answer.shape == (100, 90)
    mask = mask_at(answer, 0.5)
    assert mask[85:, 65:].all()
    assert not mask[:70].any()
    assert not mask[:, :50].any()


def test_batches_do_not_change_the_answer(model: keras.Model, tiles: Tiles, test_side: list[Tile]) -> None:
    together = list(predict_levels(model, tiles.root, test_side, 3))
    alone = list(predict_levels(model, tiles.root, test_side, 1))
    assert [tile for tile, _ in together] == test_side
    assert all(np.array_equal(one, two) for (_, one), (_, two) in zip(together, alone, strict=True))


def test_the_worst_images_are_drawn_the_worst_first(metrics: dict[str, Any], tmp_path: Path) -> None:
    # Wrong pixels over all pixels: alarm 10 / 400, wrong 20 / 960, half 10 / 600, clean 0.
    overlays = sorted(path.name for path in (tmp_path / "out" / "overlays").iterdir())
    assert overlays == ["01_Free_alarm.png", "02_Fray_wrong.png", "03_Crack_half.png"]


def test_pictures_of_an_earlier_run_do_not_stay_among_those_of_this_one(
    model: keras.Model, tiles: Tiles, val: list[Tile], test_side: list[Tile], tmp_path: Path
) -> None:
    evaluate(PARAMS, model, tiles.root, val, test_side, tmp_path / "out")
    fewer = PARAMS.model_copy(update={"overlays": 1})
    evaluate(fewer, model, tiles.root, val, test_side[:2], tmp_path / "out")
    assert len(list((tmp_path / "out" / "overlays").iterdir())) == 1
    assert len(list((tmp_path / "out" / "predictions").rglob("*.png"))) == 2


def test_metrics_and_plots_are_written(metrics: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert json.loads((out / "metrics.json").read_text()) == metrics
    points = json.loads((out / "plots" / "thresholds.json").read_text())
    assert [point["threshold"] for point in points] == [pytest.approx(k / 255) for k in range(1, 256)]
    at_threshold = points[149]
    assert at_threshold["dice"] == pytest.approx(metrics["dice_pooled"])
    assert at_threshold["recall"] == pytest.approx(1 / 3)
    assert at_threshold["precision"] == pytest.approx(1 / 3)
    bars = json.loads((out / "plots" / "classes.json").read_text())
    assert bars == [{"class": "Crack", "dice": 2 / 3}, {"class": "Fray", "dice": 0.0}]


def test_a_component_counts_as_found_from_the_share_that_was_asked_for(
    model: keras.Model, tiles: Tiles, val: list[Tile], tmp_path: Path
) -> None:
    found = levels(20, 30, r2=220)
    found[2, 4:10] = 20  # four of its ten pixels are left
    tile = tiles.add("Crack", "part", found, rows(20, 30, 2))
    recall = [
        evaluate(
            PARAMS.model_copy(update={"component_overlap": share}),
            model,
            tiles.root,
            val,
            [tile],
            tmp_path / "out",
        )["component_recall"]
        for share in (0.4, 0.5)
    ]
    assert recall == [1.0, 0.0]


def test_rows_name_their_prediction_by_class_and_name(test_side: list[Tile]) -> None:
    tile = replace(test_side[0], mask="masks/Crack/exp1_num_5.png")
    assert prediction_path(Path("p"), tile) == Path("p/Crack/exp1_num_5.png")
