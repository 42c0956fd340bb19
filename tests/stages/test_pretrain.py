"""Pretraining: exact labels of drawn defects, weights that `train` takes, and plain refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from serving.preprocessing import read_image
from stages.augmentation import Augmentation
from stages.backbones import build_backbone
from stages.checkpoint import Checkpoint
from stages.errors import StageError
from stages.model import build_unet
from stages.params import AugmentParams, PretrainParams, TrainParams
from stages.pretrain import DrawnDefects, pretrain
from tests.stages.conftest import Data

STILL = AugmentParams(flip=False, rotation=0, shift=0, zoom=0, brightness=0, contrast=0, noise=0)
PARAMS = PretrainParams(steps=20, batch_size=4, learning_rate=0.001)


def drawn(data: Data, seed: int = 1) -> DrawnDefects:
    images = [read_image(data.root / tile.image) for tile in data.train if not tile.defect_pixels]
    return DrawnDefects(images, (32, 32), PARAMS, Augmentation(STILL), seed)


def fresh(folder: Path) -> Checkpoint:
    return Checkpoint(folder / "state", {})


def test_batches_are_whole_tiles_of_which_some_are_left_as_they_are(data: Data) -> None:
    batches = drawn(data)
    assert len(batches) == 2  # a tenth of the steps
    with_defect = []
    for batches.epoch in range(8):
        for index in range(len(batches)):
            images, masks = batches[index]
            assert images.shape == masks.shape == (4, 32, 32, 1)
            assert images.dtype == masks.dtype == np.float32
            assert 0 <= images.min() < images.max() <= 255
            assert 0 <= masks.min() <= masks.max() <= 1
            with_defect += list(masks.any(axis=(1, 2, 3)))
    assert 0.6 < np.mean(with_defect) < 1


def test_rounds_differ_and_repeat_with_the_seed(data: Data) -> None:
    one, other, another = drawn(data), drawn(data), drawn(data, seed=2)
    assert all(np.array_equal(a, b) for a, b in zip(one[0], other[0], strict=True))
    assert not np.array_equal(one[0][0], one[1][0])
    assert not np.array_equal(one[0][0], another[0][0])
    one.epoch = 1
    assert not np.array_equal(one[0][0], other[0][0])


def test_its_weights_are_what_train_starts_from(data: Data, tmp_path: Path, smallest: TrainParams) -> None:
    weights = tmp_path / "models" / "pretrained.weights.h5"
    metrics = pretrain(PARAMS, smallest, data.root, data.train, weights, fresh(tmp_path))
    assert set(metrics) == {"loss", "dice"}
    assert np.isfinite(list(metrics.values())).all()
    assert [path.name for path in weights.parent.iterdir()] == [weights.name]
    taught = build_unet(smallest, weights).get_layer("logits").get_weights()[0]
    raw = tmp_path / "raw.weights.h5"
    untaught = PARAMS.model_copy(update={"steps": 0})
    assert pretrain(untaught, smallest, data.root, data.train, raw, fresh(tmp_path)) == {}
    assert not np.allclose(taught, build_unet(smallest, raw).get_layer("logits").get_weights()[0])


def test_a_backbone_that_has_learnt_elsewhere_is_left_alone(
    data: Data, tmp_path: Path, smallest: TrainParams
) -> None:
    file = tmp_path / "backbone.weights.h5"
    backbone = build_backbone(smallest.backbone, "none", smallest.image_size)
    backbone.save_weights(file)
    learnt = smallest.model_copy(update={"backbone_weights": str(file)})
    weights = tmp_path / "w.weights.h5"
    assert pretrain(PARAMS, learnt, data.root, data.train, weights, fresh(tmp_path)) == {}
    kept = build_unet(smallest, weights).get_layer(smallest.backbone)
    for before, after in zip(backbone.get_weights(), kept.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_what_cant_be_drawn_on_is_refused(data: Data, tmp_path: Path, smallest: TrainParams) -> None:
    weights = tmp_path / "w.weights.h5"
    defects = [tile for tile in data.train if tile.defect_pixels]
    with pytest.raises(StageError, match=r"there is none; set pretrain\.steps=0"):
        pretrain(PARAMS, smallest, data.root, defects, weights, fresh(tmp_path))
    assert not weights.exists()
