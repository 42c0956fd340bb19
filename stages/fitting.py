"""What `pretrain` and `train` share: loss, optimizer, learning rate, and which epoch it is."""

from __future__ import annotations

from typing import Any

import keras

from stages.losses import SegmentationLoss
from stages.metrics import PooledDice
from stages.params import TrainParams

__all__ = ["compile_model", "follow_epochs"]


def compile_model(
    model: keras.Model, params: TrainParams, learning_rate: float, steps: int, warmup: int
) -> None:
    """Makes a network ready to fit.

    Args:
        model: to compile, with the layers that are to learn set trainable.
        params: loss and weight decay.
        learning_rate: peak; it rises linearly from 0, then falls to 0 along a cosine.
        steps: of the whole training.
        warmup: steps until the peak; fewer than `steps`.
    """
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0 if warmup else learning_rate,
        steps - warmup,
        warmup_target=learning_rate if warmup else None,
        warmup_steps=warmup,
    )
    with model.distribute_strategy.scope():  # the devices that the model was built for
        model.compile(
            optimizer=keras.optimizers.AdamW(schedule, weight_decay=params.weight_decay),
            loss=SegmentationLoss(params.dice_weight, params.focal_gamma),
            metrics=[PooledDice()],
        )


def follow_epochs(batches: Any) -> keras.callbacks.Callback:
    """A callback that sets the `epoch` of batches; Keras calls their `on_epoch_end` once too often a fit."""
    return keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: setattr(batches, "epoch", epoch))
