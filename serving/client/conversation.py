"""What is asked of a model server and what its answers mean, without any input or output.

Each question is a generator: it yields a `Call`, is sent the `Answer`, and returns its result.
Whoever drives it does the talking, with threads or asyncio, over HTTP or gRPC:

    step = advance(steps)
    while not isinstance(step, Done):
        step = advance(steps, transport.ask(step))
    step.result
"""

from __future__ import annotations

import io
import json
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from serving.client.tile import Tile
from serving.errors import ModelNotFound, RequestRefused, ServerError
from serving.naming import CHARACTERS, is_label
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

__all__ = [
    "AVAILABLE",
    "MODEL_INFO",
    "SEGMENT",
    "TENSORS",
    "Answer",
    "Call",
    "Conversation",
    "Done",
    "ModelInfo",
    "Prediction",
    "Refused",
    "Steps",
    "VersionStatus",
    "advance",
    "malformed",
]

SEGMENT, TENSORS, MODEL_INFO = "segment", "serving_default", "model_info"
STATUS, METADATA, PREDICT = "status", "metadata", "predict"
AVAILABLE = "AVAILABLE"
UNKNOWN_LABEL = "unrecognized servable version label"
"""So says TensorFlow Serving, with 400; of a label whose version is not ready, 404 as of the version."""


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
            learnt with the signature `serving_default` or over gRPC.
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


@dataclass(frozen=True)
class Call:
    """One request, in no format yet.

    Attributes:
        kind: STATUS, METADATA or PREDICT.
        model: its name on the server.
        version: None for the latest, or the one with the label.
        signature: of a PREDICT.
        inputs: of a PREDICT, one instance: the bytes of a file, a string, or an array.
        label: of METADATA and PREDICT; a STATUS is one of all versions.
    """

    kind: str
    model: str
    version: int | None
    signature: str = ""
    inputs: Mapping[str, bytes | str | NDArray[np.float32]] = field(default_factory=dict)
    label: str | None = None


@dataclass(frozen=True)
class Answer:
    """The answer to a call.

    Attributes:
        content: of a STATUS, a list of objects with `version`, `state` and `status`; of METADATA,
            the signatures by name; of a PREDICT, the outputs by name (bytes where the name ends in
            `_bytes`), or a single output without its name.
        version: that gave it, where the server says so.
    """

    content: Any
    version: int | None = None


