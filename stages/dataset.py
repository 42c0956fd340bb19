"""Images and masks as arrays of the model's input size, in batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from serving.preprocessing import letterbox, read_image

__all__ = ["Batches", "Examples", "load_examples", "read_mask"]

Augment = Callable[[NDArray[np.float32], NDArray[np.float32], np.random.Generator], tuple[Any, Any]]


@dataclass(frozen=True)
class Examples:
    """Tiles as the model sees them.

    Attributes:
        images: (N, H, W, 1) uint8, 0-255.
        masks: (N, H, W, 1) uint8; 255 for a pixel that is all defect, less where shrinking
            mixed defect and background: thin cracks fade, but never vanish.
        good: (N,) bool, tiles without any defect pixel.
    """

    images: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    good: NDArray[np.bool_]


def read_mask(path: Path) -> NDArray[np.uint8]:
    """Reads a mask as (H, W) uint8, 0 or 255."""
    with Image.open(path) as image:
        return np.asarray(image.convert("L"), np.uint8)


def load_examples(root: Path, tiles: Sequence[Any], size: tuple[int, int]) -> Examples:
    """Reads tiles into memory: 64 kB each at 256 x 256, and as much for the mask.

    Args:
        root: folder of the data, to which the paths of the tiles are relative.
        tiles: rows of a split, with `image` and `mask`.
        size: height and width of the model's input, in pixels.
    """
    images = np.zeros((len(tiles), *size, 1), np.uint8)
    masks = np.zeros_like(images)
    for index, tile in enumerate(tqdm(tiles, desc="reading tiles", unit="tile", leave=False)):
        images[index] = np.round(letterbox(read_image(root / tile.image), size)[0])
        masks[index] = np.round(letterbox(read_mask(root / tile.mask), size)[0])
    return Examples(images, masks, np.logical_not(masks.any(axis=(1, 2, 3))))


class Batches(keras.utils.PyDataset):  # type: ignore[misc]
    """Batches of (images float32 0-255, masks float32 0-1), both (n, H, W, 1).

    Each epoch takes all tiles with a defect, and `good_ratio` times as many good ones, drawn
    anew; without `augment` all tiles, in order. A batch depends on seed, epoch and its place
    alone, so that a run that goes on gets what it would have got.

    Attributes:
        epoch: to draw for; `stages.fitting.follow_epochs` sets it.
    """

    def __init__(
        self,
        examples: Examples,
        batch_size: int,
        *,
        augment: Augment | None = None,
        good_ratio: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.examples = examples
        self.batch_size = batch_size
        self.augment = augment
        self.good_ratio = good_ratio
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return math.ceil(len(self._order()) / self.batch_size)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        chosen = self._order()[index * self.batch_size : (index + 1) * self.batch_size]
        images = self.examples.images[chosen].astype(np.float32)
        masks = self.examples.masks[chosen].astype(np.float32) / np.float32(255)
        return self.augment(images, masks, self._rng(1 + index)) if self.augment else (images, masks)

    def _order(self) -> NDArray[np.intp]:
        if self.augment is None:
            return np.arange(len(self.examples.images))
        rng = self._rng(0)
        defects, good = (np.flatnonzero(self.examples.good == value) for value in (False, True))
        wanted = min(len(good), round(self.good_ratio * len(defects)))
        return rng.permutation(np.concatenate([defects, rng.choice(good, wanted, replace=False)]))

    def _rng(self, purpose: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, self.epoch, purpose))
