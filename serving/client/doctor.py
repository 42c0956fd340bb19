"""Looks a model server over, from the connection to the latency, and says how to mend what is wrong."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.client import rest
from serving.client.blocking import TileClient
from serving.client.conversation import AVAILABLE, MODEL_INFO, PREDICT, SEGMENT, TENSORS, Call, ModelInfo
from serving.client.tile import Tile
from serving.errors import ModelNotFound, RequestRefused, ServerError, ServerUnavailable
from serving.postprocessing import LABELS
from serving.preprocessing import letterbox

__all__ = ["Check", "examine"]

HEIGHT, WIDTH = 324, 270  # the median tile of the public set
LARGE = 1200
"""Side of a tile of noise, whose request of 1.9 MB is over the 1 MB that proxies allow by default."""

REQUESTS = 20
SLOW_FIRST = 5.0
"""How many times as long as the usual one a first request may take."""

TOLERANCE = 3
"""Levels of 255 by which the two signatures may differ: resizing rounds differently."""

SIGNATURES = {
    SEGMENT: (
        {"image_bytes": "DT_STRING"},
        {
            "mask_bytes": "DT_STRING",
            "probability_bytes": "DT_STRING",
            "score": "DT_FLOAT",
            "label": "DT_STRING",
        },
    ),
    TENSORS: ({"images": "DT_FLOAT"}, {"probabilities": "DT_FLOAT"}),
    MODEL_INFO: ({"query": "DT_STRING"}, {"model_info": "DT_STRING"}),
}
"""Inputs and outputs of each signature of the export, with their types."""

REEXPORT = "serve what `dvc repro export` writes"
SAME_REVISION = "client and model come from different revisions; install the one that exported the model"

Timer = Callable[[], float]


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


def examine(client: TileClient, timer: Timer = time.perf_counter) -> Iterator[Check]:
    """Checks a server step by step, and stops where the rest makes no sense.

    Args:
        client: for the server, model and version or label, with the signature `segment`.
        timer: seconds, growing steadily.
    """
    try:
        if not (yield from _versions(client)) or not (yield from _signatures(client)):
            return
        info = yield from _info(client)
        if info is None:
            return
        yield from _speed(client, timer)
        yield from _sizes(client, info)
        yield from _agreement(client)
    except ServerUnavailable as error:
        yield Check("failed", str(error), "see the server's log, if there is a server")
    except ServerError as error:
        yield Check(
            "failed", str(error), "check --model, --model-version, --model-label and the server's log"
        )


def _versions(client: TileClient) -> Generator[Check, None, bool]:
    """Yields its findings, and returns whether there is a version to go on with."""
    try:
        statuses = client.status()
    except ModelNotFound:
        yield Check("ok", f"server answers at {client.url}")
        raise
    yield Check("ok", f"server answers at {client.url}")
    yield Check("ok", f"model {client.model} is known")
    ready = [status.version for status in statuses if status.state == AVAILABLE]
    there = ", ".join(f"{status.version} {status.state} {status.error}".strip() for status in statuses)
    if not ready or client.version not in (None, *ready):
        wanted = "no version is" if client.version is None else f"version {client.version} is not"
        yield Check(
            "failed",
            f"{wanted} available; there: {there or 'none'}",
            "a version is a folder with an integer name and saved_model.pb in it; wait if it is LOADING",
        )
        return False
    broken = [f"{status.version}: {status.error}" for status in statuses if status.error]
    if broken:
        yield Check(
            "hint",
            f"versions: {there}",
            f"a version could not be loaded ({broken[0]}); export it again, or remove its folder",
        )
    else:
        yield Check("ok", f"versions: {there}")
    return client.label is None or (yield from _label(client))


def _label(client: TileClient) -> Generator[Check, None, bool]:
    """Yields which version has the label, and returns whether one has it and is ready."""
    try:
        version = client.current_version()
    except ModelNotFound as error:
        yield Check(
            "failed",
            str(error),
            f"point it at a version that is AVAILABLE: `python -m serving.labels {client.label}=VERSION`, "
            "in the models.config that the server reads",
        )
        return False
    yield Check("ok", f"label {client.label} points at version {version}")
    return True


def _signatures(client: TileClient) -> Generator[Check, None, bool]:
    """Yields its findings, and returns whether all signatures are as the export makes them."""
    there = client.signatures()
    missing = [name for name in SIGNATURES if name not in there]
    if missing:
        names = ", ".join(sorted(name for name in there if not name.startswith("__"))) or "none"
        yield Check("failed", f"signatures are missing: {', '.join(missing)}; there: {names}", REEXPORT)
        return False
    wrong = [name for name, expected in SIGNATURES.items() if _types(there[name]) != expected]
    if wrong:
        yield Check(
            "failed", f"signatures with other inputs, outputs or types: {', '.join(wrong)}", SAME_REVISION
        )
        return False
    yield Check("ok", f"signatures {', '.join(SIGNATURES)} are there, with the right inputs and outputs")
    return True


def _types(signature: dict[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    def of(side: str) -> dict[str, str]:
        return {name: tensor.get("dtype", "") for name, tensor in signature.get(side, {}).items()}

    return of("inputs"), of("outputs")


def _info(client: TileClient) -> Generator[Check, None, ModelInfo | None]:
    """Yields its findings, and returns what the model says of itself if client and model fit together."""
    info = client.model_info()
    labels = info.document.get("labels")
    if labels != list(LABELS) or info.document.get("preprocessing") != "letterbox":
        yield Check(
            "failed",
            f"model_info names labels {labels} and preprocessing {info.document.get('preprocessing')!r}",
            SAME_REVISION,
        )
        return None
    height, width = info.size
    yield Check("ok", f"model_info: input {height} x {width}, threshold {info.threshold:g}")
    served = client.current_version()
    if info.version != served:
        yield Check(
            "hint",
            f"the model calls itself version {info.version}, the server calls it {served}",
            "keep the folder name that the export gave, so that answers can be traced",
        )
    return info


def _speed(client: TileClient, timer: Timer) -> Iterator[Check]:
    import scipy.ndimage  # noqa: F401 - which the first prediction would import, and count as the server's

    times = []
    for number in range(REQUESTS + 1):
        tile = Tile(_generated(number))
        start = timer()
        client.predict(tile)
        times.append(1000 * (timer() - start))
    yield Check("ok", f"{SEGMENT} answers tiles of {WIDTH} x {HEIGHT} pixels at their own size")
    first, rest_ = times[0], times[1:]
    middle, high = np.percentile(rest_, [50, 95])
    text = f"warm-up: the first request took {first:.0f} ms, the later ones {middle:.0f} ms"
    if first > SLOW_FIRST * middle:
        yield Check(
            "hint",
            text,
            "export with warm-up requests, and start the server with --enable_model_warmup=true; "
            "run doctor again to see whether that was the start of it all",
        )
    else:
        yield Check("ok", text)
    yield Check(
        "ok",
        f"latency: p50 {middle:.0f} ms, p95 {high:.0f} ms, of {len(rest_)} tiles one after the other",
    )


def _sizes(client: TileClient, info: ModelInfo) -> Iterator[Check]:
    tile = Tile(_generated(0))
    file = _kilobytes(Call(PREDICT, client.model, None, SEGMENT, {"image_bytes": tile.file}))
    image, _ = letterbox(tile.gray, info.size)
    numbers = _kilobytes(Call(PREDICT, client.model, None, TENSORS, {"images": image}))
    yield Check(
        "ok", f"payload as JSON: {file:,.0f} kB a tile with {SEGMENT}, {numbers:,.0f} kB with {TENSORS}"
    )
    noise = np.random.default_rng(0).integers(0, 256, (LARGE, LARGE), np.uint8)
    large = Tile(noise)
    size = _kilobytes(Call(PREDICT, client.model, None, SEGMENT, {"image_bytes": large.file}))
    try:
        client.predict(large)
    except RequestRefused as error:
        yield Check(
            "hint",
            f"a tile of {LARGE} x {LARGE} pixels is refused: {error}",
            f"let {size / 1000:.1f} MB pass: --rest_api_max_request_bytes of the embedded server, "
            "client_max_body_size of nginx; small tiles do without",
        )
    else:
        yield Check("ok", f"a tile of {LARGE} x {LARGE} pixels, {size / 1000:.1f} MB as JSON, gets through")


def _agreement(client: TileClient) -> Iterator[Check]:
    tile = Tile(_generated(0))
    answer, other = client.predict(tile), client.using(signature=TENSORS).predict(tile)
    difference = int(np.abs(other.levels.astype(int) - answer.levels.astype(int)).max())
    if difference > TOLERANCE:
        yield Check("failed", f"{SEGMENT} and {TENSORS} differ by {difference} of 255 levels", SAME_REVISION)
    else:
        yield Check("ok", f"{SEGMENT} and {TENSORS} agree ({difference} of 255 levels)")


def _kilobytes(call: Call) -> float:
    return len(rest.write(call).body or b"") / 1000


def _generated(number: int) -> NDArray[np.uint8]:
    """A grey tile with some texture and a dark hole, each number another."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    gray = 150 + 10 * np.sin((columns + number) / 7) + 6 * np.cos(rows / 11)
    gray -= 110 * np.exp(-((rows - 200) ** 2 + (columns - 90 - 3 * number) ** 2) / 300)
    tile: NDArray[np.uint8] = gray.astype(np.uint8)
    return tile
