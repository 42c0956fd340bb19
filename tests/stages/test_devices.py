"""Training on several devices, in a process of its own: TensorFlow must hear of them before it starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from stages.devices import Shares, placed_on
from stages.errors import StageError
from stages.fitting import build_metrics, follow_epochs


def test_training_on_two_devices(tmp_path: Path) -> None:
    file = Path(__file__).with_name("two_devices.py")
    command = [
        sys.executable,
        "-m",
        "pytest",
        file,
        f"--basetemp={tmp_path / 'two'}",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(command, cwd=file.parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "5 passed" in done.stdout


def test_devices_share_batches_on_tensorflow_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with placed_on(1):
        pass
    with pytest.raises(StageError, match=r"train\.devices is all, but only TensorFlow .* Keras on jax"):
        placed_on("all")


class Recorded(keras.utils.PyDataset):  # type: ignore[misc]
    """Seven batches of numbers, and who has asked for which."""

    def __init__(self) -> None:
        super().__init__()
        self.epoch = 0
        self.asked: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        self.asked.append((self.epoch, index))
        numbers = np.full((4, 1), 100 * self.epoch + index, np.float32)
        return numbers, numbers


def test_threads_that_fetch_ahead_take_each_batch_once_and_none_of_the_next_epoch() -> None:
    batches, model = Recorded(), keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(
        Shares(batches, model),
        initial_epoch=3,
        epochs=6,
        callbacks=[follow_epochs(batches)],
        shuffle=False,
        verbose=0,
    )
    once = [(epoch, index) for epoch in (3, 4, 5) for index in range(7)]
    looked_at = [asked for asked in batches.asked if asked[0] < 3]  # for shapes, before the first epoch
    assert sorted(batches.asked[len(looked_at) :]) == once
    for epoch in (3, 4, 5):
        start = len(looked_at) + 7 * (epoch - 3)
        assert {asked[0] for asked in batches.asked[start : start + 7]} == {epoch}


def test_processes_make_the_batches_of_each_epoch_that_threads_make() -> None:
    losses = {}
    for workers in (1, 2):
        blind = keras.layers.Dense(
            1, kernel_initializer="zeros"
        )  # its loss is the mean square of the numbers
        batches, model = Recorded(), keras.Sequential([keras.Input((1,)), blind])
        model.compile(keras.optimizers.SGD(1e-12), "mse")
        build_metrics(model, batches)
        fitted = model.fit(
            Shares(batches, model, workers),
            epochs=3,
            callbacks=[follow_epochs(batches)],
            shuffle=False,
            verbose=0,
        )
        losses[workers] = fitted.history["loss"]
        made_here = len(batches.asked)  # beside what Keras looks at for shapes, before the first epoch
        assert made_here >= 21 if workers == 1 else made_here < 7
    expected = [np.mean((100.0 * epoch + np.arange(7)) ** 2) for epoch in range(3)]
    assert losses[1] == pytest.approx(expected, rel=1e-4)
    assert losses[2] == pytest.approx(expected, rel=1e-4)


def test_jax_gets_the_same_batches() -> None:
    chosen = [__file__, "-k", "processes_make", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *chosen],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "KERAS_BACKEND": "jax"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
