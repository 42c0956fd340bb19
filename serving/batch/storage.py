"""A folder on this machine or in an object store, through Arrow's file systems."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from serving.client.inputs import images_below, is_image
from serving.client.outputs import replacing
from serving.errors import ImageError, ServingError
from serving.preprocessing import MAX_BYTES, read_file

__all__ = ["IMAGES", "Folder"]

IMAGES = pa.schema([("image", pa.string()), ("size", pa.int64()), ("modified", pa.int64())])
"""Path relative to the folder; size in bytes and time in ns since 1970 tell a file from its earlier self."""


@dataclass(frozen=True)
class Folder:
    """A folder, named by a path or a URL as `s3://bucket/folder`. It can be sent to other processes.

    A file appears whole or not at all. Credentials and endpoint of an object store come from the
    environment (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL` and so on).

    Attributes:
        url: absolute path, or URL.
    """

    url: str

    @classmethod
    def of(cls, place: str) -> Folder:
        """Makes one of what a user has written.

        Raises:
            ServingError: the URL is none, has more than a path, or is of a store that Arrow has no access to.
        """
        if "://" in place and ("?" in place or "#" in place):  # names are put behind it
            raise ServingError(
                f"can't use {place}: leave out what begins with ? or #; region and endpoint are set in the "
                "environment (AWS_DEFAULT_REGION, AWS_ENDPOINT_URL)"
            )
        folder = cls(place.rstrip("/") if "://" in place else os.path.abspath(place))
        with _explained("use", place):
            folder._at("")
        return folder

    @property
    def is_local(self) -> bool:
        return "://" not in self.url

    def contains(self, other: Folder) -> bool:
        """Whether a folder is this folder, or lies in it, however the two are spelled."""
        return f"{other._place}/".startswith(f"{self._place.rstrip('/')}/")

    def images(self, without: Folder) -> pa.Table:
        """Images in it and in all folders below it, sorted, but no hidden ones.

        Args:
            without: a folder that is left out.

        Returns:
            Rows of `IMAGES`.

        Raises:
            ServingError: it can't be listed, or has no image.
        """
        with _explained("list", self.url):
            skipped = os.path.relpath(without._place, self._place) if self.contains(without) else None
            rows = sorted(self._local_images(skipped) if self.is_local else self._remote_images(skipped))
        if not rows:
            raise ServingError(f"no images in {self.url}")
        return pa.table(list(map(pa.array, zip(*rows, strict=True))), schema=IMAGES)

    def files(self) -> list[str]:
        """Relative paths of all files in it, sorted; none if it isn't there.

        Raises:
            ServingError: it can't be listed.
        """
        with _explained("list", self.url):
            return sorted(self._relative(info) for info in self._walk(allow_not_found=True))

    def read(self, name: str) -> bytes:
        """Reads a file of a relative path.

        Raises:
            FileNotFoundError: there is none.
            ServingError: it can't be read.
        """
        with _explained("read", f"{self.url}/{name}"):
            system, path = self._at(name)
            with system.open_input_stream(path) as stream:
                data: bytes = stream.read()
                return data

    def read_image(self, name: str) -> bytes:
        """Reads the file of an image, up to the limit of `serving.preprocessing`.

        Raises:
            ImageError: it can't be read, or is too large.
        """
        if self.is_local:
            return read_file(Path(self.url, name))
        try:
            system, path = self._at(name)
            with system.open_input_stream(path) as stream:
                data: bytes = stream.read(MAX_BYTES + 1)
        except (OSError, pa.ArrowException) as error:
            raise ImageError(f"can't be read: {error}") from error
        if len(data) > MAX_BYTES:
            raise ImageError(f"over the limit of {MAX_BYTES // 1_000_000} MB; send one tile per image")
        return data

    def write(self, name: str, data: bytes) -> None:
        """Writes a file of a relative path, in place of an earlier one.

        Raises:
            ImageError: no file can have such a name.
            ServingError: it can't be written.
        """
        with _explained("write", f"{self.url}/{name}"):
            if self.is_local:
                with replacing(Path(self.url, name)) as part:
                    part.write_bytes(data)
            else:
                system, path = self._at(name)
                with system.open_output_stream(path) as stream:  # seen once it is closed
                    stream.write(data)

    def remove(self, name: str) -> None:
        """Removes a file of a relative path, if it is there.

        Raises:
            ServingError: it can't be removed.
        """
        with _explained("remove", f"{self.url}/{name}"):
            system, path = self._at(name)
            with suppress(FileNotFoundError):
                system.delete_file(path)

    @property
    def _place(self) -> str:
        """The same for each spelling of the folder, with links or escapes."""
        system, path = self._at("")
        return (
            os.path.realpath(path or "/") if system.type_name == "local" else f"{system.type_name}://{path}"
        )

    def _at(self, name: str) -> tuple[fs.FileSystem, str]:
        if name and posixpath.normpath(name) != name:  # a key may have it, but names another file elsewhere
            raise pa.ArrowInvalid(f"empty part, . or .. in {name}")
        if self.is_local:
            system, root = fs.LocalFileSystem(), self.url
        else:
            system, root = fs.FileSystem.from_uri(self.url)
        return system, f"{root}/{name}".rstrip("/")

    def _walk(self, *, allow_not_found: bool) -> Iterator[fs.FileInfo]:
        system, root = self._at("")
        selector = fs.FileSelector(root, allow_not_found=allow_not_found, recursive=True)
        return (info for info in system.get_file_info(selector) if info.is_file)

    def _relative(self, info: fs.FileInfo) -> str:
        path: str = info.path
        return path[len(self._at("")[1]) + 1 :]

    def _remote_images(self, skipped: str | None) -> Iterator[tuple[str, int, int]]:
        for info in self._walk(allow_not_found=False):
            name = self._relative(info)
            is_hidden = any(part.startswith(".") for part in name.split("/"))
            is_result = skipped is not None and name.startswith(f"{skipped}/")
            if is_image(Path(name)) and not (is_hidden or is_result):
                yield name, info.size, info.mtime_ns

    def _local_images(self, skipped: str | None) -> Iterator[tuple[str, int, int]]:
        if not os.path.isdir(self.url):
            raise NotADirectoryError(0, "no such folder")
        os.scandir(self.url).close()
        without = None if skipped is None else Path(self.url, skipped)
        errors: list[OSError] = []
        for path in images_below(Path(self.url), without, errors.append):
            name = self._name(path)
            try:
                status = path.stat()
            except OSError:  # a link to nowhere; reading it will say so
                yield name, 0, 0
            else:
                yield name, status.st_size, status.st_mtime_ns
        for error in errors:  # a folder that can't be listed; reading it will say so
            yield self._name(Path(error.filename)), 0, 0

    def _name(self, path: Path) -> str:
        # A name that is no UTF-8 names no file then, which the worker will say of it.
        return os.fsencode(path.relative_to(self.url)).decode("utf-8", errors="backslashreplace")


@contextmanager
def _explained(doing: str, what: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        if doing == "read":
            raise
        raise ServingError(f"can't {doing} {what}: it isn't there") from error
    except (OSError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or error
        raise ServingError(f"can't {doing} {what}: {reason}") from error
