"""Augmentation with keras-cv's mask-aware layers; the only module that imports them.

keras-cv is built on TensorFlow, so this runs in the input pipeline, never in the model.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.params import AugmentParams

__all__ = ["Augmentation"]

RANGE = (0, 255)


class Augmentation:
    """Changes images and masks alike at random; each strength of 0 leaves its step out."""

    def __init__(self, params: AugmentParams, seed: int) -> None:
        import keras_cv.layers as cv

        # Single precision whatever the network has: the sums of contrast overflow in half precision.
        common: dict[str, Any] = {"seed": seed, "dtype": "float32"}
        geometry = {"fill_mode": "constant", **common}
        self.rotation = params.rotation and cv.RandomRotation(params.rotation, **geometry)
        steps = [
            params.flip and cv.RandomFlip("horizontal_and_vertical", **common),
            params.shift and cv.RandomTranslation(params.shift, params.shift, **geometry),
            params.zoom and cv.RandomZoom(params.zoom, params.zoom, **geometry),
            params.brightness and cv.RandomBrightness(params.brightness, value_range=RANGE, **common),
            params.contrast and cv.RandomContrast(value_range=RANGE, factor=params.contrast, **common),
        ]
        self.steps = [step for step in steps if step]
        self.noise = params.noise
        self.rng = np.random.default_rng(seed)

    def __call__(self, images: NDArray[np.float32], masks: NDArray[np.float32]) -> tuple[Any, Any]:
        """Augments a batch.

        Args:
            images: (N, H, W, 1) float32, 0-255.
            masks: (N, H, W, 1) float32, 0-1.

        Returns:
            Images and masks of the same shapes and ranges.
        """
        batch: dict[str, Any] = {"images": images, "segmentation_masks": masks}
        if self.rotation:
            # This layer alone wants a channel for each class, and rounds them to integers.
            both = 255 * np.concatenate([1 - masks, masks], axis=-1)
            batch = self.rotation({"images": images, "segmentation_masks": both}, training=True)
            batch["segmentation_masks"] = batch["segmentation_masks"][..., 1:] / 255
        for step in self.steps:
            batch = step(batch, training=True)
        changed = np.asarray(batch["images"], np.float32)
        if self.noise:
            changed = changed + self.rng.normal(0, self.noise, changed.shape).astype(np.float32)
        return np.clip(changed, 0, 255), np.asarray(batch["segmentation_masks"], np.float32)
