"""Encoders of the UNet; the only place that knows where they and their weights come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
from keras import layers

from stages.errors import StageError
from stages.imagenet import efficientnet_lite0_weights
from stages.paths import named_file

__all__ = ["build_backbone", "imagenet_deviation", "load_weights"]

IMAGENET_DEVIATION = {"resnet50": 58.0, "efficientnet_lite0": 58.0 / 128}
"""Backbones that have ImageNet's weights, and how far its grey levels deviate from their mean in the range
in which each of them has seen it: 0-255 less the mean, and that in units of 128."""

# The last layer at strides 4, 8, 16, 32; stride 2 is the stem.
STEM = "conv1_relu"
RESNET50_STAGES = ("conv2_block3_out", "conv3_block4_out", "conv4_block6_out", "conv5_block3_out")

SLIM_STEM, SLIM_FILTERS = 16, (32, 64, 128, 256)

KERAS_CV_BLOCKS = {"resnet18": [2, 2, 2, 2], "resnet34": [3, 4, 6, 3]}

LITE_STEM = 32
LITE_STAGES = (
    (3, 1, 16, 1, 1),
    (3, 2, 24, 6, 2),
    (5, 2, 40, 6, 2),
    (3, 3, 80, 6, 2),
    (5, 3, 112, 6, 1),
    (5, 4, 192, 6, 2),
    (3, 1, 320, 6, 1),
)
"""Side of the depthwise kernels, blocks, filters, expansion, stride of the first."""

# BatchNorm's usual 0.99 lags behind in runs of a few hundred steps.
MOMENTUM = 0.9


def build_backbone(name: str, weights: str, size: tuple[int, int]) -> keras.Model:
    """Builds an encoder.

    Args:
        name: `slim18`, `efficientnet_lite0` (of this project), `resnet18`, `resnet34` (keras-cv) or
            `resnet50` (keras.applications).
        weights: `imagenet` (resnet50, from the internet, and efficientnet_lite0, from a package), `none`,
            or the path of a `.weights.h5` file saved from this backbone.
        size: height and width of the input, in pixels.

    Returns:
        A model from (N, H, W, 3), `slim18` and `efficientnet_lite0` from (N, H, W, 1), to five feature maps
        at strides 2, 4, 8, 16 and 32.

    Raises:
        StageError: if the weights can't be had.
    """
    if weights == "imagenet":
        imagenet_deviation(name)
    shape = (*size, 3)
    if name == "slim18":
        model = _slim18((*size, 1))
    elif name == "resnet50":
        model = _resnet50(weights, shape)
    elif name == "efficientnet_lite0":
        model = _efficientnet_lite0(weights, (*size, 1))
    else:
        model = _keras_cv_resnet(name, shape)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = MOMENTUM
    if weights not in ("imagenet", "none"):
        load_weights(model, named_file(weights))
    return model


def imagenet_deviation(name: str) -> float:
    """How far ImageNet's grey levels deviate from their mean in the range in which a backbone has seen it.

    Raises:
        StageError: if it has not.
    """
    if name not in IMAGENET_DEVIATION:
        raise StageError(
            f"there are no ImageNet weights for {name}; set train.backbone=resnet50 or =efficientnet_lite0, "
            "or train.backbone_weights=none or =<file.weights.h5>"
        )
    return IMAGENET_DEVIATION[name]


def _resnet50(weights: str, shape: tuple[int, int, int]) -> keras.Model:
    try:
        model = keras.applications.ResNet50(
            include_top=False, weights="imagenet" if weights == "imagenet" else None, input_shape=shape
        )
    except Exception as error:  # keras wraps network errors in a bare Exception
        if weights != "imagenet":
            raise
        raise StageError(
            f"can't download the ImageNet weights of resnet50 ({error}). Without internet: set "
            "train.backbone=efficientnet_lite0, whose weights are in a package, or "
            "train.backbone_weights=none or =<file.weights.h5>, or put the file named above "
            "into ~/.keras/models/"
        ) from error
    outputs = [model.get_layer(layer).output for layer in (STEM, *RESNET50_STAGES)]
    return keras.Model(model.input, outputs, name="resnet50")


def _slim18(shape: tuple[int, int, int]) -> keras.Model:
    """ResNet-18 for grey tiles and few of them: half the filters, a quarter in the stem, no max-pooling.

    A quarter of the weights, and less than half of the time on a CPU. Pooling blurs what is one
    pixel thin; here each stage halves its input by the stride of its first block (He et al., 2016;
    the projection averages before it, as in ResNet-D, He et al., 2019).
    """
    images = keras.Input(shape)
    x = _norm(_filter(images, SLIM_STEM, 7, 2, "conv1"), "conv1_bn")
    x = layers.Activation("relu", name=STEM)(x)
    outputs = [x]
    for stage, filters in enumerate(SLIM_FILTERS, start=2):
        for block in (1, 2):
            name, stride = f"conv{stage}_block{block}", 2 if block == 1 else 1
            y = _norm(_filter(x, filters, 3, stride, f"{name}_1"), f"{name}_1_bn")
            y = layers.Activation("relu", name=f"{name}_1_relu")(y)
            y = _norm(_filter(y, filters, 3, 1, f"{name}_2"), f"{name}_2_bn")
            if stride == 2:
                x = layers.AveragePooling2D(2, padding="same", name=f"{name}_0_pool")(x)
                x = _norm(_filter(x, filters, 1, 1, f"{name}_0"), f"{name}_0_bn")
            x = layers.Activation("relu", name=f"{name}_out")(layers.Add(name=f"{name}_add")([x, y]))
        outputs.append(x)
    return keras.Model(images, outputs, name="slim18")


def _filter(x: Any, filters: int, size: int, stride: int, name: str) -> Any:
    return layers.Conv2D(
        filters, size, stride, padding="same", use_bias=False, kernel_initializer="he_normal", name=name
    )(x)


def _norm(x: Any, name: str) -> Any:
    return layers.BatchNormalization(momentum=MOMENTUM, name=name)(x)


def _keras_cv_resnet(name: str, shape: tuple[int, int, int]) -> keras.Model:
    import keras_cv

    # Not the class for each depth: those ask a model hub for their configuration.
    model = keras_cv.models.ResNetBackbone(
        stackwise_filters=[64, 128, 256, 512],
        stackwise_blocks=KERAS_CV_BLOCKS[name],
        stackwise_strides=[1, 2, 2, 2],
        block_type="basic_block",
        include_rescaling=False,
        input_shape=shape,
    )
    levels = [model.pyramid_level_inputs[f"P{level}"] for level in (2, 3, 4, 5)]
    outputs = [model.get_layer(layer).output for layer in (STEM, *levels)]
    # A plain functional model: a saved file then loads without keras-cv.
    return keras.Model(model.input, outputs, name=name)


def _efficientnet_lite0(weights: str, shape: tuple[int, int, int]) -> keras.Model:
    """EfficientNet-Lite0 (Tan and Le, 2019), without its head, for grey images.

    A grey channel gives with the sum of a kernel's three planes what three equal ones gave with each.
    """
    images = keras.Input(shape)
    x = _relu6(_norm(_filter(images, LITE_STEM, 3, 2, "stem"), "stem_bn"), "stem_relu")
    outputs = [x]
    for stage, (size, blocks, filters, expansion, stride) in enumerate(LITE_STAGES, start=1):
        if stride == 2 and stage > 2:  # the stem has the features of stride 2
            outputs.append(x)
        for block in range(1, blocks + 1):
            name, y = f"stage{stage}_block{block}", x
            if expansion > 1:
                wide = expansion * x.shape[-1]
                y = _norm(_filter(y, wide, 1, 1, f"{name}_expand"), f"{name}_expand_bn")
                y = _relu6(y, f"{name}_expand_relu")
            y = layers.DepthwiseConv2D(
                size,
                stride if block == 1 else 1,
                padding="same",
                use_bias=False,
                depthwise_initializer="he_normal",
                dtype="float32",  # of mixed precision too: a CPU's bfloat16 takes longer here
                name=f"{name}_depthwise",
            )(y)
            y = _relu6(_norm(y, f"{name}_depthwise_bn"), f"{name}_relu")
            y = _norm(_filter(y, filters, 1, 1, f"{name}_project"), f"{name}_project_bn")
            x = y if block == 1 else layers.Add(name=f"{name}_add")([y, x])
    model = keras.Model(images, [*outputs, x], name="efficientnet_lite0")
    if weights == "imagenet":
        _load_imagenet(model)
    return model


def _load_imagenet(model: keras.Model) -> None:
    """Gives EfficientNet-Lite0 the weights of the package, which has them in the order of the layers."""
    arrays = iter(efficientnet_lite0_weights().values())
    for layer in model.layers:
        if isinstance(layer, layers.DepthwiseConv2D):
            layer.set_weights([next(arrays).transpose(2, 3, 0, 1)])
        elif isinstance(layer, layers.Conv2D):
            kernel = next(arrays).transpose(2, 3, 1, 0)
            layer.set_weights([kernel.sum(axis=2, keepdims=True) if layer.name == "stem" else kernel])
        elif layer.weights:
            layer.set_weights([next(arrays) for _ in layer.weights])


def _relu6(x: Any, name: str) -> Any:
    return layers.Activation("relu6", name=name)(x)


def load_weights(model: keras.Model, path: Path) -> None:
    """Loads a `.weights.h5` file.

    Raises:
        StageError: if it is missing or is of another model.
    """
    if not path.is_file():
        raise StageError(
            f"no weights file {path}; train.backbone_weights is imagenet, none or a .weights.h5 file, "
            "pretrain.weights none or a file"
        )
    try:
        model.load_weights(path)
    except (ValueError, OSError, KeyError) as error:
        reason, *_ = str(error).split(" Target variable:")  # all its numbers would follow
        raise StageError(
            f"the weights in {path} do not fit {model.name}; train.backbone and train.decoder_filters must "
            f"be those of the network that was saved: {reason}"
        ) from error
