"""Stage `train`: fits the UNet, keeps the best epoch by validation Dice, logs every epoch with DVCLive."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from dvclive import Live
from dvclive.keras import DVCLiveCallback

from stages.augmentation import Augmentation
from stages.dataset import Batches, Examples, load_examples
from stages.errors import StageError, run_stage
from stages.fitting import compile_model
from stages.model import build_unet
from stages.params import TrainParams, load_params
from stages.tiles import Tile, read_tiles

__all__ = ["train"]

log = logging.getLogger(__name__)

SAMPLES = 4


def train(
    params: TrainParams,
    data: Path,
    tiles: Sequence[Tile],
    val_tiles: Sequence[Tile],
    model_path: Path,
    live: Live,
    checkpoint: Path,
    weights: Path | None = None,
) -> keras.Model:
    """Trains a model and writes that of the best epoch.

    Args:
        params: model and training.
        data: folder to which the paths of the tiles are relative.
        tiles: rows to train on.
        val_tiles: rows to choose the best epoch on.
        model_path: `.keras` file to write.
        live: receives metrics and sample predictions of every epoch.
        checkpoint: `.weights.h5` file of the best epoch so far.
        weights: `.weights.h5` file of the whole network to start from, as `pretrain` writes it.

    Returns:
        The model of the best epoch, in single precision whatever it was trained in.

    Raises:
        StageError: if weights can't be had, no tile has a defect, or the loss is no number.
        KeyboardInterrupt: after ^C, once the best model so far has been written.
    """
    keras.utils.set_random_seed(params.seed)
    keras.mixed_precision.set_global_policy("mixed_bfloat16" if params.mixed_precision else "float32")
    examples, val = (load_examples(data, rows, params.image_size) for rows in (tiles, val_tiles))
    if examples.good.all():
        raise StageError("no training image has a defect pixel; check data_load.mask_threshold and the masks")
    batches = Batches(
        examples,
        params.batch_size,
        augment=Augmentation(params.augment, params.seed),
        good_ratio=params.good_ratio,
        seed=params.seed,
    )
    val_batches = Batches(val, params.batch_size)
    model = build_unet(params, weights)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.unlink(missing_ok=True)
    callbacks = [
        keras.callbacks.ModelCheckpoint(
            checkpoint, monitor="val_dice", mode="max", save_best_only=True, save_weights_only=True
        ),
        keras.callbacks.EarlyStopping(monitor="val_dice", mode="max", patience=params.patience, verbose=1),
        keras.callbacks.TerminateOnNaN(),
        SamplePredictions(live, val),
        DVCLiveCallback(live=live),
    ]
    try:
        _fit_phases(params, model, batches, val_batches, callbacks)
    except KeyboardInterrupt:
        if checkpoint.exists():
            _keep_best(params, checkpoint, model_path)
            log.warning(
                "interrupted; the best model so far is in %s. `dvc commit train` makes it the stage's result",
                model_path,
            )
        raise
    return _keep_best(params, checkpoint, model_path)


class SamplePredictions(keras.callbacks.Callback):  # type: ignore[misc]
    """Logs image, mask and probability of some validation tiles side by side, every epoch."""

    def __init__(self, live: Live, examples: Examples) -> None:
        super().__init__()
        self.live = live
        chosen = np.flatnonzero(np.logical_not(examples.good))
        chosen = chosen[np.linspace(0, len(chosen) - 1, min(SAMPLES, len(chosen))).astype(int)]
        self.images, self.masks = examples.images[chosen], examples.masks[chosen]

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        if len(self.images):
            found = self.model.predict_on_batch(self.images.astype(np.float32))
            rows = [self.images, self.masks, np.round(255 * np.asarray(found)).astype(np.uint8)]
            strip = np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)
            self.live.log_image("samples.png", np.repeat(strip, 3, axis=-1))


def _fit_phases(
    params: TrainParams, model: keras.Model, batches: Batches, val: Batches, callbacks: list[Any]
) -> None:
    """Trains the decoder alone first, if the backbone has learnt already, then all."""
    backbone = model.get_layer(params.backbone)
    phases = [(True, params.epochs)]
    if params.backbone_weights != "none" and params.frozen_epochs:
        phases.insert(0, (False, params.frozen_epochs))
    done = 0
    for trainable, epochs in phases:
        backbone.trainable = trainable
        steps = len(batches)
        compile_model(
            model,
            params,
            params.learning_rate,
            steps * epochs,
            warmup=steps * min(params.warmup_epochs, epochs - 1),
        )
        model.fit(
            batches,
            validation_data=val,
            initial_epoch=done,
            epochs=done + epochs,
            callbacks=callbacks,
            shuffle=False,  # the batches are drawn anew each epoch already
            verbose=1,
        )
        done += epochs


def _keep_best(params: TrainParams, checkpoint: Path, model_path: Path) -> keras.Model:
    keras.mixed_precision.set_global_policy("float32")
    model = build_unet(params, checkpoint) if checkpoint.exists() else None
    # A network that has gone astray finds nothing, which is a Dice all the same.
    if model is None or not all(np.isfinite(weight).all() for weight in model.get_weights()):
        raise StageError("training gave no model: the loss is no number; lower train.learning_rate")
    model_path.parent.mkdir(parents=True, exist_ok=True)
    partial = model_path.with_name(f".partial-{model_path.name}")
    model.save(partial)
    partial.replace(model_path)
    return model


def main() -> None:
    """Runs the stage on params.yaml."""
    params = load_params().train
    split = Path("data/split")
    with Live("results/train", dvcyaml=False) as live:
        train(
            params,
            Path("data/tiles"),
            read_tiles(split / "train.csv"),
            read_tiles(split / "val.csv"),
            Path("models/unet.keras"),
            live,
            Path("models/checkpoint/best.weights.h5"),
            Path("models/pretrained.weights.h5"),
        )


if __name__ == "__main__":
    run_stage(main)
