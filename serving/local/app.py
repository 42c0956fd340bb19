"""HTTP side of the embedded server: paths, methods, limits and codes of TensorFlow Serving's REST API."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from importlib.resources import files
from urllib.parse import unquote

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from serving.local.body import Room, inflate, read_body
from serving.local.decode import decode_request, decode_tensors
from serving.local.encode import encode_error, encode_tensors
from serving.local.metrics import Metrics
from serving.local.models import Models
from serving.local.status import HttpError, RequestError

__all__ = ["make_app"]

log = logging.getLogger(__name__)

_VERSION = r"(?:(?:/versions/(?P<version>\d+))|(?:/labels/(?P<label>[^/:]+)))?"
_PREDICT = re.compile(
    rf"/v1/models/(?P<name>[^/:]+){_VERSION}:(?P<method>classify|regress|predict)", re.IGNORECASE | re.ASCII
)
_STATUS = re.compile(
    rf"/v1/models(?:/(?P<name>[^/:]+))?{_VERSION}(?:/(?P<metadata>metadata))?", re.IGNORECASE | re.ASCII
)
_CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, GET",
    "Access-Control-Allow-Headers": "Content-Type",
}
_PAGE = files("serving") / "page" / "index.html"
_PAGE_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "frame-ancestors 'none'",  # the rest is in the page, where files have it too
    "X-Content-Type-Options": "nosniff",
}
_METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"]


@dataclass(frozen=True)
class _Target:
    """What a path names."""

    name: str
    version: int | None
    label: str | None
    method: str


def make_app(
    models: Models,
    executor: Executor,
    *,
    timeout_ms: int = 30_000,
    max_body_bytes: int = 64 * 2**20,
    max_requests: int = 64,
    max_held_bytes: int = 256 * 2**20,
    cors: bool = False,
    metrics: Metrics,
    metrics_path: str | None = None,
) -> Starlette:
    """Makes the ASGI application.

    Args:
        models: what is served.
        executor: threads that parse, run the graph and write JSON, so that the event loop never waits.
        timeout_ms: limit of one run of the graph, and of receiving one body.
        max_body_bytes: largest body that is accepted.
        max_requests: predictions that may run or wait at the same time; more are refused at once.
        max_held_bytes: of all bodies that are received, run or wait, or `max_body_bytes` if that is more;
            requests that don't fit are refused.
        cors: whether web pages of other origins may call.
        metrics: counts predictions.
        metrics_path: where they can be read; None for nowhere.
    """
    headers = _CORS if cors else {}
    begun = 0  # predictions
    room = Room(max(max_held_bytes, max_body_bytes))

    async def receive(request: Request, take: Callable[[int], None]) -> bytes:
        return await read_body(request, max_body_bytes, timeout_ms / 1000, take)

    async def predict(
        name: str, call: Callable[[bytes], bytes], request: Request, take: Callable[[int], None]
    ) -> bytes:
        nonlocal begun
        try:
            received = await receive(request, take)
            if begun >= max_requests:
                raise RequestError(
                    f"{begun} requests run or wait already; try again a little later", "UNAVAILABLE"
                )
        except RequestError as error:
            if error.code == "UNAVAILABLE" and name in models:
                metrics.answered(name, error, 0)
            raise
        is_gzip = request.headers.get("content-encoding", "").lower() == "gzip"

        def work() -> bytes:
            # Unpacked here and not in a step before, so that nothing unpacked waits for a thread.
            return call(inflate(received, max_body_bytes) if is_gzip else received)

        begun += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(executor, work)
        finally:
            begun -= 1

    async def answer(request: Request) -> Response:
        if cors and request.method == "OPTIONS":
            return Response(headers=headers)
        code, body = 200, b""
        try:
            path = request.scope["raw_path"].decode("latin-1")
            if request.method == "GET" and path == metrics_path:
                return Response(metrics.page(), headers=headers, media_type="text/plain")
            target, call = _route(models, metrics, request.method, path, timeout_ms)
            with room.share() as take:
                if request.method == "POST":
                    body = await predict(target.name, call, request, take)
                else:  # not behind predictions: whoever asks for the state wants it most when there are many
                    body = await asyncio.to_thread(call, await receive(request, take))
        except RequestError as error:
            code, body = error.http_code, encode_error(error.message) if error.message else b""
        except ClientDisconnect:
            code = 499
        except Exception as error:
            log.exception("%s %s failed", request.method, request.url.path)
            code, body = 500, encode_error(f"{type(error).__name__}: {error}")
        return Response(body, code, headers, "application/json")

    def refuse(request: Request, _: Exception) -> Response:
        """What no route takes: a path with a line break."""
        path = request.scope["raw_path"].decode("latin-1")
        body = encode_error(f"Malformed request: {request.method} {path}")
        return Response(body, 404, headers, "application/json")

    routes = [Route("/", _page), Route("/{path:path}", answer, methods=_METHODS)]
    return Starlette(routes=routes, exception_handlers={404: refuse})


def _page(_: Request) -> Response:
    """The page to look at, which TensorFlow Serving itself has not."""
    return Response(_PAGE.read_bytes(), headers=_PAGE_HEADERS, media_type="text/html")


def _route(
    models: Models, metrics: Metrics, method: str, path: str, timeout_ms: int
) -> tuple[_Target, Callable[[bytes], bytes]]:
    if not re.match(r"/v1/", path, re.IGNORECASE):
        raise HttpError(404, f"no {path}; models are under /v1/models/")
    match = {"POST": _PREDICT, "GET": _STATUS}[method].fullmatch(path) if method in ("POST", "GET") else None
    if match is None or (method == "POST" and not match["method"].islower()):
        raise RequestError(f"Malformed request: {method} {path}")
    target = _target(match)
    if method == "POST":
        return target, lambda body: _counted(models, metrics, target, body, timeout_ms)
    if not target.name:
        raise RequestError("Missing model name in request.")
    ask = _metadata if target.method == "metadata" else _status
    return target, lambda _: ask(models, target)


def _target(match: re.Match[str]) -> _Target:
    groups = match.groupdict()
    version = groups["version"]
    if version is not None and int(version) >= 2**63:
        raise RequestError("")  # TensorFlow Serving says what is wrong to itself alone
    return _Target(
        unquote(groups["name"] or ""),
        None if version is None else int(version),
        None if groups["label"] is None else unquote(groups["label"]),
        groups.get("method") or groups.get("metadata") or "",
    )


def _counted(models: Models, metrics: Metrics, target: _Target, body: bytes, timeout_ms: int) -> bytes:
    started = time.monotonic()
    try:
        answer = _predict(models, metrics, target, body, timeout_ms)
    except Exception as error:
        if target.name in models:  # names that nobody serves would fill the memory
            fault = error if isinstance(error, RequestError) else RequestError(str(error), "INTERNAL")
            metrics.answered(target.name, fault, 0)
        raise
    metrics.answered(target.name, None, time.monotonic() - started)
    return answer


def _predict(models: Models, metrics: Metrics, target: _Target, body: bytes, timeout_ms: int) -> bytes:
    if target.method != "predict":
        raise RequestError(f"{target.method} is not supported by this server; use predict", "UNIMPLEMENTED")
    request = decode_request(body)
    with models.lease(target.name, target.version, target.label) as (_, model):
        inputs, rows = decode_tensors(request.document, model.inputs(request.signature))
        started = time.monotonic()
        outputs = model.predict(request.signature, inputs, timeout_ms)
        metrics.ran(target.name, time.monotonic() - started)
    return encode_tensors(outputs, rows=rows)


def _metadata(models: Models, target: _Target) -> bytes:
    with models.lease(target.name, target.version, target.label) as (version, model):
        document = {
            "model_spec": {"name": target.name, "signature_name": "", "version": str(version)},
            "metadata": {"signature_def": {"signature_def": model.metadata}},
        }
    return (json.dumps(document, indent=1) + "\n").encode()


def _status(models: Models, target: _Target) -> bytes:
    # A label is let pass unseen, as there: all versions are told.
    document = {"model_version_status": models.status(target.name, target.version)}
    return (json.dumps(document, indent=1) + "\n").encode()
