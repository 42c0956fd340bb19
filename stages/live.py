"""What DVCLive logs beside loss and Dice: samples and the use of the machine, each epoch."""

from __future__ import annotations

import keras
import numpy as np
import psutil
from dvclive import Live

from stages.dataset import Examples

__all__ = ["SamplePredictions", "SystemUse"]

SAMPLES = 4


class SamplePredictions(keras.callbacks.Callback):  # type: ignore[misc]
    """Logs image, mask and probability of some validation tiles side by side."""

    def __init__(self, live: Live, examples: Examples) -> None:
        super().__init__()
        self.live = live
        chosen = np.flatnonzero(np.logical_not(examples.good))
        if not len(chosen):
            chosen = np.arange(len(examples.good))
        chosen = chosen[np.linspace(0, len(chosen) - 1, min(SAMPLES, len(chosen))).astype(int)]
        self.images, self.masks = examples.images[chosen], examples.masks[chosen]

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        found = self.model(self.images.astype(np.float32), training=False)
        rows = [self.images, self.masks, np.round(255 * np.asarray(found)).astype(np.uint8)]
        strip = np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)
        self.live.log_image("samples.png", np.repeat(strip, 3, axis=-1))


class SystemUse(keras.callbacks.Callback):  # type: ignore[misc]
    """Logs how busy all cores were on average, and the memory that the process holds.

    DVCLive's own monitor logs nothing at all where NVML is missing, and its thread writes
    between the figures of an epoch.
    """

    def __init__(self, live: Live) -> None:
        super().__init__()
        self.live = live
        self.process = psutil.Process()

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        psutil.cpu_percent()  # the next call answers the mean since this one

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self.live.log_metric("system/cpu_percent", psutil.cpu_percent())
        self.live.log_metric("system/memory_gb", round(self.process.memory_info().rss / 1e9, 3))
