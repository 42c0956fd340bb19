"""Receives the body of a request: at most so many bytes, within so many seconds, gzipped or not."""

from __future__ import annotations

import asyncio
import zlib

from starlette.requests import Request

from serving.local.status import HttpError

__all__ = ["inflate", "read_body"]


async def read_body(request: Request, limit: int, timeout: float) -> bytes:
    """Receives the body.

    Args:
        request: its body not yet read.
        limit: largest size that is accepted, in bytes.
        timeout: in seconds, 0 for none.

    Raises:
        HttpError: 413 for a body over the limit, 408 for one that takes too long.
    """
    declared = int(request.headers.get("content-length") or 0)
    if declared > limit and "expect" in request.headers:  # the client waits for leave to send
        raise _too_large(limit)
    body = bytearray()
    size = 0
    try:
        async with asyncio.timeout(timeout or None):
            # What is too large is received all the same: a client that still sends sees no answer.
            async for chunk in request.stream():
                size += len(chunk)
                if max(size, declared) <= limit:
                    body += chunk
    except TimeoutError as error:
        raise HttpError(408, f"the body of the request did not arrive within {timeout:g} s") from error
    if size > limit:
        raise _too_large(limit)
    return bytes(body)


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
