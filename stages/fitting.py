"""What `pretrain` and `train` share: loss, optimizer, learning rate, and which epoch it is."""

from __future__ import annotations

from typing import Any

import keras

from stages.devices import scope_of
from stages.losses import SegmentationLoss
from stages.metrics import PooledDice
from stages.normalization import fuse_normalization
from stages.params import TrainParams

__all__ = ["build_metrics", "compile_model", "follow_epochs"]


def compile_model(
    model: keras.Model,
    params: TrainParams,
    learning_rate: float,
    steps: int,
    warmup: int,
    averaged: int | None = None,
) -> None:
    """Makes a network ready to fit.

    Args:
        model: to compile, with the layers that are to learn set trainable.
        params: loss, weight decay and averaging.
        learning_rate: peak; it rises linearly from 0, then falls to 0 along a cosine.
        steps: of the whole training.
        warmup: steps until the peak; fewer than `steps`.
        averaged: number of steps after which the weights give way to their running mean, again and
            again: an epoch's, so that it is the mean that is judged, kept and gone on with.
    """
    # A mean that reaches back further than it replaced the weights last would undo what they have learnt.
    momentum = min(params.ema_momentum, 1 - 1 / averaged) if averaged else 0.0
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0 if warmup else learning_rate,
        steps - warmup,
        warmup_target=learning_rate if warmup else None,
        warmup_steps=warmup,
    )
    fuse_normalization(model)
    with scope_of(model):
        model.compile(
            optimizer=keras.optimizers.AdamW(
                schedule,
                weight_decay=params.weight_decay,
                use_ema=momentum > 0,
                ema_momentum=momentum,
                ema_overwrite_frequency=averaged,
            ),
            loss=SegmentationLoss(params.dice_weight, params.focal_gamma, params.answer_weight),
            metrics=[PooledDice()],
        )
        # Else TensorFlow does so while it traces a step, and then has to trace it again.
        model.optimizer.build(model.trainable_variables)


def build_metrics(model: keras.Model, batches: Any) -> None:
    """Lets a compiled network see a batch before it is fitted, where Keras would take one for that.

    On JAX and torch it takes it from those that threads fetch ahead, and each epoch would lag behind from
    then on, with the last batches of the one before (Keras 3.15).
    """
    if keras.backend.backend() != "tensorflow":
        model.test_on_batch(*batches[0])


def follow_epochs(batches: Any) -> keras.callbacks.Callback:
    """A callback that sets the `epoch` of batches; Keras calls their `on_epoch_end` once too often a fit."""
    return keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: setattr(batches, "epoch", epoch))
