"""What plain and lifelike drawings share: shapes with soft outlines, noise, grey levels, masks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

__all__ = ["Plane", "Rng", "blank", "gain", "noise", "soften", "to_levels", "to_mask"]

Rng = np.random.Generator
Plane = NDArray[np.float32]


def gain(light: float) -> float:
    """Contrast of a surface at a mean grey level of 0-255; 1 at mid exposure."""
    return max(0.4, light / 130)


def noise(rng: Rng, shape: tuple[int, int], sigma: float | tuple[float, float]) -> Plane:
    """Noise of deviation 1, smooth over `sigma` pixels (down, across), as (H, W) float32."""
    smooth = ndimage.gaussian_filter(rng.normal(0, 1, shape), sigma)
    return np.asarray(smooth / smooth.std(), np.float32)


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
