"""One grey image stands for its three copies, in the graph that is served."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from stages.folding import fold_repeated_channels


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


def folded(model: keras.Model) -> tuple[tf.compat.v1.GraphDef, int]:
    spec = tf.TensorSpec(model.input_shape, tf.float32, name="images")
    concrete = tf.function(lambda images: model(images)).get_concrete_function(spec)
    graph = convert_variables_to_constants_v2(concrete).graph.as_graph_def()
    return graph, fold_repeated_channels(graph)


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
    run = tf.compat.v1.wrap_function(
        lambda images: tf.graph_util.import_graph_def(graph, {"images": images}, ["Identity:0"])[0],
        [tf.TensorSpec(model.input_shape, tf.float32)],
    )
    np.testing.assert_allclose(run(tf.constant(x)), model(x), rtol=1e-4, atol=1e-4)
