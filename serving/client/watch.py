"""A folder into which a camera drops files: each is done once, whole, and as soon as it is there.

What counts is what lies in the folder; notices of the operating system only make it faster. So
nothing is missed that came before, while it started, in a burst, or over a network share that
sends no notices.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from watchfiles import watch
from watchfiles._rust_notify import WatchfilesRustInternalError

from serving.client.inputs import Input, Names, images_below, is_image
from serving.client.job import Job, Outcome
from serving.client.ordered import ordered_map
from serving.client.results import Results, Stamp
from serving.errors import ServerBusy, ServerError, ServingError

__all__ = ["Arrivals", "follow"]

log = logging.getLogger(__name__)

SETTLED = 0.5
"""Seconds for which a file must stay as it is before it is read."""

PATIENCE = 5.0
"""Seconds for which a file that can't be read must stay as it is before it is given up."""

RESCAN = 5.0
"""Seconds between two looks at the whole folder."""

LONGEST_WAIT = 15.0
"""Seconds between two tries of what failed; the first are 1, 2, 4 and 8 s apart."""

STRIKES = 5
"""A tile on which a server that is up, and not busy, failed so often is given up."""


@dataclass(frozen=True)
class _Candidate:
    stamp: Stamp
    since: float
    pause: float = 0.5
    not_before: float = float("-inf")


