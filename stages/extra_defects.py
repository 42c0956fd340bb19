"""More defects than the tiles have: those of other tiles pasted in, and drawn ones, anew each epoch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from stages.dataset import Examples
from stages.lifelike import draw_any_defect

__all__ = ["ExtraDefects"]

Plane = NDArray[np.float32]

MARGIN = 3
"""Pixels around a defect that are cut out with it."""

LARGEST = 0.25
"""Share of a tile from which a defect is not pasted: it is about the whole tile then."""


class ExtraDefects:
    """Adds defects to the tiles of a batch (copy-paste: Ghiasi et al., 2021).

    Args:
        examples: of the train side; their defects are pasted.
        pasted: probability that a tile gets a defect of another tile, whatever it has itself.
        drawn: probability that a tile without any gets a drawn one instead.
    """

    def __init__(self, examples: Examples, pasted: float, drawn: float) -> None:
        self.examples, self.pasted, self.drawn = examples, pasted, drawn
        self.sources = np.flatnonzero(np.logical_not(examples.good))

    def __call__(
        self, images: NDArray[np.float32], masks: NDArray[np.float32], rng: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Changes a batch.

        Args:
            images: (N, H, W, 1) float32, 0-255, black where there is no tile.
            masks: (N, H, W, 1) float32, 0-1.
            rng: all chance comes from it.

        Returns:
            New images and masks of the same shapes and ranges.
        """
        images, masks = images.copy(), masks.copy()
        for image, mask in zip(images[..., 0], masks[..., 0], strict=True):
            tile = _tile(image)
            chance = rng.random()
            if chance < self.drawn and not mask.any():
                drawn, where = draw_any_defect(image[tile].astype(np.uint8), rng)
                image[tile], mask[tile] = drawn, where / np.float32(255)
            elif chance > 1 - self.pasted and len(self.sources):
                source = int(rng.choice(self.sources))
                _paste(
                    image[tile],
                    mask[tile],
                    self.examples.images[source, ..., 0].astype(np.float32),
                    np.asarray(self.examples.masks[source, ..., 0] / 255, np.float32),
                    rng,
                )
        return images, masks


def _tile(image: Plane) -> tuple[slice, slice]:
    """Rows and columns that are not all black."""
    rows, columns = (np.flatnonzero(image.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return slice(0), slice(0)
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _paste(image: Plane, mask: Plane, source: Plane, defects: Plane, rng: np.random.Generator) -> None:
    """Pastes one defect of the source, in place: at an edge if it was at one, as bright as the tile."""
    tile = _tile(source)
    source, defects = source[tile], defects[tile]
    components, count = ndimage.label(defects > 0.3, structure=np.ones((3, 3), int))
    if not count:
        return
    box = ndimage.find_objects(components)[rng.integers(count)]
    limits = [
        (max(0, one.start - MARGIN), one.stop + MARGIN, size)
        for one, size in zip(box, source.shape, strict=True)
    ]
    cut = tuple(slice(start, stop) for start, stop, _ in limits)
    patch, shape = source[cut], defects[cut]
    if any(part > whole for part, whole in zip(patch.shape, image.shape, strict=True)):
        return
    if (shape > 0.3).sum() > LARGEST * source.size:
        return
    place = []
    for axis, (start, stop, size) in enumerate(limits):
        free = image.shape[axis] - patch.shape[axis]
        ends = [start == 0, stop >= size]
        if rng.random() < 0.5:
            patch, shape, ends = np.flip(patch, axis), np.flip(shape, axis), ends[::-1]
        first = 0 if ends[0] else free if ends[1] else int(rng.integers(free + 1))
        place.append(slice(first, first + patch.shape[axis]))
    under, where = image[tuple(place)], mask[tuple(place)]
    around = shape < 0.05
    light = patch[around].mean() if around.any() else source.mean()
    gain = np.clip(under.mean() / max(float(light), 1.0), 0.4, 2.5)
    share = ndimage.gaussian_filter(ndimage.grey_dilation(shape, (3, 3)), 0.8).clip(0, 1)
    under[:] = (1 - share) * under + share * np.clip(patch * gain, 1, 255)
    np.maximum(where, shape, out=where)
