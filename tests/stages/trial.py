"""Trainings that are quick to try: a network of two convolutions in the place of the UNet, watched."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from dvclive import Live

from stages.checkpoint import Checkpoint, fingerprint
from stages.params import TrainParams
from stages.train import train
from tests.stages.conftest import Data


def small_network(params: TrainParams) -> keras.Model:
    """Image to probability, with a layer `slim18` that can be frozen."""
    layers = keras.layers
    inner = keras.Input((*params.image_size, 1))
    outer = keras.Input((*params.image_size, 1))
    features = layers.BatchNormalization()(layers.Conv2D(4, 3, padding="same", activation="relu")(inner))
    backbone = keras.Model(inner, features, name=params.backbone)
    positive = keras.initializers.Constant(2.0)  # it finds too much at first, so that Dice is not 0
    probabilities = layers.Conv2D(1, 3, padding="same", activation="sigmoid", bias_initializer=positive)(
        backbone(layers.Rescaling(1 / 127.5, offset=-1.0)(outer))
    )
    return keras.Model(outer, probabilities, name="unet")


class Killed(BaseException):
    """The process ends here: nothing that follows may count on being run."""


class Trial:
    """A training run with a real log, watched at the end of every epoch.

    Attributes:
        weights: of the whole network, at the start and after each epoch.
        backbone: the same of the backbone alone.
        interrupt_after: epoch at whose end ^C is pressed.
        kill_after: epoch that is logged, but whose state is not kept since the run is killed.
        spoil_after: epoch after which the network is made to find nothing.
    """

    def __init__(self, folder: Path, data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.data = folder, data
        self.model_path = folder / "models" / "unet.keras"
        self.states = folder / "checkpoint"
        self.weights: list[list[np.ndarray]] = []
        self.backbone: list[list[np.ndarray]] = []
        self.interrupt_after = self.kill_after = self.spoil_after = 0
        self.monkeypatch = monkeypatch

    def run(self, params: TrainParams) -> keras.Model:
        self.monkeypatch.setattr("stages.train.build_unet", self._build)
        log = self.folder / "live"
        run = fingerprint([], train=params.model_dump(mode="json"))
        checkpoint = Checkpoint(self.states, run, live=log, monitor="val_dice")
        checkpoint.begin(resume=params.resume)
        resume = checkpoint.epoch > 0
        with Live(str(log), dvcyaml=False, save_dvc_exp=False, resume=resume) as live:
            log_image, next_step = live.log_image, live.next_step

            def at_the_end_of_an_epoch(name: str, picture: Any) -> None:
                self._remember()
                log_image(name, picture)
                if len(self.weights) - 1 == self.spoil_after:
                    last = self.model.layers[-1]
                    last.set_weights([0 * last.get_weights()[0], last.get_weights()[1] - 20])
                if len(self.weights) - 1 == self.interrupt_after:
                    raise KeyboardInterrupt

            def after_the_log_of_an_epoch() -> None:
                next_step()
                if len(self.weights) - 1 == self.kill_after:
                    raise Killed

            live.log_image, live.next_step = at_the_end_of_an_epoch, after_the_log_of_an_epoch
            return train(
                params,
                self.data.root,
                self.data.train,
                self.data.val,
                self.model_path,
                live,
                checkpoint,
            )

    def logged(self, metric: str) -> list[float]:
        """Values of a metric, of steps that follow each other from 0."""
        with (self.folder / "live" / "plots" / "metrics" / f"{metric}.tsv").open() as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        assert [int(row["step"]) for row in rows] == list(range(len(rows)))
        return [float(row[metric.rpartition("/")[2]]) for row in rows]

    def _build(self, params: TrainParams, weights: Path | None = None) -> keras.Model:
        network = small_network(params)
        if weights:
            network.load_weights(weights)
        if not self.weights:
            self.model = network
            self._remember()
        return network

    def _remember(self) -> None:
        self.weights.append(self.model.get_weights())
        self.backbone.append(self.model.get_layer("slim18").get_weights())


def equal(one: list[np.ndarray], two: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
