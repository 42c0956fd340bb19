"""The table of figures over splits and seeds: what is finished is kept, and intervals are Student's."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from benchmarks.quality import main, mean_interval
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
    recipe.write_text(recipe.read_text().replace("good_ratio: 1.0", "good_ratio: 0.5"))
    assert main([*args, "1", "--print-only"]) == 1
    assert "is of another recipe" in capsys.readouterr().err


def test_data_that_are_not_there_are_named(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--params", str(recipe), "--data", str(tmp_path), "--out", str(tmp_path / "runs")]) == 1
    assert "run `dvc repro data_load`" in capsys.readouterr().err
