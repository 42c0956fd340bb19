"""Which version of a model is served: looks for versions, loads, swaps and unloads them.

A version goes through the states START, LOADING, AVAILABLE, UNLOADING and END. A new one is
loaded and warmed up in full while the old one serves; only then do requests go to the new one,
and the old one is unloaded when the last request it had begun has ended.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from serving.local.model import Model
from serving.local.status import RequestError

__all__ = ["Versions", "find_versions"]

log = logging.getLogger(__name__)


def find_versions(base_path: Path) -> list[int]:
    """Lists the versions in a folder: subfolders named by an integer, with a `saved_model.pb`."""
    return sorted(
        int(path.name)
        for path in base_path.iterdir()
        if path.name.isascii() and path.name.isdigit() and (path / "saved_model.pb").is_file()
    )


@dataclass
class _Version:
    number: int
    state: str = "START"
    error: RequestError | None = None
    model: Model | None = None
    running: int = 0  # requests
    fingerprint: object = field(default=None, repr=False)


class Versions:
    """The versions of one model, and the thread that watches their folder."""

    def __init__(
        self,
        name: str,
        base_path: Path,
        *,
        poll_seconds: float = 1.0,
        warmup_iterations: int = 1,
        on_load: Callable[[Path, bool], None] = lambda path, success: None,
    ) -> None:
        """Sets up; nothing is loaded until `start`.

        Args:
            name: of the model.
            base_path: folder of the versions.
            poll_seconds: time between two looks at the folder, in seconds; 0 for one look only.
            warmup_iterations: how often to run each warm-up request, 0 for no warm-up.
            on_load: told of each attempt to load a version, and whether it succeeded.
        """
        self.name = name
        self.base_path = base_path
        self._poll_seconds = poll_seconds
        self._warmup_iterations = warmup_iterations
        self._on_load = on_load
        self._versions: dict[int, _Version] = {}
        self._current: _Version | None = None
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"versions of {name}", daemon=True)
        self._warned = ""

    def start(self, on_first: Callable[[RequestError | None], None]) -> None:
        """Starts to watch the folder.

        Args:
            on_first: called once, from another thread, when a version is available (with None)
                or when all the folder's versions failed to load (with the last one's error).
        """
        self._on_first: Callable[[RequestError | None], None] | None = on_first
        self._thread.start()

    def stop(self) -> None:
        """Stops to watch the folder, after a load that is under way; what is loaded stays loaded."""
        self._stop.set()

    @contextlib.contextmanager
    def lease(self, version: int | None = None) -> Iterator[tuple[int, Model]]:
        """Lends a version, which won't be unloaded meanwhile.

        Args:
            version: its number, None for the latest that is available.

        Raises:
            RequestError: it isn't there.
        """
        with self._changed:
            found = self._current if version is None else self._versions.get(version)
            if found is None or found.model is None or found.state != "AVAILABLE":
                wanted = f"Latest({self.name})" if version is None else f"Specific({self.name}, {version})"
                raise RequestError(f"Servable not found for request: {wanted}", "NOT_FOUND")
            found.running += 1
        try:
            yield found.number, found.model
        finally:
            with self._changed:
                found.running -= 1
                self._changed.notify_all()

    def status(self, version: int | None = None) -> list[dict[str, object]]:
        """Tells the state of one version or of all, newest first, as `GET /v1/models/NAME` does.

        Raises:
            RequestError: it isn't there.
        """
        with self._changed:
            if version is not None and version not in self._versions:
                raise RequestError(f"Could not find version {version} of model {self.name}", "NOT_FOUND")
            if not self._versions:
                raise RequestError(f"Could not find any versions of model {self.name}", "NOT_FOUND")
            return [
                {
                    "version": str(one.number),
                    "state": one.state,
                    "status": {
                        "error_code": one.error.code if one.error else "OK",
                        "error_message": one.error.message if one.error else "",
                    },
                }
                for one in sorted(self._versions.values(), key=lambda one: -one.number)
                if version in (None, one.number)
            ]

    def _watch(self) -> None:
        while not self._stop.is_set():
            try:
                self._look()
            except Exception:  # files that vanish meanwhile; what is served goes on
                log.exception("looking for versions of %s in %s failed", self.name, self.base_path)
            if self._poll_seconds <= 0:
                return
            self._stop.wait(self._poll_seconds)

    def _look(self) -> None:
        try:
            numbers = find_versions(self.base_path)
        except OSError as error:
            self._warn(f"can't look for versions of {self.name} in {self.base_path}: {error}")
            return
        if not numbers:
            serving = f"; version {self._current.number} goes on serving" if self._current else ""
            self._warn(
                f"No versions of servable {self.name} found under base path {self.base_path}. "
                f"Did you forget to name your leaf directory as a number (eg. '/1/')?{serving}"
            )
            return
        self._warned = ""
        for number in reversed(numbers):
            if self._current and self._current.number == number:
                return
            if self._try(number):
                return
        if self._current is None:
            self._tell_first(self._versions[numbers[-1]].error)

    def _try(self, number: int) -> bool:
        """Loads a version and swaps to it, unless it failed before and its files are the same."""
        path = self.base_path / str(number)
        fingerprint = _fingerprint(path)
        known = self._versions.get(number)
        if known and known.error and known.fingerprint == fingerprint:
            return False
        version = _Version(number, "LOADING", fingerprint=fingerprint)
        with self._changed:
            self._versions[number] = version
        loaded = self._load(version, path)
        self._on_load(path, loaded)
        if not loaded:
            return False
        with self._changed:
            old, self._current = self._current, version
            version.state = "AVAILABLE"
        self._tell_first(None)
        if old is not None:
            self._unload(old)
        return True

    def _load(self, version: _Version, path: Path) -> bool:
        started = time.monotonic()
        log.info("loading version %d of %s from %s", version.number, self.name, path)
        model = None
        try:
            model = Model(path)
            warmed = model.warm_up(path, self._warmup_iterations) if self._warmup_iterations else 0
        except Exception as error:  # TensorFlow raises all kinds for broken files
            if model is not None:
                model.close()
            with self._changed:
                version.state, version.error = "END", _as_request_error(error)
            serving = f"version {self._current.number} goes on" if self._current else "nothing is served"
            log.error(
                "can't load version %d of %s from %s: %s; %s; mend or replace the folder",
                version.number,
                self.name,
                path,
                version.error,
                serving,
            )
            return False
        version.model = model
        log.info(
            "version %d of %s is available after %.1f s, %d warm-up requests",
            version.number,
            self.name,
            time.monotonic() - started,
            warmed,
        )
        return True

    def _unload(self, version: _Version) -> None:
        with self._changed:
            version.state = "UNLOADING"
            self._changed.wait_for(lambda: version.running == 0)
            model, version.model = version.model, None
        if model is not None:
            model.close()
        with self._changed:
            version.state = "END"
        log.info("version %d of %s is unloaded", version.number, self.name)

    def _tell_first(self, error: RequestError | None) -> None:
        tell, self._on_first = self._on_first, None
        if tell is not None:
            tell(error)

    def _warn(self, message: str) -> None:
        if message != self._warned:  # once, not every second
            log.warning("%s", message)
        self._warned = message


def _fingerprint(path: Path) -> object:
    """Tells two states of a version's files apart."""
    return sorted(
        (str(one.relative_to(path)), one.stat().st_size, one.stat().st_mtime_ns)
        for one in path.rglob("*")
        if one.is_file()
    )


def _as_request_error(error: Exception) -> RequestError:
    if isinstance(error, RequestError):
        return error
    return RequestError(f"{type(error).__name__}: {error}", "INTERNAL")
