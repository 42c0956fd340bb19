"""Any image becomes upright grey levels or one clear error; letterboxing loses nothing."""

from __future__ import annotations

import io
import os
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serving import preprocessing
from serving.errors import ImageError
from serving.postprocessing import probability_levels
from serving.preprocessing import MAX_BYTES, letterbox, open_image, placement, read_image, to_gray
from tests.serving.tiles import encoded, png_header, tile, turned

SIZES = [(8, 8), (64, 64), (324, 270), (222, 103), (403, 632), (8, 2000), (3000, 9), (65, 64), (1, 1)]


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("size", [(64, 64), (224, 224), (96, 160)])
def test_letterbox_never_crops_and_never_enlarges(height: int, width: int, size: tuple[int, int]) -> None:
    image, place = letterbox(np.full((height, width), 255, np.uint8), size)
    assert image.shape == (*size, 1)
    assert image.dtype == np.float32
    assert 1 <= place.height <= min(size[0], height)
    assert 1 <= place.width <= min(size[1], width)
    # All of a white tile is there, and nothing beside it.
    assert np.allclose(image[: place.height, : place.width], 255)
    assert image.sum() == pytest.approx(255 * place.height * place.width)
    if height <= size[0] and width <= size[1]:
        assert (place.height, place.width) == (height, width)


@pytest.mark.parametrize("corner", [(0, 0), (0, -1), (-1, 0), (-1, -1)])
def test_a_defect_in_a_corner_is_still_seen(corner: tuple[int, int]) -> None:
    gray = np.full((300, 200), 255, np.uint8)
    rows = slice(0, 12) if corner[0] == 0 else slice(-12, None)
    columns = slice(0, 12) if corner[1] == 0 else slice(-12, None)
    gray[rows, columns] = 0
    image, place = letterbox(gray, (64, 64))
    assert image[: place.height, : place.width].min() < 20


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_sizes_make_the_round_trip(height: int, width: int) -> None:
    size = (64, 96)
    place = placement(height, width, size)
    levels = probability_levels(np.ones((*size, 1), np.float32), place, height, width)
    assert levels.shape == (height, width)
    assert (levels == 255).all()


def test_levels_are_the_nearest_and_those_out_of_range_its_ends() -> None:
    probabilities = np.array(
        [[[0.49 / 255], [0.51 / 255], [254.4 / 255]], [[0.7], [-1e-6], [1 + 1e-6]]], np.float32
    )
    levels = probability_levels(probabilities, placement(2, 3, (2, 3)), 2, 3)
    assert levels.tolist() == [[0, 1, 254], [179, 0, 255]]


def test_probabilities_beside_the_tile_do_not_leak_into_it() -> None:
    probabilities = np.ones((64, 64, 1), np.float32)
    place = placement(200, 50, (64, 64))
    probabilities[: place.height, : place.width] = 0
    assert probability_levels(probabilities, place, 200, 50).max() == 0


@pytest.mark.parametrize(
    ("mode", "image_format"),
    [
        ("L", "PNG"),
        ("L", "TIFF"),
        ("L", "BMP"),
        ("RGB", "PNG"),
        ("RGB", "TIFF"),
        ("RGBA", "PNG"),
        ("LA", "PNG"),
        ("P", "PNG"),
        ("CMYK", "TIFF"),
        ("RGB", "PPM"),
        ("RGB", "WEBP"),
    ],
)
def test_every_mode_and_format_gives_the_same_grey_levels(mode: str, image_format: str) -> None:
    options = {"lossless": True} if image_format == "WEBP" else {}
    data = encoded(Image.fromarray(tile()).convert("L").convert(mode), image_format, **options)
    assert np.abs(read_image(data).astype(int) - tile()).max() <= 1


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_sixteen_bits_become_their_high_byte(image_format: str) -> None:
    deep = tile().astype(np.uint16) * 256 + 99
    assert np.array_equal(read_image(encoded(deep, image_format)), tile())


