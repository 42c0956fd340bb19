"""Finds tiles that are one piece under two names, by what their pictures show.

Names and numbers alone don't tell: in the real set a dozen pieces were photographed in two
rounds far apart in the numbering, and some pieces went through the camera in turns. Where one
of their pictures trains and another judges, the judgement is worth nothing. The fine structure
of a surface (grain, scratches) is a fingerprint that light and exposure don't change;
`docs/data.md` says what was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

from serving.preprocessing import read_image
from stages.tiles import Tile

__all__ = ["find_lookalikes", "merge_lookalikes", "structure"]

SIDE = 96
MARGIN = 6
SAME_SHAPE = 0.12
"""Largest difference of the logarithm of a side, between pictures of one piece."""

BLOCK = 1024
"""Pictures compared with all others at a time, which bounds memory."""


def structure(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Fine structure of a picture, without light and exposure.

    Args:
        picture: (H, W) uint8, 0-255.

    Returns:
        (84, 84) float32, mean 0 and Euclidean norm 1; all 0 for a picture without structure.
    """
    small = Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BOX)
    gray = np.asarray(small, np.float32)
    fine = ndimage.gaussian_filter(gray, 1) - ndimage.gaussian_filter(gray, 6)
    fine = fine[MARGIN:-MARGIN, MARGIN:-MARGIN]
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
    pictures = np.stack(
        [
            structure(read_image(data / tile.image)).ravel()
            for tile in tqdm(tiles, desc="comparing tiles", unit="tile", leave=False)
        ]
    )
    sizes = np.log([(tile.height, tile.width) for tile in tiles])
    names = np.array([tile.tile for tile in tiles])
    pairs: list[tuple[int, int, float]] = []
    for start in range(0, len(tiles), BLOCK):
        block = slice(start, start + BLOCK)
        alike = pictures[block] @ pictures.T
        found = alike >= threshold
        found &= names[block, None] != names[None]
        found &= np.abs(sizes[block, None] - sizes[None]).max(axis=-1) < SAME_SHAPE
        for row, column in np.argwhere(found):
            if start + row < column:
                pairs.append((int(start + row), int(column), float(alike[row, column])))
    return pairs


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
