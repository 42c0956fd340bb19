"""Looks a model server over, from the connection to the latency, and says how to mend what is wrong."""

from __future__ import annotations

import base64
import copy
import json
import statistics
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serving.client import MODEL_INFO, SEGMENT, TENSORS, Prediction, TileClient, tensor_values
from serving.errors import ModelNotFound, ServerError, ServerUnavailable
from serving.postprocessing import LABELS
from serving.preprocessing import letterbox
from serving.tile import Tile

__all__ = ["Check", "examine"]

HEIGHT, WIDTH = 324, 270  # the median tile of the public set
REQUESTS = 5
SLOW_FIRST = 5.0
TOLERANCE = 3
"""Levels of 255 by which the two signatures may differ: resizing rounds differently."""


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        state: `ok`, `hint` (works, but should be looked at) or `failed`.
        text: what was found.
        mend: what to do about it, empty if it is well.
    """

    state: str
    text: str
    mend: str = ""


def examine(client: TileClient) -> Iterator[Check]:
    """Checks a server step by step, and stops where the rest makes no sense.

    Args:
        client: for the server, model and version, with the signature `segment`.
    """
    try:
        if not (yield from _versions(client)):
            return
        there = client.signatures()
        missing = [name for name in (SEGMENT, TENSORS, MODEL_INFO) if name not in there]
        if missing:
            yield Check(
                "failed",
                f"signatures are missing: {', '.join(missing)}",
                "serve what `dvc repro export` writes",
            )
            return
        yield Check("ok", f"signatures {SEGMENT}, {TENSORS} and {MODEL_INFO} are there")
        yield from _info(client)
        yield from _answers(client)
    except ServerUnavailable as error:
        yield Check("failed", str(error), "see the server's log, if there is a server")
    except ServerError as error:
        yield Check("failed", str(error), "check --model, --model-version and the server's log")


def _versions(client: TileClient) -> Generator[Check, None, bool]:
    """Yields its findings, and returns whether there is a version to go on with."""
    try:
        statuses = client.status()
    except ModelNotFound:
        yield Check("ok", f"server answers at {client.url}")
        raise
    yield Check("ok", f"server answers at {client.url}")
    yield Check("ok", f"model {client.model} is known")
    ready = [status.version for status in statuses if status.state == "AVAILABLE"]
    there = ", ".join(f"{status.version} {status.state} {status.error}".strip() for status in statuses)
    if not ready or client.version not in (None, *ready):
        wanted = "no version is" if client.version is None else f"version {client.version} is not"
        yield Check(
            "failed",
            f"{wanted} available; there: {there or 'none'}",
            "a version is a folder with an integer name and saved_model.pb in it; wait if it is LOADING",
        )
        return False
    yield Check("ok", f"versions: {there}")
    return True


def _info(client: TileClient) -> Iterator[Check]:
    info = client.model_info()
    labels = info.document.get("labels")
    if labels != list(LABELS) or info.document.get("preprocessing") != "letterbox":
        yield Check(
            "failed",
            f"model_info names labels {labels} and preprocessing {info.document.get('preprocessing')!r}",
            "client and model come from different revisions; install the one that exported the model",
        )
        return
    height, width = info.size
    yield Check("ok", f"model_info: input {height} x {width}, threshold {info.threshold:g}")
    ready = [status.version for status in client.status() if status.state == "AVAILABLE"]
    served = client.version or max(ready, default=info.version)
    if info.version != served:
        yield Check(
            "hint",
            f"the model calls itself version {info.version}, the server calls it {served}",
            "keep the folder name that the export gave, so that answers can be traced",
        )


def _answers(client: TileClient) -> Iterator[Check]:
    tile = Tile(_generated())
    answer, times = _timed(client, tile)
    yield Check("ok", f"{SEGMENT} answers a tile of {WIDTH} x {HEIGHT} pixels at its own size")
    first, rest = times[0], statistics.median(times[1:])
    sent = len(base64.b64encode(tile.file)) / 1000
    text = (
        f"latency: first {first:.0f} ms, then {rest:.0f} ms (median of {len(times) - 1}); {sent:.0f} kB sent"
    )
    if first > SLOW_FIRST * rest:
        yield Check("hint", text, "export with warm-up requests, and let the server use them")
    else:
        yield Check("ok", text)
    tensors = copy.copy(client)  # shares the connection
    tensors.signature = TENSORS
    other = tensors.predict(tile)
    size = len(json.dumps(tensor_values(letterbox(tile.gray, client.model_info().size)[0]))) / 1000
    difference = int(np.abs(other.levels.astype(int) - answer.levels.astype(int)).max())
    if difference > TOLERANCE:
        yield Check(
            "failed",
            f"{SEGMENT} and {TENSORS} differ by {difference} of 255 levels",
            "client and model come from different revisions; install the one that exported the model",
        )
    else:
        yield Check("ok", f"{SEGMENT} and {TENSORS} agree ({difference} of 255 levels; {size:.0f} kB sent)")


def _timed(client: TileClient, tile: Tile) -> tuple[Prediction, list[float]]:
    """The last of a few answers, and the milliseconds that each took."""
    times = []
    for _ in range(REQUESTS):
        start = time.perf_counter()
        answer = client.predict(tile)
        times.append(1000 * (time.perf_counter() - start))
    return answer, times


def _generated() -> NDArray[np.uint8]:
    """A grey tile with some texture and a dark hole."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    gray = 150 + 10 * np.sin(columns / 7) + 6 * np.cos(rows / 11)
    gray -= 110 * np.exp(-((rows - 200) ** 2 + (columns - 90) ** 2) / 300)
    tile: NDArray[np.uint8] = gray.astype(np.uint8)
    return tile
