"""Sources: downloads that go on where they stopped, zips that are checked before they are read."""

from __future__ import annotations

import gzip
import re
import socket
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from urllib3.util.retry import Retry

from stages import sources
from stages.errors import StageError
from stages.sources import download, open_source

CONTENT = np.random.default_rng(0).bytes(700_000)


@dataclass
class FileServer:
    """One file over HTTP with ETag, Range and If-Range, and the ways in which that can go wrong.

    Attributes:
        content: of the file.
        etag: strong or weak, or none.
        cut_after: bytes after which the connection is closed, once.
        statuses: answers to give before the file, one a request.
        redirect: where the file is said to have moved.
        ranges: Range header of each request.
        sent: bytes of the body of each answer.
    """

    content: bytes = CONTENT
    etag: str = '"one"'
    cut_after: int | None = None
    says_length: bool = True
    packs: bool = False
    statuses: list[int] = field(default_factory=list)
    redirect: str | None = None
    ranges: list[str | None] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)
    url: str = ""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        wanted = request.headers.get("Range")
        self.ranges.append(wanted)
        if self.statuses or self.redirect:
            request.send_response(self.statuses.pop(0) if self.statuses else 302)
            if self.redirect:
                request.send_header("Location", self.redirect)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        start = 0
        if wanted and request.headers.get("If-Range") == self.etag and not self.etag.startswith("W/"):
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])  # type: ignore[index]
        if start >= len(self.content):
            request.send_response(416)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        body = self.content[start:]
        request.send_response(206 if start else 200)
        if self.packs and "gzip" in request.headers.get("Accept-Encoding", ""):
            body = gzip.compress(body)
            request.send_header("Content-Encoding", "gzip")
        if self.etag:
            request.send_header("ETag", self.etag)
        if start:
            end = len(self.content)
            request.send_header("Content-Range", f"bytes {start}-{end - 1}/{end}")
        if self.says_length:
            request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if self.cut_after is not None:
            body, self.cut_after = body[: self.cut_after], None
        self.sent.append(len(body))
        request.wfile.write(body)
        request.close_connection = True


