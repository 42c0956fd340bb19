"""The network: full-size probabilities from every backbone; weights that can't be had say what can."""

from __future__ import annotations

import os
from pathlib import Path

import keras
import numpy as np
import pytest

from stages.backbones import MOMENTUM, build_backbone
from stages.errors import StageError
from stages.model import DEFECT_SHARE, _blocks_of_pixels, _pixels_of_blocks, build_unet, standardize
from stages.params import TrainParams

SIZE = (32, 64)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[keras.Model, Path]:
    """A ResNet-18 whose weights are none of the initial ones, and its file."""
    backbone = build_backbone("resnet18", "none", SIZE)
    rng = np.random.default_rng(0)
    backbone.set_weights([rng.uniform(0.1, 0.2, weight.shape) for weight in backbone.get_weights()])
    path = tmp_path_factory.mktemp("weights") / "resnet18.weights.h5"
    backbone.save_weights(path)
    return backbone, path


@pytest.mark.parametrize("backbone", ["slim18", "resnet18", "resnet34", "resnet50", "efficientnet_lite0"])
def test_every_backbone_gives_a_probability_for_each_pixel(smallest: TrainParams, backbone: str) -> None:
    keras.utils.set_random_seed(0)
    model = build_unet(smallest.model_copy(update={"backbone": backbone, "image_size": SIZE}))
    assert model.input_shape == model.output_shape == (None, *SIZE, 1)
    images = np.random.default_rng(0).uniform(0, 255, (2, *SIZE, 1)).astype(np.float32)
    found = np.asarray(model(images))
    assert found.dtype == np.float32
    assert found.shape == images.shape
    assert found.min() >= 0
    assert found.max() <= 1
    assert not np.allclose(found[0], found[1]), "the answer depends on the image"
    assert found.mean() == pytest.approx(DEFECT_SHARE, abs=0.2), "untrained, it answers near the rare share"
    assert [shape[1:3] for shape in model.get_layer(backbone).output_shape] == [
        (SIZE[0] // stride, SIZE[1] // stride) for stride in (2, 4, 8, 16, 32)
    ]


def test_neither_exposure_nor_the_black_around_a_tile_tells_the_network_anything() -> None:
    tile = np.random.default_rng(0).uniform(80, 160, (40, 30, 1)).astype(np.float32)
    images = np.zeros((3, 64, 64, 1), np.float32)
    images[0, :40, :30] = tile
    images[1, :40, :30] = tile / 2 + 60
    images[2, 24:, 34:] = tile
    found = np.asarray(standardize(images))
    assert found[0, :40, :30].mean() == pytest.approx(0, abs=1e-5)
    assert found[0, :40, :30].std() == pytest.approx(1, abs=0.05)
    assert not found[0, 40:].any()
    assert not found[0, :, 30:].any()
    assert np.allclose(found[0], found[1], atol=0.1)
    assert np.allclose(found[0, :40, :30], found[2, 24:, 34:], atol=1e-5)


def test_blocks_of_pixels_are_there_and_back_what_keras_calls_depth() -> None:
    pixels = np.random.default_rng(0).normal(size=(3, 6, 10, 1)).astype(np.float32)
    blocks = _blocks_of_pixels(pixels)
    assert np.array_equal(np.asarray(blocks), np.asarray(keras.ops.space_to_depth(pixels, 2)))
    assert np.array_equal(np.asarray(_pixels_of_blocks(blocks)), pixels)


def test_a_black_picture_is_no_error() -> None:
    assert not np.asarray(standardize(np.zeros((1, 32, 32, 1), np.float32))).any()


@pytest.mark.parametrize("name", ["slim18", "resnet18", "efficientnet_lite0"])
def test_normalizations_of_a_backbone_follow_a_short_run(name: str) -> None:
    backbone = build_backbone(name, "none", SIZE)
    layers = [one for one in backbone.layers if isinstance(one, keras.layers.BatchNormalization)]
    assert layers
    assert {layer.momentum for layer in layers} == {MOMENTUM}


@pytest.mark.usefixtures("half_precision")
def test_probabilities_are_single_precision_in_a_half_precision_network(smallest: TrainParams) -> None:
    model = build_unet(smallest)
    assert model.get_layer("decoder1_a").compute_dtype == "float16"
    assert model.output.dtype == "float32"


def test_a_saved_model_answers_the_same_without_its_code(smallest: TrainParams, tmp_path: Path) -> None:
    model = build_unet(smallest)
    model.save(tmp_path / "unet.keras")
    images = np.random.default_rng(0).uniform(0, 255, (1, 32, 32, 1)).astype(np.float32)
    again = keras.models.load_model(tmp_path / "unet.keras", compile=False)
    assert np.array_equal(np.asarray(model(images)), np.asarray(again(images)))


def test_weights_of_a_backbone_come_back_from_their_file(saved: tuple[keras.Model, Path]) -> None:
    backbone, path = saved
    again = build_backbone("resnet18", str(path), SIZE)
    for one, two in zip(backbone.get_weights(), again.get_weights(), strict=True):
        assert np.array_equal(one, two)


def test_weights_of_a_file_fit_another_size_and_reach_the_network(
    saved: tuple[keras.Model, Path], smallest: TrainParams
) -> None:
    backbone, path = saved
    changes = {"backbone": "resnet18", "backbone_weights": str(path), "image_size": (64, 32)}
    model = build_unet(smallest.model_copy(update=changes))
    for one, two in zip(backbone.get_weights(), model.get_layer("resnet18").get_weights(), strict=True):
        assert np.array_equal(one, two)


@pytest.mark.parametrize("name", ["resnet18", "resnet34"])
def test_imagenet_weights_that_do_not_exist_are_refused_with_the_choices(name: str) -> None:
    with pytest.raises(StageError) as caught:
        build_backbone(name, "imagenet", SIZE)
    text = str(caught.value)
    assert f"no ImageNet weights for {name}" in text
    assert all(
        f"train.{way}" in text
        for way in ("backbone=resnet50 or =efficientnet_lite0", "backbone_weights=none")
    )


def test_imagenet_is_refused_for_a_backbone_without_it_also_where_a_file_has_all_weights(
    smallest: TrainParams,
) -> None:
    params = smallest.model_copy(update={"backbone_weights": "imagenet"})
    with pytest.raises(StageError, match="no ImageNet weights for slim18"):
        build_unet(params, Path("pretrained/slim18.weights.h5"))


def test_a_weights_file_that_is_not_there_is_named() -> None:
    with pytest.raises(StageError, match=r"no weights file lost\.weights\.h5"):
        build_backbone("resnet18", "lost.weights.h5", SIZE)


@pytest.mark.parametrize("name", ["broken.weights.h5", "notes.txt"])
def test_what_is_no_weights_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"no weights")
    with pytest.raises(StageError, match=rf"the weights in .*{name} do not fit resnet18"):
        build_backbone("resnet18", str(tmp_path / name), SIZE)


