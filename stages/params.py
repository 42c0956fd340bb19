"""Typed parameters of the stages, read from `params.yaml`; unknown keys and wrong types fail by name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.errors import StageError

__all__ = [
    "AugmentParams",
    "DataLoadParams",
    "DataSplitParams",
    "EvaluateParams",
    "ExportParams",
    "MaxFalseAlarmRate",
    "MinRecall",
    "OperatingPoint",
    "Params",
    "PretrainParams",
    "SyntheticParams",
    "TrainParams",
    "ValidateParams",
    "load_params",
]

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Count = Annotated[int, Field(ge=1)]


def _multiple_of_32(side: int) -> int:
    if side % 32:
        raise ValueError("must be a multiple of 32, the stride of the backbone")
    return side


Side = Annotated[int, Field(ge=32, le=2048), AfterValidator(_multiple_of_32)]


class Section(BaseModel):
    """A section of params.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SyntheticParams(Section):
    """Size of the synthetic set, for `data_load.source: synthetic`.

    Attributes:
        tiles_per_class: tiles of each of the five defect classes.
        good_tiles: tiles without a defect.
        exposures: images of each tile.
        height: mean height of an image, in pixels; images vary by about 15 %.
        width: mean width of an image, in pixels.
        seed: of the generator.
    """

    tiles_per_class: int = Field(ge=1, le=100_000)
    good_tiles: int = Field(ge=0, le=1_000_000)
    exposures: int = Field(ge=1, le=6)
    height: int = Field(ge=32, le=4096)
    width: int = Field(ge=32, le=4096)
    seed: Seed


class DataLoadParams(Section):
    """Where the tiles come from.

    Attributes:
        source: https URL of a zip, path of a zip or a folder, `synthetic`, or `none` for what
            `stages.data_add` has added alone.
        mask_threshold: a mask pixel is a defect if its grey level is above it, 0-254.
        synthetic: size of the synthetic set.
    """

    source: str = Field(min_length=1)
    mask_threshold: int = Field(ge=0, le=254)
    synthetic: SyntheticParams


class DataSplitParams(Section):
    """How the tiles are divided.

    Attributes:
        strategy: `grouped` keeps all images of a tile on one side, `random` does not.
        test_fraction: share of the images.
        val_fraction: share of the images.
        lookalike: correlation of fine structure from which two tiles are one piece, 1 for off.
        seed: of the shuffle.
    """

    strategy: Literal["grouped", "random"]
    test_fraction: float = Field(gt=0.0, lt=1.0)
    val_fraction: float = Field(gt=0.0, lt=1.0)
    lookalike: float = Field(gt=0.0, le=1.0)
    seed: Seed


class AugmentParams(Section):
    """Strengths of the augmentation, 0 for off.

    Attributes:
        flip: whether to mirror, in both directions.
        rotation: largest angle, as a share of a full turn.
        shift: largest shift, as a share of the side.
        zoom: largest change of size, as a share.
        gamma: largest logarithm of the exponent of the grey levels, as of another exposure.
        brightness: largest change, as a share of the range.
        contrast: largest change of contrast, as a share.
        noise: standard deviation, in grey levels.
    """

    flip: bool
    rotation: float = Field(ge=0.0, le=0.5)
    shift: float = Field(ge=0.0, lt=1.0)
    zoom: float = Field(ge=0.0, lt=1.0)
    gamma: Fraction
    brightness: Fraction
    contrast: Fraction
    noise: float = Field(ge=0.0, le=128.0)


class PretrainParams(Section):
    """Training on good tiles with drawn defects.

    Attributes:
        weights: `none`, or a `.weights.h5` file of the whole network to start from; this project's
            is `pretrained/slim18.weights.h5`, of slim18 with the decoder filters [128, 64, 32, 16, 16].
        drawings: `both`: three in four are lifelike, and harder; or `plain`, where all weights are random.
        scale: of `train.image_size`, to the nearest multiples of 32; at 0.6 a step takes 0.4 of the time.
        steps: number of batches; 0 leaves the initial weights. Rounded up to a multiple of 10.
        batch_size: images per step.
        learning_rate: peak; it rises over the first tenth of the steps, then falls along a cosine.
    """

    weights: str = Field(min_length=1)
    drawings: Literal["plain", "both"]
    scale: float = Field(gt=0.0, le=1.0)
    steps: int = Field(ge=0)
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0.0)


