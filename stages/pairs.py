"""Images and their masks in a source: which belong together, and whether each pair can be used."""

from __future__ import annotations

import hashlib
import io
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from PIL import Image

from serving.errors import ImageError
from serving.preprocessing import open_image, to_gray
from stages.errors import StageError
from stages.sources import Source
from stages.tiles import CLASSES, GOOD_CLASS, Tile, exposure_of

__all__ = ["IMAGE_SUFFIXES", "Pair", "find_pairs", "problems_error", "read_pair"]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
MASK_ENDING = "_mask"
"""A PNG is a mask, unless its own mask lies beside it as `<name>_mask.png`."""

# `MT_<Class>/Imgs/name.jpg`, as the real set has it, or `<Class>/name.jpg`; no hidden files.
PLACE = re.compile(rf"(?:^|/)(?:MT_)?({'|'.join(CLASSES)})/(?:Imgs/)?([^/.][^/]*)(\.\w+)$")


@dataclass(frozen=True)
class Pair:
    """An image and its mask.

    Attributes:
        key: `<Class>/<name>` without suffix.
        image: path within the source.
        mask: path within the source; None for a good tile, whose mask would be empty.
    """

    key: str
    image: str
    mask: str | None

    @property
    def files(self) -> dict[str, str]:
        """Paths within the source by those in the short layout, `<Class>/<name>.<suffix>`."""
        names = [name for name in (self.image, self.mask) if name]
        return {f"{self.key.partition('/')[0]}/{PurePosixPath(name).name}": name for name in names}


def find_pairs(names: Iterable[str]) -> tuple[list[Pair], list[str]]:
    """Finds the images of a source in their class folders, with their masks.

    Returns:
        The pairs, sorted by key, and a line on each file that has no partner or two.
    """
    images: dict[str, list[str]] = defaultdict(list)
    pngs: dict[str, list[str]] = defaultdict(list)
    for name in names:
        if match := PLACE.search(name):
            key, suffix = f"{match[1]}/{match[2]}", match[3].lower()
            if suffix in IMAGE_SUFFIXES:
                images[key].append(name)
            elif suffix == ".png":
                pngs[key].append(name)
    masks = dict(pngs)
    for key in [key for key in pngs if key.endswith(MASK_ENDING)]:
        if (image := key.removesuffix(MASK_ENDING)) in pngs:
            images[image] += pngs[image]
            masks[image] = masks.pop(key)
    problems = [
        f"{paths[0]}: mask without an image (the mask of a PNG image ends in {MASK_ENDING}.png)"
        for key, paths in masks.items()
        if key not in images
    ]
    problems += [
        f"{', '.join(paths)}: same name twice"
        for kind in (images, masks)
        for paths in kind.values()
        if len(paths) > 1
    ]
    # A good tile of one's own needs no mask: it would be empty.
    alone = {key for key in images if key not in masks and not key.startswith(f"{GOOD_CLASS}/")}
    problems += [f"{images[key][0]}: no mask {key.rpartition('/')[2]}.png beside it" for key in alone]
    pairs = [
        Pair(key, paths[0], masks[key][0] if key in masks else None)
        for key, paths in sorted(images.items())
        if key not in alone
    ]
    return pairs, problems


def read_pair(files: Source, pair: Pair, threshold: int) -> tuple[Tile, bytes, bytes]:
    """Reads a pair and checks it.

    Args:
        files: the source.
        pair: what to read there.
        threshold: a mask pixel is a defect if its grey level is above it, 0-254.

    Returns:
        The row of the index, in which `tile` is still empty; the image file as it is; and
        the mask as PNG, 0 or 255.

    Raises:
        StageError: if a file can't be read, or the two are of different size.
    """
    data = files.read(pair.image)
    try:
        # Upright, as every reader of the image will see it.
        height, width = to_gray(open_image(data)).shape
    except ImageError as error:
        raise StageError(f"{pair.image}: {error}") from error
    levels = np.zeros((height, width), np.uint8)
    if pair.mask is not None:
        try:
            levels = np.asarray(open_image(files.read(pair.mask)).convert("L"), np.uint8)
        except ImageError as error:
            raise StageError(f"{pair.mask}: {error}") from error
    if levels.shape != (height, width):
        raise StageError(
            f"{pair.mask}: {levels.shape[1]} x {levels.shape[0]} pixels, its image has {width} x {height}"
        )
    binary = ((levels > threshold) * np.uint8(255)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(binary).save(buffer, "PNG", optimize=False)
    mask = buffer.getvalue()
    exposure, number = exposure_of(pair.key) or (0, 0)
    tile = Tile(
        image=f"images/{pair.key}{PurePosixPath(pair.image).suffix.lower()}",
        mask=f"masks/{pair.key}.png",
        class_=pair.key.partition("/")[0],
        exposure=exposure,
        number=number,
        tile="",
        width=width,
        height=height,
        defect_pixels=int(np.count_nonzero(binary)),
        image_sha256=hashlib.sha256(data).hexdigest(),
        mask_sha256=hashlib.sha256(mask).hexdigest(),
    )
    return tile, data, mask


def problems_error(problems: Iterable[str]) -> StageError:
    """One error that names all problems, each once."""
    unique = sorted(set(problems))
    return StageError("\n  ".join([f"{len(unique)} problem(s) in the data:", *unique]))
