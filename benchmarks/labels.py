"""How far the masks of one tile agree under its exposures: python -m benchmarks.labels

Each exposure of a tile was labelled by itself. So the masks of two of them, laid over one another where their
pictures coincide, tell what the labels are worth: a network can hardly agree better with a mask than
the mask of the same tile under other light does.
Needs `pip install .[benchmarks]`.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.preprocessing import read_image
from stages.dataset import read_mask
from stages.lookalikes import details
from stages.tiles import Tile, read_tiles

__all__ = ["Agreement", "agreement", "coincide", "main"]

LARGEST_SHIFT = 1 / 3
"""Share of a side by which pictures of one tile may be cut differently."""


@dataclass
class Agreement:
    """Pixels of the masks of pairs of pictures, where both pictures show the tile.

    Attributes:
        pairs: number of them.
        both, either: pixels in both masks, and the sum of those in one and in the other.
    """

    pairs: int = 0
    both: int = 0
    either: int = 0

    @property
    def dice(self) -> float:
        """Pooled over the pairs."""
        return 2 * self.both / self.either if self.either else float("nan")


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table of the classes; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.labels",
        description=(__doc__ or "").split("\n\n", 1)[1],
        epilog="The data come first: dvc repro data_load.",
    )
    add = parser.add_argument
    add("--data", type=Path, default=Path("data/tiles"), metavar="DIR", help="what data_load has made")
    add(
        "--likeness",
        type=float,
        default=0.5,
        metavar="R",
        help="correlation from which pictures coincide (default: 0.5)",
    )
    args = parser.parse_args(argv)
    index = args.data / "tiles.csv"
    if not index.exists():
        print(f"error: no {index}; run `dvc repro data_load`", file=sys.stderr)
        return 1
    found, apart = agreement(args.data, read_tiles(index), args.likeness)
    print("| class | pairs of exposures | Dice, pooled |\n|---|---|---|")
    for name, one in found.items():
        print(f"| {name} | {one.pairs} | {one.dice:.3f} |")
    print(f"\n{apart} pair(s) left out, as their pictures do not coincide")
    return 0


def agreement(data: Path, tiles: Sequence[Tile], likeness: float) -> tuple[dict[str, Agreement], int]:
    """Compares the masks of all pairs of exposures of a tile in which both have a defect of one class.

    Args:
        data: folder to which the paths of the tiles are relative.
        tiles: rows of the index.
        likeness: correlation of the fine structure from which two pictures coincide, 0-1.

    Returns:
        The agreement of each class, and of `all` at last; and how many pairs did not coincide.
    """
    from tqdm import tqdm

    groups = defaultdict(list)
    for tile in tiles:
        if tile.defect_pixels:
            groups[tile.class_, tile.tile].append(tile)
    found: dict[str, Agreement] = {name: Agreement() for name in sorted({name for name, _ in groups})}
    found["all"] = Agreement()
    apart = 0
    for (name, _), exposures in tqdm(groups.items(), desc="comparing masks", unit="tile"):
        pictures = [details(read_image(data / tile.image).astype(np.float32)) for tile in exposures]
        masks = [read_mask(data / tile.mask) > 0 for tile in exposures]
        for one, other in itertools.combinations(range(len(exposures)), 2):
            places = coincide(pictures[one], pictures[other], likeness)
            if places is None:
                apart += 1
                continue
            first, second = masks[one][places[0]], masks[other][places[1]]
            for kind in (name, "all"):
                found[kind].pairs += 1
                found[kind].both += int(np.count_nonzero(first & second))
                found[kind].either += int(np.count_nonzero(first) + np.count_nonzero(second))
    return found, apart


def coincide(
    one: NDArray[np.float32], other: NDArray[np.float32], likeness: float
) -> tuple[tuple[slice, slice], tuple[slice, slice]] | None:
    """Where two pictures of a tile show the same, found by their cross-correlation.

    Args:
        one, other: (H, W) float32 each, of any sizes.
        likeness: correlation over the common part from which it is believed.

    Returns:
        Rows and columns of the common part in each; None if there is none.
    """
    from skimage import registration

    common = tuple(slice(min(sides)) for sides in zip(one.shape, other.shape, strict=True))
    find_shift: Any = registration.phase_cross_correlation  # has no types
    shift, *_ = find_shift(one[common], other[common], normalization=None)
    places: list[list[slice]] = [[], []]
    for by, sides in zip(map(int, shift), zip(one.shape, other.shape, strict=True), strict=True):
        if abs(by) > LARGEST_SHIFT * min(sides):
            return None
        starts = max(0, by), max(0, -by)
        length = min(side - start for side, start in zip(sides, starts, strict=True))
        for axes, start in zip(places, starts, strict=True):
            axes.append(slice(start, start + length))
    first, second = (tuple(axes) for axes in places)
    parts: Any = one[first].ravel(), other[second].ravel()
    if not all(part.std() for part in parts) or np.corrcoef(*parts)[0, 1] < likeness:
        return None
    return (first[0], first[1]), (second[0], second[1])


if __name__ == "__main__":
    sys.exit(main())
