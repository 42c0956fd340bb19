"""Synthetic magnetic tiles with exact masks: for the demo, for tests and for teaching.

Tiles are brushed, grainy grey surfaces, photographed under several exposures. Each defect
class has its own drawing: Blowhole small dark pits, Break chips at the edge, Crack thin dark
jagged lines, Fray rough bright-and-dark patches, Uneven large smooth blobs. A tile depends
on the seed, its class and its position within the class alone, not on how many are made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from tqdm import tqdm

from stages.drawing import DRAWN_CLASSES, Plane, Rng, blank, gain, noise, soften, to_levels, to_mask
from stages.params import SyntheticParams
from stages.tiles import GOOD_CLASS

__all__ = ["draw_defect", "draw_surface", "write_synthetic"]

BRIGHTNESS = (70.0, 100.0, 130.0, 160.0, 190.0, 215.0)
"""Mean grey level of each exposure."""

NUMBER_STEP = 3
NUMBER_GAP = 1000
"""Numbers in names ascend within a tile and jump between tiles, as in the real set."""


def write_synthetic(params: SyntheticParams, folder: Path) -> None:
    """Writes a set in the layout of the real one: `MT_<Class>/Imgs/exp<E>_num_<M>.jpg` and `.png`."""
    counts = {name: params.tiles_per_class for name in DRAWN_CLASSES} | {GOOD_CLASS: params.good_tiles}
    plan = [(index, name, tile) for index, name in enumerate(counts) for tile in range(counts[name])]
    first = NUMBER_GAP
    for index, name, tile in tqdm(plan, desc="drawing tiles", unit="tile"):
        target = folder / f"MT_{name}" / "Imgs"
        target.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng((params.seed, index, tile))
        for exposure, (image, mask) in enumerate(_exposures(params, name, rng), start=1):
            stem = f"exp{exposure}_num_{first + exposure * NUMBER_STEP}"
            Image.fromarray(image).save(target / f"{stem}.jpg", quality=95)
            Image.fromarray(mask).save(target / f"{stem}.png")
        first += NUMBER_GAP


def draw_surface(height: int, width: int, rng: Rng) -> Plane:
    """Draws a surface without defect: brush marks, grain and a slow gradient.

    Returns:
        (height, width) float32, mean about 0, in units of grey levels at mid exposure.
    """
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    gradient = rng.normal(0, 8) * (rows / height - 0.5) + rng.normal(0, 8) * (columns / width - 0.5)
    brush = ndimage.gaussian_filter(rng.normal(0, 1, (height, width)), (height / 8, 0.7))
    grain = ndimage.gaussian_filter(rng.normal(0, 1, (height, width)), 0.6)
    surface = gradient + 5 * brush / brush.std() + 3 * grain / grain.std()
    return np.asarray(surface, np.float32)


def draw_defect(
    image: NDArray[np.uint8], defect_class: str, rng: Rng
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draws one defect on a picture of a tile.

    Args:
        image: (H, W) uint8, 0-255.
        defect_class: one of the five defect classes.
        rng: decides on place, shape and strength.

    Returns:
        The picture with the defect, and its mask, both (H, W) uint8; the mask is 0 or 255.
    """
    height, width = image.shape
    shape, change = _defect(height, width, defect_class, rng)
    changed = image.astype(np.float32) + change * shape * gain(float(image.mean()))
    return to_levels(changed), to_mask(shape)


