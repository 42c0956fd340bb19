"""What a training needs to go on after a kill, on disk after every epoch, for `train` and `pretrain`.

`<folder>/<epoch>/` appears whole, by renaming; those of the last and of the best epoch are kept. DVC
leaves `models/checkpoint` alone: no stage names it. It does remove the log of a stage that it runs
again, so that a copy of it is kept here too.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from stages.devices import scope_of
from stages.errors import StageError, writing

__all__ = ["Checkpoint", "fingerprint"]

log = logging.getLogger(__name__)

WEIGHTS = "network.weights.h5"


class Checkpoint(keras.callbacks.Callback):  # type: ignore[misc]
    """Keeps the state of one or more fits in a row; comes last in the list of callbacks.

    Chance needs no state: batches depend on seed, epoch and place alone.

    Args:
        folder: of the states.
        run: what the result depends on, as `fingerprint` gives it; only its own state is gone on with.
        live: folder of DVCLive's log, if there is one.
        monitor: figure of which the largest makes an epoch the best; without it, none is.

    Attributes:
        history: figures of every epoch so far.
        phase: fits that are over.
        start: epochs that those fits took.
    """

    def __init__(
        self, folder: Path, run: Mapping[str, Any], live: Path | None = None, monitor: str | None = None
    ) -> None:
        super().__init__()
        self.folder, self.run, self.live, self.monitor = folder, dict(run), live, monitor
        self.history: list[dict[str, float]] = []
        self.phase = self.start = 0

    @property
    def epoch(self) -> int:
        """Epochs so far."""
        return len(self.history)

    @property
    def weights(self) -> Path | None:
        """`.weights.h5` file after the last epoch, if there was one."""
        return self.folder / str(self.epoch) / WEIGHTS if self.history else None

    @property
    def best_weights(self) -> Path | None:
        """`.weights.h5` file after the best epoch, if there was one."""
        return self.folder / str(self._best()) / WEIGHTS if self.history else None

    def begin(self, *, resume: bool) -> None:
        """Goes back to the last state, if that is wanted and there is one; puts back its log.

        Raises:
            StageError: if the state is of another run, or can't be read.
        """
        epochs = self._epochs()
        if not epochs:
            return
        if not resume:
            log.warning(
                "%s has an unfinished run, after epoch %d; it goes when the first epoch of this one ends. "
                "train.resume=true goes on with it",
                self.folder,
                epochs[-1],
            )
            return
        last = self.folder / str(epochs[-1])
        try:
            state = json.loads((last / "state.json").read_text())
            self._compare(state["run"])
            self.history, self.phase, self.start = state["history"], state["phase"], state["start"]
        except (OSError, ValueError, KeyError) as error:
            raise StageError(f"{last} can't be read ({error}); train.resume=false starts anew") from error
        if self.live:
            if self.live.exists():
                shutil.rmtree(self.live)
            _copy_tree(last / "live", self.live)
        log.info("going on after epoch %d, from %s", self.epoch, last)

    def load_optimizer(self, model: keras.Model) -> None:
        """Puts back the optimizer of a compiled model, unless a fit starts anew."""
        if self.epoch > self.start:
            with scope_of(model):
                model.optimizer.build(model.trainable_variables)
            model.load_weights(self.weights)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        figures = {name: float(value) for name, value in (logs or {}).items()}
        if not np.isfinite(list(figures.values())).all():
            return  # from a network that has gone astray nothing can go on
        if not self.history:
            self.clear()
        self.history.append(figures)
        if self.model.stop_training or epoch + 1 == self.params["epochs"]:
            self.phase, self.start = self.phase + 1, self.epoch
        self._write()

    def clear(self) -> None:
        """Removes all states."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _write(self) -> None:
        partial = self.folder / ".partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        with writing(partial / WEIGHTS):
            self.model.save_weights(partial / WEIGHTS)
        if self.live:
            _copy_tree(self.live, partial / "live")
        state = {"run": self.run, "phase": self.phase, "start": self.start, "history": self.history}
        (partial / "state.json").write_text(json.dumps(state, indent=1) + "\n")
        partial.rename(self.folder / str(self.epoch))
        for epoch in set(self._epochs()) - {self.epoch, self._best()}:
            shutil.rmtree(self.folder / str(epoch))

    def _epochs(self) -> list[int]:
        paths = self.folder.iterdir() if self.folder.exists() else ()
        return sorted(int(path.name) for path in paths if path.name.isdecimal())

    def _best(self) -> int:
        if self.monitor is None:
            return self.epoch
        return 1 + int(np.argmax([figures[self.monitor] for figures in self.history]))

    def _compare(self, then: Mapping[str, Any]) -> None:
        differences = [
            f"{name}: {then.get(name)} then, {self.run.get(name)} now"
            for name in sorted(then.keys() | self.run.keys())
            if then.get(name) != self.run.get(name)
        ]
        if differences:
            raise StageError(
                "\n  ".join([f"{self.folder} is the state of another run:", *differences])
                + "\nPut back what has changed to go on with it, or start anew with train.resume=false"
            )


def _copy_tree(source: Path, target: Path) -> None:
    """shutil.copytree, but an error of the disk stays one of that kind, for `run_command` to tell."""
    target.mkdir(parents=True)
    for path in sorted(source.rglob("*")):
        there = target / path.relative_to(source)
        there.mkdir() if path.is_dir() else shutil.copy2(path, there)


def fingerprint(files: Iterable[Path], **sections: Mapping[str, Any]) -> dict[str, Any]:
    """What a run depends on: parameters as `section.name`, and the SHA-256 sums of files, shortened."""
    sums = {path: hashlib.sha256(path.read_bytes()).hexdigest()[:12] for path in files if path.exists()}
    return {
        **{
            f"{section}.{name}": value
            for section, params in sections.items()
            for name, value in params.items()
        },
        **{path.as_posix(): value for path, value in sums.items()},
    }
