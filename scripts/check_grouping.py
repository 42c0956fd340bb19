"""Checks the rule that groups the images of one tile: `python -m scripts.check_grouping`.

Looks at each two images that follow each other in the numbering. If the rule is right, two of
one tile look alike (their fine structure correlates, their masks overlap) and two of different
tiles do not. Writes pairs that contradict the rule to a sheet, for a person to judge.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scripts.montage import montage
from serving.preprocessing import read_image
from stages.errors import StageError, run_command
from stages.lookalikes import structure
from stages.tiles import Tile, read_tiles

SIDE = 96
ALIKE = 0.25
"""Correlation above which two pictures are taken for one tile; see the table that is printed."""
SHEET_PAIRS = 12


def correlation(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Largest correlation over shifts of up to 4 pixels, -1 to 1."""
    core = one[4:-4, 4:-4]
    core = core / max(float(np.linalg.norm(core)), 1e-6)
    height, width = core.shape
    best = -1.0
    for top in range(9):
        for left in range(9):
            moved = other[top : top + height, left : left + width]
            best = max(best, float((core * moved).sum() / max(float(np.linalg.norm(moved)), 1e-6)))
    return best


def mask_overlap(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """IoU of two masks, brought to one size."""
    boxes = [Image.fromarray(mask).resize((SIDE, SIDE), Image.Resampling.NEAREST) for mask in (one, other)]
    first, second = (np.asarray(box) > 0 for box in boxes)
    union = np.count_nonzero(first | second)
    return np.count_nonzero(first & second) / union if union else float("nan")


def neighbours(tiles: Sequence[Tile]) -> Iterator[tuple[Tile, Tile]]:
    """Each two images that follow each other in the numbering."""
    numbered = sorted((tile for tile in tiles if tile.number), key=lambda tile: (tile.number, tile.exposure))
    yield from pairwise(numbered)


def main() -> None:
    """Prints the table and writes the sheet.

    Raises:
        StageError: if no two images are numbered.
    """
    parser = argparse.ArgumentParser(prog="python -m scripts.check_grouping", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data/tiles"), help="default: data/tiles")
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="write contradicting pairs here")
    options = parser.parse_args()
    data: Path = options.data
    found: dict[bool, list[tuple[float, float, Tile, Tile]]] = {True: [], False: []}
    for one, other in neighbours(read_tiles(data / "tiles.csv")):
        alike = correlation(*(structure(read_image(data / tile.image)) for tile in (one, other)))
        overlap = float("nan")
        if one.defect_pixels and other.defect_pixels:
            overlap = mask_overlap(read_image(data / one.mask), read_image(data / other.mask))
        found[one.tile == other.tile].append((alike, overlap, one, other))
    if not any(found.values()):
        raise StageError(
            f"{data} has no two images with numbers (exp<E>_num_<N>), so that there is no rule to check; "
            "other names tell by themselves which images are one tile (docs/data.md)"
        )
    print("pairs of neighbours     number  correlation p5 / p50 / p95  above 0.25  IoU of masks p50")
    for same, rows in found.items():
        name = "said to be one tile" if same else "said to be two tiles"
        if not rows:
            print(f"{name:22}  {0:6}")
            continue
        values = np.array([row[0] for row in rows])
        overlaps = [row[1] for row in rows if not math.isnan(row[1])]
        low, middle, high = np.percentile(values, [5, 50, 95])
        print(
            f"{name:22}  {len(rows):6}  {low:11.2f} / {middle:.2f} / {high:.2f}  "
            f"{np.mean(values > ALIKE):18.1%}  {np.median(overlaps) if overlaps else math.nan:16.2f}"
        )
    wrong = sorted((row for row in found[True] if row[0] <= ALIKE), key=lambda row: row[0])[:SHEET_PAIRS]
    missed = sorted((row for row in found[False] if row[0] > ALIKE), key=lambda row: -row[0])[:SHEET_PAIRS]
    for title, rows in (("said to be one tile, least alike", wrong), ("said to be two, most alike", missed)):
        print(f"\n{title}:")
        for alike, _, one, other in rows:
            print(f"  {alike:5.2f}  {one.image}  {other.image}")
    if options.sheet and wrong + missed:
        pictures = [Image.open(data / tile.image) for row in wrong + missed for tile in row[2:]]
        montage(pictures, cell=160, columns=6).save(options.sheet)


if __name__ == "__main__":
    run_command(main)
