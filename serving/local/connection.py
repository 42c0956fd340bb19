"""A connection that gives up on a client that neither sends nor takes.

What waits here costs memory and a file descriptor but no thread, so that others are served meanwhile.
Bodies have a limit of their own, in `body`.
"""

from __future__ import annotations

import asyncio
import socket

from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["connection_class"]

UNSENT = 2**16  # bytes that the system may hold back for a client before it counts as taking none


def connection_class(patience: float) -> type[H11Protocol]:
    """Makes uvicorn's class of a connection.

    Args:
        patience: how long the headers of a request may take, and how long a client may take nothing of
            its answer, in seconds.
    """
    return type("Connection", (_Connection,), {"patience": patience})


class _Connection(H11Protocol):
    patience: float
    _late: asyncio.TimerHandle | None = None
    _stuck: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # so that `pause_writing` tells of the first byte left
        # Else the system's buffer of megabytes hides that a slow client takes some.
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)
        self._expect_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:  # else a request has begun
            self._expect_headers()
        else:
            self._stop_late()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_progress()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_stuck()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_late()
        self._stop_stuck()

    def _expect_headers(self) -> None:
        if self._late is None:  # bytes that trickle in don't prolong it
            self._late = self.loop.call_later(self.patience, self.transport.abort)

    def _expect_progress(self) -> None:
        left = self.transport.get_write_buffer_size()

        def look() -> None:
            if self.transport.get_write_buffer_size() < left:
                self._expect_progress()
            else:
                self.transport.abort()

        self._stuck = self.loop.call_later(self.patience, look)

    def _stop_late(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _stop_stuck(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None
