"""The thin client: a tile in, its mask and defects out. `python -m serving.client --help` for the commands.

    client = TileClient("http://127.0.0.1:8501")
    prediction = client.predict(Path("tile.jpg"))
    prediction.label, prediction.score, prediction.mask, prediction.defects

It needs no TensorFlow. With the signature `segment` (the default) the server does all the
work and the tile travels as its own file; with `serving_default` it travels as numbers, and
the client letterboxes it before and resizes the answer after. Both give the same masks.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import numpy as np
import requests
from numpy.typing import NDArray
from PIL import Image

from serving.errors import ImageError, ModelNotFound, RequestRefused, ServerError
from serving.ordered import ordered_map
from serving.postprocessing import (
    LABELS,
    Defect,
    find_defects,
    label,
    mask_at,
    probability_levels,
    score,
    threshold_level,
)
from serving.preprocessing import letterbox
from serving.tile import Source, Tile
from serving.transport import Connection, Refused

__all__ = ["ModelInfo", "Prediction", "TileClient", "VersionStatus"]

DEFAULT_URL = "http://127.0.0.1:8501"
DEFAULT_MODEL = "magnetic-tiles"
SEGMENT, TENSORS, MODEL_INFO = "segment", "serving_default", "model_info"


@dataclass(frozen=True)
class Prediction:
    """What the model says of one tile; sizes and positions in pixels of the upright tile.

    Attributes:
        mask: (H, W) uint8, 255 where there is a defect, else 0.
        levels: (H, W) uint8, round(255 p) of the probability p of a defect.
        score: largest probability of the tile, 0-1.
        label: `good` or `defect`.
        defects: connected components of the mask, the largest first.
        version: of the model, where the client knows it: named in its settings, or
            learnt with the signature `serving_default`.
    """

    mask: NDArray[np.uint8]
    levels: NDArray[np.uint8]
    score: float
    label: str
    defects: tuple[Defect, ...]
    version: int | None = None

    @property
    def probability(self) -> NDArray[np.float32]:
        """(H, W) float32, 0-1, in steps of 1/255."""
        return self.levels.astype(np.float32) / np.float32(255)


@dataclass(frozen=True)
class VersionStatus:
    """State of a version on the server: START, LOADING, AVAILABLE, UNLOADING or END."""

    version: int
    state: str
    error: str


@dataclass(frozen=True)
class ModelInfo:
    """What a model says of itself.

    Attributes:
        version: that the export gave it.
        size: height, width of its input, in pixels.
        threshold: on the probability, above 0 and at most 1.
        document: all of it.
    """

    version: int
    size: tuple[int, int]
    threshold: float
    document: dict[str, Any]


class TileClient:
    """Asks a model server for the defects of tiles. Safe to share between threads.

    Args:
        url: of the server's REST API.
        model: its name on the server.
        version: of the model; None for the latest.
        signature: `segment`, or one that takes and gives tensors, as `serving_default` does.
        threshold: on the probability, above 0 and at most 1, instead of the model's own.
        timeout: seconds to wait for an answer.
        retries: further tries, with growing waits, after connection errors and 503.
        session: your own `requests.Session`, for instance with credentials.

    Raises:
        ValueError: if the threshold is out of range.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        model: str = DEFAULT_MODEL,
        version: int | None = None,
        signature: str = SEGMENT,
        threshold: float | None = None,
        *,
        timeout: float = 60.0,
        retries: int = 3,
        session: requests.Session | None = None,
    ) -> None:
        if threshold is not None:
            threshold_level(threshold)
        self.model = model
        self.version = version
        self.signature = signature
        self.threshold = threshold
        self._connection = Connection(url, timeout=timeout, retries=retries, session=session)
        self._model_path = f"/v1/models/{quote(model, safe='')}"
        self._path = self._model_path if version is None else f"{self._model_path}/versions/{version}"

    @property
    def url(self) -> str:
        """URL of the server."""
        return self._connection.url

    def predict(self, source: Source) -> Prediction:
        """Finds the defects of one tile.

        Args:
            source: path of an image file, the bytes of one, an array, or a Pillow image;
                see `serving.tile.Tile.load`.

        Raises:
            ImageError: the tile can't be used.
            ServerUnavailable: the server does not answer.
            ModelNotFound: it has no such model, version or signature.
            RequestRefused: it refuses this tile.
            ServerError: its answer makes no sense.
        """
        tile = Tile.load(source)
        return self._predict_file(tile) if self.signature == SEGMENT else self._predict_tensor(tile)

    def predict_many(
        self, sources: Iterable[Source], *, concurrency: int = 4
    ) -> Iterator[Prediction | ImageError | RequestRefused]:
        """Finds the defects of many tiles, with a few requests at a time.

        Sources are read as they are needed, so that memory stays flat.

        Args:
            sources: see `predict`.
            concurrency: requests in flight.

        Yields:
            In the order of the sources, a prediction, or the error of a tile that can't be
            used; the others go on.

        Raises:
            ServerError: those that concern all tiles; see `predict`.
        """

        def one(source: Source) -> Prediction | ImageError | RequestRefused:
            try:
                return self.predict(source)
            except (ImageError, RequestRefused) as error:
                return error

        yield from ordered_map(one, sources, concurrency)

    def status(self) -> list[VersionStatus]:
        """Versions of the model on the server, the newest first.

        Raises:
            ModelNotFound: the server has no such model.
            ServerError: see `predict`.
        """
        try:
            answer = self._connection.get(self._model_path)
        except Refused as error:
            if error.status == 404:
                raise self._no_model() from error
            raise
        try:
            return sorted(
                (
                    VersionStatus(
                        int(entry["version"]),
                        str(entry["state"]),
                        str(entry.get("status", {}).get("error_message", "")),
                    )
                    for entry in answer["model_version_status"]
                ),
                key=lambda status: -status.version,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._malformed("status", error) from error

    def signatures(self) -> dict[str, Any]:
        """Signatures of the model by name, as the server describes them.

        Raises:
            ServerError: see `predict`.
        """
        try:
            answer = self._connection.get(f"{self._path}/metadata")
        except Refused as error:
            raise self._explained(error, "") from error
        try:
            return dict(answer["metadata"]["signature_def"]["signature_def"])
        except (KeyError, TypeError, ValueError) as error:
            raise self._malformed("metadata", error) from error

    def model_info(self) -> ModelInfo:
        """What the model says of itself: version, input size, threshold, metrics.

        Raises:
            ServerError: see `predict`.
        """
        answer = self._ask(MODEL_INFO, {"query": ""})
        try:
            # The only output of a signature comes without its name.
            text = answer["model_info"] if isinstance(answer, dict) else answer
            document = json.loads(text)
            size = (int(document["input"]["height"]), int(document["input"]["width"]))
            threshold = float(document["threshold"])
            threshold_level(threshold)
            return ModelInfo(int(document["version"]), size, threshold, document)
        except (KeyError, TypeError, ValueError) as error:
            raise self._malformed("model_info", error) from error

    def close(self) -> None:
        """Closes the connections."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _predict_file(self, tile: Tile) -> Prediction:
        encoded = base64.b64encode(tile.file).decode("ascii")
        answer = self._ask(self.signature, {"image_bytes": {"b64": encoded}})
        try:
            mask = _plane(answer["mask_bytes"], tile.gray.shape)
            levels = _plane(answer["probability_bytes"], tile.gray.shape)
            server_score, server_label = float(answer["score"]), str(answer["label"])
        except (KeyError, TypeError, ValueError) as error:
            raise self._malformed(self.signature, error) from error
        if server_label not in LABELS or not np.isin(mask, (0, 255)).all():
            raise self._malformed(self.signature, ValueError("a label or a mask that is none"))
        if self.threshold is not None:
            return _prediction(levels, self.threshold, self.version)
        return Prediction(
            mask, levels, server_score, server_label, tuple(find_defects(mask, levels)), self.version
        )

    def _predict_tensor(self, tile: Tile) -> Prediction:
        # Asked for each time: the server may have loaded another version since.
        info = self.model_info()
        image, place = letterbox(tile.gray, info.size)
        answer = self._ask(self.signature, {"images": tensor_values(image)})
        try:
            values = answer["probabilities"] if isinstance(answer, dict) else answer
            probabilities = np.asarray(values, np.float32)
            if probabilities.shape != (*info.size, 1) or not np.isfinite(probabilities).all():
                raise ValueError(f"probabilities of shape {probabilities.shape}, or not finite")
        except (KeyError, TypeError, ValueError) as error:
            raise self._malformed(self.signature, error) from error
        height, width = tile.gray.shape
        levels = probability_levels(probabilities, place, height, width)
        threshold = info.threshold if self.threshold is None else self.threshold
        return _prediction(levels, threshold, info.version)

    def _ask(self, signature: str, instance: dict[str, object]) -> Any:
        """Sends one instance and returns its prediction."""
        body = {"signature_name": signature, "instances": [instance]}
        try:
            answer = self._connection.post(f"{self._path}:predict", body)
        except Refused as error:
            raise self._explained(error, signature) from error
        try:
            [prediction] = answer["predictions"]
        except (KeyError, TypeError, ValueError) as error:
            raise self._malformed(signature, error) from error
        return prediction

    def _explained(self, error: Refused, signature: str) -> ServerError:
        """The error that says what there is instead of what was asked for."""
        text = str(error).lower()
        if error.status == 404:
            return self._no_version()
        if "signature" in text and "not found" in text:
            names = ", ".join(sorted(name for name in self.signatures() if not name.startswith("__")))
            return ModelNotFound(
                f"model {self.model!r} at {self.url} has no signature {signature!r}; it has: {names}"
            )
        return error

    def _no_model(self) -> ModelNotFound:
        return ModelNotFound(
            f"no model {self.model!r} at {self.url}; name it as the server does (--model; its own name "
            f"is in the server's --model_name, MODEL_NAME or model_config_file)"
        )

    def _no_version(self) -> ServerError:
        try:
            versions = self.status()
        except ServerError as error:
            return error
        there = ", ".join(f"{status.version} ({status.state})" for status in versions) or "none"
        if self.version is None:
            return ModelNotFound(f"model {self.model!r} at {self.url} has no version ready; it has: {there}")
        return ModelNotFound(
            f"model {self.model!r} at {self.url} has no version {self.version} ready; it has: {there}"
        )

    def _malformed(self, what: str, error: Exception) -> ServerError:
        reason = f"missing {error}" if isinstance(error, KeyError) else error
        return ServerError(
            f"the answer of {self.url} to {what!r} makes no sense ({reason}); is {self.model!r} a model "
            "of this project's export?"
        )


def tensor_values(image: NDArray[np.float32]) -> object:
    """An input as nested lists for JSON: a thousandth of a grey level is enough, and halves the request."""
    return image.astype(np.float64).round(3).tolist()


def _prediction(levels: NDArray[np.uint8], threshold: float, version: int | None) -> Prediction:
    mask = mask_at(levels, threshold)
    return Prediction(mask, levels, score(levels), label(mask), tuple(find_defects(mask, levels)), version)


def _plane(value: dict[str, str], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Decodes a base64 PNG of a known size.

    Raises:
        ValueError: if it is no such thing.
    """
    try:
        data = base64.b64decode(value["b64"], validate=True)
        image = Image.open(io.BytesIO(data), formats=["PNG"])
        if image.mode != "L" or image.size != (shape[1], shape[0]):
            raise ValueError(f"PNG of {image.size} in mode {image.mode}, not of {shape[1], shape[0]} in L")
        return np.asarray(image, np.uint8)
    except (OSError, SyntaxError, binascii.Error) as error:
        raise ValueError(f"no PNG: {error}") from error


if __name__ == "__main__":
    from serving.cli import run

    run()
