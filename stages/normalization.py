"""Batch normalization by TensorFlow's own kernels while training on it, where Keras takes a dozen operations.

The layers stay those of Keras, so that a saved model needs nothing of this project. On other backends nothing
is changed: their compilers make one kernel of the dozen.
"""

from __future__ import annotations

import types
from typing import Any

import keras
from keras import ops

__all__ = ["fuse_normalization"]


def fuse_normalization(model: keras.Model) -> int:
    """Lets the batch normalizations of a network train by one kernel each; what they compute stays the same.

    Args:
        model: not fitted yet; is changed in place. Its layers of models within are found too.

    Returns:
        How many layers were changed. One of another axis than the last, of other than four dimensions, or
        that is synchronized or renormalized stays as it is.
    """
    if keras.backend.backend() != "tensorflow":
        return 0
    found = [layer for layer in _layers(model) if _can_be_fused(layer)]
    for layer in found:
        layer.call = types.MethodType(_call, layer)
    return len(found)


def _layers(model: keras.Model) -> list[keras.Layer]:
    return [
        inner
        for layer in model.layers
        for inner in (_layers(layer) if isinstance(layer, keras.Model) else [layer])
    ]


def _can_be_fused(layer: keras.Layer) -> bool:
    return (
        type(layer) is keras.layers.BatchNormalization
        and layer.input_spec.ndim == 4
        and layer.axis in (-1, 3)
        and layer.center
        and layer.scale
        and not layer.synchronized
        and not layer.renorm
    )


def _call(
    self: keras.layers.BatchNormalization, inputs: Any, training: bool | None = None, mask: Any = None
) -> Any:
    """`keras.layers.BatchNormalization.call`, (N, H, W, C) to the same."""
    if not training or not self.trainable or mask is not None:
        return type(self).call(self, inputs, training=training, mask=mask)
    import tensorflow as tf

    outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
        ops.cast(inputs, self.compute_dtype),
        ops.cast(self.gamma, "float32"),
        ops.cast(self.beta, "float32"),
        epsilon=self.epsilon,
        is_training=True,
    )
    # The kernel estimates the variance of all pixels there could be, Keras states that of the batch's.
    pixels = ops.cast(ops.size(inputs) / inputs.shape[-1], "float32")
    batch = {"moving_mean": mean, "moving_variance": variance * (pixels - 1.0) / pixels}
    for name, value in batch.items():
        moving = getattr(self, name)
        moving.assign(moving * self.momentum + value * (1.0 - self.momentum))
    return outputs