class TrainParams(Section):
    """Model and training.

    Attributes:
        image_size: height and width of the model's input, in pixels, multiples of 32.
        backbone: encoder of the UNet.
        backbone_weights: `imagenet`, `none`, or the path of a weights file.
        decoder_filters: channels of the decoder, from stride 16 down to stride 2, and of its last stage.
        frozen_epochs: epochs with a frozen backbone before all is trained; only with weights.
        epochs: epochs at most, after the frozen ones.
        patience: epochs without a better validation Dice until training stops.
        batch_size: images per step, of all devices.
        devices: GPUs to share a batch (CPUs, where there is none), or `all`. For `pretrain` too.
        workers: processes that prepare batches, 1 for threads of the same; raise it where a GPU waits. As
            `resume`, it decides no result, and is for `pretrain` too.
        learning_rate: peak, after warm-up; it falls to 0 along a cosine.
        warmup_epochs: epochs over which the learning rate rises from 0.
        weight_decay: of AdamW.
        ema_momentum: share of the old weights in their running mean, which replaces them after each epoch;
            0 for off, at most 1 - 1 / steps of an epoch. Without it, validation Dice jumps about.
        dice_weight: share of the Dice loss, the rest is focal cross-entropy.
        focal_gamma: exponent of the focal cross-entropy, 0 for the plain one.
        answer_weight: weight of the loss of each image's deciding pixel, beside those of all pixels.
        good_ratio: good images per defect image and epoch.
        drawn: share of those on which a defect is drawn, as in pretraining.
        pasted: share of all images that get a defect of another tile.
        mixed_precision: bfloat16 arithmetic, on devices that have it (Linux calls it avx512_bf16 or
            amx_bf16); CPUs that would emulate it are refused.
        seed: of initial weights, order of images and augmentation.
        resume: whether `pretrain` and `train` go on where a killed run of them had finished an
            epoch. It decides no result, and is left out where parameters are written down.
        augment: strengths of the augmentation.
    """

    image_size: tuple[Side, Side]
    backbone: Literal["slim18", "resnet18", "resnet34", "resnet50", "efficientnet_lite0"]
    backbone_weights: str = Field(min_length=1)
    decoder_filters: tuple[Count, Count, Count, Count, Count]
    frozen_epochs: int = Field(ge=0)
    epochs: int = Field(ge=1)
    patience: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    devices: Count | Literal["all"]
    workers: Count = Field(exclude=True)
    learning_rate: float = Field(gt=0.0)
    warmup_epochs: int = Field(ge=0)
    weight_decay: float = Field(ge=0.0)
    ema_momentum: float = Field(ge=0.0, lt=1.0)
    dice_weight: Fraction
    focal_gamma: float = Field(ge=0.0)
    answer_weight: float = Field(ge=0.0)
    good_ratio: float = Field(ge=0.0)
    drawn: Fraction
    pasted: Fraction
    mixed_precision: bool
    seed: Seed
    resume: bool = Field(exclude=True)
    augment: AugmentParams


class MaxFalseAlarmRate(Section):
    """Operating point: as many defects as few false alarms allow.

    Attributes:
        max_false_alarm_rate: share of the good tiles on which a defect may be found.
    """

    max_false_alarm_rate: Fraction


class MinRecall(Section):
    """Operating point: as few false alarms as finding the defects allows.

    Attributes:
        min_recall: share of the defects that must be found.
    """

    min_recall: Annotated[float, Field(gt=0.0, le=1.0)]


OperatingPoint = Literal["best_balanced_accuracy", "best_dice"] | MaxFalseAlarmRate | MinRecall


def _operating_point(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    try:
        return validate(value)
    except ValidationError as error:  # pydantic would find fault with each of the four by itself
        raise ValueError(
            "must be best_balanced_accuracy, best_dice, {max_false_alarm_rate: 0 to 1} or "
            f"{{min_recall: above 0, to 1}}, one of the four. Received: {value}"
        ) from error


class EvaluateParams(Section):
    """Evaluation.

    Attributes:
        operating_point: where the threshold is to lie, as measured on validation:
            `best_balanced_accuracy` (tells tiles with a defect from good ones best), `best_dice` (or
            within 0.01 of it what finds more), `{max_false_alarm_rate: 0.01}` or `{min_recall: 0.95}`.
        batch_size: images per prediction step.
        component_overlap: share of a defect's pixels that must be found to count it as found.
        overlays: number of worst images to draw.
    """

    operating_point: Annotated[OperatingPoint, WrapValidator(_operating_point)]
    batch_size: int = Field(ge=1)
    component_overlap: float = Field(gt=0.0, le=1.0)
    overlays: int = Field(ge=0)


class ExportParams(Section):
    """Export.

    Attributes:
        name: of the servable.
        keep_versions: newest versions that stay in the folder.
        warmup_batches: batch sizes of the warm-up requests.
        whole_batches: whether a batch goes through the network as one, for GPUs. On a CPU, tile by tile is
            faster, takes less memory, and gives a tile the same answer in any batch.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    keep_versions: int = Field(ge=1)
    warmup_batches: tuple[Count, ...]
    whole_batches: bool


class ValidateParams(Section):
    """Tolerances between served and evaluated predictions.

    Attributes:
        max_mask_difference: share of a tile's pixels that may differ.
        max_probability_difference: largest difference of a probability, in levels of 1/255.
    """

    max_mask_difference: Fraction
    max_probability_difference: int = Field(ge=0, le=255)


class Params(Section):
    """All of params.yaml."""

    data_load: DataLoadParams
    data_split: DataSplitParams
    pretrain: PretrainParams
    train: TrainParams
    evaluate: EvaluateParams
    export: ExportParams
    validate_: ValidateParams = Field(alias="validate")


def load_params(path: Path = Path("params.yaml")) -> Params:
    """Reads and checks the parameters.

    Raises:
        StageError: names each unknown key, missing key and wrong value.
    """
    try:
        values = YAML(typ="safe").load(path)
    except FileNotFoundError as error:
        raise StageError(f"no {path}; run from the root of the project") from error
    except YAMLError as error:
        raise StageError(f"{path} is not valid YAML: {error}") from error
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        raise StageError("\n".join([f"{path} has {len(lines)} mistake(s):", *lines])) from error
