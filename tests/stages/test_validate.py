"""The parity gate: a real server must answer what evaluation predicted, else the tiles are named."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from serving.client import TileClient
from stages.errors import StageError
from stages.evaluate import predict_levels, prediction_path
from stages.params import ValidateParams
from stages.validate import validate
from tests.conftest import DETECTOR_SIZE, MODEL_NAME
from tests.stages.conftest import Data

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
