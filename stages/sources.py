"""Where tiles come from: an https URL, a zip, or a folder, all read through one interface.

Nothing is unpacked to disk; the members of a zip are checked before the first is read.
"""

from __future__ import annotations

import hashlib
import logging
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import Protocol
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from tqdm import tqdm
from urllib3.util.retry import Retry

from stages.errors import StageError
from stages.paths import named_file

__all__ = ["Source", "download", "open_source"]

log = logging.getLogger(__name__)

MAX_FILES = 1_000_000
MAX_FILE_BYTES = 256 * 2**20
MAX_RATIO = 200
"""Uncompressed over compressed size of a member; photographs and masks stay far below it."""
TIMEOUT = (10, 60)
"""Seconds to connect, and between two pieces of the answer."""
OFFLINE = "Without internet: `dvc exp run -S data_load.source=<zip or folder>`"


class Source(Protocol):
    """Files by their path within the source, with `/` between folders."""

    def names(self) -> list[str]: ...
    def read(self, name: str) -> bytes: ...


class FolderSource:
    """Files below a folder, and below folders that links in it lead to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> list[str]:
        names: list[str] = []
        seen: set[tuple[int, int]] = set()
        for folder, folders, files in os.walk(self.folder, onerror=_unreadable, followlinks=True):
            here = os.stat(folder)
            if (here.st_dev, here.st_ino) in seen:  # a link back
                folders.clear()
                continue
            seen.add((here.st_dev, here.st_ino))
            paths = (Path(folder, name) for name in files)
            names += [path.relative_to(self.folder).as_posix() for path in paths if path.is_file()]
        return sorted(names)

    def read(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except OSError as error:
            raise StageError(f"{self.folder / name} can't be read: {error.strerror or error}") from error


def _unreadable(error: OSError) -> None:
    if isinstance(error, FileNotFoundError):  # gone since its name was read
        return
    raise StageError(f"{error.filename} can't be read: {error.strerror or error}") from error


class ZipSource:
    """Files of a zip that has been checked: no path leads out of it, no member is a bomb."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path = path
        self.archive = archive
        problems = [problem for member in archive.infolist() for problem in _problems(member)]
        if len(archive.infolist()) > MAX_FILES:
            problems.insert(0, f"{len(archive.infolist())} files are more than {MAX_FILES}")
        if problems:
            shown = "\n".join(f"  {problem}" for problem in problems[:20])
            raise StageError(f"{path} is refused, {len(problems)} of its members are unsafe:\n{shown}")

    def names(self) -> list[str]:
        return sorted(member.filename for member in self.archive.infolist() if not member.is_dir())

    def read(self, name: str) -> bytes:
        # zipfile stops at the size that the header states, and checks the CRC.
        try:
            return self.archive.read(name)
        except Exception as error:  # each way to pack raises errors of its own on damaged data
            raise StageError(
                f"{self.path} is damaged at {name}: {error}; remove it and get it again"
            ) from error


def _problems(member: zipfile.ZipInfo) -> Iterator[str]:
    path = PureWindowsPath(member.filename)  # knows both slashes, and drives
    if path.anchor or ".." in path.parts:
        yield f"{member.filename!r}: path leads out of the archive"
    if (member.external_attr >> 16) & 0o170000 == 0o120000:
        yield f"{member.filename!r}: is a link"
    if member.file_size > MAX_FILE_BYTES or member.file_size > MAX_RATIO * max(member.compress_size, 1024):
        yield f"{member.filename!r}: {member.file_size} bytes unpacked, {member.compress_size} packed"


@contextmanager
def open_source(source: str, cache: Path, name: str = "data_load.source") -> Iterator[Source]:
    """Opens a source of tiles.

    Args:
        source: https URL of a zip, path of a zip, or path of a folder.
        cache: folder for downloads.
        name: of the setting that names the source, for messages.

    Raises:
        StageError: if there is nothing usable.
    """
    path = download(source, cache) if "://" in source else named_file(source)
    if path.is_dir():
        yield FolderSource(path)
        return
    try:
        with zipfile.ZipFile(path) as archive:
            yield ZipSource(path, archive)
    except FileNotFoundError as error:
        raise StageError(f"{name}: no such file or folder: {source}") from error
    except zipfile.BadZipFile as error:
        raise StageError(f"{name}: {path} is neither a folder nor a zip ({error})") from error
    except PermissionError as error:
        if error.filename != str(path):  # of what is done with the source
            raise
        raise StageError(f"{name}: {path} can't be read: {error.strerror}") from error


def download(url: str, cache: Path) -> Path:
    """Downloads a file with a progress bar, going on where an interrupted download stopped.

    Returns:
        Path of the complete file in `cache`, named for the URL. It is not asked for again.

    Raises:
        StageError: if the URL is not https, or can't be fetched.
    """
    parts = urlsplit(url)
    loopback = parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost", "::1")
    if parts.scheme != "https" and not loopback:
        raise StageError(f"data_load.source: only https is allowed. Received: {url}")
    name = f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{Path(parts.path).name or 'archive'}"
    target, partial = cache / name, cache / f"{name}.part"
    if target.exists():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with requests.Session() as session:
        retry = Retry(total=4, backoff_factor=1, status_forcelist=(429, 500, 502, 503, 504))
        session.adapters.clear()  # what leads elsewhere over plain http is not followed
        for prefix in ("https://", f"{parts.scheme}://{parts.netloc}"):
            session.mount(prefix, HTTPAdapter(max_retries=retry))
        try:
            _stream(session, url, partial)
        except requests.RequestException as error:
            again = "Run again to go on. " if partial.exists() else ""
            raise StageError(f"can't download {url}: {error}. {again}{OFFLINE}") from error
    partial.replace(target)
    return target


def _stream(session: requests.Session, url: str, partial: Path) -> None:
    have = partial.stat().st_size if partial.exists() else 0
    tag_path = partial.with_suffix(".etag")
    headers = {"Accept-Encoding": "identity"}  # a position in what is packed is none in the file
    # Only a strong validator proves that the rest belongs to what is here.
    if have and tag_path.exists():
        headers |= {"Range": f"bytes={have}-", "If-Range": tag_path.read_text()}
    with session.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        if have and answer.status_code == 416:  # all of it is here, but nobody said that it is complete
            partial.unlink()
            return _stream(session, url, partial)
        if answer.status_code != 206:
            have = 0
        answer.raise_for_status()
        tag = answer.headers.get("ETag", "")
        tag_path.unlink(missing_ok=True)
        if tag and not tag.startswith("W/"):
            tag_path.write_text(tag)
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length and "Content-Encoding" not in answer.headers else None
        with (
            partial.open("ab" if have else "wb") as file,
            tqdm(total=total, initial=have, unit="B", unit_scale=True, desc="download") as bar,
        ):
            for piece in answer.iter_content(2**18):
                file.write(piece)
                bar.update(len(piece))
    if total is not None and partial.stat().st_size != total:
        raise requests.ConnectionError(f"{partial.stat().st_size} of {total} bytes came")
    tag_path.unlink(missing_ok=True)