class Refused(RequestRefused):
    """An answer that is an error, with its HTTP status code."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


Result = TypeVar("Result")
Steps = Generator[Call, Answer, Result]


@dataclass(frozen=True)
class Done(Generic[Result]):
    """The end of a conversation."""

    result: Result


def advance(steps: Steps[Result], answer: Answer | Refused | None = None) -> Call | Done[Result]:
    """Gives a conversation the answer to its last call, None at first, and returns its next step."""
    try:
        if answer is None:
            return next(steps)
        return steps.throw(answer) if isinstance(answer, Refused) else steps.send(answer)
    except StopIteration as end:
        return Done(end.value)


@dataclass(frozen=True)
class Conversation:
    """All that can be asked of a model; see `TileClient` for the settings.

    Raises:
        ValueError: if the threshold is out of range, the label can't be one, or it comes with a version.
    """

    url: str
    model: str
    version: int | None = None
    signature: str = SEGMENT
    threshold: float | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        if self.threshold is not None:
            threshold_level(self.threshold)
        if self.label is None:
            return
        if self.version is not None:
            raise ValueError(
                f"name a version or a label, not both. Received: version {self.version}, label {self.label!r}"
            )
        if not is_label(self.label):
            raise ValueError(f"label must be {CHARACTERS}. Received: {self.label!r}")

    def predict(self, tile: Tile) -> Steps[Prediction]:
        """See `TileClient.predict`."""
        if self.signature == SEGMENT:
            return (yield from self._predict_file(tile))
        return (yield from self._predict_tensor(tile))

    def status(self) -> Steps[list[VersionStatus]]:
        """See `TileClient.status`."""
        try:
            answer = yield Call(STATUS, self.model, None)
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
                    for entry in answer.content
                ),
                key=lambda status: -status.version,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._malformed("status", error) from error

    def signatures(self) -> Steps[dict[str, Any]]:
        """See `TileClient.signatures`."""
        answer = yield from self._metadata()
        try:
            return dict(answer.content)
        except (TypeError, ValueError) as error:
            raise self._malformed(METADATA, error) from error

    def current_version(self) -> Steps[int]:
        """See `TileClient.current_version`."""
        # Not by STATUS, where servers don't look at the label and tell of all versions.
        answer = yield from self._metadata()
        if answer.version is None:
            raise self._malformed(METADATA, ValueError("no version"))
        return answer.version

    def model_info(self) -> Steps[ModelInfo]:
        """See `TileClient.model_info`."""
        answer = yield from self._ask(MODEL_INFO, query="")
        try:
            document = json.loads(_only(answer, MODEL_INFO))
            size = (int(document["input"]["height"]), int(document["input"]["width"]))
            threshold = float(document["threshold"])
            threshold_level(threshold)
            return ModelInfo(int(document["version"]), size, threshold, document)
        except (KeyError, TypeError, ValueError) as error:
            raise self._malformed(MODEL_INFO, error) from error

    def _predict_file(self, tile: Tile) -> Steps[Prediction]:
        answer = yield from self._ask(self.signature, image_bytes=tile.file)
        version = answer.version or self.version
        try:
            content = answer.content
            mask = _plane(content["mask_bytes"], tile.gray.shape)
            levels = _plane(content["probability_bytes"], tile.gray.shape)
            server_score, server_label = float(content["score"]), str(content["label"])
            if server_label not in LABELS or not ((mask == 0) | (mask == 255)).all():
                raise ValueError("a label or a mask that is none")
        except (KeyError, TypeError, ValueError) as error:
            raise self._malformed(self.signature, error) from error
        if self.threshold is not None:
            return _prediction(levels, self.threshold, version)
        return Prediction(
            mask, levels, server_score, server_label, tuple(find_defects(mask, levels)), version
        )

    def _predict_tensor(self, tile: Tile) -> Steps[Prediction]:
        # Asked for each time: the server may have loaded another version since.
        info = yield from self.model_info()
        image, place = letterbox(tile.gray, info.size)
        answer = yield from self._ask(self.signature, images=image)
        try:
            probabilities = np.asarray(_only(answer, "probabilities"), np.float32)
            if probabilities.shape != (*info.size, 1) or not np.isfinite(probabilities).all():
                raise ValueError(f"probabilities of shape {probabilities.shape}, or not finite")
        except (KeyError, TypeError, ValueError) as error:
            raise self._malformed(self.signature, error) from error
        height, width = tile.gray.shape
        levels = probability_levels(probabilities, place, height, width)
        threshold = info.threshold if self.threshold is None else self.threshold
        return _prediction(levels, threshold, info.version)

    def _metadata(self) -> Steps[Answer]:
        try:
            return (yield Call(METADATA, self.model, self.version, label=self.label))
        except Refused as error:
            raise (yield from self._explained(error, "")) from error

    def _ask(self, signature: str, **inputs: bytes | str | NDArray[np.float32]) -> Steps[Answer]:
        """Sends one instance and returns its prediction."""
        try:
            return (yield Call(PREDICT, self.model, self.version, signature, inputs, self.label))
        except Refused as error:
            raise (yield from self._explained(error, signature)) from error

    def _explained(self, error: Refused, signature: str) -> Steps[ServerError]:
        """The error that says what there is instead of what was asked for."""
        text = str(error).lower()
        if error.status == 404 or UNKNOWN_LABEL in text:
            return (yield from self._no_version())
        if "signature" in text and "not found" in text:
            there = yield from self.signatures()
            names = ", ".join(sorted(name for name in there if not name.startswith("__")))
            return ModelNotFound(
                f"model {self.model!r} at {self.url} has no signature {signature!r}; it has: {names}"
            )
        return error

    def _no_model(self) -> ModelNotFound:
        return ModelNotFound(
            f"no model {self.model!r} at {self.url}; name it as the server does (--model; its own name "
            f"is in the server's --model_name, MODEL_NAME or model_config_file)"
        )

    def _no_version(self) -> Steps[ServerError]:
        try:
            versions = yield from self.status()
        except ServerError as error:
            return error
        there = ", ".join(f"{status.version} ({status.state})" for status in versions) or "none"
        named = "" if self.version is None else f" {self.version}"
        if self.label is not None:
            named = f" labelled {self.label!r}"
        return ModelNotFound(
            f"model {self.model!r} at {self.url} has no version{named} ready; it has: {there}"
        )

    def _malformed(self, what: str, error: Exception) -> ServerError:
        return malformed(self.url, self.model, what, error)


def malformed(url: str, model: str, what: str, error: Exception) -> ServerError:
    """The error of an answer that is not what was asked for."""
    reason = f"missing {error}" if isinstance(error, KeyError) else error
    return ServerError(
        f"the answer of {url} to {what!r} makes no sense ({reason}); is {model!r} a model "
        "of this project's export?"
    )


def _only(answer: Answer, name: str) -> Any:
    """The only output of a signature; over HTTP it comes without its name."""
    return answer.content[name] if isinstance(answer.content, dict) else answer.content


def _prediction(levels: NDArray[np.uint8], threshold: float, version: int | None) -> Prediction:
    mask = mask_at(levels, threshold)
    return Prediction(mask, levels, score(levels), label(mask), tuple(find_defects(mask, levels)), version)


def _plane(data: object, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Decodes a PNG of a known size.

    Raises:
        ValueError: if it is no such thing.
    """
    if not isinstance(data, bytes):
        raise ValueError("no PNG, but text or numbers")
    try:
        image = Image.open(io.BytesIO(data), formats=["PNG"])
        if image.mode != "L" or image.size != (shape[1], shape[0]):
            raise ValueError(f"PNG of {image.size} in mode {image.mode}, not of {shape[1], shape[0]} in L")
        return np.asarray(image, np.uint8)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"no PNG: {error}") from error
