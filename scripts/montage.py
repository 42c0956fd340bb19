"""Puts pictures side by side on one sheet: `python -m scripts.montage a.png b.png --out sheet.png`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageOps

__all__ = ["montage"]

BACKGROUND = (255, 255, 255)
GAP = 6


def montage(pictures: Sequence[Image.Image], cell: int = 240, columns: int = 0) -> Image.Image:
    """Draws pictures in a grid, each shrunk to fit.

    Args:
        pictures: at least one, of any mode and size.
        cell: side of a cell, in pixels.
        columns: of the grid; 0 for about three columns to two rows.
    """
    columns = columns or math.ceil(math.sqrt(1.5 * len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new("RGB", (columns * (cell + GAP) + GAP, rows * (cell + GAP) + GAP), BACKGROUND)
    for index, picture in enumerate(pictures):
        fitted = ImageOps.pad(picture.convert("RGB"), (cell, cell), color=BACKGROUND)
        row, column = divmod(index, columns)
        sheet.paste(fitted, (GAP + column * (cell + GAP), GAP + row * (cell + GAP)))
    return sheet


def main() -> None:
    """Reads and writes files."""
    parser = argparse.ArgumentParser(prog="python -m scripts.montage", description=__doc__)
    parser.add_argument("pictures", nargs="+", type=_picture)
    parser.add_argument("--out", required=True, type=Path, metavar="FILE")
    parser.add_argument("--cell", type=int, default=240, metavar="PIXELS", help="default: 240")
    parser.add_argument("--columns", type=int, default=0, metavar="N", help="default: about 3:2")
    options = parser.parse_args()
    montage(options.pictures, options.cell, options.columns).save(options.out, optimize=True)


def _picture(path: str) -> Image.Image:
    try:
        return Image.open(path)
    except OSError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


if __name__ == "__main__":
    main()