def _exposures(
    params: SyntheticParams, name: str, rng: Rng
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    height, width = (max(24, round(side * rng.uniform(0.85, 1.15))) for side in (params.height, params.width))
    surface = draw_surface(height, width, rng)
    shape = change = np.zeros_like(surface)
    if name != GOOD_CLASS:
        shape, change = _defect(height, width, name, rng)
    for exposure in rng.permutation(len(BRIGHTNESS))[: params.exposures]:
        light = BRIGHTNESS[exposure] + rng.normal(0, 5)
        picture = light + (surface + change * shape) * gain(light) + rng.normal(0, 2, surface.shape)
        yield to_levels(picture), to_mask(shape)


def _defect(height: int, width: int, name: str, rng: Rng) -> tuple[Plane, Plane]:
    """Share of each pixel that is defect, 0-1, and the change of grey level there."""
    drawings: dict[str, Callable[[int, int, Rng], tuple[Plane, Plane]]] = {
        "Blowhole": _blowhole,
        "Break": _break,
        "Crack": _crack,
        "Fray": _fray,
        "Uneven": _uneven,
    }
    return drawings[name](height, width, rng)


def _blowhole(height: int, width: int, rng: Rng) -> tuple[Plane, Plane]:
    canvas, draw = blank(height, width)
    for _ in range(rng.integers(1, 3)):
        radius = max(2.2, rng.uniform(0.025, 0.05) * min(height, width))
        x, y = rng.uniform(0.12, 0.88) * width, rng.uniform(0.12, 0.88) * height
        a, b = radius * rng.uniform(0.8, 1.4, 2)
        draw.ellipse([x - a, y - b, x + a, y + b], fill=255)
    return soften(canvas, 0.5), _flat(height, width, -rng.uniform(45, 75))


def _break(height: int, width: int, rng: Rng) -> tuple[Plane, Plane]:
    canvas, draw = blank(height, width)
    x, y = rng.choice([0.0, float(width)]), rng.uniform(0.15, 0.85) * height
    if rng.random() < 0.5:
        x, y = rng.uniform(0.15, 0.85) * width, rng.choice([0.0, float(height)])
    angles = np.sort(rng.uniform(0, 2 * np.pi, 14))
    radii = rng.uniform(0.1, 0.24, 14) * min(height, width)
    draw.polygon(list(zip(x + radii * np.cos(angles), y + radii * np.sin(angles), strict=True)), fill=255)
    rough = 12 * noise(rng, (height, width), 1.0)
    return soften(canvas, 0.6), (rough - rng.uniform(40, 65)).astype(np.float32)


def _crack(height: int, width: int, rng: Rng) -> tuple[Plane, Plane]:
    canvas, draw = blank(height, width)
    steps, angle = 10, rng.uniform(0, np.pi)
    length = rng.uniform(0.35, 0.75) * min(height, width) / steps
    turns = angle + np.cumsum(rng.normal(0, 0.35, steps))
    points = np.stack([np.cos(turns), np.sin(turns)], axis=1).cumsum(axis=0) * length
    points += np.array([width, height]) * rng.uniform(0.4, 0.6, 2) - points.mean(axis=0)
    draw.line(
        [(float(x), float(y)) for x, y in points], fill=255, width=max(2, round(min(height, width) / 60))
    )
    return soften(canvas, 0.4), _flat(height, width, -rng.uniform(45, 75))


def _fray(height: int, width: int, rng: Rng) -> tuple[Plane, Plane]:
    shape = _blob(height, width, rng, size=rng.uniform(0.12, 0.22), ragged=0.5)
    change = 45 * noise(rng, (height, width), 1.2) + rng.uniform(10, 25)
    return shape, change.astype(np.float32)


def _uneven(height: int, width: int, rng: Rng) -> tuple[Plane, Plane]:
    shape = _blob(height, width, rng, size=rng.uniform(0.2, 0.34), ragged=0.25)
    return shape, _flat(height, width, float(rng.choice([-1, 1]) * rng.uniform(22, 40)))


def _blob(height: int, width: int, rng: Rng, size: float, ragged: float) -> Plane:
    """A filled ellipse whose outline noise makes irregular; `size` is its radius over the shorter side."""
    rows, columns = np.mgrid[0:height, 0:width]
    y, x = rng.uniform(0.25, 0.75) * height, rng.uniform(0.25, 0.75) * width
    a, b = size * min(height, width) * rng.uniform(0.75, 1.35, 2)
    distance = np.hypot((rows - y) / a, (columns - x) / b)
    outline = ragged * noise(rng, (height, width), min(height, width) / 14)
    inside: Plane = (distance + 0.5 * outline < 1).astype(np.float32)
    return soften(inside * 255, 0.8)


def _flat(height: int, width: int, change: float) -> Plane:
    return np.full((height, width), change, np.float32)
