"""Files that are sent straight to a server meet the client's limits there, before they are decoded."""

from __future__ import annotations

import base64
import io
import struct
from typing import Any

import numpy as np
import pytest
import requests
import tensorflow as tf
from PIL import Image

from serving.preprocessing import MAX_BYTES, MAX_PIXELS, read_image
from stages.decoding import decode_gray
from tests.conftest import MODEL_NAME
from tests.serving.tiles import encoded, png_header, tile


def jpeg_header(width: int, height: int, **options: Any) -> bytes:
    """A JPEG that claims a size; its data are those of a small one."""
    data = bytearray(encoded(tile(), "JPEG", **options))
    frame = data.index(b"\xff\xc2" if options.get("progressive") else b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def bmp_header(width: int, height: int) -> bytes:
    data = bytearray(encoded(tile(), "BMP"))
    data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


def error_of(server_url: str, data: bytes) -> str:
    """What a server says of a file that it refuses as the caller's fault."""
    instance = {"b64": base64.b64encode(data).decode()}
    answer = requests.post(
        f"{server_url}/v1/models/{MODEL_NAME}:predict",
        json={"signature_name": "segment", "instances": [instance]},
        timeout=60,
    )
    assert answer.status_code == 400, answer.text[:200]
    error: str = answer.json()["error"]
    return error


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (png_header(20_000, 20_000), "20000 x 20000"),
        (png_header(8001, 8000), "8001 x 8000"),
        (png_header(2**31 - 1, 1), "2147483647 x 1"),
        (jpeg_header(65_500, 65_500), "65500 x 65500"),
        (jpeg_header(8000, 8001, progressive=True), "8000 x 8001"),
        (bmp_header(30_000, 20_000), "30000 x 20000"),
        (bmp_header(30_000, -20_000), "30000 x 20000"),
    ],
    ids=["png", "png above", "png wide", "jpeg", "jpeg progressive", "bmp", "bmp from the top"],
)
def test_too_many_pixels_are_refused_from_the_header(server_url: str, data: bytes, size: str) -> None:
    assert f"{size} pixels is over the limit of {MAX_PIXELS:,}; send one tile" in error_of(server_url, data)


@pytest.mark.parametrize("data", [png_header(8000, 8000), bmp_header(8000, 8000)], ids=["png", "bmp"])
def test_at_the_limit_it_is_the_decoder_that_misses_the_pixels(server_url: str, data: bytes) -> None:
    assert "over the limit" not in error_of(server_url, data)


@pytest.mark.parametrize(
    "data",
    [b"", b"no image", b"\xff\xd8", encoded(tile(), "GIF"), encoded(tile(), "TIFF"), encoded(tile(), "WEBP")],
    ids=["empty", "text", "too short", "gif", "tiff", "webp"],
)
def test_other_files_are_refused_by_how_they_begin(server_url: str, data: bytes) -> None:
    assert "not an image, or neither JPEG, PNG nor BMP" in error_of(server_url, data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP"])
@pytest.mark.parametrize("length", [10, 17, 23, 100])
def test_files_that_end_early_are_the_callers_fault(server_url: str, kind: str, length: int) -> None:
    assert error_of(server_url, encoded(tile(), kind)[:length])


def test_too_many_bytes_are_refused() -> None:
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"{MAX_BYTES + 2} bytes is over the limit"):
        decode_gray(tf.constant(b"BM" + bytes(MAX_BYTES)))


@pytest.mark.parametrize("height", [120, -120], ids=["from the bottom", "from the top"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_bmp_is_read_as_pillow_reads_it(mode: str, height: int) -> None:
    buffer = io.BytesIO()
    Image.fromarray(tile(120, 100)).convert(mode).save(buffer, "BMP")
    data = bytearray(buffer.getvalue())
    data[22:26] = struct.pack("<i", height)
    assert np.array_equal(decode_gray(tf.constant(bytes(data))), read_image(bytes(data)))


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 100, "subsampling": 0}])
def test_jpeg_is_read_as_pillow_reads_it(mode: str, options: dict[str, Any]) -> None:
    gray = tile(120, 101)
    colours = np.stack([gray, gray[::-1], gray[:, ::-1]], axis=-1)
    buffer = io.BytesIO()
    Image.fromarray(colours).convert(mode).save(buffer, "JPEG", **options)
    assert np.array_equal(decode_gray(tf.constant(buffer.getvalue())), read_image(buffer.getvalue()))
