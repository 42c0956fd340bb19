"""A tile as the client takes it: a file in any format, its bytes, an array, or a Pillow image."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from serving.errors import ImageError
from serving.preprocessing import check_size, file_to_send, gray_png, open_image, read_file, to_gray

__all__ = ["Source", "Tile"]


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
        return self.original or gray_png(self.gray)

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
        return cls(to_gray(image), file_to_send(image, data))


Source = str | os.PathLike[str] | bytes | NDArray[Any] | Image.Image | Tile
"""What a tile can be made of."""


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
