"""Stage `train`: fits the UNet, keeps the best epoch by validation Dice, logs every epoch with DVCLive.

With `train.resume` it goes on where a run that was killed had finished an epoch.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from dvclive import Live
from dvclive.keras import DVCLiveCallback

from stages.augmentation import Augmentation
from stages.checkpoint import Checkpoint, fingerprint
from stages.dataset import Batches, Examples, load_examples
from stages.devices import Shares, placed_on
from stages.errors import StageError, run_stage, writing
from stages.extra_defects import ExtraDefects
from stages.fitting import build_metrics, compile_model, follow_epochs
from stages.live import SamplePredictions, SystemUse
from stages.model import build_unet
from stages.params import TrainParams, load_params
from stages.precision import set_precision
from stages.tiles import Tile, read_tiles

__all__ = ["check_visible", "train", "training_batches"]

log = logging.getLogger(__name__)

SEEN = 128
"""Level of a mask, 0-255, from which `PooledDice` counts a pixel as defect: 0.5."""


def train(
    params: TrainParams,
    data: Path,
    tiles: Sequence[Tile],
    val_tiles: Sequence[Tile],
    model_path: Path,
    live: Live,
    checkpoint: Checkpoint,
    weights: Path | None = None,
) -> keras.Model:
    """Trains a model and writes that of the best epoch; then the checkpoint is no longer needed, and goes.

    Args:
        params: model and training.
        data: folder to which the paths of the tiles are relative.
        tiles: rows to train on.
        val_tiles: rows to choose the best epoch on.
        model_path: `.keras` file to write.
        live: receives metrics and sample predictions of every epoch.
        checkpoint: where to go on, and keeper of every epoch; its monitor chooses the best.
        weights: `.weights.h5` file of the whole network to start from, as `pretrain` writes it.

    Returns:
        The model of the best epoch, in single precision whatever it was trained in.

    Raises:
        StageError: if weights can't be had, no tile to train or to choose on has a defect that the network
            can see, the loss is no number, or bfloat16 is emulated.
        KeyboardInterrupt: after ^C, once the best model so far has been written.
    """
    keras.utils.set_random_seed(params.seed)
    set_precision(params.mixed_precision)
    examples, val = (load_examples(data, rows, params.image_size) for rows in (tiles, val_tiles))
    if examples.good.all():
        raise StageError("no training image has a defect pixel; check data_load.mask_threshold and the masks")
    check_visible(val, params.image_size)
    batches = training_batches(params, examples)
    val_batches = Batches(val, params.batch_size)
    with placed_on(params.devices):
        model = build_unet(params, checkpoint.weights or weights)
    live.step = checkpoint.epoch
    callbacks = [
        follow_epochs(batches),
        Patience(checkpoint, params.patience),
        keras.callbacks.TerminateOnNaN(),
        SamplePredictions(live, val),
        SystemUse(live),
        DVCLiveCallback(live=live),
        checkpoint,
    ]
    try:
        _fit_phases(params, model, batches, val_batches, callbacks, checkpoint)
    except KeyboardInterrupt:
        if checkpoint.epoch:
            _keep_best(params, checkpoint, model_path)
            log.warning(
                "interrupted; the best model so far is in %s. `dvc commit train` makes it the stage's "
                "result, `dvc exp run -S train.resume=true` goes on after epoch %d",
                model_path,
                checkpoint.epoch,
            )
        raise
    model = _keep_best(params, checkpoint, model_path)
    checkpoint.clear()
    return model


def check_visible(val: Examples, size: tuple[int, int]) -> None:
    """Checks that validation Dice, of pixels that are half a defect or more, can tell epochs apart.

    Raises:
        StageError: if no validation image has a defect, or none that is left at this size.
    """
    defects = np.logical_not(val.good)
    seen = int((val.masks[defects] >= SEEN).any(axis=(1, 2, 3)).sum())
    if not defects.any():
        raise StageError(
            "no validation image has a defect, so that no epoch is better than another; add tiles with "
            "defects, or take another data_split.seed or val_fraction"
        )
    where = f"{size[0]} x {size[1]} pixels (train.image_size) {{}} of {defects.sum()} validation images"
    if not seen:
        raise StageError(
            f"at {where.format('all')} have their defects fade below half a pixel, so that no epoch is "
            "better than another; take a larger train.image_size"
        )
    if seen < defects.sum():
        log.warning(
            "at %s with a defect have it fade below half a pixel, where validation Dice does not see it; a "
            "larger train.image_size would",
            where.format(defects.sum() - seen),
        )


def training_batches(params: TrainParams, examples: Examples) -> Batches:
    """What a network learns from: tiles, with drawn and pasted defects, moved and lit anew each epoch."""
    more, augment = ExtraDefects(examples, params.pasted, params.drawn), Augmentation(params.augment)
    return Batches(
        examples,
        params.batch_size,
        augment=functools.partial(_changed, more, augment),
        good_ratio=params.good_ratio,
        seed=params.seed,
    )


def _changed(more: ExtraDefects, augment: Augmentation, images: Any, masks: Any, rng: Any) -> tuple[Any, Any]:
    """Batches' `augment`; a function of the module, so that other processes can have it."""
    return augment(*more(images, masks, rng), rng)


