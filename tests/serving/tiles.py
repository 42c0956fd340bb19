"""Tiles and files for the tests of the client."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image


def tile(height: int = 120, width: int = 100) -> np.ndarray:
    """Bright, with two dark defects of 20 x 40 and 10 x 10 pixels."""
    gray = np.full((height, width), 200, np.uint8)
    gray[30:50, 20:60] = 30
    gray[80:90, 70:80] = 60
    return gray


def encoded(pixels: np.ndarray | Image.Image, image_format: str = "PNG", **options: Any) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def turned(image: Image.Image, orientation: int, image_format: str = "PNG") -> bytes:
    """A file that says in its EXIF data how it has to be turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, image_format, exif=exif)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size, with next to no data behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )
