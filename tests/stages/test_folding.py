"""Kernels take in copies of the image and scales of their results, in the graph that is served."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from numpy.typing import NDArray
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from stages.folding import fold_depthwise_scales, fold_repeated_channels


def repeated(images: keras.KerasTensor, branch: str) -> keras.Model:
    """Three copies of an image, and one reader of them."""
    copies = layers.Concatenate()([images] * 3)
    readers = {
        "conv": lambda: layers.Conv2D(4, 3, padding="same")(copies),
        "padded": lambda: layers.Conv2D(4, 7, strides=2)(layers.ZeroPadding2D(3)(copies)),
        "padding read twice": lambda: layers.Concatenate()(
            [layers.Conv2D(4, 1)(pad := layers.ZeroPadding2D(1)(copies)), pad]
        ),
        "no convolution": lambda: layers.Activation("relu")(copies),
        "other copies": lambda: layers.Conv2D(4, 3)(layers.Concatenate()([images, images * 2.0])),
        "along the rows": lambda: layers.Conv2D(4, 3)(layers.Concatenate(axis=1)([images] * 2)),
    }
    return keras.Model(images, readers[branch]())


def scaled(images: keras.KerasTensor, branch: str) -> keras.Model:
    """A depthwise convolution, and what is done with its result."""
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same", use_bias=False)(images)
    norm = layers.BatchNormalization(
        gamma_initializer="random_normal", beta_initializer="random_normal", moving_mean_initializer="ones"
    )
    readers = {
        "normalization": lambda: layers.Activation("relu6")(norm(x)),
        "read unscaled too": lambda: layers.Add()([norm(x), x]),
        "scaled by itself": lambda: layers.Multiply()([x, x]),
        "scaled by the image": lambda: layers.Multiply()([x, keras.ops.mean(images, axis=-1, keepdims=True)]),
        "one scale for all": lambda: x * 2.0,
    }
    return keras.Model(images, readers[branch]())


def folded(
    model: keras.Model, fold: Callable[[tf.compat.v1.GraphDef], int] = fold_repeated_channels
) -> tuple[tf.compat.v1.GraphDef, int]:
    spec = tf.TensorSpec(model.input_shape, tf.float32, name="images")
    concrete = tf.function(lambda images: model(images)).get_concrete_function(spec)
    graph = convert_variables_to_constants_v2(concrete).graph.as_graph_def()
    return graph, fold(graph)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(
    ("branch", "count"),
    [
        ("conv", 1),
        ("padded", 1),
        ("padding read twice", 0),
        ("no convolution", 0),
        ("other copies", 0),
        ("along the rows", 0),
    ],
)
def test_folding_changes_the_work_and_not_the_answer(branch: str, count: int, channels: int) -> None:
    keras.utils.set_random_seed(0)
    model = repeated(keras.Input((16, 12, channels)), branch)
    x = np.random.default_rng(0).normal(100, 20, (2, 16, 12, channels)).astype(np.float32)

    graph, changed = folded(model)

    assert changed == count
    assert_same(graph, model, x)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("branch", "count"),
    [
        ("normalization", 1),
        ("read unscaled too", 0),
        ("scaled by itself", 0),
        ("scaled by the image", 0),
        ("one scale for all", 0),
    ],
)
def test_a_scale_of_each_channel_becomes_part_of_its_kernel(branch: str, count: int, channels: int) -> None:
    keras.utils.set_random_seed(0)
    model = scaled(keras.Input((16, 12, channels)), branch)
    x = np.random.default_rng(0).normal(0, 1, (2, 16, 12, channels)).astype(np.float32)

    graph, changed = folded(model, fold_depthwise_scales)

    assert changed == count
    assert_same(graph, model, x)


def assert_same(graph: tf.compat.v1.GraphDef, model: keras.Model, x: NDArray[np.float32]) -> None:
    run = tf.compat.v1.wrap_function(
        lambda images: tf.graph_util.import_graph_def(graph, {"images": images}, ["Identity:0"])[0],
        [tf.TensorSpec(model.input_shape, tf.float32)],
    )
    np.testing.assert_allclose(run(tf.constant(x)), model(x), rtol=1e-4, atol=1e-4)
