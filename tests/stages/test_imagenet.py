"""ImageNet's weights from a package: the network knows a cat by them; what is not them is refused by name."""

from __future__ import annotations

import collections
import io
import pickle
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image
from skimage import data as pictures

from stages.backbones import build_backbone
from stages.errors import StageError
from stages.imagenet import PACKAGE, efficientnet_lite0_weights, read_tensors
from stages.model import build_unet
from stages.params import TrainParams

SIDE = 224
MODULE = PACKAGE.replace("-", "_")


@pytest.fixture(scope="module")
def backbone() -> keras.Model:
    return build_backbone("efficientnet_lite0", "imagenet", (SIDE, SIDE))


def classes(backbone: keras.Model, picture: str) -> list[int]:
    """The five likeliest of ImageNet's classes for the middle of a grey picture, by the package's head."""
    image = Image.fromarray(getattr(pictures, picture)()).convert("L")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    x = np.asarray(backbone((np.asarray(image, np.float32)[None, ..., None] - 127) / 128)[-1])
    head = efficientnet_lite0_weights()
    x = x @ head["_conv_head.weight"][:, :, 0, 0].T
    scale, offset, mean, variance = (
        head[f"_bn1.{name}"] for name in ("weight", "bias", "running_mean", "running_var")
    )
    x = np.clip((x - mean) / np.sqrt(variance + 1e-3) * scale + offset, 0, 6).mean(axis=(1, 2))
    scores = (x @ head["_fc.weight"].T + head["_fc.bias"])[0]
    return [int(index) for index in np.argsort(scores)[::-1][:5]]


@pytest.mark.parametrize(
    ("picture", "known"),
    [("chelsea", {281, 282, 285}), ("coffee", {504, 967}), ("rocket", {657, 744})],
    ids=["tabby, tiger or Egyptian cat", "coffee mug, espresso", "missile, projectile"],
)
def test_the_network_knows_what_a_grey_photograph_shows(
    backbone: keras.Model, picture: str, known: set[int]
) -> None:
    found = classes(backbone, picture)
    assert found[0] in known
    assert known <= set(found)


def test_the_unet_shows_its_backbone_the_range_that_imagenet_had(
    backbone: keras.Model, smallest: TrainParams
) -> None:
    changes = {
        "backbone": "efficientnet_lite0",
        "backbone_weights": "imagenet",
        "image_size": (SIDE, SIDE),
    }
    unet = build_unet(smallest.model_copy(update=changes))
    for one, two in zip(
        backbone.get_weights(), unet.get_layer("efficientnet_lite0").get_weights(), strict=True
    ):
        assert np.array_equal(one, two)
    tile = np.random.default_rng(0).uniform(1, 255, (1, SIDE, SIDE, 1)).astype(np.float32)
    seen = np.asarray(keras.Model(unet.input, unet.get_layer("imagenet_range").output)(tile))
    assert seen.mean() == pytest.approx(0, abs=1e-4)
    assert seen.std() == pytest.approx(58 / 128, rel=0.01)


def test_a_package_that_is_not_installed_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, MODULE, None)
    with pytest.raises(StageError, match=rf"not installed: pip install {PACKAGE}==0\.1\.0"):
        build_backbone("efficientnet_lite0", "imagenet", (32, 32))
    build_backbone("efficientnet_lite0", "none", (32, 32))


def test_another_file_in_its_place_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / MODULE / "models").mkdir(parents=True)
    (tmp_path / MODULE / "__init__.py").touch()
    (tmp_path / MODULE / "models" / "efficientnet-lite0-57934424.pth").write_bytes(b"other weights")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    with pytest.raises(StageError, match=rf"is not the file that {PACKAGE} 0\.1\.0 carries"):
        efficientnet_lite0_weights()


class Harm:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('it ran')",)


@pytest.mark.parametrize("content", [Harm(), collections.Counter()], ids=["a call", "another class"])
def test_a_file_that_holds_more_than_tensors_is_refused_unread(content: object) -> None:
    pickles = b"".join(pickle.dumps(one) for one in (1, 2, 3, content))
    with pytest.raises(pickle.UnpicklingError, match="is no part of a tensor"):
        read_tensors(io.BytesIO(pickles))
