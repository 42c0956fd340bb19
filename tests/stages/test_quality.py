"""The table of figures over splits and seeds: what is finished is kept, and intervals are Student's."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from ruamel.yaml import YAML

from benchmarks import quality
from benchmarks.quality import main, mean_interval, table
from stages.checkpoint import Checkpoint
from tests.clone import SMALL
from tests.stages.conftest import Data

ROOT = Path(__file__).parents[2]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    yaml = YAML()
    params = yaml.load(ROOT / "params.yaml")
    for section, values in SMALL.items():
        params[section].update(values)
    yaml.dump(params, tmp_path / "params.yaml")
    return tmp_path / "params.yaml"


def test_the_interval_is_that_of_students_t() -> None:
    # scipy.stats.t.interval(0.95, 2, loc=2, scale=1 / sqrt(3))
    assert mean_interval([1.0, 2.0, 3.0]) == pytest.approx((-0.4841377, 4.4841377))
    assert mean_interval([1.0]) == (-math.inf, math.inf)


@pytest.mark.usefixtures("small_steps")
def test_each_split_and_seed_is_trained_once_and_its_figures_are_in_the_table(
    data: Data, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--protocols", "grouped", "--params", str(recipe), "--data", str(data.root)]
    args += ["--out", str(tmp_path / "runs"), "--seeds"]
    assert main([*args, "1"]) == 0
    printed = "\ngrouped split, 1 run(s)" + capsys.readouterr().out.partition("grouped split, 1 run(s)")[2]
    assert "| Dice, pooled |" in printed
    model = tmp_path / "runs/grouped-1/unet.keras"
    made = model.stat().st_mtime_ns
    assert main([*args, "1"]) == 0
    assert capsys.readouterr().out == printed
    assert model.stat().st_mtime_ns == made
    (tmp_path / "runs/grouped-1/result.json").unlink()
    assert main([*args, "1"]) == 0
    assert capsys.readouterr().out.endswith(printed), "judged anew, as nothing has changed"
    assert model.stat().st_mtime_ns == made, "but not trained anew"
    assert main([*args, "1", "2", "--print-only"]) == 0
    assert capsys.readouterr().out == printed, "seed 2 is not there, and was not to be trained"
    assert "1 run(s), seeds 1\n" in printed
    recipe.write_text(recipe.read_text().replace("good_ratio: 1.0", "good_ratio: 0.5"))
    assert main([*args, "1", "--print-only"]) == 1
    assert "is of another recipe" in capsys.readouterr().err


@pytest.mark.usefixtures("small_steps")
def test_the_mean_of_kept_networks_is_judged_as_one(
    data: Data, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other, mean = (tmp_path / name for name in ("one", "other", "mean"))
    args = ["--protocols", "grouped", "--params", str(recipe), "--data", str(data.root), "--seeds", "1"]
    assert main([*args, "--out", str(one)]) == 0
    assert main([*args, "--out", str(mean), "--mean-of", str(one), str(other)]) == 1
    assert f"no {other / 'grouped-1' / 'unet.keras'}; train it" in capsys.readouterr().err
    recipe.write_text(recipe.read_text().replace("good_ratio: 1.0", "good_ratio: 0.5"))
    assert main([*args, "--out", str(other)]) == 0
    capsys.readouterr()
    assert main([*args, "--out", str(mean), "--mean-of", str(one), str(other)]) == 0
    assert "| Dice, pooled |" in capsys.readouterr().out

    networks = [keras.models.load_model(folder / "grouped-1/unet.keras") for folder in (one, other, mean)]
    trained = (one / "grouped-1/unet.keras").read_bytes()
    assert main([*args, "--out", str(one), "--mean-of", str(one), str(other)]) == 1
    assert "has a network that was trained" in capsys.readouterr().err
    assert (one / "grouped-1/unet.keras").read_bytes() == trained

    images = np.random.default_rng(0).uniform(1, 255, (2, *networks[0].input_shape[1:])).astype(np.float32)
    answers = [np.asarray(network(images)) for network in networks]
    np.testing.assert_allclose(answers[2], (answers[0] + answers[1]) / 2, atol=1e-6)

    test_side = other / "grouped-1/split/test.csv"
    test_side.write_text("".join(test_side.read_text().splitlines(keepends=True)[:-1]))
    assert main([*args, "--out", str(mean), "--mean-of", str(one), str(other)]) == 1
    assert "are of different splits of the tiles" in capsys.readouterr().err


def test_other_weights_to_start_from_are_another_recipe(
    data: Data, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, recipes = tmp_path / "start.weights.h5", []
    recipe.write_text(recipe.read_text().replace("weights: none", f"weights: {weights}", 1))
    monkeypatch.setattr(quality, "_train", lambda *_: None)
    monkeypatch.setattr(quality, "_judge", lambda *args: recipes.append(args[-1]))
    for content in (b"one", b"other"):
        weights.write_bytes(content)
        args = ["--protocols", "grouped", "--seeds", "1", "--params", str(recipe), "--data", str(data.root)]
        assert main([*args, "--out", str(tmp_path / "runs")]) == 0
    assert recipes[0] != recipes[1]


def test_what_was_cut_off_with_another_recipe_is_not_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, begun = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)]), []
    network.stop_training = False

    def cut_off(*args: Any) -> None:
        checkpoint = next(one for one in args if isinstance(one, Checkpoint))
        begun.append(checkpoint.epoch)
        checkpoint.set_model(network)
        checkpoint.set_params({"epochs": 9})
        checkpoint.on_epoch_end(checkpoint.epoch, {"loss": 1.0, "val_dice": 0.5})

    monkeypatch.setattr("stages.pretrain.pretrain", lambda *_: None)
    monkeypatch.setattr("stages.train.train", cut_off)
    for rate in (0.1, 0.1, 0.2, 0.1):
        quality._train(*[None] * 2, tmp_path, [], [], tmp_path, {"train.learning_rate": rate})
    assert begun == [0, 1, 0, 2]


def test_a_run_without_a_figure_keeps_its_place_in_the_table() -> None:
    figures = dict.fromkeys(("dice_pooled", "iou_pooled"), 0.5)
    names = ("dice_class_mean", "component_recall", "false_alarm_rate", "missed_image_rate", "auroc")
    run = {**figures, **dict.fromkeys((*names, "exposure_agreement"), 0.5)}
    run |= {"original_protocol": figures, "class": {}}
    printed = table([{**run, "few": run}, {**run, "few": None}, {**run, "few": run}])
    assert "| Dice, pooled, there | 0.500 | 0.500 to 0.500 | 0.500, none, 0.500 |" in printed


def test_data_that_are_not_there_are_named(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--params", str(recipe), "--data", str(tmp_path), "--out", str(tmp_path / "runs")]) == 1
    assert "run `dvc repro data_load`" in capsys.readouterr().err