class Patience(keras.callbacks.EarlyStopping):  # type: ignore[misc]
    """Early stopping by validation Dice that knows what was before a run went on."""

    def __init__(self, checkpoint: Checkpoint, patience: int) -> None:
        super().__init__(monitor="val_dice", mode="max", patience=patience, verbose=1)
        self.checkpoint = checkpoint

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        super().on_train_begin(logs)
        for epoch in range(self.checkpoint.start, self.checkpoint.epoch):
            self.on_epoch_end(epoch, self.checkpoint.history[epoch])


def _fit_phases(
    params: TrainParams,
    model: keras.Model,
    batches: Batches,
    val: Batches,
    callbacks: list[Any],
    checkpoint: Checkpoint,
) -> None:
    """Trains the decoder alone first, if the backbone has learnt already, then all."""
    backbone = model.get_layer(params.backbone)
    phases = [(True, params.epochs)]
    if params.backbone_weights != "none" and params.frozen_epochs:
        phases.insert(0, (False, params.frozen_epochs))
    for phase, (trainable, epochs) in enumerate(phases):
        if phase != checkpoint.phase:  # it is over, or the one before has gone astray
            continue
        backbone.trainable = trainable
        steps = len(batches)
        compile_model(
            model,
            params,
            params.learning_rate,
            steps * epochs,
            warmup=steps * min(params.warmup_epochs, epochs - 1),
            averaged=steps,
        )
        checkpoint.load_optimizer(model)
        build_metrics(model, batches)
        model.fit(
            Shares(batches, model, params.workers),
            validation_data=Shares(val, model),
            initial_epoch=checkpoint.epoch,
            epochs=checkpoint.start + epochs,
            callbacks=callbacks,
            shuffle=False,  # the batches are drawn anew each epoch already
            verbose=1,
        )


def _keep_best(params: TrainParams, checkpoint: Checkpoint, model_path: Path) -> keras.Model:
    set_precision(mixed=False)
    if not checkpoint.best_weights:
        raise StageError("training gave no model: the loss is no number; lower train.learning_rate")
    model = build_unet(params, checkpoint.best_weights)
    model_path.parent.mkdir(parents=True, exist_ok=True)
    partial = model_path.with_name(f".partial-{model_path.name}")
    with writing(partial):
        model.save(partial)
    partial.replace(model_path)
    return model


def main() -> None:
    """Runs the stage on params.yaml."""
    params = load_params().train
    settings = params.model_dump(mode="json")
    split, results = Path("data/split"), Path("results/train")
    weights, model_path = Path("models/pretrained.weights.h5"), Path("models/unet.keras")
    files = (Path("environment.txt"), split / "train.csv", split / "val.csv", weights)
    checkpoint = Checkpoint(
        Path("models/checkpoint/train"), fingerprint(files, train=settings), live=results, monitor="val_dice"
    )
    checkpoint.begin(resume=params.resume)
    with Live(str(results), dvcyaml=False, resume=checkpoint.epoch > 0) as live:
        live.log_params(settings)
        train(
            params,
            Path("data/tiles"),
            read_tiles(split / "train.csv"),
            read_tiles(split / "val.csv"),
            model_path,
            live,
            checkpoint,
            weights,
        )
        live.log_artifact(model_path, type="model", name="unet", desc="UNet of the best epoch")


if __name__ == "__main__":
    run_stage(main)
