"""TensorFlow Serving's REST API as requests and answers in JSON, without any input or output."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
from numpy.typing import NDArray

from serving.client.conversation import METADATA, STATUS, Answer, Call, Refused, malformed
from serving.errors import ServerBusy, ServerError, ServerUnavailable

__all__ = [
    "Request",
    "clip",
    "late",
    "moved",
    "pauses",
    "read",
    "reason",
    "refused",
    "unavailable",
    "with_scheme",
    "write",
]

CONNECT_TIMEOUT = 3.05
"""Seconds; a little more than the 3 s after which TCP repeats a lost packet."""

BACKOFF, LONGEST_PAUSE = 0.2, 120.0
"""Seconds; the pauses before the tries are 0, 0.4, 0.8, 1.6 ..."""

BUSY = (429, 503)
"""The statuses that are worth another try at once."""

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Hosts that no proxy of the environment must stand before."""


@dataclass(frozen=True)
class Request:
    """An HTTP request; the body is JSON."""

    method: str
    path: str
    body: bytes | None = None


def write(call: Call) -> Request:
    """Writes a call as an HTTP request."""
    path = f"/v1/models/{quote(call.model, safe='')}"
    if call.version is not None:
        path += f"/versions/{call.version}"
    elif call.label is not None:
        path += f"/labels/{quote(call.label, safe='')}"
    if call.kind == STATUS:
        return Request("GET", path)
    if call.kind == METADATA:
        return Request("GET", f"{path}/metadata")
    instance = {name: _value(value) for name, value in call.inputs.items()}
    document = {"signature_name": call.signature, "instances": [instance]}
    return Request("POST", f"{path}:predict", json.dumps(document, separators=(",", ":")).encode())


def read(call: Call, url: str, status: int, phrase: str, body: bytes) -> Answer | Refused:
    """Reads the answer to a call; a refusal is one too.

    Args:
        call: that was asked.
        url: of the server.
        status: HTTP status code.
        phrase: what HTTP calls it.
        body: of the answer.

    Raises:
        ServerError: the answer makes no sense, or see `refused`.
    """
    document: Any = None
    with suppress(ValueError):
        document = json.loads(body)
    text = body.decode("utf-8", "replace")
    if status >= 400:
        error = document.get("error") if isinstance(document, dict) else text
        return refused(url, f"{status}: {clip(str(error or phrase))}", status)
    if not isinstance(document, dict):
        raise ServerError(f"the answer of {url} is no JSON object, so it is no model server: {clip(text)!r}")
    try:
        return Answer(_content(call, document), _version(call, document))
    except (KeyError, TypeError, ValueError) as error:
        raise malformed(url, call.model, call.signature or call.kind, error) from error


def with_scheme(url: str) -> str:
    """A URL with `http://` before it if it has no scheme, and no slash after it.

    Raises:
        ServerError: it is none.
    """
    whole = (url if "://" in url else f"http://{url}").rstrip("/")
    try:
        urlsplit(whole)
    except ValueError as error:  # of a bracket that is not closed
        raise ServerError(f"can't ask {url}: {error}") from error
    return whole


def refused(url: str, said: str, status: int) -> Refused:
    """The answer that a request is refused.

    Raises:
        ServerUnavailable: the same request may be answered later; ServerBusy for 429, 502, 503 and 504.
        ServerError: no other request would fare better, as the API key is missing or wrong.
    """
    if status in (*BUSY, 502, 504):
        raise ServerBusy(f"{url} can't answer now ({said}); try again later")
    if status in (408, 499):  # the request did not arrive in time, or was broken off
        raise ServerUnavailable(f"{url} gave up a request ({said}); try again later")
    if status in (401, 403):
        raise ServerError(f"{url} lets nobody in without its API key ({said}); set MAGNETIC_TILES_API_KEY")
    return Refused(f"{url} refused the request ({said})", status)


def pauses(retries: int) -> Iterator[float]:
    """Seconds to wait before each further try."""
    for count in range(retries):
        yield min(LONGEST_PAUSE, BACKOFF * 2**count) if count else 0.0


def unavailable(url: str, why: str) -> ServerUnavailable:
    """The error of a server that can't be reached."""
    if "CERTIFICATE_VERIFY_FAILED" in why:  # so say ssl and gRPC
        return ServerUnavailable(f"the certificate of {url} is not trusted ({why}); name its CA: --ca-file")
    return ServerUnavailable(
        f"no model server at {url} ({why}); start one with `python -m serving.up`, or name another with --url"
    )


def late(url: str, timeout: float) -> ServerUnavailable:
    """The error of a server that takes too long."""
    return ServerUnavailable(
        f"{url} gave no answer within {timeout:g} s; is it overloaded? A longer --timeout may help"
    )


def moved(url: str, target: str, path: str) -> ServerError:
    """The error of a redirect that turned POST into GET, so that the request was lost."""
    return ServerError(
        f"{url} sends requests on to {target}, on which way their body is lost; "
        f"name that server itself: --url {target.removesuffix(path)}"
    )


def reason(error: BaseException) -> str:
    """What the operating system said, out of the layers that wrap it."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, OSError) and inner.strerror:
            return inner.strerror
        wrapped = inner.args[0] if inner.args and isinstance(inner.args[0], BaseException) else None
        nested = getattr(inner, "reason", None)
        inner = (
            nested if isinstance(nested, BaseException) else wrapped or inner.__cause__ or inner.__context__
        )
    return "the connection broke, or it speaks no HTTP"


def clip(text: str, limit: int = 300) -> str:
    """A text as one line of a bearable length."""
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[:limit]}..."


def _value(value: bytes | str | NDArray[np.float32]) -> object:
    if isinstance(value, bytes):
        return {"b64": base64.b64encode(value).decode("ascii")}
    if isinstance(value, str):
        return value
    # A thousandth of a grey level is enough, and halves the request.
    return value.astype(np.float64).round(3).tolist()


def _content(call: Call, document: dict[str, Any]) -> Any:
    if call.kind == STATUS:
        return document["model_version_status"]
    if call.kind == METADATA:
        return document["metadata"]["signature_def"]["signature_def"]
    [prediction] = document["predictions"]
    if not isinstance(prediction, dict):
        return prediction
    return {name: _decoded(value) for name, value in prediction.items()}


def _version(call: Call, document: dict[str, Any]) -> int | None:
    """The version that answered; predictions don't say."""
    return int(document["model_spec"]["version"]) if call.kind == METADATA else None


def _decoded(value: Any) -> Any:
    if not (isinstance(value, dict) and "b64" in value):
        return value
    try:
        return base64.b64decode(value["b64"], validate=True)
    except binascii.Error as error:
        raise ValueError(f"no base64: {error}") from error
