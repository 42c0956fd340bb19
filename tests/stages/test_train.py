"""Training: repeatable, keeps the best epoch whatever happens, and says why where it can't.

The loop is tried with a network of two convolutions in the place of the UNet, which takes
its time to compile; tests/test_pipeline.py trains the real one.
"""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

from stages.dataset import Batches, Examples, load_examples
from stages.errors import StageError, run_stage
from stages.fitting import compile_model
from stages.metrics import PooledDice
from stages.precision import emulates_bfloat16
from stages.train import check_visible
from tests.stages.conftest import SMALLEST, Data
from tests.stages.trial import Trial, equal, small_network

PARAMS = SMALLEST.model_copy(update={"epochs": 3, "learning_rate": 0.01})


@pytest.fixture
def trial(tmp_path: Path, data: Data, monkeypatch: pytest.MonkeyPatch) -> Trial:
    return Trial(tmp_path / "one", data, monkeypatch)


# TensorFlow says that its input pipeline is compiled all the same.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Even though the `tf.config.experimental_run_functions_eagerly"),
    pytest.mark.usefixtures("small_steps"),
]


def dice(model: keras.Model, data: Data) -> float:
    metric = PooledDice()
    batches = Batches(load_examples(data.root, data.val, model.input_shape[1:3]), 4)
    for images, masks in (batches[index] for index in range(len(batches))):
        metric.update_state(masks, model(images))
    return float(metric.result())


def test_every_epoch_is_logged_and_the_weights_of_the_best_are_kept(trial: Trial) -> None:
    trial.spoil_after = 2
    model = trial.run(PARAMS)
    for metric in ("train/loss", "train/dice", "eval/loss", "eval/dice"):
        assert len(trial.logged(metric)) == 3
        assert np.isfinite(trial.logged(metric)).all()
    assert (trial.folder / "live" / "plots" / "images" / "samples.png").stat().st_size > 0
    history = trial.logged("eval/dice")
    best = int(np.argmax(history))
    assert history[best] > history[-1]
    assert equal(model.get_weights(), trial.weights[1 + best])
    assert dice(model, trial.data) == pytest.approx(max(history), abs=1e-4)
    written = keras.models.load_model(trial.model_path, compile=False)
    assert equal(written.get_weights(), model.get_weights())


def test_training_stops_when_validation_gets_no_better(trial: Trial) -> None:
    trial.run(PARAMS.model_copy(update={"epochs": 50, "patience": 1, "learning_rate": 1e-9}))
    assert len(trial.weights) - 1 < 10


