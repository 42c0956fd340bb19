"""Work on many items at once, results in the order of the items, memory flat."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["ordered_map"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """`map` with threads that never runs far ahead of whoever takes the results.

    At most twice as many items as workers are taken before their results are asked for: one
    lot in work, one waiting, so that a slow item does not leave the other workers idle.

    Raises:
        Exception: what the function raises, in its place, once the items in work are done; those
            after them are not begun.
    """
    executor = ThreadPoolExecutor(workers, thread_name_prefix="tile")
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(executor.submit(function, item))
            if len(pending) >= 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except Exception:
        executor.shutdown(cancel_futures=True)  # what is in work must not write once the error is out
        raise
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
