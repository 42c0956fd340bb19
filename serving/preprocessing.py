"""From an image file to the input of the model, once for training, evaluation and serving.

A tile is read as grey, shrunk (never enlarged) until it fits the input of the model, and
put into its top left corner; the rest is zero. Nothing is cropped. The exported SavedModel
does the same with TensorFlow ops (`stages.export`); a test compares the two.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from serving.errors import ImageError

__all__ = [
    "Placement",
    "check_size",
    "file_to_send",
    "gray_png",
    "letterbox",
    "open_image",
    "orientation",
    "placement",
    "read_file",
    "read_image",
    "to_gray",
    "upright",
]

MAX_PIXELS = 64_000_000
"""Images with more pixels are refused from their header, before they are decoded."""

MAX_BYTES = 256_000_000
"""Larger files are refused before they are read; 64 megapixels of plain RGB have 192 MB."""

FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000"),
    *("PCX", "PNG", "PPM", "SGI", "TGA", "TIFF", "WEBP"),
)
"""Formats of pictures. What Pillow hands to another program, as EPS to Ghostscript, is not among them."""

PROGRAMS = (b"%!PS", b"%PDF", b"\xc5\xd0\xd3\xc6")
"""How files of PostScript, PDF and EPS with a preview begin."""

PNG_BIT_DEPTH = 24
"""Offset of the bit depth in a PNG file: signature (8), length and type of IHDR (8), width, height (8)."""

MIN_SIDE = 8
"""Images with a shorter side are refused: nothing on them could be a tile."""

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image upright, by its EXIF orientation."""

# The limit above is ours, stricter than Pillow's, and checked first.
Image.MAX_IMAGE_PIXELS = None


@dataclass(frozen=True)
class Placement:
    """Where a tile lies within the input of the model: `[:height, :width]`, in pixels."""

    height: int
    width: int


def open_image(source: Path | bytes) -> Image.Image:
    """Decodes an image file in any of `FORMATS`.

    Args:
        source: path of the file, or its bytes.

    Returns:
        The decoded image, in the mode of the file, its format still in `.format`.

    Raises:
        ImageError: if it is no image, truncated, empty, too small or too large.
    """
    data = source if isinstance(source, bytes) else read_file(source)
    if not data:
        raise ImageError("file is empty (0 bytes)")
    if data.startswith(PROGRAMS):
        raise ImageError("PostScript and PDF are programs, not pictures; save it as PNG, TIFF or JPEG")
    try:
        image = Image.open(io.BytesIO(data), formats=_known_formats())
    except Exception as error:  # Pillow's parsers raise what they like on damaged headers
        raise ImageError("not an image, or in a format that can't be read; use PNG, JPEG or TIFF") from error
    check_size(*image.size)
    try:
        image.load()
    except Exception as error:  # Pillow's decoders raise what they like on damaged data
        raise ImageError(f"image is truncated or damaged ({error})") from error
    return image


@cache
def _known_formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this build of Pillow has; it may lack AVIF, WebP or JPEG 2000."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def check_size(width: int, height: int) -> None:
    """Refuses images that can be no tile, in pixels.

    Raises:
        ImageError: if it is too small or too large.
    """
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{width} x {height} pixels is over the limit of {MAX_PIXELS // 1_000_000} megapixels; "
            "send one tile per image"
        )
    if min(width, height) < MIN_SIDE:
        raise ImageError(
            f"{width} x {height} pixels is too small for a tile; each side needs {MIN_SIDE} or more"
        )


def orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 (upright) to 8; 1 too where the EXIF data are damaged."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # the picture itself is sound
        return 1
    return value if value in range(1, 9) else 1


def upright(image: Image.Image) -> Image.Image:
    """Turns a decoded image as its EXIF orientation says."""
    image.load()  # turns a TIFF, which then says no more that it has to be turned
    turn = UPRIGHT.get(orientation(image))
    # Not ImageOps.exif_transpose: it writes all EXIF data anew, and stumbles over what it could read.
    return image if turn is None else image.transpose(turn)


