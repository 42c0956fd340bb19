"""Drawn tiles and defects that look more like the real ones, and are harder to find than plain ones.

`stages.synthetic` draws what a demo and a first lesson want: one kind of surface, and defects that stand
out. Here surfaces differ in marks, grain, light, edges and harmless stains, and defects hide in them:
chips that are matt, cracks that come in from an edge, rubbed patches, areas with other marks. A network
with random weights learns nothing from these alone; one that knows the plain ones does.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from stages.drawing import DRAWN_CLASSES, Plane, Rng, blank, gain, noise, smooth, soften, to_levels, to_mask
from stages.synthetic import draw_defect

__all__ = ["draw_any_defect", "draw_lifelike_defect", "draw_lifelike_tile"]

PLAIN_SHARE = 0.25
"""Share of the plain drawings where there are both kinds."""


def draw_lifelike_tile(rng: Rng, shorter: tuple[int, int] = (70, 130)) -> NDArray[np.uint8]:
    """Draws a tile without defect, upright or lying.

    Args:
        rng: decides on all.
        shorter: smallest and largest length of the shorter side, in pixels.

    Returns:
        (H, W) uint8, 0-255; the longer side is up to 1.8 times the shorter one.
    """
    side = int(rng.integers(*shorter, endpoint=True))
    longer = round(side * rng.uniform(1.0, 1.8))
    height, width = (longer, side) if rng.random() < 0.7 else (side, longer)
    marks = noise(rng, (height, width), (height / rng.uniform(2, 20), rng.uniform(0.4, 1.5)))
    grain = noise(rng, (height, width), (rng.uniform(0.3, 1.0),) * 2)
    cloud = noise(rng, (height, width), (min(height, width) / rng.uniform(3, 6),) * 2)
    across = noise(rng, (1, width), (0, width / rng.uniform(6, 25)))
    surface = (
        rng.uniform(1, 9) * marks
        + rng.uniform(1, 6) * grain
        + rng.uniform(0, 9) * cloud
        + rng.uniform(0, 12) * across
        + rng.normal(0, 15) * np.linspace(-0.5, 0.5, height)[:, None]
        + rng.normal(0, 15) * np.linspace(-0.5, 0.5, width)
    )
    for axis, length in enumerate((height, width)):
        for flip in (False, True):
            if rng.random() < 0.4:  # the tile bends away from the light, or shines
                depth = rng.uniform(1, 0.06 * length + 1)
                edge = rng.normal(-15, 20) * np.exp(-np.arange(length) / depth)
                edge = edge[::-1] if flip else edge
                surface += edge[:, None] if axis == 0 else edge
    for _ in range(rng.poisson(0.5)):  # stains: soft all around, which a defect is not
        surface += rng.normal(0, 9) * _spot(height, width, rng, rng.uniform(0.04, 0.2))
    surface += _scratches(height, width, rng) + _hairlines(height, width, rng)
    light = rng.uniform(40, 215)
    return to_levels((light + surface * gain(light)) * _frame(height, width, rng), darkest=1)


def draw_any_defect(
    image: NDArray[np.uint8], rng: Rng, plain_share: float = PLAIN_SHARE
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draws one defect of any class, plain or lifelike.

    Args:
        image: (H, W) uint8, 0-255.
        rng: decides on all.
        plain_share: probability of a plain one.

    Returns:
        The picture with the defect, and its mask, both (H, W) uint8; the mask is 0 or 255.
    """
    draw = draw_defect if rng.random() < plain_share else draw_lifelike_defect
    return draw(image, str(rng.choice(DRAWN_CLASSES)), rng)


