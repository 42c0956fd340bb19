"""What one worker does: tiles in, mask files written, rows out. It knows nothing of Ray."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from serving.batch.storage import IMAGES, Folder
from serving.client.ordered import ordered_map
from serving.client.tile import Tile
from serving.errors import ImageError, ServingError
from serving.local.model import Model
from serving.local.status import RequestError
from serving.postprocessing import PNG_COMPRESSION, Defect, find_defects, label, mask_at

__all__ = ["DEFECT", "ROWS", "Scorer", "Settings", "pixels"]

DEFECT = pa.struct(
    [
        *((name, pa.int32()) for name in ("left", "top", "width", "height", "area")),
        *((name, pa.float64()) for name in ("area_percent", "centroid_x", "centroid_y", "peak_probability")),
    ]
)
"""See `serving.postprocessing.Defect`; lengths in pixels."""

ROWS = pa.schema(
    [
        *IMAGES,
        *[("label", pa.string()), ("score", pa.float64()), ("width", pa.int32()), ("height", pa.int32())],
        *[("defects", pa.list_(DEFECT)), ("mask", pa.string()), ("error", pa.string())],
    ]
)
"""A row per image. Either `error`, or the rest: `mask` is a path relative to the folder of results."""

READERS = 8
"""Files that a worker reads ahead, and writes at a time: a request to an object store takes its time."""


@dataclass(frozen=True)
class Settings:
    """What all workers of a run do alike.

    Attributes:
        source: folder of the tiles.
        out: folder of the results.
        threshold: on the probability, None for the model's own.
        batch_size: tiles that the network gets at a time.
        threads: of TensorFlow, within a worker.
    """

    source: Folder
    out: Folder
    threshold: float | None
    batch_size: int
    threads: int


@dataclass(frozen=True)
class _Answer:
    """Of the signature `segment`, or an error."""

    mask_file: bytes = b""
    levels_file: bytes = b""
    score: float = 0.0
    label: str = ""
    error: str = ""


class Scorer:
    """A model that is loaded once, and scores tables of images.

    Args:
        version: folder of the model's version; no longer needed afterwards.
        settings: of the run.
    """

    def __init__(self, version: Path, settings: Settings) -> None:
        self._settings = settings
        self._model = Model(version, threads=settings.threads)

    def __call__(self, images: pa.Table) -> pa.Table:
        """Scores images and writes their masks, in place of those that an earlier run may have written.

        An image that can't be used has no mask afterwards.

        Args:
            images: rows of `IMAGES`.

        Returns:
            Rows of `ROWS`, in the same order.

        Raises:
            ServingError: a mask can't be written, though its name is not too long.
            RequestError: the model fails on tiles that nothing is wrong with.
        """
        files = ordered_map(self._read, images.to_pylist(), READERS)
        answers = self._answers(files)
        return pa.Table.from_pylist(list(ordered_map(self._row, answers, READERS)), schema=ROWS)

    def _read(self, image: dict[str, Any]) -> tuple[dict[str, Any], bytes | str]:
        """The bytes to send, as a client would, or an error."""
        try:
            return image, Tile.load(self._settings.source.read_image(image["image"])).file
        except ImageError as error:
            return image, str(error)

    def _answers(
        self, files: Iterator[tuple[dict[str, Any], bytes | str]]
    ) -> Iterator[tuple[dict[str, Any], _Answer]]:
        while group := list(islice(files, self._settings.batch_size)):
            answers = iter(self._predict([file for _, file in group if isinstance(file, bytes)]))
            for image, file in group:
                yield image, _Answer(error=file) if isinstance(file, str) else next(answers)

    def _predict(self, files: Sequence[bytes]) -> list[_Answer]:
        if not files:
            return []
        try:
            out = self._model.predict("segment", {"image_bytes": np.array(files, np.object_)})
        except RequestError as error:
            if len(files) > 1:  # one of them is to blame
                return [answer for file in files for answer in self._predict([file])]
            if error.code != "INVALID_ARGUMENT":
                raise
            return [_Answer(error=error.message)]
        columns = (out[name].tolist() for name in ("mask_bytes", "probability_bytes", "score", "label"))
        return [
            _Answer(mask, levels, score, name.decode())
            for mask, levels, score, name in zip(*columns, strict=True)
        ]

    def _row(self, answered: tuple[dict[str, Any], _Answer]) -> dict[str, Any]:
        image, answer = answered
        path = f"masks/{image['image']}.png"
        if answer.error:
            with suppress(ServingError):  # where none can be written, there is none
                self._settings.out.remove(path)
            return {**image, "error": answer.error}
        mask_file, name = answer.mask_file, answer.label
        mask, levels = pixels(answer.mask_file), pixels(answer.levels_file)
        if self._settings.threshold is not None:
            mask = mask_at(levels, self._settings.threshold)
            mask_file, name = _png(mask), label(mask)
        try:
            self._settings.out.write(path, mask_file)
        except ImageError as error:  # no mask can have its name
            return {**image, "error": str(error)}
        height, width = mask.shape
        defects = [_flat(defect) for defect in find_defects(mask, levels)]
        facts = {"label": name, "score": answer.score, "width": width, "height": height}
        return {**image, **facts, "defects": defects, "mask": path}


def _flat(defect: Defect) -> dict[str, Any]:
    fields = asdict(defect)
    fields |= dict(zip(("left", "top", "width", "height"), fields.pop("box"), strict=True))
    fields["centroid_x"], fields["centroid_y"] = fields.pop("centroid")
    return fields


def pixels(png: bytes) -> NDArray[np.uint8]:
    """Decodes a PNG that the model has made: (H, W) uint8."""
    return np.asarray(Image.open(io.BytesIO(png), formats=["PNG"]), np.uint8)


def _png(mask: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG", compress_level=PNG_COMPRESSION)
    return buffer.getvalue()
