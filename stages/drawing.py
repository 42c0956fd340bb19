"""What plain and lifelike drawings share: shapes with soft outlines, noise, grey levels, masks."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

__all__ = [
    "DRAWN_CLASSES",
    "Plane",
    "Rng",
    "blank",
    "gain",
    "noise",
    "smooth",
    "soften",
    "to_levels",
    "to_mask",
]

DRAWN_CLASSES = ("Blowhole", "Break", "Crack", "Fray", "Uneven")
"""Classes of defects that can be drawn; of the data's, a project may have more."""

Rng = np.random.Generator
Plane = NDArray[np.float32]


def gain(light: float) -> float:
    """Contrast of a surface at a mean grey level of 0-255; 1 at mid exposure."""
    return max(0.4, light / 130)


def noise(rng: Rng, shape: tuple[int, int], sigma: float | tuple[float, float]) -> Plane:
    """Noise of deviation 1, smooth over `sigma` pixels (down, across), as (H, W) float32."""
    grid, sigmas = _coarser(shape, sigma)
    coarse = ndimage.gaussian_filter(rng.normal(0, 1, grid), sigmas)
    plane = _resized(np.asarray(coarse, np.float32), shape)
    return np.asarray(plane / plane.std(), np.float32)


def smooth(plane: Plane, sigma: float | tuple[float, float]) -> Plane:
    """A plane (H, W) without what is finer than `sigma` pixels (down, across): a Gaussian filter's answer."""
    grid, sigmas = _coarser(plane.shape, sigma)
    return _resized(ndimage.gaussian_filter(_resized(plane, grid), sigmas), plane.shape)


def _coarser(
    shape: tuple[int, ...], sigma: float | tuple[float, float]
) -> tuple[tuple[int, ...], NDArray[np.float64]]:
    """A grid that shows all that a Gaussian filter leaves, and its `sigma` there: wide ones are slow."""
    sigmas = np.broadcast_to(sigma, 2).astype(np.float64)
    cells = np.maximum(1, sigmas // 3)
    grid = tuple(
        max(2, math.ceil(side / cell)) if cell > 1 else side for side, cell in zip(shape, cells, strict=True)
    )
    return grid, sigmas / cells


def _resized(plane: Plane, shape: tuple[int, ...]) -> Plane:
    if shape == plane.shape:
        return plane
    picture = Image.fromarray(plane).resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
    return np.asarray(picture, np.float32)


def blank(height: int, width: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """A black canvas of grey levels, and what draws on it; a defect is drawn in 255."""
    canvas = Image.new("L", (width, height))
    return canvas, ImageDraw.Draw(canvas)


def soften(canvas: Image.Image | Plane, sigma: float) -> Plane:
    """Share of each pixel that is defect, 0-1: outlines of 0 and 255, soft by `sigma` pixels as by a lens."""
    soft = ndimage.gaussian_filter(np.asarray(canvas, np.float32) / 255, sigma)
    return np.asarray(soft, np.float32)


def to_levels(picture: NDArray[np.floating], darkest: int = 0) -> NDArray[np.uint8]:
    """Grey levels of a picture, (H, W) uint8, from `darkest` to 255."""
    return np.clip(np.round(picture), darkest, 255).astype(np.uint8)


def to_mask(share: Plane) -> NDArray[np.uint8]:
    """Mask of the pixels that are defect for at least one half, (H, W) uint8, 0 or 255."""
    return ((share >= 0.5) * np.uint8(255)).astype(np.uint8)