def draw_lifelike_defect(
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
    light = float(image.mean())
    surface = ((image - light) / gain(light)).astype(np.float32)
    share, content = DRAWINGS[defect_class](surface, rng)
    changed = image + share * (content - surface) * gain(light)
    return to_levels(changed, darkest=1), to_mask(share)


# Each drawing takes the surface without defect, in grey levels at mid exposure, and answers the share of
# each pixel that is defect, 0-1, and what is seen there instead; all three (H, W) float32.


def _blowhole(surface: Plane, rng: Rng) -> tuple[Plane, Plane]:
    canvas, draw = blank(*surface.shape)
    height, width = surface.shape
    for _ in range(rng.integers(1, 3)):
        radius = max(2.2, rng.uniform(0.02, 0.05) * min(height, width))
        x, y = rng.uniform(0.08, 0.92) * width, rng.uniform(0.08, 0.92) * height
        a, b = radius * rng.uniform(0.7, 1.4, 2)
        draw.ellipse([x - a, y - b, x + a, y + b], fill=255)
    return soften(canvas, 0.5), surface - np.float32(rng.uniform(45, 75))


def _break(surface: Plane, rng: Rng) -> tuple[Plane, Plane]:
    canvas, draw = blank(*surface.shape)
    height, width = surface.shape
    x, y = rng.choice([0.0, float(width)]), rng.uniform(0.0, 1.0) * height
    if rng.random() < 0.5:
        x, y = rng.uniform(0.0, 1.0) * width, rng.choice([0.0, float(height)])
    angles = np.sort(rng.uniform(0, 2 * np.pi, 14))
    # Along the edge a chip is longer than it is deep.
    along, deep = min(height, width) * np.array([rng.uniform(0.1, 0.3), rng.uniform(0.08, 0.2)])
    a, b = (along, deep) if y in (0.0, height) else (deep, along)
    radii = rng.uniform(0.6, 1.0, 14)
    draw.polygon(
        list(zip(x + a * radii * np.cos(angles), y + b * radii * np.sin(angles), strict=True)), fill=255
    )
    matt = _matt(surface, rng, grain=rng.uniform(3, 10))
    return soften(canvas, 0.6), matt - np.float32(rng.uniform(25, 65))


def _crack(surface: Plane, rng: Rng) -> tuple[Plane, Plane]:
    canvas, draw = blank(*surface.shape)
    height, width = surface.shape
    steps, side = 10, min(height, width)
    from_edge = rng.random() < 0.7
    angle = rng.normal(np.pi / 2, 0.15) if from_edge else rng.uniform(0, np.pi)
    length = max(20.0, rng.uniform(0.2, 0.8) * (height if from_edge else side)) / steps
    turns = angle + np.cumsum(rng.normal(0, 0.15 if from_edge else 0.35, steps))
    points = np.stack([np.cos(turns), np.sin(turns)], axis=1).cumsum(axis=0) * length
    if from_edge:
        points = np.vstack([(0.0, -2.0), points]) + np.array([rng.uniform(0.1, 0.9) * width, 0.0])
        if rng.random() < 0.5:
            points[:, 1] = height - 1 - points[:, 1]
    else:
        points += np.array([width, height]) * rng.uniform(0.4, 0.6, 2) - points.mean(axis=0)
    line = max(2, round(side * rng.uniform(0.008, 0.018)))
    draw.line([(float(x), float(y)) for x, y in points], fill=255, width=line)
    return soften(canvas, 0.4), surface - np.float32(rng.uniform(35, 75))


def _fray(surface: Plane, rng: Rng) -> tuple[Plane, Plane]:
    share = _blob(surface, rng, size=rng.uniform(0.1, 0.25), ragged=0.3)
    change = rng.choice([-1, 1]) * rng.uniform(15, 35)
    return share, _matt(surface, rng, grain=rng.uniform(2, 6)) + np.float32(change)


def _uneven(surface: Plane, rng: Rng) -> tuple[Plane, Plane]:
    height, width = surface.shape
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    wave = 0.03 * height * noise(rng, (1, width), (0, width / 8))[0]
    kind = rng.choice(["band", "corner", "box"], p=[0.6, 0.15, 0.25])
    if kind == "band":
        inside = rows + wave < rng.uniform(0.15, 0.5) * height
    elif kind == "corner":
        inside = rows / height + columns / width + wave / height < rng.uniform(0.4, 0.7)
    else:
        y, x = rng.uniform(0.3, 0.7) * height, rng.uniform(0.3, 0.7) * width
        a, b = rng.uniform(0.18, 0.3) * height, rng.uniform(0.18, 0.4) * width
        inside = ((rows + wave - y) / a) ** 4 + ((columns - x) / b) ** 4 < 1
    share = soften(inside[:: rng.choice([-1, 1]), :: rng.choice([-1, 1])] * np.float32(255), 0.8)
    marks = noise(rng, (height, width), (height / 2, 0.8))
    change = rng.choice([-1, 1]) * rng.uniform(8, 30)
    wide = smooth(surface, (height / 6, 2))
    content = wide + rng.uniform(0, 0.5) * (surface - wide) + rng.uniform(2, 9) * marks + change
    return share, np.asarray(content, np.float32)


DRAWINGS: dict[str, Callable[[Plane, Rng], tuple[Plane, Plane]]] = {
    "Blowhole": _blowhole,
    "Break": _break,
    "Crack": _crack,
    "Fray": _fray,
    "Uneven": _uneven,
}


def _scratches(height: int, width: int, rng: Rng) -> Plane:
    """Thin marks of grinding, bright or dark, from top to bottom or a part of the way; no defects."""
    canvas = np.zeros((height, width), np.float32)
    for _ in range(rng.poisson(rng.choice([0, 4, 12]))):
        x, y = int(rng.integers(width)), rng.uniform(-0.3, 0.9) * height
        rows = slice(max(0, int(y)), int(y + rng.uniform(0.1, 1.2) * height))
        canvas[rows, x] += rng.choice([-0.4, 1.0]) * rng.uniform(8, 60)
    broken = np.clip(1 + noise(rng, (height, width), (3.0, 0.3)), 0, 2)
    return np.asarray(ndimage.gaussian_filter(canvas, (0.5, 0.4)) * broken, np.float32)


def _hairlines(height: int, width: int, rng: Rng) -> Plane:
    """Faint wavy lines across the tile, as of the material's grain, and specks of dust; no defects."""
    canvas, draw = blank(height, width)
    for _ in range(rng.poisson(0.7)):
        points = np.linspace(-0.05, 1.05, 12)
        y = rng.uniform(0.1, 0.9) + 0.06 * rng.uniform(0.2, 1) * rng.normal(0, 1, 12).cumsum() / 2
        first, last = sorted(rng.uniform(-0.2, 1.2, 2))
        line = [(x * width, z * height) for x, z in zip(points, y, strict=True) if first < x < last]
        if len(line) > 1:
            draw.line(line, fill=int(rng.integers(60, 256)))
    for _ in range(rng.poisson(rng.choice([0, 3]))):
        x, z = rng.uniform(0, width), rng.uniform(0, height)
        draw.point((x, z), fill=int(rng.integers(100, 256)))
    return -soften(canvas, rng.uniform(0.4, 0.9)) * np.float32(rng.uniform(8, 30))


def _frame(height: int, width: int, rng: Rng) -> Plane:
    """Light of a tile whose edges and corners are rounded off: 1 within, down to 0 beside it."""
    if rng.random() < 0.3:
        return np.ones((height, width), np.float32)
    canvas, draw = blank(height, width)
    side = min(height, width)
    left, top, right, bottom = side * rng.uniform(0, 0.05, 4) * (rng.random(4) < 0.6)
    box = [left, top, width - 1 - right, height - 1 - bottom]
    draw.rounded_rectangle(box, radius=side * rng.uniform(0, 0.08), fill=255)
    wavy = 0.6 * noise(rng, (height, width), side / 10)
    inside = soften(canvas, rng.uniform(0.5, max(0.5, 0.02 * side))) + 0.1 * wavy * (rng.random() < 0.5)
    darkest = rng.uniform(0.0, 0.6)
    return np.asarray(darkest + (1 - darkest) * np.clip(2 * inside - 0.5, 0, 1), np.float32)


def _blob(surface: Plane, rng: Rng, size: float, ragged: float) -> Plane:
    """A filled ellipse whose outline noise makes irregular; `size` is its radius over the shorter side."""
    height, width = surface.shape
    rows, columns = np.mgrid[0:height, 0:width]
    y, x = rng.uniform(0.05, 0.95) * height, rng.uniform(0.05, 0.95) * width
    a, b = size * min(height, width) * rng.uniform(0.75, 1.35, 2)
    distance = np.hypot((rows - y) / a, (columns - x) / b)
    outline = noise(rng, (height, width), min(height, width) / 14)
    return soften((distance + ragged * outline / 2 < 1) * np.float32(255), 0.8)


def _matt(surface: Plane, rng: Rng, grain: float) -> Plane:
    """The surface without its marks, with the grain of a broken or rubbed one."""
    rough = noise(rng, surface.shape, 1.0)
    return np.asarray(smooth(surface, min(surface.shape) / 10) + grain * rough, np.float32)


def _spot(height: int, width: int, rng: Rng, size: float) -> Plane:
    """A bell of height 1; `size` is its deviation over the shorter side."""
    rows, columns = np.mgrid[0:height, 0:width]
    y, x = rng.uniform(0, height), rng.uniform(0, width)
    a, b = size * min(height, width) * rng.uniform(0.6, 1.6, 2)
    bell = np.exp(-(((rows - y) / a) ** 2 + ((columns - x) / b) ** 2) / 2)
    return np.asarray(bell, np.float32)
