"""Training on several devices of a machine: each takes its share of a batch, gradients are averaged.

Keras leaves this to TensorFlow's MirroredStrategy, so that this module alone uses `tf.distribute`. It is
not the same training as on one device: the Dice loss pools the pixels of a share, not of the batch, and
BatchNorm takes its statistics from a share.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import keras
import numpy as np

from stages.errors import StageError

__all__ = ["Shares", "placed_on", "scope_of"]


def placed_on(devices: int | Literal["all"]) -> AbstractContextManager[Any]:
    """A block; a model that is built in it trains on that many GPUs, or CPUs where there is no GPU.

    Raises:
        StageError: there are not as many, or Keras is not on TensorFlow.
    """
    if devices == 1:
        return nullcontext()
    if keras.backend.backend() != "tensorflow":
        raise StageError(
            f"train.devices is {devices}, but only TensorFlow shares batches, and this is Keras on "
            f"{keras.backend.backend()}; set train.devices=1, or unset KERAS_BACKEND"
        )
    import tensorflow as tf  # here: with one device Keras trains on its other backends, too

    for kind in ("GPU", "CPU"):
        there = [device.name for device in tf.config.list_logical_devices(kind)]
        if there:
            break
    count = len(there) if devices == "all" else devices
    if count > len(there):
        raise StageError(f"train.devices is {count}, but TensorFlow sees {len(there)} {kind}(s) here")
    if count == 1:
        return nullcontext()
    # CPUs, which are for tests: the default there is for many machines, and mixes models of one process up.
    operations = tf.distribute.ReductionToOneDevice() if kind == "CPU" else None
    strategy = tf.distribute.MirroredStrategy(there[:count], cross_device_ops=operations)
    scope: AbstractContextManager[Any] = strategy.scope()
    return scope


def scope_of(model: keras.Model) -> AbstractContextManager[Any]:
    """A block for what belongs to a model, like its optimizer: on the devices that it was built for."""
    strategy = getattr(model, "distribute_strategy", None)  # of TensorFlow alone
    scope: AbstractContextManager[Any] = strategy.scope() if strategy else nullcontext()
    return scope


class Shares(keras.utils.PyDataset):  # type: ignore[misc]
    """Batches of which each device gets as many images as the others.

    TensorFlow would give the last device of a short batch fewer, or none, whose mean loss is no number.
    So a batch that does not divide is filled up with its own first images, which count twice.

    Args:
        batches: of (images, masks), both (n, H, W, 1).
        model: built in `placed_on`.
        workers: processes that make the batches; with 1 it is two threads of this process.
    """

    def __init__(self, batches: keras.utils.PyDataset, model: keras.Model, workers: int = 1) -> None:
        # With one thread Keras leaves prefetching to tf.data, whose tuning thread wakes up so seldom that
        # each epoch would wait for it, up to as long as it has run (Keras 3.15, TensorFlow 2.21).
        super().__init__(
            max(2, workers), use_multiprocessing=workers > 1, max_queue_size=max(10, 2 * workers)
        )
        self.batches = batches
        strategy = getattr(model, "distribute_strategy", None)
        self.count = strategy.num_replicas_in_sync if strategy else 1

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        arrays = [np.asarray(one) for one in self.batches[index]]
        filled = -(-len(arrays[0]) // self.count) * self.count
        return tuple(np.resize(one, (filled, *one.shape[1:])) for one in arrays)
