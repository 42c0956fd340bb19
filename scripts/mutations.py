"""Image files that are damaged, lie about themselves, or unpack to gigabytes; the same for the same seed."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["bombs", "mutate", "originals"]

PNG = b"\x89PNG\r\n\x1a\n"
HEADER = 64
"""Bytes at the start of a file that tell of its size, colours and coding."""

NUMBERS = (0, 1, 2, 40, 255, 3000, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1)
FORMS = ("<I", ">I", "<H", ">H", "B")


def originals(height: int = 60, width: int = 50) -> list[bytes]:
    """A tile with dark defects in each format, depth and colour mode that a camera or a program writes."""
    rows, columns = np.mgrid[:height, :width]
    gray = (170 + 20 * np.sin(rows / 5) + 10 * np.cos(columns / 3)).astype(np.uint8)
    gray[height // 4 : height // 2, width // 5 : width // 2] = 20
    tile = Image.fromarray(gray)
    wide = Image.fromarray(gray.astype(np.uint16) * 257)
    colour = Image.merge("RGB", (tile, tile.rotate(180), tile))
    palette, alpha, bits = colour.convert("P"), colour.convert("RGBA"), tile.convert("1")
    files: dict[str, list[tuple[Image.Image, dict[str, Any]]]] = {
        "PNG": [(one, {}) for one in (tile, colour, wide, bits, palette, tile.convert("LA"), alpha)],
        "JPEG": [
            *((one, {}) for one in (tile, colour, colour.convert("CMYK"))),
            (colour, {"progressive": True}),
            (colour, {"subsampling": 2, "restart_marker_rows": 1}),
        ],
        "TIFF": [
            *((one, {}) for one in (tile, wide)),
            (colour, {"compression": "tiff_lzw"}),
            (tile, {"compression": "tiff_adobe_deflate"}),
            (bits, {"compression": "group4"}),
        ],
        "BMP": [(one, {}) for one in (tile, colour, palette, alpha)],
        "GIF": [(palette, {})],
        "WEBP": [(colour, {})],
    }
    return [_encoded(image, kind, options) for kind, images in files.items() for image, options in images]


def _encoded(image: Image.Image, kind: str, options: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def mutate(files: Sequence[bytes], rng: np.random.Generator) -> bytes:
    """One of the files, damaged in one to three ways."""
    data = files[int(rng.integers(len(files)))]
    for _ in range(rng.integers(1, 4)):
        way = WAYS[int(rng.integers(len(WAYS)))]
        data = way(data, files[int(rng.integers(len(files)))], rng)
    return data


def _flip_bits(data: bytes, _: bytes, rng: np.random.Generator) -> bytes:
    changed = np.frombuffer(data, np.uint8).copy()
    if changed.size:
        for place in rng.integers(changed.size, size=rng.integers(1, 9)):
            changed[place] ^= np.uint8(1 << int(rng.integers(8)))
    return changed.tobytes()


def _change_header(data: bytes, _: bytes, rng: np.random.Generator) -> bytes:
    """Writes an extreme number somewhere in the header; a PNG gets checksums that fit."""
    number = NUMBERS[int(rng.integers(len(NUMBERS)))]
    form = FORMS[int(rng.integers(len(FORMS)))]
    size = struct.calcsize(form)
    place = int(rng.integers(max(1, min(len(data), HEADER) - size)))
    return _summed(data[:place] + struct.pack(form, number % 256**size) + data[place + size :])


def _truncate(data: bytes, _: bytes, rng: np.random.Generator) -> bytes:
    return data[: int(rng.integers(len(data) + 1))]


def _insert(data: bytes, _: bytes, rng: np.random.Generator) -> bytes:
    place = int(rng.integers(len(data) + 1))
    return data[:place] + rng.bytes(int(rng.integers(1, 200))) + data[place:]


def _remove(data: bytes, _: bytes, rng: np.random.Generator) -> bytes:
    start = int(rng.integers(len(data) + 1))
    return data[:start] + data[start + int(rng.integers(1, 100)) :]


def _repeat(data: bytes, _: bytes, rng: np.random.Generator) -> bytes:
    start, stop = sorted(int(one) for one in rng.integers(len(data) + 1, size=2))
    return data[:stop] + data[start:stop] * int(rng.integers(1, 5)) + data[stop:]


def _splice(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """The start of one file and the end of another."""
    return data[: int(rng.integers(len(data) + 1))] + other[int(rng.integers(len(other) + 1)) :]


WAYS: tuple[Callable[[bytes, bytes, np.random.Generator], bytes], ...] = (
    *(_flip_bits, _change_header, _change_header, _truncate, _insert, _remove, _repeat, _splice),
)


def _summed(data: bytes) -> bytes:
    """A PNG with right checksums up to the first chunk that is none, so that decoders look into them."""
    if not data.startswith(PNG):
        return data
    place, parts = len(PNG), [PNG]
    while place + 12 <= len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        end = place + 8 + length
        if end + 4 > len(data):
            break
        parts.append(data[place:end] + struct.pack(">I", zlib.crc32(data[place + 4 : end])))
        place = end + 4
    return b"".join(parts) + data[place:]


@cache
def bombs() -> dict[str, bytes]:
    """Small files that would fill the memory; their names tell the kind.

    All are to be refused from their headers but for `png text`, whose picture is sound.
    """
    tile = next(iter(originals()))
    jpeg = bytearray(_encoded(Image.new("L", (50, 60)), "JPEG", {}))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65_500, 65_500)
    bmp = bytearray(_encoded(Image.new("L", (50, 60)), "BMP", {}))
    bmp[18:26] = struct.pack("<ii", 40_000, -40_000)
    gif = bytearray(_encoded(Image.new("P", (50, 60)), "GIF", {}))
    gif[6:10] = struct.pack("<HH", 65_535, 65_535)
    tiff = _encoded(Image.new("L", (12_000, 12_000)), "TIFF", {"compression": "tiff_adobe_deflate"})
    text = b"Comment\0\0" + zlib.compress(bytes(150_000_000))
    return {
        "png": _png(12_000, 12_000, zlib.compress(bytes(12_000 * 12_001))),
        "png wide": _png(2**31 - 1, 1, zlib.compress(bytes(1000))),
        "jpeg": bytes(jpeg),
        "bmp": bytes(bmp),
        "gif": bytes(gif),
        "tiff": tiff,
        "png text": tile[:33] + _chunk(b"zTXt", text) + tile[33:],
    }


def _png(width: int, height: int, pixels: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return PNG + _chunk(b"IHDR", header) + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
