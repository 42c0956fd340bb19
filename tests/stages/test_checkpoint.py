"""Going on after a kill: the same result as without it, and never from the state of another run."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import keras
import numpy as np
import pytest

from serving.preprocessing import read_image
from stages.checkpoint import Checkpoint, fingerprint
from stages.errors import StageError
from stages.params import PretrainParams, TrainParams
from stages.pretrain import pretrain
from tests.stages.conftest import SMALLEST, Data
from tests.stages.trial import Killed, Trial, small_network

# Two phases of two epochs; a rising, then falling learning rate.
PARAMS = SMALLEST.model_copy(
    update={
        "backbone_weights": "learnt.weights.h5",
        "frozen_epochs": 2,
        "epochs": 2,
        "warmup_epochs": 1,
        "learning_rate": 0.01,
    }
)
RESUMED = PARAMS.model_copy(update={"resume": True})
LOGGED = ("train/loss", "train/dice", "eval/loss", "eval/dice")

pytestmark = [
    pytest.mark.filterwarnings("ignore:Even though the `tf.config.experimental_run_functions_eagerly"),
    pytest.mark.usefixtures("small_steps"),
]


@pytest.fixture
def trials(tmp_path: Path, data: Data, monkeypatch: pytest.MonkeyPatch) -> list[Trial]:
    """Runs in the same folders, one after the other."""
    return [Trial(tmp_path / "one", data, monkeypatch) for _ in range(3)]


@pytest.fixture(scope="module")
def uninterrupted(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Trial:
    with pytest.MonkeyPatch.context() as patch:
        trial = Trial(tmp_path_factory.mktemp("uninterrupted"), data, patch)
        trial.run(PARAMS)
    return trial


def kill(trial: Trial, params: TrainParams, epoch: int) -> None:
    """Kills a run whose log has `epoch` epochs more, and its last state one less."""
    trial.kill_after = epoch
    with pytest.raises(Killed):
        trial.run(params)


def close(one: keras.Model | list[np.ndarray], two: keras.Model | list[np.ndarray]) -> None:
    """The order in which threads add up leaves a difference in the last digits; the learning rate is 1e-2."""
    weights = (each if isinstance(each, list) else each.get_weights() for each in (one, two))
    for first, second in zip(*weights, strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-5)


def same(trial: Trial, other: Trial) -> None:
    for metric in LOGGED:
        assert trial.logged(metric) == pytest.approx(other.logged(metric), rel=1e-4), metric
    close(trial.weights[-1], other.weights[-1])
    close(*(keras.models.load_model(one.model_path, compile=False) for one in (trial, other)))


@pytest.mark.parametrize("epoch", [2, 3, 4])
def test_a_killed_run_that_goes_on_ends_as_if_nothing_had_been(
    trials: list[Trial], uninterrupted: Trial, epoch: int
) -> None:
    kill(trials[0], PARAMS, epoch)
    trials[1].run(RESUMED)
    assert len(trials[1].weights) - 1 == 4 - (epoch - 1), "it begins after the last whole epoch"
    same(trials[1], uninterrupted)
    assert not trials[1].states.exists()


def test_a_run_that_was_killed_when_all_epochs_were_over_writes_its_model(
    trials: list[Trial], uninterrupted: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("stages.train._keep_best", killed)
        with pytest.raises(Killed):
            trials[0].run(PARAMS)
    trials[1].run(RESUMED)
    assert len(trials[1].weights) == 1
    same(trials[1], uninterrupted)


def test_a_run_that_was_killed_while_it_wrote_goes_on_from_the_state_before(
    trials: list[Trial], uninterrupted: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = keras.Model.save_weights

    def half(model: keras.Model, path: Path) -> None:
        save(model, path)
        if len(trials[0].weights) - 1 == 4:
            path.write_bytes(path.read_bytes()[:1000])
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(keras.Model, "save_weights", half)
        with pytest.raises(Killed):
            trials[0].run(PARAMS)
    trials[1].run(RESUMED)
    same(trials[1], uninterrupted)


def test_patience_counts_on(trials: list[Trial], tmp_path: Path, data: Data) -> None:
    still = {"backbone_weights": "none", "epochs": 50, "patience": 3, "learning_rate": 1e-9}
    trials[0].run(PARAMS.model_copy(update=still))
    epochs = len(trials[0].weights) - 1
    assert epochs < 10
    kill(trials[1], PARAMS.model_copy(update=still), epochs - 1)
    trials[2].run(RESUMED.model_copy(update=still))
    assert len(trials[2].logged("eval/dice")) == epochs


def test_the_best_epoch_before_the_kill_is_kept(trials: list[Trial]) -> None:
    params = {"backbone_weights": "none", "epochs": 4}
    trials[0].spoil_after = trials[1].spoil_after = 2
    kill(trials[0], PARAMS.model_copy(update=params), 4)
    assert sorted(path.name for path in trials[0].states.iterdir()) == ["1", "3"]
    model = trials[1].run(RESUMED.model_copy(update=params))
    scores = trials[1].logged("eval/dice")
    assert int(np.argmax(scores)) == 0
    close(model, trials[0].weights[1])


def test_ctrl_c_can_be_gone_on_from_and_the_message_says_so(
    trials: list[Trial], uninterrupted: Trial, caplog: pytest.LogCaptureFixture
) -> None:
    trials[0].interrupt_after = 4
    with pytest.raises(KeyboardInterrupt):
        trials[0].run(PARAMS)
    assert "`dvc exp run -S train.resume=true` goes on after epoch 3" in caplog.text
    trials[1].run(RESUMED)
    same(trials[1], uninterrupted)


def test_without_a_state_it_starts_from_the_beginning(trials: list[Trial], uninterrupted: Trial) -> None:
    trials[0].run(RESUMED)
    same(trials[0], uninterrupted)


def test_without_resume_it_starts_anew_and_says_what_goes(
    trials: list[Trial], uninterrupted: Trial, caplog: pytest.LogCaptureFixture
) -> None:
    kill(trials[0], PARAMS, 4)
    trials[1].run(PARAMS)
    assert "has an unfinished run, after epoch 3;" in caplog.text
    assert "train.resume=true goes on with it" in caplog.text
    same(trials[1], uninterrupted)


def test_the_state_of_another_run_is_refused_with_what_differs(trials: list[Trial]) -> None:
    kill(trials[0], PARAMS, 3)
    other = RESUMED.model_copy(update={"learning_rate": 0.5, "epochs": 7})
    with pytest.raises(StageError, match="is the state of another run") as caught:
        trials[1].run(other)
    assert "train.learning_rate: 0.01 then, 0.5 now" in str(caught.value)
    assert "train.epochs: 2 then, 7 now" in str(caught.value)
    assert "train.batch_size" not in str(caught.value)
    assert "start anew with train.resume=false" in str(caught.value)
    assert (trials[0].states / "2").exists(), "it can still be gone on with"


def test_a_state_that_cant_be_read_is_named(trials: list[Trial]) -> None:
    kill(trials[0], PARAMS, 3)
    (trials[0].states / "2" / "state.json").write_text("{")
    with pytest.raises(StageError, match=r"checkpoint/2 can't be read .* train\.resume=false starts anew"):
        trials[1].run(RESUMED)


def test_a_fingerprint_names_parameters_and_follows_the_contents_of_files(tmp_path: Path) -> None:
    file = tmp_path / "train.csv"
    file.write_text("one")
    one = fingerprint([file, tmp_path / "none"], train=PARAMS.model_dump(mode="json"))
    assert one["train.learning_rate"] == 0.01
    assert "train.resume" not in one
    assert json.loads(json.dumps(one)) == one, "as it comes back from disk"
    file.write_text("two")
    two = fingerprint([file, tmp_path / "none"], train=PARAMS.model_dump(mode="json"))
    assert {name for name in one if one[name] != two[name]} == {str(file)}


def test_pretraining_goes_on_likewise(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    good = [read_image(data.root / tile.image) for tile in data.train if not tile.defect_pixels]
    params = PretrainParams(
        weights="none", drawings="plain", scale=1.0, steps=20, batch_size=4, learning_rate=0.01
    )

    def build(network: TrainParams, weights: Path | None = None) -> keras.Model:
        model = small_network(network)
        if weights:
            model.load_weights(weights)
        return model

    def run(folder: Path, *, resume: bool = False) -> dict[str, float]:
        checkpoint = Checkpoint(folder / "checkpoint", {"steps": 20})
        checkpoint.begin(resume=resume)
        monkeypatch.setattr("stages.pretrain.build_unet", build)
        return pretrain(params, SMALLEST, good, folder / "some.weights.h5", checkpoint)

    def killed(_: Checkpoint, epoch: int, logs: object = None) -> None:
        if epoch == 7:
            raise Killed

    expected = run(tmp_path / "uninterrupted")
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "on_epoch_begin", killed)
        with pytest.raises(Killed):
            run(tmp_path / "killed")
    assert run(tmp_path / "killed", resume=True) == pytest.approx(expected, rel=1e-4)
    assert "going on after epoch 7" in caplog.text
    close(*(build(SMALLEST, tmp_path / name / "some.weights.h5") for name in ("uninterrupted", "killed")))
    assert [path.name for path in (tmp_path / "killed").iterdir()] == ["some.weights.h5"]
