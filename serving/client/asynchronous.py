"""The client for asyncio; needs `pip install .[async]`."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator, Iterable
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

from serving.client import access, rest
from serving.client.conversation import (
    SEGMENT,
    Answer,
    Call,
    Conversation,
    Done,
    ModelInfo,
    Prediction,
    Refused,
    Steps,
    VersionStatus,
    advance,
)
from serving.client.defaults import DEFAULT_MODEL, DEFAULT_URL
from serving.client.tile import Source, Tile
from serving.errors import ImageError, RequestRefused, ServerError

try:
    import httpx
except ImportError as error:
    raise ServerError("AsyncTileClient needs httpx; install it with `pip install .[async]`") from error

__all__ = ["AsyncTileClient"]

Result = TypeVar("Result")


class AsyncTileClient:
    """`TileClient` for asyncio: the same questions, results and errors, over HTTP.

        async with AsyncTileClient() as client:
            prediction = await client.predict(Path("tile.jpg"))

    Reading files and unpacking answers happen in threads, so that the event loop never waits.

    Args:
        url: of the server's REST API.
        model: its name on the server.
        version: of the model; None for the latest, or the one with the label.
        signature: `segment`, or one that takes and gives tensors, as `serving_default` does.
        threshold: probability that makes a defect, above 0 and at most 1, instead of the model's own.
        label: of a version on the server, such as `stable`; the latest may be a canary, on trial.
        timeout: seconds to wait for an answer.
        retries: further tries, with growing waits, after connection errors, 429 and 503.
        api_key: see `TileClient`.
        ca_file: see `TileClient`; a session of your own brings its own.
        session: your own `httpx.AsyncClient`, for instance with other credentials.

    Raises:
        ValueError: if the threshold is out of range, the label can't be one, or it comes with a version.
        ServerError: if the URL is not one of HTTP, or key, CA file or the environment's proxy can't be used.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        model: str = DEFAULT_MODEL,
        version: int | None = None,
        signature: str = SEGMENT,
        threshold: float | None = None,
        *,
        label: str | None = None,
        timeout: float = 60.0,
        retries: int = 3,
        api_key: str | None = None,
        ca_file: str | os.PathLike[str] | None = None,
        session: httpx.AsyncClient | None = None,
    ) -> None:
        self.url = rest.with_scheme(url)
        if urlsplit(self.url).scheme not in ("http", "https"):
            raise ServerError(f"can't ask {self.url}: AsyncTileClient speaks HTTP alone")
        self._conversation = Conversation(self.url, model, version, signature, threshold, label)
        self._timeout = httpx.Timeout(timeout, connect=min(rest.CONNECT_TIMEOUT, timeout))
        self._retries = retries
        self._authorization = access.authorization(self.url, api_key)
        # A proxy for the web must not get what is meant for this machine.
        trusting = urlsplit(self.url).hostname not in rest.LOOPBACK
        try:
            self._session = session or httpx.AsyncClient(
                verify=access.trust(ca_file) if ca_file else True,
                trust_env=trusting,
                follow_redirects=True,
            )
        except (ImportError, ValueError, httpx.InvalidURL) as error:  # of a proxy of the environment
            raise ServerError(f"can't ask {self.url}: {rest.clip(str(error))}") from error

    async def predict(self, source: Source) -> Prediction:
        """See `TileClient.predict`."""
        tile = await asyncio.to_thread(Tile.load, source)
        return await self._hold(self._conversation.predict(tile))

    async def predict_many(
        self, sources: Iterable[Source], *, concurrency: int = 4
    ) -> AsyncIterator[Prediction | ImageError | RequestRefused]:
        """See `TileClient.predict_many`."""

        async def one(source: Source) -> Prediction | ImageError | RequestRefused:
            async with slots:
                try:
                    return await self.predict(source)
                except (ImageError, RequestRefused) as error:
                    return error

        slots = asyncio.Semaphore(concurrency)
        pending: deque[asyncio.Task[Prediction | ImageError | RequestRefused]] = deque()
        try:
            for source in sources:
                pending.append(asyncio.create_task(one(source)))
                if len(pending) >= 2 * concurrency:
                    yield await pending.popleft()
            while pending:
                yield await pending.popleft()
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    async def status(self) -> list[VersionStatus]:
        """See `TileClient.status`."""
        return await self._hold(self._conversation.status())

    async def current_version(self) -> int:
        """See `TileClient.current_version`."""
        return await self._hold(self._conversation.current_version())

    async def signatures(self) -> dict[str, Any]:
        """See `TileClient.signatures`."""
        return await self._hold(self._conversation.signatures())

    async def model_info(self) -> ModelInfo:
        """See `TileClient.model_info`."""
        return await self._hold(self._conversation.model_info())

    async def close(self) -> None:
        """Closes the connections."""
        await self._session.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _hold(self, steps: Steps[Result]) -> Result:
        """Holds a conversation to its end."""
        step = await asyncio.to_thread(advance, steps)
        while not isinstance(step, Done):
            step = await asyncio.to_thread(advance, steps, await self._ask(step))
        return step.result

    async def _ask(self, call: Call) -> Answer | Refused:
        request = await asyncio.to_thread(rest.write, call)
        try:
            response = await self._send(request)
        except httpx.ConnectTimeout as error:
            raise rest.unavailable(self.url, "no connection in time") from error
        except httpx.TimeoutException as error:
            raise rest.late(self.url, self._timeout.read or 0.0) from error
        except httpx.UnsupportedProtocol as error:
            raise ServerError(f"can't ask {self.url}: {rest.clip(str(error))}") from error
        except httpx.TransportError as error:
            raise rest.unavailable(self.url, rest.reason(error)) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ServerError(f"can't ask {self.url}: {rest.clip(str(error))}") from error
        if response.history and response.request.method != request.method:
            raise rest.moved(self.url, str(response.url), request.path)
        return await asyncio.to_thread(
            rest.read, call, self.url, response.status_code, response.reason_phrase, response.content
        )

    async def _send(self, request: rest.Request) -> httpx.Response:
        """Sends a request, and again what never reached the model; not what is merely late."""
        headers = {"Content-Type": "application/json"} if request.body else {}
        if self._authorization:
            headers["Authorization"] = self._authorization
        pauses = rest.pauses(self._retries)
        while True:
            pause = next(pauses, None)
            try:
                response = await self._session.request(
                    request.method,
                    self.url + request.path,
                    content=request.body,
                    headers=headers,
                    timeout=self._timeout,
                )
                if response.status_code not in rest.BUSY or pause is None:
                    return response
            except (httpx.NetworkError, httpx.ConnectTimeout, httpx.RemoteProtocolError):
                if pause is None:
                    raise
            await asyncio.sleep(pause)
