"""Training on two devices; tests/stages/test_devices.py runs it in a process in which the CPU is two."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from stages.dataset import Batches, Examples
from stages.devices import Shares, placed_on
from stages.errors import StageError
from stages.fitting import compile_model
from stages.losses import SegmentationLoss
from stages.metrics import PooledDice
from stages.params import TrainParams
from tests.stages.conftest import SMALLEST, Data
from tests.stages.trial import Killed, Trial

[CPU] = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(CPU, [tf.config.LogicalDeviceConfiguration()] * 2)

EPOCHS = 1
PARAMS = SMALLEST.model_copy(update={"learning_rate": 0.01})
FOCAL = PARAMS.model_copy(update={"dice_weight": 0.0})

pytestmark = pytest.mark.usefixtures("small_steps")


def batches(count: int) -> Batches:
    """Batches of 4 noisy images; of the first two of each, the bright half is a defect."""
    rng = np.random.default_rng(count)
    masks = np.zeros((count, 16, 16, 1), np.uint8)
    masks[np.arange(count) % 4 < 2, :, 8:] = 255
    images = (masks // 3 + rng.integers(0, 99, masks.shape)).astype(np.uint8)
    return Batches(Examples(images, masks, np.logical_not(masks.any(axis=(1, 2, 3)))), 4)


def network(devices: int) -> keras.Model:
    """Two convolutions, always with the same weights at first."""
    keras.utils.set_random_seed(1)
    with placed_on(devices):
        layers = keras.layers
        images = keras.Input((16, 16, 1))
        features = layers.Conv2D(4, 3, padding="same", activation="relu")(layers.Rescaling(1 / 255)(images))
        return keras.Model(images, layers.Conv2D(1, 3, padding="same", activation="sigmoid")(features))


def fit(
    model: keras.Model, params: TrainParams, loss: Callable[..., Any] | None = None
) -> dict[str, list[float]]:
    data, val = batches(12), batches(8)
    compile_model(model, params, params.learning_rate, EPOCHS * len(data), warmup=0)
    model.optimizer.epsilon = 0.01  # Adam's own, 1e-7, makes steps of the noise of gradients near 0
    if loss:
        model.compile(optimizer=model.optimizer, loss=loss, metrics=[PooledDice()])
    history = model.fit(
        Shares(data, model), validation_data=Shares(val, model), epochs=EPOCHS, shuffle=False, verbose=0
    )
    found: dict[str, list[float]] = history.history
    return found


def distance(one: list[np.ndarray], two: list[np.ndarray]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(one, two, strict=True))


def test_a_mean_over_pixels_trains_to_the_same_weights_as_on_one_device() -> None:
    one, two = network(1), network(2)
    start = one.get_weights()
    histories = [fit(model, FOCAL) for model in (one, two)]
    assert distance(one.get_weights(), two.get_weights()) < 1e-6
    assert distance(one.get_weights(), start) > 1e-3
    for name, values in histories[0].items():
        assert histories[1][name] == pytest.approx(values, rel=1e-5), name


def test_dice_is_pooled_over_the_share_of_a_device_not_over_the_batch() -> None:
    whole = SegmentationLoss(PARAMS.dice_weight, PARAMS.focal_gamma)

    def mean_of_halves(truth: Any, probability: Any) -> Any:
        return (whole(truth[:2], probability[:2]) + whole(truth[2:], probability[2:])) / 2

    one, halves, two = network(1), network(1), network(2)
    fit(one, PARAMS)
    fit(halves, PARAMS, mean_of_halves)
    fit(two, PARAMS)
    assert distance(halves.get_weights(), two.get_weights()) < 1e-6
    assert distance(one.get_weights(), two.get_weights()) > 1e-4


def test_a_batch_that_does_not_divide_is_filled_up_with_its_own_images() -> None:
    data, shares = batches(9), Shares(batches(9), network(2))
    assert len(shares) == len(data) == 3
    for (images, masks), (more_images, more_masks) in ((data[0], shares[0]), (data[2], shares[2])):
        again = slice(len(images) % 2)
        np.testing.assert_array_equal(more_images, np.concatenate([images, images[again]]))
        np.testing.assert_array_equal(more_masks, np.concatenate([masks, masks[again]]))


def test_the_stage_trains_on_all_of_them_and_goes_on_after_a_kill(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = PARAMS.model_copy(update={"devices": "all", "batch_size": 5, "epochs": 2})
    data = dataclasses.replace(data, train=data.train[:6], val=data.val[:3])
    straight, killed, resumed = (
        Trial(tmp_path / name, data, monkeypatch) for name in ("straight", "killed", "killed")
    )
    straight.run(params)
    assert straight.model.distribute_strategy.num_replicas_in_sync == 2
    killed.kill_after = 2
    with pytest.raises(Killed):
        killed.run(params)
    model = resumed.run(params.model_copy(update={"resume": True}))
    assert distance(resumed.weights[-1], straight.weights[-1]) < 1e-4
    for metric in ("train/loss", "eval/loss", "eval/dice"):
        assert resumed.logged(metric) == pytest.approx(straight.logged(metric), rel=1e-3), metric
    best = straight.weights[1 + int(np.argmax(straight.logged("eval/dice")))]
    assert distance(model.get_weights(), best) < 1e-4


def test_more_devices_than_there_are_is_an_error() -> None:
    with pytest.raises(StageError, match=r"train\.devices is 3, but TensorFlow sees 2 CPU\(s\) here"):
        placed_on(3)
