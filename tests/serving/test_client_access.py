"""API keys and CAs: what the client refuses to send or to trust. tests/serving/test_nginx.py has the rest."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
import trustme

from serving.client import AsyncTileClient, TileClient
from serving.client.cli import main
from serving.errors import ServerError

KEY = "0123456789abcdef"
CLIENTS = [TileClient, AsyncTileClient]


@contextmanager
def recording_server(
    host: str, location: str = "", tls: ssl.SSLContext | None = None
) -> Iterator[tuple[str, list[str | None]]]:
    """Answers with nothing, or sends callers elsewhere; yields its URL and the keys that it was shown."""
    keys: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            keys.append(self.headers["Authorization"])
            self.send_response(307 if location else 200)
            self.send_header("Location", location + self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # of a caller that hangs up
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http{'s' if tls else ''}://{host}:{server.server_port}", keys
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def status(url: str, **settings: Any) -> object:
    with TileClient(url, retries=0, **settings) as client:
        return client.status()


def status_async(url: str, **settings: Any) -> object:
    async def ask() -> object:
        async with AsyncTileClient(url, retries=0, **settings) as client:
            return await client.status()

    return asyncio.run(ask())


@pytest.mark.parametrize("ask", [status, status_async])
def test_a_redirect_to_another_host_does_not_get_the_key(ask: Callable[..., object]) -> None:
    with (
        recording_server("localhost") as (other, seen),
        recording_server("127.0.0.1", other) as (url, asked),
        pytest.raises(ServerError, match="no model server"),
    ):
        ask(url, api_key=KEY)
    assert asked == [f"Bearer {KEY}"]
    assert seen == [None]


def test_a_netrc_file_does_not_take_the_place_of_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("default login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with (
        recording_server("127.0.0.1") as (url, asked),
        pytest.raises(ServerError, match="no model server"),
    ):
        status(url, api_key=KEY, session=requests.Session())  # of its own, none reads the file on loopback
    assert asked == [f"Bearer {KEY}"]


@pytest.mark.parametrize("client", CLIENTS)
def test_a_key_leaves_this_machine_encrypted_or_not_at_all(client: Callable[..., object]) -> None:
    with pytest.raises(ServerError, match=r"http://inspection:8501 is not encrypted.*use https"):
        client("http://inspection:8501", api_key=KEY)
    client("https://inspection:8501", api_key=KEY)
    client("http://127.0.0.1:8501", api_key=KEY)
    client("http://inspection:8501")


def test_a_key_is_not_sent_over_grpc_without_tls() -> None:
    pytest.importorskip("tensorflow_serving", reason="the extra `grpc` is not installed")
    with pytest.raises(ServerError, match=r"grpc://inspection:8500 is not encrypted"):
        TileClient("grpc://inspection:8500", api_key=KEY)


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("key", ["secret\n", "secret secret", "secretö"])
def test_a_key_that_no_header_can_carry_is_refused_without_showing_it(
    client: Callable[..., object], key: str
) -> None:
    with pytest.raises(ServerError, match="API key can't be sent") as caught:
        client("https://inspection", api_key=key)
    assert "secret" not in str(caught.value)


def test_an_empty_key_is_none() -> None:
    with (
        recording_server("127.0.0.1") as (url, asked),
        pytest.raises(ServerError, match="no model server"),
    ):
        status(url, api_key="")
    assert asked == [None]


@pytest.mark.parametrize("ask", [status, status_async])
def test_an_empty_ca_file_is_none_and_trusts_nobody(ask: Callable[..., object]) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(tls)
    with (
        recording_server("127.0.0.1", tls=tls) as (url, asked),
        pytest.raises(ServerError, match=r"is not trusted .*--ca-file"),
    ):
        ask(url, api_key=KEY, ca_file="")
    assert asked == []


@pytest.mark.parametrize("client", CLIENTS)
def test_a_ca_file_that_is_none_is_named(client: Callable[..., object], tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"missing.pem can't be used: No such file"):
        client("https://inspection", ca_file=tmp_path / "missing.pem")
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(ServerError, match=r"ca.pem can't be used: .*PEM"):
        client("https://inspection", ca_file=tmp_path / "ca.pem")


def test_the_command_says_in_one_line_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--url", "https://127.0.0.1:1", "--ca-file", "missing.pem"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("ask", [status, status_async])
@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "http://127.0.0.1:port", "carrier://127.0.0.1:9"])
def test_a_proxy_of_the_environment_that_cannot_be_used_is_a_server_error(
    ask: Callable[..., object], proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(ServerError, match=r"can't ask http://inspection\.invalid:8501: "):
        ask("http://inspection.invalid:8501")
