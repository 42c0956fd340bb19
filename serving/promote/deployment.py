"""The folder that servers poll: versions come and go whole, and one process at a time changes it.

deploy/magnetic-tiles/20261124080000/     a version, with its blessing in assets.extra/blessing.json
deploy/.magnetic-tiles/                   who may change it, what is under way, versions rolled back;
                                          within the folder of the versions, if that is a disk of its own
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from serving.errors import ConfigError
from serving.fingerprint import BLESSING

__all__ = ["Deployment"]

log = logging.getLogger(__name__)


class Deployment:
    """A serving folder; all but `locked` is for who holds the lock.

    Args:
        base_path: folder of the versions; made if it is missing.
    """

    def __init__(self, base_path: Path) -> None:
        self.base_path = base_path
        # On the disk of the versions: what is moved from here is there in one step.
        place = base_path if base_path.is_mount() else base_path.parent
        self._hidden = place / f".{base_path.name}"
        self._withdrawn = self._hidden / "withdrawn"
        self._journal = self._hidden / "rollback.json"
        self._scratch = self._hidden

    @contextlib.contextmanager
    def locked(self) -> Iterator[Path]:
        """Waits until no other process changes the folder, and yields a scratch folder.

        Raises:
            ConfigError: it can't be written.
        """
        try:
            self.base_path.mkdir(parents=True, exist_ok=True)
            self._withdrawn.mkdir(parents=True, exist_ok=True)
            lock = (self._hidden / "lock").open("w")
        except OSError as error:
            raise ConfigError(f"can't write {self.base_path}: {error.strerror}") from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.warning("another process changes %s; waiting for it", self.base_path)
                fcntl.flock(lock, fcntl.LOCK_EX)
            for leftover in self._hidden.glob("scratch-*"):  # of a process that was killed
                shutil.rmtree(leftover)
            with tempfile.TemporaryDirectory(prefix="scratch-", dir=self._hidden) as scratch:
                self._scratch = Path(scratch)
                yield self._scratch

    @property
    def is_private(self) -> bool:
        """Whether none but its owner can read the folder, and so the versions."""
        return not self.base_path.stat().st_mode & 0o055

    def versions(self) -> list[int]:
        """Numbers of the versions that servers see, ascending."""
        paths = self.base_path.glob("*/saved_model.pb")
        return sorted(int(path.parent.name) for path in paths if path.parent.name.isdecimal())

    def blessing(self, number: int) -> dict[str, Any]:
        """Why a version is served; empty if it was put there by other means."""
        return _read_json(self.base_path / str(number) / BLESSING)

    def put(self, folder: Path, number: int, blessing: Mapping[str, Any]) -> None:
        """Moves a version from the scratch folder to where servers see it, or blesses the one there anew.

        Who may list the serving folder may read the version, whatever umask it was copied with.
        """
        target = self.base_path / str(number)
        version = target if target.exists() else folder
        self._write_json(version / BLESSING, blessing)
        for path in (version, *version.rglob("*")):
            self._share(path)
        if version != target:
            os.replace(version, target)

    def withdraw(self, number: int) -> None:
        """Takes a version from where servers see it, if it is there; it is kept aside."""
        version, aside = self.base_path / str(number), self._withdrawn / str(number)
        if version.exists():
            if aside.exists():  # from a rollback before, copied back by hand
                os.replace(aside, self._scratch / f"old-{number}")
            os.replace(version, aside)

    def withdrawn(self, number: int) -> Path | None:
        """Where a version lies that was rolled back; None if it was not."""
        path = self._withdrawn / str(number)
        return path if path.exists() else None

    def remove_all_but(self, kept: Collection[int | None]) -> list[int]:
        """Deletes versions and returns their numbers."""
        removed = [number for number in self.versions() if number not in kept]
        for number in removed:
            os.replace(self.base_path / str(number), self._scratch / f"old-{number}")
        return removed

    def begin_rollback(self, journal: Mapping[str, Any]) -> None:
        """Notes what is to be done, so that it can be finished if this process is killed."""
        self._write_json(self._journal, journal)

    def pending_rollback(self) -> dict[str, Any]:
        """What `begin_rollback` noted; empty if all is done."""
        return _read_json(self._journal)

    def end_rollback(self) -> None:
        """All is done."""
        self._journal.unlink()

    def _share(self, path: Path) -> None:
        """Gives a path the group and the permissions of the serving folder, though not for all to write."""
        status = self.base_path.stat()
        mode = stat.S_IMODE(status.st_mode) & (0o2775 if path.is_dir() else 0o664)
        with contextlib.suppress(OSError):  # of a group to which who promotes doesn't belong
            os.chown(path, -1, status.st_gid)
        with contextlib.suppress(OSError):  # a file system without permissions
            path.chmod(mode)

    def _write_json(self, path: Path, document: Mapping[str, Any]) -> None:
        draft = self._scratch / "document.json"
        try:
            with draft.open("w", encoding="utf-8") as file:
                file.write(json.dumps(document, indent=2) + "\n")
                file.flush()
                os.fsync(file.fileno())  # else the machine can stop with a file that is there and empty
            self._share(draft)
            os.replace(draft, path)
        except OSError as error:
            raise ConfigError(f"can't write {self.base_path}: {error.strerror}") from error


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"can't read {path}: {error}; mend or delete it") from error
    return document
