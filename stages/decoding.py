"""Image files to grey levels inside the exported graph, with stock TensorFlow ops.

It is `serving.preprocessing.read_image` for those who send files past the client: the same grey
levels and the same limits, checked before anything is decoded. A PNG of 50 kB can unpack to gigabytes.
"""

from __future__ import annotations

import tensorflow as tf

from serving.preprocessing import MAX_BYTES, MAX_PIXELS

__all__ = ["decode_gray"]

# ITU-R 601-2 luma in Pillow's fixed-point form, so that both sides round alike.
LUMA, LUMA_ROUND, LUMA_BITS = (19595, 38470, 7471), 0x8000, 16

PNG, BMP = b"\x89PNG\r\n\x1a\n", b"BM"


def decode_gray(data: tf.Tensor) -> tf.Tensor:
    """Decodes a JPEG, PNG or BMP file; 16 bits become their high byte, colour becomes luma.

    Args:
        data: () string, the bytes of the file.

    Returns:
        (H, W) int32, 0-255.

    Raises:
        tf.errors.InvalidArgumentError: when it runs, for bytes that are no such file, or over the limits.
    """
    data = _checked(data)
    # A case of its own for what cameras send: three equal channels would take twice as long.
    return tf.cond(
        tf.io.is_jpeg(data),
        lambda: tf.cond(
            tf.image.extract_jpeg_shape(data)[2] == 1,
            lambda: tf.cast(_jpeg(data, channels=1)[..., 0], tf.int32),
            lambda: _luma(_jpeg(data, channels=3)),
        ),
        lambda: _luma(tf.io.decode_image(data, channels=3, expand_animations=False)),
    )


def _jpeg(data: tf.Tensor, channels: int) -> tf.Tensor:
    # The default is the fast transform, which is off by some grey levels.
    return tf.io.decode_jpeg(data, channels=channels, dct_method="INTEGER_ACCURATE")


def _luma(rgb: tf.Tensor) -> tf.Tensor:
    # Plane by plane: a product with the three factors at once takes four times as long.
    red, green, blue = tf.unstack(tf.cast(tf.ensure_shape(rgb, (None, None, 3)), tf.int32), axis=-1)
    luma = red * LUMA[0] + green * LUMA[1] + blue * LUMA[2]
    return tf.bitwise.right_shift(luma + LUMA_ROUND, LUMA_BITS)


def _checked(data: tf.Tensor) -> tf.Tensor:
    """The same bytes, once format, length and the size in the header are found right.

    TensorFlow would decode GIF too, but the sizes of its frames stand between them.
    """
    is_jpeg, is_png = tf.io.is_jpeg(data), _starts(data, PNG)
    is_known = is_jpeg | is_png | _starts(data, BMP)
    length = tf.strings.length(data)
    with tf.control_dependencies(
        [
            tf.debugging.Assert(is_known, ["not an image, or neither JPEG, PNG nor BMP"]),
            tf.debugging.Assert(length <= MAX_BYTES, [_over("{} bytes", MAX_BYTES, length)]),
        ]
    ):
        size = tf.case(
            [
                (is_jpeg, lambda: tf.cast(tf.image.extract_jpeg_shape(data)[1::-1], tf.int64)),
                (is_png, lambda: _integers(data, little_endian=False)),
            ],
            default=lambda: _integers(tf.strings.substr(data, 2, 24), little_endian=True),  # at 18 and 22
        )
    width, height = tf.unstack(tf.abs(size))  # a BMP that starts at its top has a negative height
    with tf.control_dependencies(
        [
            tf.debugging.Assert(
                width * height <= MAX_PIXELS, [_over("{} x {} pixels", MAX_PIXELS, width, height)]
            )
        ]
    ):
        return tf.identity(data)


def _starts(data: tf.Tensor, magic: bytes) -> tf.Tensor:
    return tf.strings.substr(data, 0, len(magic)) == magic


def _integers(data: tf.Tensor, *, little_endian: bool) -> tf.Tensor:
    """The two int32 at bytes 16 and 20, as int64; zeros where the file ends before."""
    numbers = tf.io.decode_raw(data, tf.int32, little_endian=little_endian, fixed_length=24)
    return tf.cast(numbers[4:], tf.int64)


def _over(what: str, limit: int, *numbers: tf.Tensor) -> tf.Tensor:
    return tf.strings.format(f"{what} is over the limit of {limit:,}; send one tile per image", numbers)
