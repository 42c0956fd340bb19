"""Pictures within the page: an image alone, its true defects, what was found now and before."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from serving.overlay import overlay
from serving.postprocessing import mask_at
from stages.report.snapshot import Snapshot

__all__ = ["Panel", "draw_panels", "sheet"]

LONG_SIDE = 320
"""Pixels that a picture has at most, about what the page shows: contours keep their width."""

CELL, GAP = 220, 6
CAPTIONS = {"image": "Image", "truth": "True defects", "now": "Found", "before": "Found before"}


@dataclass(frozen=True)
class Panel:
    """A picture of an image.

    Attributes:
        kind: a key of `CAPTIONS`.
        caption: its value.
        picture: RGB, `LONG_SIDE` pixels at most.
    """

    kind: str
    caption: str
    picture: Image.Image

    @property
    def uri(self) -> str:
        """The picture as WebP in a `data:` URI."""
        buffer = io.BytesIO()
        self.picture.save(buffer, "WEBP", quality=80)
        return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def draw_panels(image: str, now: Snapshot, before: Snapshot | None, kinds: Sequence[str]) -> list[Panel]:
    """Draws an image; what the files of the two states don't give is left out.

    Args:
        image: path relative to the data.
        now: has the image, its mask and the prediction.
        before: has the other prediction.
        kinds: keys of `CAPTIONS`.
    """
    mask = now.tiles.get(image, {}).get("mask", "")
    gray, truth = now.picture(f"data/tiles/{image}"), now.picture(f"data/tiles/{mask}")
    if gray is None or truth is None:
        return []
    nothing = np.zeros_like(gray)

    def draw(found: NDArray[np.uint8], truth: NDArray[np.uint8] | None = None) -> Image.Image:
        picture = overlay(gray, found, truth, defects=[], long_side=LONG_SIDE)
        picture.thumbnail((LONG_SIDE, LONG_SIDE), Image.Resampling.LANCZOS)
        return picture

    drawn = {"image": draw(nothing), "truth": draw(nothing, truth)}
    for kind, state in (("now", now), ("before", before)):
        found = _found(state, mask) if state and kind in kinds else None
        if found is not None and found.shape == gray.shape:  # else it is of another image of that name
            drawn[kind] = draw(found, truth)
    return [Panel(kind, CAPTIONS[kind], drawn[kind]) for kind in kinds if kind in drawn]


def sheet(rows: Sequence[Sequence[Panel]]) -> Image.Image:
    """Panels in rows, without words, for where data URIs are not shown."""
    step = CELL + GAP
    picture = Image.new("RGB", (step * max(map(len, rows)) + GAP, step * len(rows) + GAP), "white")
    for down, panels in enumerate(rows):
        for across, panel in enumerate(panels):
            fitted = ImageOps.pad(panel.picture, (CELL, CELL), color="white")
            picture.paste(fitted, (GAP + step * across, GAP + step * down))
    return picture


def _found(state: Snapshot, mask: str) -> NDArray[np.uint8] | None:
    path = PurePosixPath("results/evaluate/predictions", PurePosixPath(mask).relative_to("masks"))
    levels = state.picture(str(path))
    return None if levels is None else mask_at(levels, state.metrics["threshold"])
