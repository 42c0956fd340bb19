"""Finds tiles that are one piece under two names, by what their pictures show.

Names and numbers alone don't tell: in the real set a dozen pieces were photographed in two
rounds far apart in the numbering, and some pieces went through the camera in turns. Where one
of their pictures trains and another judges, the judgement is worth nothing. The fine structure
of a surface (grain, scratches) is a fingerprint that light and exposure don't change;
`docs/data.md` says what was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import fft, ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

from serving.preprocessing import read_image
from stages.tiles import Tile

__all__ = ["details", "find_lookalikes", "merge_lookalikes", "structure"]

SIDE = 96
MARGIN = 6
SAME_SHAPE = 0.12
"""Largest difference of the logarithm of a side, between pictures of one piece."""

BLOCK = 1024
"""Pictures compared with as many others at a time, which bounds memory."""

SKETCH = 28
"""Frequencies, down and across, of what is kept of each picture: 3 kB instead of 28."""

ROUNDING = 1e-4
"""What single precision may take from a sum of products; nothing is lost to it."""


def details(gray: NDArray[np.float32]) -> NDArray[np.float32]:
    """What light and exposure leave alone of grey levels, (H, W) float32: structures of 1 to 6 pixels."""
    return np.asarray(ndimage.gaussian_filter(gray, 1) - ndimage.gaussian_filter(gray, 6), np.float32)


def structure(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Fine structure of a picture, without light and exposure.

    Args:
        picture: (H, W) uint8, 0-255.

    Returns:
        (84, 84) float32, mean 0 and Euclidean norm 1; all 0 for a picture without structure.
    """
    small = Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BOX)
    gray = np.asarray(small, np.float32)
    fine = details(gray)[MARGIN:-MARGIN, MARGIN:-MARGIN]
    fine = fine - fine.mean()
    return np.asarray(fine / max(float(np.linalg.norm(fine)), 1e-6), np.float32)


def find_lookalikes(data: Path, tiles: Sequence[Tile], threshold: float) -> list[tuple[int, int, float]]:
    """Finds pairs of images that show one piece although their tiles have different names.

    Args:
        data: folder to which the paths of the tiles are relative.
        tiles: rows of the index.
        threshold: correlation of the fine structures from which two images show one piece, 0-1.

    Returns:
        Both positions in `tiles`, the lower first, and the correlation, of each pair.
    """
    # By height, so that what can be of one shape lies together.
    order = np.argsort([tile.height for tile in tiles], kind="stable")
    sizes = np.log([(tiles[i].height, tiles[i].width) for i in order]).reshape(-1, 2)
    names = np.unique([tiles[i].tile for i in order], return_inverse=True)[1]
    sketches = np.empty((len(tiles), SKETCH**2), np.float32)
    rests = np.empty(len(tiles), np.float32)

    @lru_cache(BLOCK)
    def fine_structure(place: int) -> NDArray[np.float32]:
        return structure(read_image(data / tiles[order[place]].image))

    bar = tqdm(total=len(tiles), desc="comparing tiles", unit="tile", leave=False)
    with ThreadPoolExecutor() as threads, bar:
        for start in range(0, len(tiles), BLOCK):  # so that results do not pile up
            places = range(start, min(start + BLOCK, len(tiles)))
            found = threads.map(lambda place: _sketch(fine_structure.__wrapped__(place)), places)
            for place, (sketch, rest) in zip(places, found, strict=True):
                sketches[place], rests[place] = sketch, rest
                bar.update()
    pairs: list[tuple[int, int, float]] = []
    for start in range(0, len(tiles), BLOCK):
        block = slice(start, start + BLOCK)
        stop = int(np.searchsorted(sizes[:, 0], sizes[block, 0].max() + SAME_SHAPE))
        for left in range(start, stop, BLOCK):
            others = slice(left, min(left + BLOCK, stop))
            # At most: what sketches leave out adds no more than the product of its lengths (Cauchy-Schwarz).
            most = sketches[block] @ sketches[others].T + np.outer(rests[block], rests[others])
            rows, columns = np.nonzero(most >= threshold - ROUNDING)
            one, other = start + rows, left + columns
            kept = (one < other) & (names[one] != names[other])
            kept &= np.abs(sizes[one] - sizes[other]).max(axis=1, initial=0) < SAME_SHAPE
            for first, second in zip(one[kept].tolist(), other[kept].tolist(), strict=True):
                alike = float(np.vdot(fine_structure(first), fine_structure(second)))
                if alike >= threshold:
                    low, high = sorted((int(order[first]), int(order[second])))
                    pairs.append((low, high, alike))
    return sorted(pairs)


def _sketch(fine: NDArray[np.float32]) -> tuple[NDArray[np.float32], float]:
    """The low frequencies of a structure, which are most of it, and the Euclidean norm of the others."""
    low = fft.dctn(fine, norm="ortho")[:SKETCH, :SKETCH].ravel()
    return low, float(np.sqrt(max(0.0, float(np.vdot(fine, fine)) - float(np.vdot(low, low)))))


def merge_lookalikes(tiles: Sequence[Tile], pairs: Sequence[tuple[int, int, float]]) -> dict[str, str]:
    """Names of the groups that a split must keep together.

    Args:
        tiles: rows of the index.
        pairs: what `find_lookalikes` found in them.

    Returns:
        For each tile its group: the first name, in alphabetical order, of the tiles that hang
        together, directly or through others.
    """
    names = sorted({tile.tile for tile in tiles})
    index = {name: i for i, name in enumerate(names)}
    ends = np.array([[index[tiles[i].tile], index[tiles[j].tile]] for i, j, _ in pairs], int).reshape(-1, 2)
    links = coo_array((np.ones(len(ends), bool), (ends[:, 0], ends[:, 1])), shape=(len(names), len(names)))
    labels = connected_components(links, directed=False)[1]
    first: dict[int, str] = {}
    return {name: first.setdefault(int(label), name) for name, label in zip(names, labels, strict=True)}
