"""Augmentation of images and their masks alike, without a backend: whatever the network trains on.

All that moves a tile is one map, and each pixel is interpolated once: a layer for each step would blur
thin cracks three times, and take as long. Pillow does it, which leaves other threads their turn.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stages.params import AugmentParams

__all__ = ["Augmentation"]

Batch = NDArray[np.float32]


class Augmentation:
    """Changes images and masks at random; each strength of 0 leaves its step out.

    Several threads may share one.
    """

    def __init__(self, params: AugmentParams) -> None:
        self.params = params

    def __call__(self, images: Batch, masks: Batch, rng: np.random.Generator) -> tuple[Batch, Batch]:
        """Augments a batch.

        Args:
            images: (N, H, W, 1) float32, 0-255.
            masks: (N, H, W, 1) float32, 0-1.
            rng: all chance comes from it: in the same state it gives the same batch.

        Returns:
            Images and masks of the same shapes and ranges.
        """
        if self._moves():
            maps = self._maps(len(images), images.shape[1], images.shape[2], rng)
            images, masks = _moved(images, maps), _moved(masks, maps)
        return self._light(images, rng), masks

    def _moves(self) -> bool:
        params = self.params
        return params.flip or any((params.rotation, params.shift, params.zoom))

    def _maps(self, number: int, height: int, width: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Random maps (N, 2, 3) from a pixel of the result to where it comes from, in (x, y, 1).

        About the middle: mirrored, larger or smaller in each direction, turned, and shifted.
        """
        params, sides = self.params, np.array([width, height], np.float64)
        scale = 1 + rng.uniform(-params.zoom, params.zoom, (number, 2))
        if params.flip:
            scale *= rng.choice([-1.0, 1.0], (number, 2))
        angle = 2 * math.pi * rng.uniform(-params.rotation, params.rotation, number)
        shift = params.shift * rng.uniform(-1, 1, (number, 2)) * sides
        turn = np.stack([np.cos(angle), np.sin(angle), -np.sin(angle), np.cos(angle)], axis=-1)
        linear = turn.reshape(-1, 2, 2) * scale[:, :, None]
        origin = sides / 2 - np.einsum("nij,nj->ni", linear, sides / 2 + shift)
        return np.concatenate([linear, origin[:, :, None]], axis=-1)

    def _light(self, images: Batch, rng: np.random.Generator) -> Batch:
        """Brightness, contrast, noise, of the tile alone."""
        inside = images.any(axis=1, keepdims=True) & images.any(axis=2, keepdims=True)
        pixels = np.maximum(inside.sum(axis=(1, 2, 3), keepdims=True), 1)
        params, shape = self.params, (len(images), 1, 1, 1)

        def change(strength: float) -> Batch:
            return rng.uniform(-strength, strength, shape).astype(np.float32)

        lit = 255 * (images / 255) ** np.exp(change(params.gamma))
        lit = np.clip(lit + 255 * change(params.brightness), 0, 255)
        mean = (lit * inside).sum(axis=(1, 2, 3), keepdims=True) / pixels
        lit += change(params.contrast) * (lit - mean)
        if params.noise:
            lit += np.float32(params.noise) * _noise(lit.shape, rng)
        # What was not black does not get so: rows and columns of black are no tile to the network.
        return np.where(inside, np.clip(lit, np.minimum(images, 1), 255), np.float32(0))


def _noise(shape: tuple[int, ...], rng: np.random.Generator) -> Batch:
    """Gaussian noise of deviation 1, (N, H, W, 1): each image has its own cut of one plane, drawn faster."""
    number, height, width, _ = shape
    plane = rng.standard_normal((3 * height // 2, 3 * width // 2), np.float32)
    rows, columns = (rng.integers(side // 2 + 1, size=number) for side in (height, width))
    cuts = [plane[y : y + height, x : x + width] for y, x in zip(rows, columns, strict=True)]
    return np.stack(cuts)[..., None]


def _moved(planes: Batch, maps: NDArray[np.float64]) -> Batch:
    """Planes (N, H, W, 1) looked up where their maps point; 0 from outside."""
    size = planes.shape[2], planes.shape[1]
    affine, bilinear = Image.Transform.AFFINE, Image.Resampling.BILINEAR
    moved = np.zeros_like(planes)
    for there, plane, one in zip(moved[..., 0], planes[..., 0], maps, strict=True):
        if plane.any():  # the masks of good tiles stay as they are
            there[:] = Image.fromarray(plane).transform(size, affine, tuple(one.ravel()), bilinear)
    return moved
