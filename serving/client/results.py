"""A folder of results that a killed run leaves complete as far as it came, and the next run goes on with.

`results.jsonl` is the truth: a line is added for each image once its pictures are written.
`results.csv`, a row per defect, is made of it. Both are tidied when the folder is opened, and closed
if an image was done again: one line per image, in the order in which images first came.
"""

from __future__ import annotations

import csv
import errno
import fcntl
import io
import json
import os
import sys
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from serving.client.outputs import COLUMNS, COLUMNS_MM, NO_NAME, as_rows, picture_paths, replacing
from serving.errors import ServingError

__all__ = ["JOURNAL", "TABLE", "Results", "Stamp"]

JOURNAL, TABLE = "results.jsonl", "results.csv"


@dataclass(frozen=True)
class Stamp:
    """What tells a file from its earlier self.

    Attributes:
        size: bytes.
        modified: nanoseconds since 1970.
    """

    size: int
    modified: int

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """Stamp of a file as it is now.

        Raises:
            OSError: if there is none.
        """
        status = path.stat()
        return cls(status.st_size, status.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class _Entry:
    """Where the line of an image lies, and what it was made of."""

    offset: int
    length: int
    stamp: Stamp
    settings: str
    name: str
    failed: bool


class Results:
    """Results in a folder, for one process at a time. It keeps some 0.5 kB per image in memory.

    A line is a document with `image` (as the user wrote it), `source` (path, size and time of the
    file) and `settings` (of the request), and either `error` or what `as_json` gives, `threshold`,
    and the paths of the pictures relative to the folder.

    Args:
        folder: made if it is missing.
        in_mm: whether the table has columns in millimetres.

    Raises:
        ServingError: the folder can't be written to, another run uses it, or its
            results.jsonl is another program's.
    """

    def __init__(self, folder: Path, *, in_mm: bool = False) -> None:
        self.folder = folder
        self._in_mm = in_mm
        self._entries: dict[str, _Entry] = {}
        self._is_tidy = False
        self._lock: int | None = None
        self._journal: FileIO | None = None
        try:
            self._open()
        except BaseException:
            self._release()
            raise

    @property
    def names(self) -> dict[str, str]:
        """Name of the results of each image, by absolute path."""
        return {key: entry.name for key, entry in self._entries.items() if entry.name}

    def is_known(self, path: Path, stamp: Stamp) -> bool:
        """Whether a file was done as it is now, whatever became of it and with whatever settings."""
        entry = self._entries.get(os.path.abspath(path))
        return entry is not None and entry.stamp == stamp

    def done(self, path: Path, stamp: Stamp, settings: dict[str, Any]) -> dict[str, Any] | None:
        """The document of a file if it needs not be done again. Safe to call from any thread."""
        entry = self._entries.get(os.path.abspath(path))
        if entry is None or entry.failed or entry.stamp != stamp or entry.settings != json.dumps(settings):
            return None
        if not all((self.folder / picture).is_file() for picture in picture_paths(entry.name).values()):
            return None
        return self._read(entry)

    def add(
        self, path: Path, name: str, stamp: Stamp, settings: dict[str, Any], document: dict[str, Any]
    ) -> None:
        """Adds the outcome of an image; it takes the place of an earlier one.

        Args:
            path: of the image.
            name: of its results.
            stamp: of the file that was read.
            settings: of the request.
            document: `image`, and `error` or the rest.

        Raises:
            ServingError: if the disk refuses.
        """
        key = os.path.abspath(path)
        source = {"path": key, "name": name, "size": stamp.size, "modified": stamp.modified}
        document = {**document, "source": source, "settings": settings}
        line = _line(document)
        rows = io.StringIO()
        csv.writer(rows).writerows(as_rows(document, in_mm=self._in_mm))
        try:
            if "error" in document:
                self._drop_pictures(name)
            self._is_tidy &= key not in self._entries
            offset = self._file.seek(0, os.SEEK_END)
            self._append(line, offset)
            with _text_file(self.folder / TABLE, "a") as table:
                table.write(rows.getvalue())
        except OSError as error:
            self._is_tidy = False
            raise ServingError(
                f"can't write {self.folder / JOURNAL}: {error.strerror or error}; "
                "run it again once that is mended: it goes on where it stopped"
            ) from error
        self._entries[key] = _entry(document, offset, len(line))

    def close(self) -> None:
        """Ends: leaves one line per image."""
        try:
            if not self._is_tidy:
                self._tidy()
        finally:
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:  # the next run tidies up
            self._release()

    def _open(self) -> None:
        if os.path.exists(self.folder) and not os.path.isdir(self.folder):
            raise ServingError(f"can't write {self.folder}: it is a file; name a folder with --out")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.folder, os.O_RDONLY)
            self._keep_others_out(self._lock)
            self._journal = FileIO(self.folder / JOURNAL, "a+")
        except OSError as error:
            raise ServingError(f"can't write {self.folder}: {error.strerror or error}") from error
        self._load()
        self._tidy()

    def _keep_others_out(self, lock: int) -> None:
        """Locks the folder for as long as this process lives, where the file system has locks."""
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ServingError(
                f"another run writes to {self.folder}; wait for it, or name another --out"
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL):
                raise

    def _release(self) -> None:
        if self._journal is not None:
            self._journal.close()
        if self._lock is not None:
            os.close(self._lock)
        self._journal = self._lock = None

    def _load(self) -> None:
        offset = 0
        with (self.folder / JOURNAL).open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.endswith(b"\n"):
                    break  # what a killed run was writing
                try:
                    document = json.loads(line)
                    self._entries[document["source"]["path"]] = _entry(document, offset, len(line))
                except (ValueError, KeyError, TypeError) as error:
                    raise ServingError(
                        f"line {number} of {self.folder / JOURNAL} is none of this program's; "
                        "name another --out"
                    ) from error
                offset += len(line)

    def _tidy(self) -> None:
        """Writes journal and table anew."""
        entries: dict[str, _Entry] = {}
        journal, table = self.folder / JOURNAL, self.folder / TABLE
        with (
            replacing(table) as table_part,
            replacing(journal) as journal_part,
            journal_part.open("wb") as lines,
            _text_file(table_part, "w") as rows,
        ):
            writer = csv.writer(rows)
            writer.writerow((*COLUMNS, *(COLUMNS_MM if self._in_mm else ())))
            for key, entry in self._entries.items():
                document = self._read(entry)
                line = _line(document)
                entries[key] = _entry(document, lines.tell(), len(line))
                lines.write(line)
                writer.writerows(as_rows(document, in_mm=self._in_mm))
        old, self._journal = self._file, FileIO(journal, "a+")
        old.close()
        self._entries = entries
        self._is_tidy = True

    @property
    def _file(self) -> FileIO:
        if self._journal is None:
            raise ValueError(f"{self.folder} is closed")
        return self._journal

    def _read(self, entry: _Entry) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(os.pread(self._file.fileno(), entry.length, entry.offset))
        return document

    def _append(self, line: bytes, offset: int) -> None:
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            self._file.truncate(offset)  # half a line must not stay
            raise

    def _drop_pictures(self, name: str) -> None:
        """Removes what an earlier, sound file of this name has left."""
        for picture in picture_paths(name).values():
            try:
                (self.folder / picture).unlink()
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR, *NO_NAME):
                    raise


def _entry(document: dict[str, Any], offset: int, length: int) -> _Entry:
    source = document["source"]
    stamp = Stamp(int(source["size"]), int(source["modified"]))
    settings = sys.intern(json.dumps(document["settings"]))  # mostly the same
    return _Entry(offset, length, stamp, settings, source["name"], "error" in document)


def _line(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode() + b"\n"


def _text_file(path: Path, mode: str) -> IO[str]:
    return path.open(mode, encoding="utf-8", errors="surrogateescape", newline="")  # names may hold any bytes
