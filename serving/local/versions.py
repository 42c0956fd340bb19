"""Which versions of a model are served: looks for versions, loads, swaps and unloads them.

A version goes through the states START, LOADING, AVAILABLE, UNLOADING and END. A new one is
loaded and warmed up in full while the old ones serve; only then do requests go to the new one,
and one that is no longer wanted is unloaded when the last request it had begun has ended.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from serving.local.batching import Batcher
from serving.local.config import ModelConfig
from serving.local.model import Model
from serving.local.status import RequestError

__all__ = ["Loading", "Versions", "find_versions"]

log = logging.getLogger(__name__)


def find_versions(base_path: Path) -> dict[int, Path]:
    """Lists the versions in a folder: subfolders named by an integer, with a `saved_model.pb`.

    One that may not be looked into counts, as it does for TensorFlow Serving: loading it says why it can't
    be served. Zeros may lead; of folders with the same number, `1` goes before `01`.

    Raises:
        OSError: the folder can't be listed.
    """
    return {
        int(path.name): path
        for path in sorted(base_path.iterdir())
        if path.name.isascii() and path.name.isdigit() and _has_model(path)
    }


def _has_model(version: Path) -> bool:
    try:
        return (version / "saved_model.pb").is_file()
    except PermissionError:
        return True


@dataclass(frozen=True)
class Loading:
    """How versions are looked for and loaded.

    Attributes:
        poll_seconds: time between two looks at the folder, in seconds; 0 for one look only.
        warmup_iterations: how often to run each warm-up request, 0 for no warm-up.
        batcher: runs the requests; None for each on its own.
        mixed_precision: "bfloat16" or "", see `Model`.
        on_load: told of each attempt to load a version, and whether it succeeded.
    """

    poll_seconds: float = 1.0
    warmup_iterations: int = 1
    batcher: Batcher | None = None
    mixed_precision: str = ""
    on_load: Callable[[Path, bool], None] = lambda path, success: None


@dataclass
class _Version:
    number: int
    state: str = "START"
    error: RequestError | None = None
    model: Model | None = None
    running: int = 0  # requests
    fingerprint: object = field(default=None, repr=False)


class Versions:
    """The versions of one model, and the thread that watches their folder.

    Attributes:
        first: done when all versions that are wanted have been loaded once; has the newest one's error
            when all of them failed.
    """

    def __init__(self, config: ModelConfig, loading: Loading) -> None:
        """Sets up; nothing is loaded until `start`."""
        self.name = config.name
        self.first: Future[None] = Future()
        self._config = config
        self._loading = loading
        self._versions: dict[int, _Version] = {}
        self._changed = threading.Condition()
        self._look_now = threading.Event()
        self._stopped = False
        self._thread = threading.Thread(target=self._watch, name=f"versions of {self.name}", daemon=True)
        self._warned = ""

    def start(self) -> None:
        """Starts to watch the folder."""
        self._thread.start()

    def update(self, config: ModelConfig) -> None:
        """Serves by another folder or policy from now on; a look at it begins at once."""
        if config != self._config:
            self._config = config
            self._look_now.set()

    def stop(self) -> None:
        """Stops to watch the folder, after a load that is under way; what is loaded stays loaded."""
        self._stopped = True
        self._look_now.set()

    @contextlib.contextmanager
    def lease(self, version: int | None = None) -> Iterator[tuple[int, Model]]:
        """Lends a version, which won't be unloaded meanwhile.

        Args:
            version: its number, None for the latest that is available.

        Raises:
            RequestError: it isn't there.
        """
        with self._changed:
            number = max(self._available(), default=-1) if version is None else version
            found = self._versions.get(number)
            if found is None or found.model is None or found.state != "AVAILABLE":
                raise not_found(self.name, version)
            found.running += 1
        try:
            yield found.number, found.model
        finally:
            with self._changed:
                found.running -= 1
                self._changed.notify_all()

    def is_available(self, version: int) -> bool:
        """Whether a version is served now."""
        return version in self._available()

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

    def _available(self) -> list[int]:
        return [one.number for one in list(self._versions.values()) if one.state == "AVAILABLE"]

    def _watch(self) -> None:
        while not self._stopped:
            self._look_now.clear()
            try:
                self._look(self._config)
            except Exception:  # files that vanish meanwhile; what is served goes on
                log.exception("looking for versions of %s in %s failed", self.name, self._config.base_path)
            self._look_now.wait(self._loading.poll_seconds or None)

    def _look(self, config: ModelConfig) -> None:
        try:
            paths = find_versions(config.base_path)
        except OSError as error:
            self._warn(f"can't look for versions of {self.name} in {config.base_path}: {error}")
            return
        self._warn(_missing(config, paths))
        wanted = [one for one in sorted(paths, reverse=True) if config.only is None or one in config.only]
        served: list[int] = []
        for number in wanted:
            if len(served) != config.newest and (
                self.is_available(number) or self._try(paths[number], number)
            ):
                served.append(number)
        if wanted:
            self._tell_first(None if served else self._versions[wanted[0]].error)
        if wanted and not served:
            return  # rather what was served before than nothing
        for number in self._available():
            if number not in served:
                self._unload(self._versions[number])

    def _try(self, path: Path, number: int) -> bool:
        """Loads a version, unless it failed before and its files are the same."""
        fingerprint = _fingerprint(path)
        known = self._versions.get(number)
        if known and known.error and known.fingerprint == fingerprint:
            return False
        version = _Version(number, "LOADING", fingerprint=fingerprint)
        with self._changed:
            self._versions[number] = version
        loaded = self._load(version, path)
        self._loading.on_load(path, loaded)
        return loaded

    def _load(self, version: _Version, path: Path) -> bool:
        started = time.monotonic()
        log.info("loading version %d of %s from %s", version.number, self.name, path)
        model = None
        iterations = self._loading.warmup_iterations
        try:
            # If that isn't permitted, TensorFlow would say that there is none.
            (path / "saved_model.pb").stat()
            model = Model(path, self._loading.batcher, mixed_precision=self._loading.mixed_precision)
            warmed = model.warm_up(path, iterations) if iterations else 0
        except Exception as error:  # TensorFlow raises all kinds for broken files
            if model is not None:
                model.close()
            with self._changed:
                version.state, version.error = "END", _as_request_error(error)
            others = ", ".join(map(str, sorted(self._available())))
            log.error(
                "can't load version %d of %s from %s: %s; %s; mend or replace the folder",
                version.number,
                self.name,
                path,
                version.error,
                f"version {others} goes on" if others else "nothing is served",
            )
            return False
        with self._changed:
            version.model, version.state = model, "AVAILABLE"
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
        if self.first.done():
            return
        if error is None:
            self.first.set_result(None)
        else:
            self.first.set_exception(error)

    def _warn(self, message: str) -> None:
        if message and message != self._warned:  # once, not every second
            log.warning("%s", message)
        self._warned = message


def not_found(name: str, version: int | None) -> RequestError:
    """What a request for a model or version that isn't served gets."""
    wanted = f"Latest({name})" if version is None else f"Specific({name}, {version})"
    return RequestError(f"Servable not found for request: {wanted}", "NOT_FOUND")


def _missing(config: ModelConfig, numbers: Collection[int]) -> str:
    """What is to be said of versions that aren't in the folder."""
    if config.only is not None:
        return "; ".join(
            f"Version {one} of servable {config.name}, which was requested to be served as a 'specific' "
            "version in the servable's version policy, was not found in the file system"
            for one in sorted(config.only.difference(numbers))
        )
    if numbers:
        return ""
    return (
        f"No versions of servable {config.name} found under base path {config.base_path}. "
        "Did you forget to name your leaf directory as a number (eg. '/1/')?"
    )


def _fingerprint(path: Path) -> object:
    """Tells two states of a version's files apart, their permissions too."""
    with contextlib.suppress(PermissionError):
        return sorted(
            (str(one.relative_to(path)), one.stat().st_size, one.stat().st_ctime_ns)
            for one in path.rglob("*")
            if one.is_file()
        )
    return None


def _as_request_error(error: Exception) -> RequestError:
    if isinstance(error, RequestError):
        return error
    return RequestError(f"{type(error).__name__}: {error}", "INTERNAL")
