"""Augmentation of images and their masks with keras-cv's layers; the only module that imports them.

keras-cv is built on TensorFlow, so this runs in the input pipeline, never in the model.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.params import AugmentParams

__all__ = ["Augmentation"]


class Augmentation:
    """Changes images and masks alike at random; each strength of 0 leaves its step out.

    Several threads may share one.
    """

    def __init__(self, params: AugmentParams) -> None:
        import keras_cv.layers as cv
        import tensorflow as tf

        # Single precision whatever the network has. With a seed a layer has a generator of its own.
        geometry: dict[str, Any] = {"fill_mode": "constant", "seed": 1, "dtype": "float32"}
        self.params = params
        steps = [
            params.rotation and cv.RandomRotation(params.rotation, **geometry),
            params.shift and cv.RandomTranslation(params.shift, params.shift, **geometry),
            params.zoom and cv.RandomZoom(params.zoom, params.zoom, **geometry),
        ]
        self.steps = [step for step in steps if step]
        # One graph: run op by op, the steps take twice as long.
        self.geometry = tf.function(self._move)
        self.lock = threading.Lock()

    def __call__(
        self, images: NDArray[np.float32], masks: NDArray[np.float32], rng: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Augments a batch.

        Args:
            images: (N, H, W, 1) float32, 0-255.
            masks: (N, H, W, 1) float32, 0-1.
            rng: all chance comes from it: in the same state it gives the same batch.

        Returns:
            Images and masks of the same shapes and ranges.
        """
        # A mask is a second channel: as `segmentation_masks` the layers would take the nearest pixel,
        # and lose cracks that are one pixel wide.
        both = np.concatenate([images, 255 * masks], axis=-1)
        if self.params.flip:  # the layer for it takes nearly as long as all others together
            for axis in (1, 2):
                turned = rng.random(len(both)) < 0.5
                both[turned] = np.flip(both[turned], axis)
        seeds = rng.integers(2**31, size=len(self.steps))
        with self.lock:  # from the seeds to what is drawn from them
            for step, seed in zip(self.steps, seeds, strict=True):
                step._random_generator.reset_from_seed(int(seed))
            both = np.asarray(self.geometry(both), np.float32)
        return self._light(both[..., :1], rng), np.clip(both[..., 1:] / 255, 0, 1)

    def _move(self, both: Any) -> Any:
        for step in self.steps:
            both = step(both, training=True)
        return both

    def _light(self, images: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
        """Brightness, contrast, noise, of the tile alone. Those of keras-cv can't be seeded."""
        inside = images.any(axis=1, keepdims=True) & images.any(axis=2, keepdims=True)
        pixels = np.maximum(inside.sum(axis=(1, 2), keepdims=True), 1)
        params, shape = self.params, (len(images), 1, 1, 1)

        def change(strength: float) -> NDArray[np.float32]:
            return rng.uniform(-strength, strength, shape).astype(np.float32)

        lit = 255 * (images / 255) ** np.exp(change(params.gamma))
        lit = np.clip(lit + 255 * change(params.brightness), 0, 255)
        mean = (lit * inside).sum(axis=(1, 2), keepdims=True) / pixels
        lit += change(params.contrast) * (lit - mean)
        lit += np.float32(params.noise) * rng.standard_normal(lit.shape, np.float32)
        # What was not black does not get so: rows and columns of black are no tile to the network.
        return np.where(inside, np.clip(lit, np.minimum(images, 1), 255), np.float32(0))
