"""A tile as the client takes it: a file in any format, its bytes, an array, or a Pillow image."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from serving.errors import ImageError
from serving.preprocessing import check_size, open_image, orientation, read_file, to_gray

__all__ = ["Source", "Tile"]

PNG_BIT_DEPTH = 24
"""Offset of the bit depth in a PNG file: signature (8), length and type of IHDR (8), width, height (8)."""


@dataclass(frozen=True)
class Tile:
    """A tile that can be sent.

    Attributes:
        gray: (H, W) uint8, 0-255, upright.
        original: the file as it was, if a server reads it just as we do.
    """

    gray: NDArray[np.uint8]
    original: bytes | None = None

    @property
    def file(self) -> bytes:
        """Bytes of the file to send: the original, else a grey PNG."""
        return self.original or _png(self.gray)

    @classmethod
    def load(cls, source: Source) -> Tile:
        """Reads a tile.

        Args:
            source: path of an image file, the bytes of one, a Pillow image, or an array:
                (H, W) uint8, (H, W) uint16 (0-65535), (H, W, 1) or (H, W, 3) uint8.

        Raises:
            ImageError: if it can't be used; see `serving.preprocessing.open_image`.
        """
        if isinstance(source, Tile):
            return source
        if isinstance(source, np.ndarray):
            return cls(to_gray(_from_array(source)))
        if isinstance(source, Image.Image):
            check_size(*source.size)
            return cls(to_gray(source))
        data = source if isinstance(source, bytes) else read_file(Path(source))
        image = open_image(data)
        return cls(to_gray(image), data if _sent_as_it_is(image, data) else None)


Source = str | os.PathLike[str] | bytes | NDArray[Any] | Image.Image | Tile
"""What a tile can be made of."""


def _sent_as_it_is(image: Image.Image, data: bytes) -> bool:
    """Whether a server's decoder is sure to see the same upright grey levels."""
    if image.mode not in ("L", "RGB") or orientation(image) != 1:
        return False
    # Pillow calls 16-bit colour RGB too.
    return image.format == "JPEG" or (image.format == "PNG" and data[PNG_BIT_DEPTH] == 8)


def _from_array(array: NDArray[Any]) -> Image.Image:
    plane = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    is_gray = plane.ndim == 2 and plane.dtype in (np.uint8, np.uint16)
    is_colour = plane.ndim == 3 and plane.shape[2] == 3 and plane.dtype == np.uint8
    if not (is_gray or is_colour):
        raise ImageError(
            f"array of shape {array.shape} and type {array.dtype} is no tile; give (H, W) uint8 or uint16, "
            "or (H, W, 3) uint8"
        )
    height, width = plane.shape[:2]
    check_size(width, height)
    return Image.fromarray(np.ascontiguousarray(plane))


def _png(gray: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(gray).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()