def to_gray(image: Image.Image) -> NDArray[np.uint8]:
    """Turns a decoded image into grey levels, upright.

    Colour becomes ITU-R 601-2 luma as Pillow computes it, 16 bits become their high byte,
    transparency is ignored, and the EXIF orientation is applied.

    Returns:
        (H, W) uint8, 0-255.

    Raises:
        ImageError: if its mode has no grey levels of a known range.
    """
    turned = upright(image)
    if turned.mode == "F":
        raise ImageError("grey levels as floating point have no fixed range; save it with 8 or 16 bits")
    if turned.mode.startswith("I"):
        return _high_byte(np.asarray(turned))
    try:
        return np.asarray(turned.convert("L"), dtype=np.uint8)
    except ValueError as error:
        raise ImageError(f"colour mode {turned.mode} can't be turned into grey levels") from error


def file_to_send(image: Image.Image, data: bytes) -> bytes | None:
    """The file of a decoded image, if any server is sure to decode the same upright grey levels."""
    if image.mode not in ("L", "RGB") or orientation(image) != 1:
        return None
    # Pillow calls 16-bit colour RGB too.
    alike = image.format == "JPEG" or (image.format == "PNG" and data[PNG_BIT_DEPTH] == 8)
    return data if alike else None


def gray_png(gray: NDArray[np.uint8]) -> bytes:
    """A PNG file of grey levels, (H, W) uint8, for what can't be sent as it is."""
    buffer = io.BytesIO()
    Image.fromarray(gray).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def read_file(path: Path) -> bytes:
    """Reads a file, but no device or pipe, and not more than `MAX_BYTES`.

    Raises:
        ImageError: if it can't be read, or is too large.
    """
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):  # a pipe would never end
            raise ImageError("can't be read: it is a device or a pipe, no file")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = b"" if size > MAX_BYTES else file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ImageError(f"can't be read: {error.strerror or error}") from error
    except ValueError as error:  # a NUL in the name
        raise ImageError(f"can't be read: {error}") from error
    if max(size, len(data)) > MAX_BYTES:
        raise ImageError(
            f"{max(size, len(data)) / 1e6:,.0f} MB is over the limit of {MAX_BYTES // 1_000_000} MB; "
            "send one tile per image"
        )
    return data


def read_image(source: Path | bytes) -> NDArray[np.uint8]:
    """Reads an image file as grey levels: `to_gray(open_image(source))`.

    Returns:
        (H, W) uint8, 0-255.

    Raises:
        ImageError: see `open_image`.
    """
    return to_gray(open_image(source))


def placement(height: int, width: int, size: tuple[int, int]) -> Placement:
    """Size of a tile of (height, width) pixels once it fits `size` (height, width)."""
    scale = min(1.0, size[0] / height, size[1] / width)
    return Placement(
        min(size[0], max(1, int(height * scale + 0.5))),
        min(size[1], max(1, int(width * scale + 0.5))),
    )


def letterbox(gray: NDArray[np.uint8], size: tuple[int, int]) -> tuple[NDArray[np.float32], Placement]:
    """Fits a tile into the input of the model.

    Args:
        gray: (H, W) uint8, 0-255.
        size: (height, width) of the input, in pixels.

    Returns:
        The input, (height, width, 1) float32, 0-255, zero where there is no tile;
        and where the tile lies in it.
    """
    height, width = gray.shape
    place = placement(height, width, size)
    canvas = np.zeros((*size, 1), np.float32)
    canvas[: place.height, : place.width, 0] = resize(gray.astype(np.float32), place)
    return canvas, place


def resize(plane: NDArray[np.float32], place: Placement) -> NDArray[np.float32]:
    """Resizes (H, W) float32 to the size of `place`: bilinear, antialiased when it shrinks."""
    if plane.shape == (place.height, place.width):
        return plane
    resized = Image.fromarray(plane).resize((place.width, place.height), Image.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.float32)


def _high_byte(levels: NDArray[np.generic]) -> NDArray[np.uint8]:
    """16-bit levels to 8 bits as TensorFlow's PNG decoder does; wider ones are clipped first."""
    clipped = np.clip(levels.astype(np.float64), 0, 65_535)
    return (clipped.astype(np.uint16) >> 8).astype(np.uint8)
