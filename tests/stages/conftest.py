"""What several stages need: a handful of tiles, loaded and split, and the smallest parameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from stages.data_load import data_load
from stages.data_split import data_split
from stages.params import (
    AugmentParams,
    DataLoadParams,
    DataSplitParams,
    SyntheticParams,
    TrainParams,
)
from stages.tiles import Tile, read_tiles

SYNTHETIC = SyntheticParams(tiles_per_class=4, good_tiles=4, exposures=1, height=48, width=48, seed=1)
SPLIT = DataSplitParams(strategy="grouped", test_fraction=0.25, val_fraction=0.25, lookalike=0.85, seed=1)
SMALLEST = TrainParams(
    image_size=(32, 32),
    backbone="slim18",
    backbone_weights="none",
    decoder_filters=(8, 8, 8, 8, 8),
    frozen_epochs=0,
    epochs=1,
    patience=10,
    batch_size=4,
    devices=1,
    workers=1,
    learning_rate=0.001,
    warmup_epochs=0,
    weight_decay=0.0001,
    ema_momentum=0.0,
    dice_weight=0.7,
    focal_gamma=1.0,
    answer_weight=0.0,
    good_ratio=0.5,
    drawn=0.0,
    pasted=0.0,
    mixed_precision=False,
    seed=1,
    resume=False,
    augment=AugmentParams(
        flip=True, rotation=0.0, shift=0.05, zoom=0.1, gamma=0.2, brightness=0.1, contrast=0.2, noise=2.0
    ),
)


@dataclass(frozen=True)
class Data:
    """Tiles on disk.

    Attributes:
        root: folder to which the paths of the tiles are relative.
        train: rows of 10 defect tiles or so and some good ones; `val` and `test` have every class too.
    """

    root: Path
    train: list[Tile]
    val: list[Tile]
    test: list[Tile]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return make_data(tmp_path_factory.mktemp("data"))


def make_data(folder: Path) -> Data:
    """Draws tiles and splits them."""
    params = DataLoadParams(source="synthetic", mask_threshold=0, synthetic=SYNTHETIC)
    data_split(SPLIT, folder / "tiles", data_load(params, folder / "tiles"), folder / "split")
    sides = {side: read_tiles(folder / "split" / f"{side}.csv") for side in ("train", "val", "test")}
    return Data(folder / "tiles", **sides)


@pytest.fixture
def smallest() -> TrainParams:
    return SMALLEST


@pytest.fixture
def half_precision() -> Iterator[None]:
    """Networks and layers that are built now compute in float16."""
    import keras

    keras.mixed_precision.set_global_policy("mixed_float16")
    yield
    keras.mixed_precision.set_global_policy("float32")


@pytest.fixture
def small_steps() -> Iterator[None]:
    """Step by step, since compiling takes longer than a few steps; single precision afterwards."""
    import keras
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)
    keras.mixed_precision.set_global_policy("float32")