class Arrivals:
    """Files of a folder that wait to be done.

    Args:
        folder: searched to the bottom.
        is_done: whether a file was done as it is now.
        without: a folder that is left out.
        clock: seconds, growing steadily.
    """

    def __init__(
        self,
        folder: Path,
        is_done: Callable[[Path, Stamp], bool],
        *,
        without: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._is_done = is_done
        self._without = without
        self._clock = clock
        self._candidates: dict[Path, _Candidate] = {}
        self._unlisted: Set[str] = frozenset()

    def notice(self, paths: Iterable[Path]) -> None:
        """Takes files, and all in folders, that may be new."""
        for path in filter(self._is_ours, paths):
            if os.path.isdir(path):
                self._take(images_below(path, self._without, lambda _: None))  # the next look tells of it
            elif is_image(path):
                self._take([path])

    def look(self) -> None:
        """Takes all that lies in the folder; says once which folders can't be listed."""
        errors: list[OSError] = []
        self._take(images_below(self._folder, self._without, errors.append))
        unlisted = {
            error.filename: error.strerror
            for error in errors
            if error.errno != errno.ENOENT or Path(error.filename) == self._folder  # gone while it looked
        }
        for name in unlisted.keys() - self._unlisted:
            log.warning("can't look into %s: %s; images there have to wait", name, unlisted[name])
        self._unlisted = unlisted.keys()

    def ready(self) -> list[Path]:
        """Files that can be read now: nobody has written to them for a while, or will."""
        return [path for path in list(self._candidates) if self._is_ready(path)]

    def postpone(self, path: Path) -> None:
        """Leaves a file alone for a while, each time for longer, unless it changes; others come first."""
        candidate = self._candidates.pop(path)
        pause = min(2 * candidate.pause, LONGEST_WAIT)
        self._candidates[path] = replace(candidate, pause=pause, not_before=self._clock() + pause)

    def is_fresh(self, path: Path) -> bool:
        """Whether a file that can't be read may still become whole."""
        candidate = self._candidates.get(path)
        return candidate is not None and self._clock() - candidate.since < PATIENCE

    def _is_ours(self, path: Path) -> bool:
        """Whether a path is neither hidden nor one of the results."""
        hidden = any(part.startswith(".") for part in path.relative_to(self._folder).parts)
        return not hidden and not (self._without and path.resolve().is_relative_to(self._without.resolve()))

    def _take(self, paths: Iterable[Path]) -> None:
        for path in paths:
            if path not in self._candidates and (stamp := _stamp(path)) and not self._is_done(path, stamp):
                self._candidates[path] = _Candidate(stamp, self._clock())

    def _is_ready(self, path: Path) -> bool:
        stamp, candidate = _stamp(path), self._candidates[path]
        if stamp is None or self._is_done(path, stamp):
            del self._candidates[path]
            return False
        if stamp != candidate.stamp:
            self._candidates[path] = candidate = _Candidate(stamp, self._clock())
        if self._clock() < candidate.not_before:
            return False
        age = self._clock() - candidate.since
        if stamp.size == 0:
            return age >= PATIENCE
        return age >= SETTLED or _was_moved(path)


def follow(
    folder: Path, job: Job, results: Results, stop: threading.Event, *, concurrency: int = 4
) -> Iterator[Outcome]:
    """Does what lies in a folder, and what comes, until it is told to stop.

    While the server is down or busy it waits, and says so in the log.

    Args:
        folder: searched to the bottom, but for the folder of the results.
        job: does a file.
        results: know what is done, over restarts too.
        stop: ends it; what is begun is still done.
        concurrency: requests in flight.

    Yields:
        What became of each file, once it is recorded.

    Raises:
        ServingError: the folder can't be watched, or the results can't be written.
    """
    arrivals = Arrivals(folder, results.is_known, without=results.folder)
    names, strikes = Names(results.names), Counter[Path]()
    looked, pause = float("-inf"), 0.0
    for changed in _changes(folder, stop):
        arrivals.notice(changed)
        if time.monotonic() - looked >= RESCAN:
            arrivals.look()
            looked = time.monotonic()
        inputs = [Input(path, names.of(path, path.relative_to(folder))) for path in arrivals.ready()]
        if not inputs or not _await_server(job, stop):
            continue
        is_busy = False
        for one, outcome in zip(inputs, _round(job, inputs, stop, concurrency), strict=True):
            if isinstance(outcome, ServerError):
                is_busy |= isinstance(outcome, ServerBusy)
                strikes[one.path] += not isinstance(outcome, ServerBusy)
                if strikes[one.path] < STRIKES:
                    log.warning("%s: %s; will try again", one.path, outcome)
                    arrivals.postpone(one.path)
                    continue
                outcome = Outcome(one, f"given up after {STRIKES} tries: {outcome}", stamp=_stamp(one.path))
            if outcome is None or (outcome.is_unreadable and arrivals.is_fresh(one.path)):
                continue
            del strikes[one.path]
            job.record(outcome)
            yield outcome
        pause = min(2 * pause or 1.0, LONGEST_WAIT) if is_busy else 0.0
        stop.wait(pause)


def _round(
    job: Job, inputs: list[Input], stop: threading.Event, concurrency: int
) -> Iterator[Outcome | ServerError | None]:
    """What becomes of each file; None for those not begun, once told to stop or once the server fails."""
    failed = threading.Event()

    def attempt(one: Input) -> Outcome | ServerError | None:
        if stop.is_set() or failed.is_set():
            return None
        try:
            outcome = job.do(one)
        except ServerError as error:
            failed.set()
            return error
        return ServerError(outcome.error) if outcome.may_pass else outcome

    return ordered_map(attempt, inputs, concurrency)


def _await_server(job: Job, stop: threading.Event) -> bool:
    """Waits until the server has a version of the model ready; False if it is told to stop before."""
    pause, was_down = 1.0, False
    while not stop.is_set():
        try:
            job.look_up()
        except ServerError as error:
            if not was_down:
                log.warning("waiting: %s", error)
            was_down = True
            stop.wait(pause)
            pause = min(2 * pause, LONGEST_WAIT)
        else:
            if was_down:
                log.warning("the server answers again")
            return True
    return False


def _changes(folder: Path, stop: threading.Event) -> Iterator[list[Path]]:
    """Yields paths that have changed, and nothing at least twice a second, until it is told to stop."""
    if not os.path.isdir(folder):
        raise ServingError(f"no folder {folder} to watch")
    try:
        yield from _notices(folder, stop)
    except (OSError, WatchfilesRustInternalError) as error:
        log.warning("no notices of changes in %s (%s); looking at it over and over", folder, error)
        yield from _notices(folder, stop, force_polling=True)


def _notices(folder: Path, stop: threading.Event, **options: Any) -> Iterator[list[Path]]:
    real = folder.resolve()  # what notices of macOS name
    for changes in watch(
        real,
        watch_filter=None,
        debounce=int(1000 * SETTLED),
        rust_timeout=int(1000 * SETTLED),
        yield_on_timeout=True,
        stop_event=stop,
        ignore_permission_denied=True,
        **options,
    ):
        yield [folder / Path(path).relative_to(real) for _, path in changes]


def _stamp(path: Path) -> Stamp | None:
    try:
        return Stamp.of(path)
    except OSError:  # gone again
        return None


def _was_moved(path: Path) -> bool:
    """Whether a file came into place whole: its last change was one of its name, not of its contents."""
    try:
        status = path.stat()
    except OSError:
        return False
    return status.st_ctime_ns > status.st_mtime_ns
