"""A tile in one process, without HTTP, JSON and files of images, to tell what these take."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from serving.local.model import Model
from serving.postprocessing import find_defects, mask_at, probability_levels
from serving.preprocessing import letterbox, read_image
from stages.export import latest_version

__all__ = ["InProcess"]


class InProcess:
    """An exported model and tiles that are decoded already.

    Args:
        base_path: folder of the model's versions.
        tiles: image files.

    Attributes:
        size: height and width of the network's input, in pixels.
    """

    def __init__(self, base_path: Path, tiles: Sequence[bytes]) -> None:
        self._model = Model(latest_version(base_path))
        asked = self._model.predict("model_info", {"query": np.array([b""], object)})
        info = json.loads(asked["model_info"][0])
        self._threshold = float(info["threshold"])
        self.size = int(info["input"]["height"]), int(info["input"]["width"])
        self._levels = {tile: read_image(tile) for tile in tiles}
        self._inputs = {tile: letterbox(levels, self.size)[0] for tile, levels in self._levels.items()}

    def network(self, tiles: Sequence[bytes], batch_size: int) -> list[float]:
        """Seconds that the network takes for each tile, as its share of a batch."""
        seconds = []
        for start in range(0, len(tiles), batch_size):
            batch = np.stack([self._inputs[tile] for tile in tiles[start : start + batch_size]])
            begun = time.perf_counter()
            self._model.predict("", {"images": batch})
            seconds += [(time.perf_counter() - begun) / len(batch)] * len(batch)
        return seconds

    def defects(self, tiles: Sequence[bytes]) -> list[float]:
        """Seconds from the grey levels of each tile to its defects, resizing included."""
        seconds = []
        for tile in tiles:
            begun = time.perf_counter()
            gray = self._levels[tile]
            image, place = letterbox(gray, self.size)
            [probabilities] = self._model.predict("", {"images": image[None]})["probabilities"]
            levels = probability_levels(probabilities, place, *gray.shape)
            find_defects(mask_at(levels, self._threshold), levels)
            seconds.append(time.perf_counter() - begun)
        return seconds

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._model.close()
