"""Images and their masks in a source: which belong together, and whether each pair can be used."""

from __future__ import annotations

import hashlib
import io
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from serving.errors import ImageError
from serving.preprocessing import open_image, to_gray, upright
from stages.errors import StageError
from stages.sources import Source
from stages.tiles import CLASSES, GOOD_CLASS, Tile, exposure_of

__all__ = [
    "IMAGE_SUFFIXES",
    "Pair",
    "doubt",
    "find_pairs",
    "is_mostly_defect",
    "misplaced",
    "plain_name",
    "problems_error",
    "read_pair",
]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
MASK_ENDING = "_mask"
"""A PNG is a mask, unless its own mask lies beside it as `<name>_mask.png`."""

FEW_LEVELS = 4096
"""A 16-bit image with no grey level above has those of 12 bits, of which 8 bits would keep 16."""

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
        return {
            plain_name(f"{self.key.partition('/')[0]}/{PurePosixPath(name).name}"): name for name in names
        }


def plain_name(name: str) -> str:
    """A name with each accent in its letter: macOS and others write them in two ways, which look the same."""
    return unicodedata.normalize("NFC", name)


def find_pairs(names: Iterable[str]) -> tuple[list[Pair], list[str]]:
    """Finds the images of a source in their class folders, with their masks.

    Returns:
        The pairs, sorted by key, and a line on each file that has no partner or two.
    """
    images: dict[str, list[str]] = defaultdict(list)
    pngs: dict[str, list[str]] = defaultdict(list)
    for name in names:
        if match := PLACE.search(name):
            key, suffix = plain_name(f"{match[1]}/{match[2]}"), match[3].lower()
            if suffix in IMAGE_SUFFIXES:
                images[key].append(name)
            elif suffix == ".png":
                pngs[key].append(name)
    masks = dict(pngs)
    for key in [key for key in pngs if key.endswith(MASK_ENDING)]:
        if (image := key.removesuffix(MASK_ENDING)) in pngs:
            images[image] += pngs[image]
            masks[image] = masks.pop(key)
    good = {key for key in masks if key not in images and key.startswith(f"{GOOD_CLASS}/")}
    images |= {key: masks.pop(key) for key in good}
    problems = [
        f"{paths[0]}: mask without an image, or PNG image without its mask, which ends in {MASK_ENDING}.png"
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


def misplaced(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Finds the pictures that `find_pairs` passes over.

    Returns:
        A line on each that seems to be of a class, but does not lie as it should or is in a format
        that is not taken; and the names of the others.
    """
    problems, others = [], []
    for name in names:
        path = PurePosixPath(name)
        if path.suffix.lower() not in _picture_suffixes() or any(part.startswith(".") for part in path.parts):
            continue
        if not (match := PLACE.search(name)):
            if meant := next(filter(None, map(_class_meant, path.parts[:-1])), None):
                problems.append(
                    f"{name}: the images of class {meant} belong right into a folder named {meant}"
                )
            else:
                others.append(name)
        elif match[3].lower() not in (*IMAGE_SUFFIXES, ".png"):
            problems.append(f"{name}: {match[3]} is not taken; save it as PNG, TIFF, BMP or JPEG")
    return problems, others


def _class_meant(folder: str) -> str | None:
    """The class whose name a folder has, in small or capital letters."""
    plain = folder.casefold().removeprefix("mt_")
    return next((name for name in CLASSES if name.casefold() == plain), None)


@cache
def _picture_suffixes() -> frozenset[str]:
    return frozenset(Image.registered_extensions())


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
        StageError: if a file can't be read, the two are of different size, or their levels would not be what
            they seem to be.
    """
    data = files.read(pair.image)
    try:
        image = open_image(data)
        gray = to_gray(image)  # upright, as every reader of the image will see it
    except ImageError as error:
        raise StageError(f"{pair.image}: {error}") from error
    if image.mode.startswith("I") and (highest := int(np.asarray(image).max())) < FEW_LEVELS:
        raise StageError(
            f"{pair.image}: its grey levels end at {highest} of 65,535, as those of 10 or 12 bits do; "
            "scale them (x 64 or x 16), or next to nothing is left of them"
        )
    if pair.mask is None and image.format == "PNG" and gray.min() == gray.max():
        raise StageError(f"{pair.image}: all of one grey level, as a mask whose image is missing")
    height, width = gray.shape
    levels = np.zeros((height, width), np.uint8)
    if pair.mask is not None:
        try:
            levels = _mask_levels(open_image(files.read(pair.mask)))
        except (ImageError, StageError) as error:
            raise StageError(f"{pair.mask}: {error}") from error
    if levels.shape != (height, width):
        raise StageError(
            f"{pair.mask}: {levels.shape[1]} x {levels.shape[0]} pixels, its image has {width} x {height}"
        )
    binary = ((levels > threshold) * np.uint8(255)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(binary).save(buffer, "PNG", optimize=False)
    mask = buffer.getvalue()
    exposure, number = exposure_of(pair.key)
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


def is_mostly_defect(tile: Tile) -> bool:
    """Whether defects cover more than half of an image, as on no tile of the archive."""
    return tile.defect_pixels * 2 > tile.width * tile.height


def doubt(tile: Tile) -> str | None:
    """What is odd about the mask of an image, or None."""
    if (tile.class_ == GOOD_CLASS) == bool(tile.defect_pixels):
        return f"{tile.defect_pixels} defect pixels"
    if is_mostly_defect(tile):
        share = tile.defect_pixels / (tile.width * tile.height)
        return f"{share:.0%} of it are defect pixels; an inverted mask, or a copy of the image?"
    return None


def _mask_levels(mask: Image.Image) -> NDArray[np.uint8]:
    """Levels of a mask, (H, W) uint8; of one in colour the highest of its channels, however dark it is."""
    mask = upright(mask)
    if mask.has_transparency_data:
        lowest, highest = mask.convert("RGBA").getchannel("A").getextrema()
        if lowest != highest:
            raise StageError("a mask with transparency can be read in two ways; save it in black and white")
    if mask.mode in ("1", "L") or mask.mode.startswith("I"):
        return np.asarray(mask.convert("L"), np.uint8)
    return np.asarray(np.asarray(mask.convert("RGB")).max(axis=2), np.uint8)


def problems_error(problems: Iterable[str]) -> StageError:
    """One error that names all problems, each once."""
    unique = sorted(set(problems))
    return StageError("\n  ".join([f"{len(unique)} problem(s) in the data:", *unique]))
