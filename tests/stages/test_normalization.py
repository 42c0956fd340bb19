"""Batch normalization by one kernel: the same training, in less time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from stages.fitting import compile_model
from stages.model import build_unet
from stages.normalization import fuse_normalization
from stages.params import TrainParams
from stages.precision import emulates_bfloat16
from tests.stages.conftest import SMALLEST

PARAMS: TrainParams = SMALLEST.model_copy(update={"image_size": (64, 64)})


def normalization(**options: Any) -> tuple[keras.Model, keras.layers.BatchNormalization]:
    images = keras.Input((6, 5, 3))
    layer = layers.BatchNormalization(momentum=0.7, **options)
    return keras.Model(images, layer(images)), layer


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).normal(3, 2, (4, 6, 5, 3)).astype(np.float32)


def twin(model: keras.Model) -> keras.Model:
    other = keras.models.clone_model(model)
    other.set_weights(model.get_weights())
    return other


def test_outputs_statistics_and_gradients_are_those_of_keras(images: np.ndarray) -> None:
    import tensorflow as tf

    plain, _ = normalization()
    values = ([1, 2, 3], [0, 1, -1], [5, 0, 1], [2, 1, 3])
    plain.set_weights([np.array(one, np.float32) for one in values])
    fused = twin(plain)
    assert fuse_normalization(fused) == 1
    results = []
    for model in (plain, fused):
        x = tf.Variable(images)
        with tf.GradientTape() as tape:
            outputs = model(x, training=True)
            loss = tf.reduce_sum(outputs**3)
        gradients = tape.gradient(loss, [x, *model.trainable_variables])
        results.append([outputs, *gradients, *model.get_weights()])

    for expected, got in zip(*results, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.usefixtures("small_steps")
def test_a_training_is_that_of_keras(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    images = rng.normal(150, 12, (4, 64, 64, 1)).astype(np.float32)
    masks = (rng.random((4, 64, 64, 1)) > 0.9).astype(np.float32)
    keras.utils.set_random_seed(0)
    fused = build_unet(PARAMS)
    plain = twin(fused)
    compile_model(fused, PARAMS, 1e-4, 10, 0)
    with monkeypatch.context() as patched:
        patched.setattr("stages.fitting.fuse_normalization", lambda model: None)
        compile_model(plain, PARAMS, 1e-4, 10, 0)

    losses = [[float(model.train_on_batch(images, masks)[0]) for _ in range(3)] for model in (plain, fused)]

    assert losses[0][2] < losses[0][0]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)
    np.testing.assert_allclose(fused.predict_on_batch(images), plain.predict_on_batch(images), atol=2e-3)


def test_every_normalization_of_the_network_is_fused() -> None:
    model = build_unet(PARAMS)

    def count(one: keras.Model) -> int:
        inner = [count(layer) for layer in one.layers if isinstance(layer, keras.Model)]
        return sum(inner) + sum(isinstance(layer, layers.BatchNormalization) for layer in one.layers)

    assert fuse_normalization(model) == count(model) > 10


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_or_not_in_training_it_takes_the_running_statistics(images: np.ndarray, frozen: bool) -> None:
    model, layer = normalization()
    fuse_normalization(model)
    layer.trainable = not frozen

    outputs = model(images, training=frozen)

    np.testing.assert_allclose(outputs, images / np.sqrt(1.001), rtol=1e-4)
    np.testing.assert_array_equal(layer.moving_mean, 0.0)


@pytest.mark.parametrize(
    "options", [{"axis": 1}, {"scale": False}, {"center": False}, {"synchronized": True}, {"renorm": True}]
)
def test_what_the_kernel_does_not_do_stays_with_keras(options: dict[str, Any]) -> None:
    model, _ = normalization(**options)
    assert fuse_normalization(model) == 0


@pytest.mark.skipif(emulates_bfloat16(), reason="no CPU that has bfloat16")
def test_in_half_precision_statistics_keep_single(images: np.ndarray) -> None:
    plain, _ = normalization(dtype="mixed_bfloat16")
    fused = twin(plain)
    fuse_normalization(fused)

    expected, got = (np.asarray(model(images, training=True)).astype(np.float32) for model in (plain, fused))

    np.testing.assert_allclose(got, expected, atol=0.05)
    for one, other in zip(fused.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=0.01, atol=0.01)


def test_a_saved_model_has_layers_of_keras_alone(tmp_path: Path, images: np.ndarray) -> None:
    model, _ = normalization()
    fuse_normalization(model)
    model(images, training=True)

    model.save(tmp_path / "model.keras")

    loaded = keras.models.load_model(tmp_path / "model.keras")
    [layer] = [one for one in loaded.layers if one.weights]
    assert type(layer) is layers.BatchNormalization
    assert "call" not in vars(layer)
    np.testing.assert_array_equal(loaded(images), model(images))


def test_other_backends_keep_what_keras_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    model, layer = normalization()
    assert fuse_normalization(model) == 0
    assert "call" not in vars(layer)