def test_the_same_seed_gives_the_same_start_and_losses_and_another_others(
    tmp_path: Path, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = []
    for index, seed in enumerate((1, 1, 2)):
        trials.append(Trial(tmp_path / str(index), data, monkeypatch))
        trials[-1].run(PARAMS.model_copy(update={"epochs": 2, "seed": seed}))
    first, again, other = trials
    assert equal(first.weights[0], again.weights[0])
    assert not equal(first.weights[0], other.weights[0])
    assert first.logged("train/loss") == pytest.approx(again.logged("train/loss"), rel=1e-5)
    assert first.logged("train/loss") != pytest.approx(other.logged("train/loss"), rel=1e-5)


def test_ctrl_c_keeps_the_best_model_and_says_where_it_is(
    trial: Trial, caplog: pytest.LogCaptureFixture
) -> None:
    trial.interrupt_after = 2
    with pytest.raises(KeyboardInterrupt):
        trial.run(PARAMS)
    kept = keras.models.load_model(trial.model_path, compile=False).get_weights()
    assert any(equal(kept, weights) for weights in trial.weights[1:3])
    assert f"interrupted; the best model so far is in {trial.model_path}" in caplog.text
    assert "dvc commit train" in caplog.text
    assert [path.name for path in trial.model_path.parent.iterdir()] == ["unet.keras"]


def test_ctrl_c_does_not_take_the_model_of_an_earlier_run_for_its_own(
    trial: Trial, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial.run(PARAMS.model_copy(update={"epochs": 1}))
    trial.model_path.unlink()

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("stages.train._fit_phases", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trial.run(PARAMS)
    assert not trial.model_path.exists()
    assert "the best model so far" not in caplog.text


def test_few_steps_an_epoch_are_not_undone_by_the_mean_of_their_weights() -> None:
    images = np.random.default_rng(1).uniform(0, 255, (2, 32, 32, 1)).astype(np.float32)
    moved = []
    for momentum in (0.0, 0.95):
        keras.utils.set_random_seed(1)
        model = small_network(PARAMS)
        kernel = model.layers[-1].kernel
        before = kernel.numpy()
        params = PARAMS.model_copy(update={"ema_momentum": momentum})
        compile_model(model, params, params.learning_rate, steps=4, warmup=0, averaged=2)
        for _ in range(4):
            model.train_on_batch(images, images < 50)
        moved.append(np.abs(kernel.numpy() - before).mean())
    assert 0.5 * moved[0] < moved[1] < moved[0]


def test_a_learnt_backbone_is_frozen_first_and_trained_then(trial: Trial) -> None:
    trial.run(
        PARAMS.model_copy(update={"backbone_weights": "learnt.weights.h5", "frozen_epochs": 1, "epochs": 2})
    )
    assert len(trial.weights) == 1 + 1 + 2
    assert equal(trial.backbone[0], trial.backbone[1]), "with the statistics of its normalization"
    assert not equal(trial.weights[0], trial.weights[1]), "the decoder learns"
    assert not equal(trial.backbone[1], trial.backbone[2])


def test_random_weights_are_not_frozen(trial: Trial) -> None:
    trial.run(PARAMS.model_copy(update={"frozen_epochs": 2, "epochs": 1}))
    assert len(trial.weights) == 1 + 1
    assert not equal(trial.backbone[0], trial.backbone[1])


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
def test_a_loss_that_is_no_number_is_an_error_and_writes_no_model(trial: Trial) -> None:
    with pytest.raises(StageError, match=r"the loss is no number; lower train\.learning_rate"):
        trial.run(PARAMS.model_copy(update={"learning_rate": 1e30}))
    assert not trial.model_path.exists()


def test_tiles_without_a_defect_are_refused(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = Data(data.root, [tile for tile in data.train if not tile.defect_pixels], data.val, data.test)
    with pytest.raises(StageError, match=r"no training image has a defect pixel; check data_load\.mask_thr"):
        Trial(tmp_path, good, monkeypatch).run(PARAMS)


@pytest.mark.parametrize(
    ("levels", "says"),
    [
        ((0, 0), "no validation image has a defect, so that no epoch is better"),
        (
            (127, 1),
            r"at 8 x 8 pixels \(train.image_size\) all of 2 validation images have their defects fade",
        ),
        ((128, 127), None),
        ((128, 128), None),
    ],
)
def test_a_validation_side_that_cannot_tell_epochs_apart_is_refused(
    levels: tuple[int, int], says: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    masks = np.zeros((3, 8, 8, 1), np.uint8)
    masks[1:, 0, 0, 0] = levels
    val = Examples(np.zeros_like(masks), masks, np.logical_not(masks.any(axis=(1, 2, 3))))
    if says:
        with pytest.raises(StageError, match=says):
            check_visible(val, (8, 8))
    else:
        check_visible(val, (8, 8))
        assert ["1 of 2" in message for message in caplog.messages] == [True] * (levels[1] < 128)
    metric = PooledDice()
    metric.update_state(masks[1:] / 255, np.ones_like(masks[1:]))
    assert (float(metric.result()) > 1e-6) == (says is None), "as the metric counts"


@pytest.mark.skipif(emulates_bfloat16(), reason="no CPU that has bfloat16")
def test_mixed_precision_trains_and_writes_a_model(trial: Trial) -> None:
    model = trial.run(PARAMS.model_copy(update={"epochs": 1, "mixed_precision": True}))
    assert all(weight.dtype == np.float32 for weight in model.get_weights())


def test_how_a_stage_ends(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["stage"])

    def interrupted() -> None:
        raise KeyboardInterrupt

    def refused() -> None:
        raise StageError("no models/unet.keras; run `dvc repro train`")

    with pytest.raises(SystemExit) as caught:
        run_stage(interrupted)
    assert caught.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"
    with pytest.raises(SystemExit) as caught:
        run_stage(refused)
    assert caught.value.code == "error: no models/unet.keras; run `dvc repro train`"
    run_stage(lambda: None)