@pytest.mark.filterwarnings("ignore:Skipping nested container")
@pytest.mark.parametrize("name", ["resnet34", "resnet50"])
def test_weights_of_another_backbone_are_refused(saved: tuple[keras.Model, Path], name: str) -> None:
    with pytest.raises(StageError, match=rf"resnet18\.weights\.h5 do not fit {name}"):
        build_backbone(name, str(saved[1]), SIZE)


@pytest.mark.filterwarnings("ignore:Skipping nested container")
def test_weights_of_another_decoder_are_refused_with_what_differs_and_not_with_all_their_numbers(
    smallest: TrainParams, tmp_path: Path
) -> None:
    path = tmp_path / "w.weights.h5"
    build_unet(smallest).save_weights(path)
    with pytest.raises(StageError, match=r"train\.decoder_filters must be those.*decoder5") as caught:
        build_unet(smallest.model_copy(update={"decoder_filters": (8, 8, 8, 8, 16)}), path)
    assert len(str(caught.value)) < 1000


CACHE = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")) / "models"


@pytest.mark.skipif(
    (CACHE / "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5").exists(),
    reason=f"the ImageNet weights of resnet50 are in {CACHE} already",
)
def test_imagenet_weights_without_internet_name_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(StageError) as caught:
        build_backbone("resnet50", "imagenet", SIZE)
    text = str(caught.value)
    assert "can't download the ImageNet weights of resnet50" in text
    assert "train.backbone=efficientnet_lite0" in text
    assert "train.backbone_weights=none or =<file.weights.h5>" in text
    assert "~/.keras/models/" in text
