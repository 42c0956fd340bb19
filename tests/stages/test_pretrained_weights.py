"""The committed weights: they load, find defects on tiles that they have never seen, and are small."""

from __future__ import annotations

import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from scripts.pretrained_weights import DECODER_FILTERS, compress, main
from serving.preprocessing import letterbox
from stages.errors import StageError
from stages.lifelike import draw_any_defect, draw_lifelike_tile
from stages.model import build_unet
from stages.params import PretrainParams, TrainParams, load_params

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "pretrained/slim18.weights.h5"
SIDE = 128


@pytest.fixture(scope="module")
def network() -> TrainParams:
    changes = {"backbone": "slim18", "backbone_weights": "none", "decoder_filters": DECODER_FILTERS}
    return load_params(ROOT / "params.yaml").train.model_copy(update={**changes, "image_size": (SIDE, SIDE)})


def test_they_are_under_25_mb() -> None:
    assert WEIGHTS.stat().st_size < 25e6


def test_they_find_drawn_defects_on_new_tiles(network: TrainParams) -> None:
    rng = np.random.default_rng(2_000_000)
    good = [draw_lifelike_tile(rng) for _ in range(24)]
    pairs = [(tile, np.zeros_like(tile)) for tile in good] + [draw_any_defect(tile, rng) for tile in good]
    images, truth = (
        np.stack([letterbox(plane, (SIDE, SIDE))[0] for plane in planes])
        for planes in zip(*pairs, strict=True)
    )
    found = build_unet(network, WEIGHTS).predict(images, batch_size=8, verbose=0)
    mask, said = truth > 127, found > 0.5
    assert 2 * (mask & said).sum() / (mask.sum() + said.sum()) > 0.7
    assert roc_auc_score(mask.any(axis=(1, 2, 3)), found.max(axis=(1, 2, 3))) > 0.85


def test_packed_weights_load_and_answer_alike(tmp_path: Path, network: TrainParams) -> None:
    small = network.model_copy(update={"decoder_filters": (8, 8, 8, 8, 8), "image_size": (32, 32)})
    keras.utils.set_random_seed(1)
    model = build_unet(small)
    model.save_weights(tmp_path / "whole.weights.h5")
    compress(tmp_path / "whole.weights.h5", tmp_path / "packed.weights.h5")
    images = np.random.default_rng(0).uniform(1, 255, (2, 32, 32, 1)).astype(np.float32)
    again = build_unet(small, tmp_path / "packed.weights.h5")
    np.testing.assert_allclose(again(images), model(images), atol=0.01)
    whole, packed = ((tmp_path / f"{name}.weights.h5").stat().st_size for name in ("whole", "packed"))
    assert packed < 0.6 * whole


def test_what_make_real_sets_for_steps_from_them_on_does_not_change_how_they_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = []

    def pretrain(params: PretrainParams, *_: object) -> None:
        asked.append(params)
        raise StageError("enough")

    monkeypatch.setattr("stages.pretrain.pretrain", pretrain)
    text = (ROOT / "params.yaml").read_text()
    for rate in ("0.001", "0.0005"):
        Path("params.yaml").write_text(text.replace("  learning_rate: 0.001", f"  learning_rate: {rate}"))
        assert main(["--tiles", "1", "--side", "32"]) == 1
    assert asked[0] == asked[1]


def test_the_command_makes_them_and_goes_on_where_it_was_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("scripts.pretrained_weights.FIRST_STEPS", 0)
    monkeypatch.setattr("scripts.pretrained_weights.DECODER_FILTERS", (8, 8, 8, 8, 8))
    args = ["--steps", "0", "--tiles", "4", "--side", "32"]
    with monkeypatch.context() as stopped:
        stopped.setattr("scripts.pretrained_weights.compress", lambda source, target: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main(args)
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.weights.h5")}
    assert sorted(path.name for path in made) == ["first.weights.h5", "last.weights.h5"]
    monkeypatch.setattr("stages.pretrain.pretrain", lambda *_: pytest.fail("that had been done"))
    assert main(args) == 0
    assert "slim18.weights.h5: " in capsys.readouterr().out
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.h5")] == [
        "pretrained/slim18.weights.h5"
    ]
    assert keras.mixed_precision.global_policy().name == "float32", "what comes after is as before"
