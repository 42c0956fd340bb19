"""Pretraining: exact labels of drawn defects, weights that `train` takes, and plain refusals."""

from __future__ import annotations

from pathlib import Path

import keras
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

STILL = AugmentParams(flip=False, rotation=0, shift=0, zoom=0, gamma=0, brightness=0, contrast=0, noise=0)
PARAMS = PretrainParams(
    weights="none", drawings="plain", scale=1.0, steps=20, batch_size=4, learning_rate=0.001
)


def good(data: Data) -> list[np.ndarray]:
    return [read_image(data.root / tile.image) for tile in data.train if not tile.defect_pixels]


def drawn(data: Data, seed: int = 1, drawings: str = "plain") -> DrawnDefects:
    params = PARAMS.model_copy(update={"drawings": drawings})
    return DrawnDefects(good(data), (32, 32), params, Augmentation(STILL), seed)


def fresh(folder: Path) -> Checkpoint:
    return Checkpoint(folder / "state", {})


@pytest.mark.parametrize("drawings", ["plain", "both"])
def test_batches_are_whole_tiles_of_which_some_are_left_as_they_are(data: Data, drawings: str) -> None:
    batches = drawn(data, drawings=drawings)
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
    metrics = pretrain(PARAMS, smallest, good(data), weights, fresh(tmp_path))
    assert set(metrics) == {"loss", "dice"}
    assert np.isfinite(list(metrics.values())).all()
    assert [path.name for path in weights.parent.iterdir()] == [weights.name]
    taught = build_unet(smallest, weights).get_layer("logits").get_weights()[0]
    raw = tmp_path / "raw.weights.h5"
    untaught = PARAMS.model_copy(update={"steps": 0})
    assert pretrain(untaught, smallest, good(data), raw, fresh(tmp_path)) == {}
    assert not np.allclose(taught, build_unet(smallest, raw).get_layer("logits").get_weights()[0])


@pytest.mark.parametrize(("scale", "size"), [(0.6, (32, 64)), (0.1, (32, 32))])
def test_tiles_may_be_smaller_than_those_of_train(
    data: Data,
    tmp_path: Path,
    smallest: TrainParams,
    monkeypatch: pytest.MonkeyPatch,
    scale: float,
    size: tuple[int, int],
) -> None:
    network = smallest.model_copy(update={"image_size": (64, 96)})
    seen = set()
    batch = DrawnDefects.__getitem__

    def watched(self: DrawnDefects, index: int) -> tuple[np.ndarray, np.ndarray]:
        images, masks = batch(self, index)
        seen.add(images.shape[1:3])
        return images, masks

    monkeypatch.setattr(DrawnDefects, "__getitem__", watched)
    weights = tmp_path / "w.weights.h5"
    pretrain(
        PARAMS.model_copy(update={"scale": scale, "steps": 10}), network, good(data), weights, fresh(tmp_path)
    )
    assert seen == {size}
    assert build_unet(network, weights).input_shape == (None, 64, 96, 1), "train takes them at its own size"


def test_it_goes_on_from_the_weights_of_a_file(data: Data, tmp_path: Path, smallest: TrainParams) -> None:
    known, weights = tmp_path / "known.weights.h5", tmp_path / "w.weights.h5"
    keras.utils.set_random_seed(99)
    network = build_unet(smallest)
    network.save_weights(known)
    params = PARAMS.model_copy(update={"steps": 0, "weights": str(known)})
    assert pretrain(params, smallest, [], weights, fresh(tmp_path)) == {}
    for before, after in zip(network.get_weights(), build_unet(smallest, weights).get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    lost = params.model_copy(update={"weights": "lost.weights.h5"})
    with pytest.raises(StageError, match=r"no weights file lost\.weights\.h5.*pretrain\.weights none"):
        pretrain(lost, smallest, [], weights, fresh(tmp_path))


@pytest.mark.parametrize("steps", [0, PARAMS.steps])
def test_a_backbone_that_has_learnt_elsewhere_is_where_it_starts(
    data: Data, tmp_path: Path, smallest: TrainParams, steps: int
) -> None:
    file = tmp_path / "backbone.weights.h5"
    backbone = build_backbone(smallest.backbone, "none", smallest.image_size)
    backbone.save_weights(file)
    learnt = smallest.model_copy(update={"backbone_weights": str(file)})
    params = PARAMS.model_copy(update={"steps": steps, "learning_rate": 1e-6})
    weights = tmp_path / "w.weights.h5"
    pretrain(params, learnt, good(data), weights, fresh(tmp_path))
    kernels = [build_unet(smallest, weights).get_layer(smallest.backbone), backbone]
    before, after = (one.get_layer("conv1").get_weights()[0] for one in kernels)
    assert np.array_equal(before, after) == (steps == 0)
    np.testing.assert_allclose(before, after, atol=1e-4)


def test_nothing_to_draw_on_is_refused(tmp_path: Path, smallest: TrainParams) -> None:
    weights = tmp_path / "w.weights.h5"
    with pytest.raises(StageError, match=r"there is none; set pretrain\.steps=0"):
        pretrain(PARAMS, smallest, [], weights, fresh(tmp_path))
    assert not weights.exists()
