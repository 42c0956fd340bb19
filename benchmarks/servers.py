"""The servers that `benchmarks.end_to_end` compares, each in its own process, and bytes on the wire."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from benchmarks.models import NAME
from serving.up import free_port, running_server

__all__ = ["counted", "embedded", "module"]

START_SECONDS = 120.0


@contextlib.contextmanager
def embedded(base_path: Path, *flags: str) -> Iterator[tuple[int, psutil.Process]]:
    """Runs `serving.local`; yields its port and its process."""
    port, before = free_port(), set(psutil.Process().children())
    with running_server(base_path, NAME, port, "embedded", flags=flags):
        [process] = set(psutil.Process().children()) - before
        yield port, process


@contextlib.contextmanager
def module(name: str, base_path: Path) -> Iterator[tuple[int, psutil.Process]]:
    """Runs `python -m NAME BASE_PATH PORT`; yields its port and its process."""
    port = free_port()
    with subprocess.Popen([sys.executable, "-m", name, str(base_path), str(port)]) as process:
        try:
            deadline = time.monotonic() + START_SECONDS
            while not _listens(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{name} did not start")
                time.sleep(0.1)
            yield port, psutil.Process(process.pid)
        finally:
            process.terminate()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def counted(port: int) -> Iterator[tuple[int, list[int]]]:
    """Passes connections on to a port; yields a port of its own, and the bytes so far to and from there."""
    counts = [0, 0]

    def pass_on(source: socket.socket, sink: socket.socket, direction: int) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(2**16):
                counts[direction] += len(chunk)
                sink.sendall(chunk)
            sink.shutdown(socket.SHUT_WR)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                near, far = listener.accept()[0], socket.create_connection(("127.0.0.1", port))
                for sides in ((near, far, 0), (far, near, 1)):
                    threading.Thread(target=pass_on, args=sides, daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1], counts
