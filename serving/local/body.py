"""Receives the body of a request: at most so many bytes, within so many seconds, gzipped or not.

Bodies of all requests share a `Room`, so that many large ones don't fill the memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections.abc import Callable, Iterator

from starlette.requests import Request

from serving.local.status import HttpError, RequestError

__all__ = ["Room", "inflate", "read_body"]


class Room:
    """Bytes that the bodies of all requests may hold together; of one thread alone."""

    def __init__(self, size: int) -> None:
        self._size = self._free = size

    @contextlib.contextmanager
    def share(self) -> Iterator[Callable[[int], None]]:
        """Lends a request what it takes, to the end of the block.

        Yields:
            Takes so many bytes more, or gives some back if negative; RequestError if there is no room.
        """
        taken = 0

        def take(size: int) -> None:
            nonlocal taken
            if size > self._free:
                raise RequestError(
                    f"the requests that run or wait hold the {self._size} bytes that there are for them; "
                    "try again a little later",
                    "UNAVAILABLE",
                )
            self._free -= size
            taken += size

        try:
            yield take
        finally:
            self._free += taken


async def read_body(request: Request, limit: int, timeout: float, take: Callable[[int], None]) -> bytes:
    """Receives the body.

    Args:
        request: its body not yet read.
        limit: largest size that is accepted, in bytes.
        timeout: in seconds, 0 for none.
        take: takes room for so many bytes, see `Room.share`.

    Raises:
        HttpError: 413 for a body over the limit, 408 for one that takes too long.
        RequestError: there is no room for it.
    """
    declared = int(request.headers.get("content-length") or 0)
    refusal: RequestError | None = _too_large(limit) if declared > limit else None
    if refusal and "expect" in request.headers:  # the client waits for leave to send
        raise refusal
    body = bytearray()
    try:
        async with asyncio.timeout(timeout or None):
            # What is refused is received all the same: a client that still sends sees no answer.
            async for chunk in request.stream():
                if refusal is None:
                    refusal = _add(body, chunk, limit, take)
    except TimeoutError as error:
        raise HttpError(408, f"the body of the request did not arrive within {timeout:g} s") from error
    if refusal:
        raise refusal
    return bytes(body)


def _add(body: bytearray, chunk: bytes, limit: int, take: Callable[[int], None]) -> RequestError | None:
    """Adds to a body; if that is refused, says why, and nothing of it is held any longer."""
    try:
        if len(body) + len(chunk) > limit:
            raise _too_large(limit)
        take(len(chunk))
    except RequestError as error:
        take(-len(body))
        body.clear()
        return error
    body += chunk
    return None


def inflate(body: bytes, limit: int) -> bytes:
    """Unpacks a gzipped body.

    Raises:
        HttpError: 413 for one that is over the limit when unpacked, 400 for one that isn't gzip.
    """
    unpacker = zlib.decompressobj(wbits=31)
    try:
        unpacked = unpacker.decompress(body, limit + 1)
    except zlib.error as error:
        raise HttpError(400, f"the body of the request is not valid gzip: {error}") from error
    if len(unpacked) > limit:
        raise _too_large(limit)
    if not unpacker.eof:
        raise HttpError(400, "the body of the request is truncated gzip")
    return unpacked


def _too_large(limit: int) -> HttpError:
    return HttpError(413, f"the body of the request is larger than {limit} bytes; send fewer instances")