def test_transparency_is_ignored() -> None:
    colours = np.dstack([tile()] * 3 + [np.zeros_like(tile())])
    assert np.array_equal(read_image(encoded(colours)), tile())


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize(
    ("orientation", "stored"),
    [
        (1, lambda a: a),
        (2, np.fliplr),
        (3, lambda a: np.rot90(a, 2)),
        (4, np.flipud),
        (5, np.transpose),
        (6, lambda a: np.rot90(a, 1)),
        (7, lambda a: np.rot90(a.T, 2)),
        (8, lambda a: np.rot90(a, -1)),
    ],
)
def test_exif_orientation_is_applied(
    orientation: int, stored: Callable[[np.ndarray], np.ndarray], image_format: str
) -> None:
    data = turned(Image.fromarray(np.ascontiguousarray(stored(tile()))), orientation, image_format)
    for gray in (read_image(data), to_gray(Image.open(io.BytesIO(data)))):
        assert gray.shape == tile().shape
        assert np.abs(gray.astype(int) - tile()).max() <= (30 if image_format == "JPEG" else 0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_never_raises_anything_else(image_format: str) -> None:
    exif = Image.Exif()
    exif.update({0x010F: "Camera", 0x0112: 6, 0x011A: 72.0, 0x8769: {0x9000: b"0230", 0x829A: 0.01}})
    data = np.frombuffer(encoded(tile(), image_format, exif=exif), np.uint8)
    block = exif.tobytes().removeprefix(b"Exif\0\0")
    start = data.tobytes().index(block) + 8
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = data.copy()
        places = start + rng.integers(0, len(block) - 8, rng.integers(1, 4))
        damaged[places] = rng.choice([0, 1, 2, 3, 5, 7, 9, 12, 255], len(places))
        try:
            read_image(_with_checksums(damaged.tobytes()) if image_format == "PNG" else damaged.tobytes())
        except ImageError:
            continue


def _with_checksums(png: bytes) -> bytes:
    """A PNG file whose chunks are sound though they were altered."""
    out, at = bytearray(png), 8
    while at < len(png):
        end = at + 8 + int.from_bytes(png[at : at + 4])
        out[end : end + 4] = zlib.crc32(png[at + 4 : end]).to_bytes(4)
        at = end + 4
    return bytes(out)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff"])
def test_damaged_exif_does_not_spoil_the_picture(exif: bytes) -> None:
    assert read_image(encoded(tile(), "JPEG", exif=exif)).shape == (120, 100)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "empty"),
        (b"not an image at all", "not an image"),
        (b"\x89PNG\r\n\x1a\n", "not an image"),
        (encoded(tile())[:150], "truncated or damaged"),
        (encoded(tile(), "JPEG")[:600], "truncated or damaged"),
        (encoded(np.zeros((1, 1), np.uint8)), "1 x 1 pixels is too small"),
        (encoded(np.zeros((200, 7), np.uint8)), "7 x 200 pixels is too small"),
        (encoded(Image.new("LAB", (20, 20)), "TIFF"), "colour mode LAB"),
        (encoded(Image.new("F", (20, 20)), "TIFF"), "floating point"),
    ],
)
def test_bad_images_are_refused_with_a_reason(data: bytes, text: str) -> None:
    with pytest.raises(ImageError, match=text):
        read_image(data)


def test_a_huge_image_is_refused_from_its_header() -> None:
    data = png_header(20_000, 20_000)
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match="20000 x 20000 pixels is over the limit of 64 megapixels"):
            open_image(data)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes_never_raise_anything_else() -> None:
    rng = np.random.default_rng(0)
    originals = [encoded(tile(), kind) for kind in ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP")]
    for original in originals:
        for _ in range(60):
            data = np.frombuffer(original, np.uint8).copy()
            places = rng.integers(0, min(len(data), 300), 4)
            data[places] = rng.integers(0, 256, 4)
            try:
                gray = read_image(data.tobytes())
            except ImageError:
                continue
            assert gray.dtype == np.uint8


@pytest.mark.parametrize("start", [b"%!PS-Adobe-3.0 EPSF-3.0\n", b"%PDF-1.7\n", b"\xc5\xd0\xd3\xc6"])
def test_programs_are_no_pictures(start: bytes) -> None:
    with pytest.raises(ImageError, match="programs, not pictures; save it as PNG"):
        open_image(start + b"%%BoundingBox: 0 0 100 100\n%%EndComments\n")


def test_a_format_that_pillow_hands_to_another_program_is_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    eps = encoded(tile(), "EPS")
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_: pytest.fail("Ghostscript was started"))
    for data in (eps, b"\n" + eps, eps.replace(b"%!PS", b"%!ps", 1)):
        with pytest.raises(ImageError, match=r"programs|not an image"):
            open_image(data)
    assert not {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"} & set(preprocessing.FORMATS)


def test_a_large_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    tracemalloc.start()
    with pytest.raises(ImageError, match="256 MB is over the limit of 256 MB; send one tile"):
        open_image(path)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_a_device_or_a_pipe_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    for path in (tmp_path / "a.png", Path("/dev/zero")):
        with pytest.raises(ImageError, match="a device or a pipe"):
            open_image(path)


def test_a_missing_file_and_a_folder_say_so(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="No such file"):
        open_image(tmp_path / "none.png")
    with pytest.raises(ImageError, match="directory"):
        open_image(tmp_path)


def test_pillow_images_and_files_give_the_same() -> None:
    data = encoded(np.dstack([tile(), 255 - tile(), tile()]))
    assert np.array_equal(to_gray(Image.open(io.BytesIO(data))), read_image(data))
