"""Stage `pretrain`: teaches the network on good tiles with drawn defects, endless and exactly labelled.

Random weights alone do not get going on the few hundred real defects; to a backbone that knows ImageNet,
some hundred steps give a decoder that knows defects. Each example is a good tile of the train side with
one or no defect drawn on it, as a whole: what is learnt on windows of it does not carry over. It is drawn
on at the size in which the network sees it, which has far fewer pixels than the photograph. That may be a
smaller one than `train` has, as what is learnt on small tiles does carry over.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path

import keras
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from serving.preprocessing import letterbox, placement, read_image, resize
from stages.augmentation import Augmentation
from stages.checkpoint import Checkpoint, fingerprint
from stages.devices import Shares, placed_on
from stages.errors import StageError, run_stage, writing
from stages.fitting import build_metrics, compile_model, follow_epochs
from stages.lifelike import PLAIN_SHARE, draw_any_defect
from stages.model import build_unet
from stages.params import PretrainParams, TrainParams, load_params
from stages.paths import named_file
from stages.precision import set_precision
from stages.tiles import read_tiles

__all__ = ["DrawnDefects", "pretrain"]

log = logging.getLogger(__name__)

UNTOUCHED_SHARE = 0.2
"""Share of the examples on which nothing is drawn."""

NETWORK = {
    "answer_weight",
    "augment",
    "backbone",
    "backbone_weights",
    "decoder_filters",
    "devices",
    "dice_weight",
    "focal_gamma",
    "image_size",
    "mixed_precision",
    "seed",
    "weight_decay",
}
"""Parameters of `train` on which the result depends, as dvc.yaml has them."""

REPORTS = 10
"""Lines of progress, each with the Dice since the one before."""


class DrawnDefects(keras.utils.PyDataset):  # type: ignore[misc]
    """Batches of (images float32 0-255, masks float32 0-1), both (n, H, W, 1).

    Args:
        images: good tiles, (H, W) uint8 each; only what the network sees of them is kept.
        size: height and width of the network's input, in pixels.
        params: steps, batch size and drawings.
        augment: changes images and masks of a batch.
        seed: of all chance.

    Attributes:
        epoch: to draw for; a batch depends on it, the seed and its place alone.
    """

    def __init__(
        self,
        images: Iterable[NDArray[np.uint8]],
        size: tuple[int, int],
        params: PretrainParams,
        augment: Augmentation,
        seed: int,
    ) -> None:
        super().__init__()
        self.images = [_seen(image, size) for image in images]
        self.size = size
        self.params = params
        self.augment = augment
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return -(-self.params.steps // REPORTS)

    def __getitem__(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        rng = np.random.default_rng((self.seed, self.epoch, index))
        pairs = [self._example(rng) for _ in range(self.params.batch_size)]
        images, masks = (np.stack(planes) for planes in zip(*pairs, strict=True))
        return self.augment(images.astype(np.float32), masks.astype(np.float32) / np.float32(255), rng)

    def _example(self, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        image = self.images[int(rng.integers(len(self.images)))]
        mask = np.zeros_like(image)
        if rng.random() >= UNTOUCHED_SHARE:
            image, mask = draw_any_defect(image, rng, PLAIN_SHARE if self.params.drawings == "both" else 1.0)
        return letterbox(image, self.size)[0], letterbox(mask, self.size)[0]


def _seen(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """A tile in the size that it has in the network's input."""
    height, width = image.shape
    small = resize(image.astype(np.float32), placement(height, width, size))
    return np.round(small).astype(np.uint8)


def _scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Sides that the network takes: the nearest multiples of 32, 32 at least."""
    height, width = (max(32, round(side * scale / 32) * 32) for side in size)
    return height, width


def pretrain(
    params: PretrainParams,
    network: TrainParams,
    images: Iterable[NDArray[np.uint8]],
    weights: Path,
    checkpoint: Checkpoint,
) -> dict[str, float]:
    """Builds the network, trains it on drawn defects, and writes its weights.

    With 0 steps it writes the initial ones.

    Args:
        params: weights to start from, length, batch size, learning rate, drawings and their scale.
        network: architecture, loss, augmentation and seed, as for `train`.
        images: good tiles to draw on, (H, W) uint8 each; asked for one by one, and not without steps.
        weights: `.weights.h5` file to write.
        checkpoint: where to go on, and keeper of every tenth of the steps; in the end it goes.

    Returns:
        Loss and Dice of the last tenth of the steps; empty without training.

    Raises:
        StageError: if weights can't be had, no tile is good, the loss is no number, or bfloat16 is emulated.
    """
    network = network.model_copy(update={"image_size": _scaled(network.image_size, params.scale)})
    keras.utils.set_random_seed(network.seed)
    set_precision(network.mixed_precision)
    start = None if params.weights == "none" else named_file(params.weights)
    with placed_on(network.devices):
        model = build_unet(network, checkpoint.weights or start)
    metrics: dict[str, float] = {}
    if params.steps:
        augment = Augmentation(network.augment)
        batches = DrawnDefects(images, network.image_size, params, augment, network.seed)
        if not batches.images:
            raise StageError("pretrain draws on good tiles, and there is none; set pretrain.steps=0")
        compile_model(model, network, params.learning_rate, len(batches) * REPORTS, warmup=len(batches))
        checkpoint.load_optimizer(model)
        build_metrics(model, batches)
        model.fit(
            Shares(batches, model, network.workers),
            initial_epoch=checkpoint.epoch,
            epochs=REPORTS,
            shuffle=False,
            callbacks=[follow_epochs(batches), keras.callbacks.TerminateOnNaN(), checkpoint],
            verbose=1,
        )
        if checkpoint.epoch < REPORTS:
            raise StageError("pretraining diverged: the loss is no number; lower pretrain.learning_rate")
        metrics = checkpoint.history[-1]
    weights.parent.mkdir(parents=True, exist_ok=True)
    partial = weights.with_name(f".partial-{weights.name}")
    with writing(partial):
        model.save_weights(partial)
    partial.replace(weights)
    checkpoint.clear()
    set_precision(mixed=False)
    return metrics


def main() -> None:
    """Runs the stage on params.yaml."""
    params = load_params()
    tiles, weights = Path("data/split/train.csv"), Path("models/pretrained.weights.h5")
    run = fingerprint(
        [Path("environment.txt"), tiles, Path(params.pretrain.weights)],
        pretrain=params.pretrain.model_dump(mode="json"),
        train=params.train.model_dump(mode="json", include=NETWORK),
    )
    checkpoint = Checkpoint(Path("models/checkpoint/pretrain"), run)
    checkpoint.begin(resume=params.train.resume)
    good = [tile for tile in read_tiles(tiles) if not tile.defect_pixels]
    images = (
        read_image(Path("data/tiles") / tile.image) for tile in tqdm(good, "reading tiles", unit="tile")
    )
    metrics = pretrain(params.pretrain, params.train, images, weights, checkpoint)
    results = Path("results/pretrain.json")
    results.parent.mkdir(exist_ok=True)
    results.write_text(json.dumps(metrics, indent=2) + "\n")
    log.info("pretrained: %s", metrics or "no, the initial weights stay")


if __name__ == "__main__":
    run_stage(main)
