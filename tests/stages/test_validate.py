"""The parity gate: a real server must answer what evaluation predicted, else the tiles are named."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from serving.client import TileClient
from stages.errors import StageError
from stages.evaluate import predict_levels
from stages.params import ValidateParams
from stages.tiles import prediction_path
from stages.validate import main, validate
from tests.conftest import DETECTOR_SIZE, MODEL_NAME
from tests.serving.images import Docker, make_context, skip_tfserving, why_not
from tests.stages.conftest import Data

ROOT = Path(__file__).parents[2]
PARAMS = ValidateParams(max_mask_difference=0.001, max_probability_difference=2)


@pytest.fixture
def predictions(data: Data, tmp_path: Path) -> Path:
    """What evaluation predicts with the model that the server has: dark pixels are defects."""
    images = keras.Input((*DETECTOR_SIZE, 1))
    output = keras.layers.Activation("sigmoid")(keras.layers.Rescaling(-1 / 8, offset=100 / 8)(images))
    for tile, levels in predict_levels(keras.Model(images, output), data.root, data.test, 4):
        path = prediction_path(tmp_path, tile)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(levels).save(path)
    return tmp_path


@pytest.fixture
def client(server_url: str) -> TileClient:
    return TileClient(server_url, MODEL_NAME)


def change(path: Path, rows: slice, level: int) -> None:
    levels = np.array(Image.open(path))
    levels[rows] = level
    Image.fromarray(levels).save(path)


def test_served_and_evaluated_predictions_agree(client: TileClient, data: Data, predictions: Path) -> None:
    result = validate(PARAMS, client, data.root, data.test, predictions)
    assert result["images"] == len(data.test) > 3
    assert result["max_mask_difference"] <= PARAMS.max_mask_difference
    assert result["max_probability_difference"] <= 1


def test_a_mask_that_differs_is_named_with_its_difference(
    client: TileClient, data: Data, predictions: Path
) -> None:
    tile = data.test[2]
    path = prediction_path(predictions, tile)
    served = np.asarray(Image.open(path))
    change(path, slice(0, 3), 0 if served[:3].mean() > 127 else 255)
    masks_alone = PARAMS.model_copy(update={"max_probability_difference": 255})
    with pytest.raises(StageError) as caught:
        validate(masks_alone, client, data.root, data.test, predictions)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2, "one tile is named, and no other"
    assert f"{tile.image}: " in lines[1]
    assert "% of the mask differ" in lines[1]


def test_all_tiles_that_differ_are_named(client: TileClient, data: Data, predictions: Path) -> None:
    for tile in data.test:
        change(prediction_path(predictions, tile), slice(None), 128)
    with pytest.raises(StageError) as caught:
        validate(PARAMS, client, data.root, data.test, predictions)
    assert all(tile.image in str(caught.value) for tile in data.test)


def test_probabilities_may_differ_by_the_tolerance_and_no_more(
    client: TileClient, data: Data, predictions: Path
) -> None:
    tile = data.test[0]
    levels = np.asarray(Image.open(prediction_path(predictions, tile))).astype(int)
    # Away from the threshold, so that no mask changes.
    away = np.where(levels > 127, levels - 20, levels + 20)
    shifted = np.where(np.abs(levels - 127) > 60, away, levels).astype(np.uint8)
    Image.fromarray(shifted).save(prediction_path(predictions, tile))
    with pytest.raises(StageError, match=rf"{tile.image}: 0\.0000% of the mask differ, probabilities by"):
        validate(PARAMS, client, data.root, data.test, predictions)
    generous = PARAMS.model_copy(update={"max_probability_difference": 22})
    assert validate(generous, client, data.root, data.test, predictions)["max_probability_difference"] >= 19


@pytest.fixture
def workspace(
    data: Data, predictions: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The current folder as the pipeline leaves it, with the tests' data and predictions."""
    folder = tmp_path_factory.mktemp("workspace")
    for name in ("params.yaml", "scripts/check_image"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    for name, target in {
        "data/tiles": data.root,
        "data/split": data.root.parent / "split",
        "results/evaluate/predictions": predictions,
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(target)
    monkeypatch.chdir(folder)
    return folder


def test_a_server_that_runs_elsewhere_is_checked_and_nothing_is_written(
    workspace: Path, server_url: str, data: Data, predictions: Path
) -> None:
    main(url=server_url)
    assert {path.name for path in (workspace / "results").iterdir()} == {"evaluate"}
    change(prediction_path(predictions, data.test[1]), slice(None), 128)
    with pytest.raises(StageError, match=data.test[1].image):
        main(url=server_url)


def test_a_server_that_does_not_answer_is_named(workspace: Path) -> None:
    with pytest.raises(StageError, match=r"the server can't be checked: .*127\.0\.0\.1:1\b"):
        main(url="http://127.0.0.1:1")


STAND_IN = """\
#!/usr/bin/env bash
# Docker, as far as scripts/check_image calls it, with a container that is a server already there.
echo "$1" >> "$CALLS"
case $1 in
  run) echo container ;;
  port) echo "${SERVER#http://}" ;;
  inspect) echo "$STATE" ;;
  logs) echo "what the server said" ;;
  rm) [[ $* == "rm --force container" ]] ;;
  *) exit 125 ;;
esac
"""


def check_image(image: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        [str(folder / "scripts/check_image"), image],
        env=os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
    )


def test_an_image_is_run_checked_and_removed(
    workspace: Path, server_url: str, data: Data, predictions: Path
) -> None:
    (workspace / "bin").mkdir()
    (workspace / "bin/docker").write_text(STAND_IN)
    (workspace / "bin/docker").chmod(0o755)
    calls = workspace / "calls"
    settings = {"SERVER": server_url, "STATE": "running, healthy", "CALLS": str(calls)}
    good = check_image("tiles:v1", workspace, **settings)
    assert good.returncode == 0, good.stderr
    assert "served and evaluated predictions agree" in good.stderr
    assert calls.read_text().split() == ["run", "inspect", "port", "logs", "rm"]

    change(prediction_path(predictions, data.test[0]), slice(None), 128)
    differs = check_image("tiles:v1", workspace, **settings)
    assert differs.returncode == 1
    assert data.test[0].image in differs.stderr
    assert calls.read_text().split()[-2:] == ["logs", "rm"]

    dead = check_image("tiles:v1", workspace, **settings | {"STATE": "exited, unhealthy"})
    assert dead.returncode == 1
    assert "tiles:v1 does not get ready (exited, unhealthy)" in dead.stderr
    assert "what the server said" in dead.stderr
    assert calls.read_text().split()[-2:] == ["logs", "rm"]


@pytest.mark.tfserving
def test_the_image_of_dockerfile_serving_answers_what_was_evaluated(
    workspace: Path, servable_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if reason := why_not("docker"):
        skip_tfserving(reason)
    Docker().build(make_context(tmp_path_factory.mktemp("context"), servable_path))
    done = check_image(Docker.tag, workspace)
    assert done.returncode == 0, done.stderr
