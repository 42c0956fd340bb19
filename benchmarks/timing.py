"""Times of things that do the same work, measured in turns so that all of them see the same machine."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["Times", "core_count", "measure"]


@dataclass(frozen=True)
class Times:
    """Medians of the rounds.

    Attributes:
        wall: seconds by the clock.
        cpu: seconds of all threads of this process, which other programs on the machine don't add to.
    """

    wall: float
    cpu: float


def measure(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Times]:
    """Calls each once in every round, after two rounds that don't count."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(2 + rounds):
        for name, call in calls.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    columns = {name: list(zip(*rows[2:], strict=True)) for name, rows in times.items()}
    return {name: Times(*map(statistics.median, column)) for name, column in columns.items()}


def core_count() -> int:
    """Cores that this process may use, which taskset may have made fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
