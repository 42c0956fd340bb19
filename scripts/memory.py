"""How much memory a process takes, from many looks at it."""

from __future__ import annotations

import os
import statistics
from urllib.parse import urlsplit

import psutil

__all__ = ["Memory", "process_at"]

MB = 2**20


class Memory:
    """Looks at the memory of a process, by default this one."""

    def __init__(self, process: psutil.Process | None = None) -> None:
        self._process = process or psutil.Process()
        self._looks: list[float] = []

    def look(self) -> None:
        """Notes the memory now.

        Raises:
            psutil.NoSuchProcess: the process has ended.
        """
        self._looks.append(self._process.memory_info().rss / MB)

    @property
    def peak(self) -> float:
        """The most of all looks, in MB."""
        return max(self._looks)

    @property
    def growth(self) -> float:
        """Median of the last quarter of the looks less that of the second, in MB.

        In the first, buffers and caches get their size.
        """
        quarter = max(1, len(self._looks) // 4)
        return statistics.median(self._looks[-quarter:]) - statistics.median(
            self._looks[quarter : 2 * quarter] or self._looks
        )

    def __str__(self) -> str:
        return f"{self._looks[-1]:.0f} MB, at most {self.peak:.0f}, growth {self.growth:+.0f}"


def process_at(url: str) -> psutil.Process:
    """The process of this machine that listens at a URL, among those that this one has started.

    Raises:
        LookupError: if there is none.
    """
    port = urlsplit(url).port
    for process in psutil.Process(os.getpid()).children(recursive=True):
        listening = (one for one in process.net_connections("tcp") if one.status == psutil.CONN_LISTEN)
        if any(one.laddr.port == port for one in listening):
            return process
    raise LookupError(f"no process that was started here listens at {url}")
