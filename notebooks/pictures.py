"""What the notebooks draw with: one look for all figures, and pictures side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import ArrayLike

__all__ = ["BLUE", "GREY", "ORANGE", "WIDTH", "show"]

# As in serving/overlay.py: orange is what the model found, blue is the truth.
ORANGE, BLUE, GREY = "#E69F00", "#56B4E9", "#999999"
WIDTH = 10.0
"""Of a figure, in inches."""

plt.rcParams.update(
    {
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlesize": "medium",
        "figure.constrained_layout.use": True,
        "legend.frameon": False,
    }
)


def show(
    pictures: Sequence[ArrayLike],
    titles: Sequence[str] = (),
    *,
    truths: Sequence[ArrayLike] = (),
    columns: int = 6,
) -> None:
    """Draws pictures in a grid, row by row.

    Args:
        pictures: (H, W) of levels 0-255, or RGB; arrays or Pillow images.
        titles: of the pictures, or of the first few of them.
        truths: masks (H, W) of the last pictures, any value but 0 is a defect; drawn as contours.
        columns: of the grid.
    """
    side = WIDTH / columns
    rows = math.ceil(len(pictures) / columns)
    _, axes = plt.subplots(rows, columns, figsize=(WIDTH, (side + 0.15) * rows), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    used = axes.flat[: len(pictures)]
    for axis, picture in zip(used, pictures, strict=True):
        axis.imshow(picture, cmap="gray", vmin=0, vmax=255)
    for axis, title in zip(used, titles, strict=False):
        axis.set_title(title, fontsize=9)
    for axis, truth in zip(used[len(pictures) - len(truths) :], truths, strict=True):
        if np.any(truth):
            axis.contour(np.asarray(truth) > 0, levels=[0.5], colors=BLUE, linewidths=1.2)
    plt.show()