@pytest.fixture
def server() -> Iterator[FileServer]:
    files = FileServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            files.answer(self)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as loopback:
        threading.Thread(target=loopback.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        files.url = f"http://127.0.0.1:{loopback.server_address[1]}/tiles.zip"
        yield files
        loopback.shutdown()


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries follow at once."""
    monkeypatch.setattr(Retry, "get_backoff_time", lambda _: 0.0)


def interrupt(server: FileServer, cache: Path, after: int = 300_000) -> None:
    server.cut_after = after
    with pytest.raises(StageError, match="Run again to go on"):
        download(server.url, cache)


def files(cache: Path) -> set[str]:
    return {path.suffix for path in cache.iterdir()}


def test_a_download_is_complete_named_for_its_url_and_shows_its_progress(
    server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = download(server.url, tmp_path / "cache")
    assert path.read_bytes() == CONTENT
    assert path.name.endswith("-tiles.zip")
    assert list((tmp_path / "cache").iterdir()) == [path]
    shown = capsys.readouterr().err
    assert "download: 100%" in shown
    assert "700k/700k" in shown


def test_a_file_that_is_here_is_not_asked_for_again(server: FileServer, tmp_path: Path) -> None:
    first = download(server.url, tmp_path)
    assert download(server.url, tmp_path) == first
    assert len(server.ranges) == 1


def test_another_url_is_another_file(server: FileServer, tmp_path: Path) -> None:
    first = download(server.url, tmp_path)
    server.content = b"other"
    assert download(f"{server.url}?v=2", tmp_path).read_bytes() == b"other"
    assert first.read_bytes() == CONTENT


def test_after_a_cut_connection_only_the_rest_travels(server: FileServer, tmp_path: Path) -> None:
    interrupt(server, tmp_path)
    assert files(tmp_path) == {".part", ".etag"}
    have = next(tmp_path.glob("*.part")).stat().st_size
    assert 0 < have <= 300_000
    path = download(server.url, tmp_path)
    assert path.read_bytes() == CONTENT
    assert server.ranges == [None, f"bytes={have}-"]
    assert server.sent[-1] == len(CONTENT) - have
    assert files(tmp_path) == {".zip"}


def test_a_file_that_changed_meanwhile_starts_again(server: FileServer, tmp_path: Path) -> None:
    interrupt(server, tmp_path)
    server.content, server.etag = CONTENT[::-1], '"two"'
    assert download(server.url, tmp_path).read_bytes() == CONTENT[::-1]
    assert server.sent[-1] == len(CONTENT)


@pytest.mark.parametrize("etag", ['W/"one"', ""])
def test_without_a_strong_etag_it_starts_again(server: FileServer, tmp_path: Path, etag: str) -> None:
    server.etag = etag
    interrupt(server, tmp_path)
    server.content = CONTENT[::-1]
    assert download(server.url, tmp_path).read_bytes() == CONTENT[::-1]
    assert server.ranges == [None, None]


def test_a_part_that_is_complete_already_does_not_block_the_download(
    server: FileServer, tmp_path: Path
) -> None:
    interrupt(server, tmp_path)
    next(tmp_path.glob("*.part")).write_bytes(CONTENT)  # killed before it got its final name
    assert download(server.url, tmp_path).read_bytes() == CONTENT
    assert files(tmp_path) == {".zip"}


def test_a_server_that_packs_its_answers_does_not_mix_up_positions(
    server: FileServer, tmp_path: Path
) -> None:
    server.packs, server.content = True, bytes(500_000) + CONTENT
    interrupt(server, tmp_path)
    assert download(server.url, tmp_path).read_bytes() == server.content


def test_a_truncated_answer_is_no_complete_file(server: FileServer, tmp_path: Path) -> None:
    interrupt(server, tmp_path, after=len(CONTENT) - 1)
    assert ".zip" not in files(tmp_path)


def test_a_file_of_unknown_length_is_taken_as_it_comes(server: FileServer, tmp_path: Path) -> None:
    server.says_length = False
    assert download(server.url, tmp_path).read_bytes() == CONTENT


def test_a_busy_server_is_asked_again(server: FileServer, tmp_path: Path) -> None:
    server.statuses = [503, 429]
    assert download(server.url, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("status", [404, 500])
def test_a_refusal_names_the_url_and_the_way_out(server: FileServer, tmp_path: Path, status: int) -> None:
    server.statuses = [status] * 10
    with pytest.raises(StageError) as caught:
        download(server.url, tmp_path)
    assert server.url in str(caught.value)
    assert str(status) in str(caught.value)
    assert "data_load.source=<zip or folder>" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_an_unreachable_host_names_the_way_out(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/tiles.zip"
    with pytest.raises(StageError, match=r"Without internet: `dvc exp run -S data_load.source=") as caught:
        download(url, tmp_path)
    assert url in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://example.org/tiles.zip", "ftp://127.0.0.1/tiles.zip", "file:///etc/passwd"]
)
def test_only_https_is_allowed_to_other_hosts(tmp_path: Path, url: str) -> None:
    with pytest.raises(StageError, match="only https is allowed"), open_source(url, tmp_path / "cache"):
        pass
    assert not (tmp_path / "cache").exists()


def test_a_redirect_to_plain_http_elsewhere_is_not_followed(server: FileServer, tmp_path: Path) -> None:
    server.redirect = "http://example.invalid/tiles.zip"
    with pytest.raises(StageError, match=r"No connection adapters were found for 'http://example\.invalid"):
        download(server.url, tmp_path)


# Zips and folders


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def test_a_zip_a_folder_and_a_download_hold_the_same_files(server: FileServer, tmp_path: Path) -> None:
    members = {"a/b.txt": b"one", "c.txt": b"two"}
    path = zipped(tmp_path / "tiles.zip", members)
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "folder")
    server.content = path.read_bytes()
    for source in (path, tmp_path / "folder", server.url):
        with open_source(str(source), tmp_path / "cache") as opened:
            assert {name: opened.read(name) for name in opened.names()} == members
            assert opened.names() == sorted(members)


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../up.jpg", "a/../../up.jpg", "..\\up.jpg", "\\root.jpg", "C:\\x.jpg", "C:/x.jpg"],
)
def test_a_member_that_leads_out_of_the_zip_is_refused(tmp_path: Path, name: str) -> None:
    path = zipped(tmp_path / "evil.zip", {"fine.jpg": b"x", name: b"x"})
    with pytest.raises(StageError) as caught, open_source(str(path), tmp_path):
        pass
    assert f"{name!r}: path leads out of the archive" in str(caught.value)
    assert "fine.jpg" not in str(caught.value)


def test_a_link_is_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link.jpg")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with (
        pytest.raises(StageError, match=r"link\.jpg': is a link"),
        open_source(str(tmp_path / "evil.zip"), tmp_path),
    ):
        pass


def test_a_bomb_by_its_ratio_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "bomb.zip", {"bomb.jpg": bytes(2_000_000)})
    with (
        pytest.raises(StageError, match=r"bomb\.jpg': 2000000 bytes unpacked"),
        open_source(str(path), tmp_path),
    ):
        pass


def test_a_bomb_by_its_size_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_FILE_BYTES", 1000)
    path = zipped(tmp_path / "bomb.zip", {"bomb.jpg": CONTENT[:1001], "fine.jpg": CONTENT[:1000]})
    with pytest.raises(StageError) as caught, open_source(str(path), tmp_path):
        pass
    assert "bomb.jpg" in str(caught.value)
    assert "fine.jpg" not in str(caught.value)


def test_a_bomb_by_its_number_of_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_FILES", 2)
    path = zipped(tmp_path / "bomb.zip", {f"{number}.jpg": b"x" for number in range(3)})
    with pytest.raises(StageError, match="3 files are more than 2"), open_source(str(path), tmp_path):
        pass


def test_a_member_that_is_larger_than_it_says_is_not_unpacked_further(tmp_path: Path) -> None:
    path = zipped(tmp_path / "liar.zip", {"liar.jpg": bytes(150_000)})
    # The size stands in the local header and in the directory.
    path.write_bytes(path.read_bytes().replace((150_000).to_bytes(4, "little"), (100).to_bytes(4, "little")))
    with open_source(str(path), tmp_path) as source, pytest.raises(StageError, match=r"damaged at liar\.jpg"):
        source.read("liar.jpg")


def flip(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :]


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_a_damaged_member_is_named_however_it_is_packed(tmp_path: Path, method: int) -> None:
    text = b"".join(b"%d " % number for number in range(20_000))
    with zipfile.ZipFile(tmp_path / "tiles.zip", "w", method) as archive:
        archive.writestr("bad.jpg", text)
        archive.writestr("good.jpg", text)
    whole = (tmp_path / "tiles.zip").read_bytes()
    for position in (40, 60, 200, 5000):  # what breaks, and how it is found out, depends on the place
        (tmp_path / "tiles.zip").write_bytes(flip(whole, position))
        with open_source(str(tmp_path / "tiles.zip"), tmp_path) as source:
            with pytest.raises(StageError, match=r"tiles\.zip is damaged at bad\.jpg: .*get it again"):
                source.read("bad.jpg")
            assert source.read("good.jpg") == text


def test_an_encrypted_member_is_named(tmp_path: Path) -> None:
    path = zipped(tmp_path / "tiles.zip", {"secret.jpg": b"x"})
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with (
        open_source(str(path), tmp_path) as source,
        pytest.raises(StageError, match=r"secret\.jpg: .*password"),
    ):
        source.read("secret.jpg")


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


@pytest.mark.parametrize("spoil", [cut, lambda _: b"", lambda _: b"<html>Sign in</html>"])
def test_what_is_no_zip_is_refused_by_name(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    path = zipped(tmp_path / "tiles.zip", {"a.jpg": CONTENT[:5000]})
    path.write_bytes(spoil(path.read_bytes()))
    with (
        pytest.raises(StageError, match=r"tiles\.zip is neither a folder nor a zip"),
        open_source(str(path), tmp_path),
    ):
        pass


def test_a_source_that_is_not_there_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(StageError, match=r"no such file or folder: nowhere\.zip"),
        open_source("nowhere.zip", tmp_path),
    ):
        pass


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    with open_source(str(tmp_path), tmp_path) as source:
        (tmp_path / "a.jpg").unlink()
        with pytest.raises(StageError, match=r"a\.jpg can't be read"):
            source.read("a.jpg")
