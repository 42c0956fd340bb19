"""The network: a UNet over a pretrained backbone, grey levels in, a defect probability for each pixel out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import keras
from keras import layers, ops

from stages.backbones import build_backbone, imagenet_deviation, load_weights
from stages.params import TrainParams

__all__ = ["build_unet", "standardize"]

DEFECT_SHARE = 0.05
"""Probability that an untrained network answers, so that it starts near the rare class's share."""

FLAT = 16.0
"""Variance, in squared grey levels, below which noise is no longer blown up to full contrast."""


def build_unet(params: TrainParams, weights: Path | None = None) -> keras.Model:
    """Builds the network with its initial or pretrained weights.

    The decoder has skips from strides 16, 8, 4, 2 (the stem) and 1 (the input itself):
    without the last two, thin defects can't be drawn and random weights don't learn. Its last
    stage reads and writes blocks of 2 x 2 pixels as channels (Shi et al., "Real-Time Single Image
    and Video Super-Resolution Using an Efficient Sub-Pixel Convolutional Neural Network", 2016):
    few filters at full size would take a third of the time of the whole network.

    Args:
        params: size, backbone, its weights, and decoder.
        weights: `.weights.h5` file of the whole network, instead of those of the backbone alone.

    Returns:
        A model from `images` (N, H, W, 1) float32, 0-255, to (N, H, W, 1) float32, 0-1.
        Its layer `backbone` can be frozen.

    Raises:
        StageError: if weights can't be had.
    """
    backbone_weights = "none" if weights else params.backbone_weights
    backbone = build_backbone(params.backbone, backbone_weights, params.image_size)
    images = keras.Input((*params.image_size, 1), name="images")
    x = standardize(images)
    fine = _blocks_of_pixels(x)
    if params.backbone_weights == "imagenet":
        x = layers.Rescaling(imagenet_deviation(params.backbone), name="imagenet_range")(x)
    if backbone.input_shape[-1] == 3:
        x = layers.Concatenate(name="colours")([x] * 3)
    stride2, stride4, stride8, stride16, stride32 = backbone(x)
    *filters_of_stages, last_filters = params.decoder_filters
    x = stride32
    skips = (stride16, stride8, stride4, stride2)
    for index, (skip, filters) in enumerate(zip(skips, filters_of_stages, strict=True)):
        name = f"decoder{index + 1}"
        x = layers.UpSampling2D(interpolation="bilinear", name=f"{name}_up")(x)
        x = layers.Concatenate(name=f"{name}_skip")([x, skip])
        x = _conv(_conv(x, filters, f"{name}_a"), filters, f"{name}_b")
    x = layers.Concatenate(name="input_skip")([x, fine])
    x = _conv(x, last_filters, "decoder5")
    bias = keras.initializers.Constant(math.log(DEFECT_SHARE / (1 - DEFECT_SHARE)))
    logits = layers.Conv2D(4, 1, bias_initializer=bias, dtype="float32", name="logits")(x)
    logits = _pixels_of_blocks(logits)
    probabilities = layers.Activation("sigmoid", dtype="float32", name="probabilities")(logits)
    model = keras.Model(images, probabilities, name="unet")
    if weights:
        load_weights(model, weights)
    return model


def standardize(images: Any) -> Any:
    """Each image by the mean and deviation of its tile: one tile is photographed under many exposures.

    Args:
        images: (N, H, W, 1) float32, 0-255, black where there is no tile.

    Returns:
        (N, H, W, 1) float32, mean 0 and deviation 1 over a tile; 0, which is the mean, in the black
        rows and columns around it.
    """
    inside = ops.sign(ops.max(images, axis=1, keepdims=True)) * ops.sign(
        ops.max(images, axis=2, keepdims=True)
    )
    pixels = ops.maximum(ops.sum(inside, axis=(1, 2, 3), keepdims=True), 1.0)
    mean = ops.sum(images, axis=(1, 2, 3), keepdims=True) / pixels
    centred = (images - mean) * inside
    variance = ops.sum(ops.square(centred), axis=(1, 2, 3), keepdims=True) / pixels
    return centred * ops.rsqrt(variance + FLAT)


def _blocks_of_pixels(x: Any) -> Any:
    """(N, H, W, 1) to (N, H/2, W/2, 4).

    As `ops.space_to_depth`, whose kernel takes 3 to 15 times as long on a CPU as a transposition.
    """
    _, height, width, _ = x.shape
    x = ops.transpose(ops.reshape(x, (-1, height // 2, 2, width // 2, 2)), (0, 1, 3, 2, 4))
    return ops.reshape(x, (-1, height // 2, width // 2, 4))


def _pixels_of_blocks(x: Any) -> Any:
    """(N, H, W, 4) to (N, 2 H, 2 W, 1), as `ops.depth_to_space`."""
    _, height, width, _ = x.shape
    x = ops.transpose(ops.reshape(x, (-1, height, width, 2, 2)), (0, 1, 3, 2, 4))
    return ops.reshape(x, (-1, 2 * height, 2 * width, 1))


def _conv(x: Any, filters: int, name: str) -> Any:
    x = layers.Conv2D(filters, 3, padding="same", use_bias=False, kernel_initializer="he_normal", name=name)(
        x
    )
    x = layers.BatchNormalization(momentum=0.9, name=f"{name}_bn")(x)
    return layers.Activation("relu", name=f"{name}_relu")(x)
