"""Clients that send or take slowly, or not at all, and the others that the server serves meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import resource
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from serving.local.__main__ import KEEP_ALIVE
from serving.local.app import make_app
from serving.local.config import ModelConfig
from serving.local.metrics import Metrics
from serving.local.models import Models
from serving.local.versions import Loading
from serving.up import free_port
from tests.serving.saved_models import save_half
from tests.serving.test_local_versions import NAME, SECONDS, is_up, start, wait_until

PATIENCE = 1.5  # seconds, as the server is told
FILES = 256  # that a shell lets the server open
IDLE = 300
KEPT_BY_CLIENTS = 5.0  # seconds for which httpx keeps an idle connection
NGINX = Path(__file__).parents[2] / "serving/deploy/nginx/magnetic-tiles.conf"
HEAD = f"POST /v1/models/{NAME}:predict HTTP/1.1\r\nHost: here\r\n"


@dataclass
class Server:
    port: int
    process: psutil.Process

    def connect(self, **options: int) -> socket.socket:
        client = socket.socket()
        for option, value in options.items():
            client.setsockopt(socket.SOL_SOCKET, getattr(socket, option), value)
        client.settimeout(SECONDS)
        client.connect(("127.0.0.1", self.port))
        return client

    def assert_serves_others(self) -> None:
        url = f"http://127.0.0.1:{self.port}/v1/models/{NAME}:predict"
        answer = requests.post(url, json={"instances": [1]}, timeout=SECONDS)
        assert answer.json() == {"predictions": [2.5]}

    def connections(self) -> int:
        return sum(one.status == psutil.CONN_ESTABLISHED for one in self.process.net_connections("tcp"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base_path = tmp_path_factory.mktemp("clients") / NAME
    save_half(base_path / "1", warmup=[1.0])  # else the first request may take longer than that
    port = free_port()
    process = start(base_path, port, f"--rest_api_timeout_in_ms={1000 * PATIENCE:.0f}")
    if hasattr(resource, "prlimit"):  # on Linux; of the server alone, as the tests may have more files open
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (FILES, hard))
    try:
        wait_until(lambda: is_up(f"http://127.0.0.1:{port}"))
        yield Server(port, psutil.Process(process.pid))
    finally:
        process.terminate()
        process.communicate(timeout=SECONDS)


def read_to_end(client: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while data := client.recv(2**16):
            received += data
    return received


def test_many_connections_that_send_nothing_or_half_of_the_headers_hold_nobody_up(server: Server) -> None:
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(server.connect()) for _ in range(IDLE)]
        for client in idle[::2]:
            client.sendall(HEAD.encode())
        server.assert_serves_others()
        for client in idle:
            assert read_to_end(client) == b""
    wait_until(lambda: server.connections() == 0)


def test_headers_that_trickle_in_have_an_end(server: Server) -> None:
    with server.connect() as client:
        client.sendall(HEAD.encode())
        client.setblocking(False)

        def is_closed() -> bool:
            try:
                client.send(b"X: y\r\n")
                return client.recv(1) == b""
            except BlockingIOError:
                return False
            except (ConnectionResetError, BrokenPipeError):
                return True

        wait_until(is_closed)
    server.assert_serves_others()


def test_a_body_that_trickles_in_has_an_end_too(server: Server) -> None:
    with server.connect() as client:
        client.sendall(f"{HEAD}Content-Length: 1000000\r\n\r\n".encode())
        client.setblocking(False)
        received = b""

        def is_answered() -> bool:
            nonlocal received
            client.send(b" ")
            with contextlib.suppress(BlockingIOError):
                received = client.recv(1000)
            return bool(received)

        wait_until(is_answered)
    assert received.startswith(b"HTTP/1.1 408 ")


class Upload:
    """A request whose body the test sends piece by piece, to an application in this process."""

    def __init__(self, app: Any, name: str = NAME) -> None:
        self._pieces: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._sent: list[dict[str, Any]] = []
        path = f"/v1/models/{name}:predict"
        scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "headers": []}
        self._task = asyncio.create_task(app(scope, self._pieces.get, self._send))

    async def _send(self, message: dict[str, Any]) -> None:
        self._sent.append(message)

    async def send(self, piece: bytes) -> None:
        self._pieces.put_nowait({"type": "http.request", "body": piece, "more_body": True})
        while not self._pieces.empty():
            await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def end(self) -> tuple[int, str]:
        """Ends the body; gives code and text of the answer."""
        assert not self._sent, "answered while it still sends"
        self._pieces.put_nowait({"type": "http.request", "body": b"", "more_body": False})
        await self._task
        return self._sent[0]["status"], self._sent[1]["body"].decode()

    async def leave(self) -> None:
        self._pieces.put_nowait({"type": "http.disconnect"})
        await self._task


def test_bodies_that_are_not_whole_yet_share_a_room_and_those_without_get_503(tmp_path: Path) -> None:
    metrics = Metrics()
    models = Models(Loading(poll_seconds=0))
    models.apply([ModelConfig(NAME, tmp_path)])  # no version: a body that is taken gets 404

    async def upload() -> None:
        with ThreadPoolExecutor(1) as executor:
            app = make_app(models, executor, max_body_bytes=100, max_held_bytes=150, metrics=metrics)
            first, second, third = Upload(app), Upload(app), Upload(app)
            await first.send(b" " * 60 + b"{")
            await second.send(b" " * 80)
            await third.send(b" " * 20)  # there is no room; what follows is received, not held
            await third.send(b" " * 20)
            code, text = await third.end()
            assert (code, "hold the 150 bytes" in text) == (503, True)
            await second.send(b" " * 21)  # too large in all, so it holds nothing any longer
            fourth = Upload(app)
            await fourth.send(b" " * 80)
            await fourth.leave()
            fifth = Upload(app)
            await fifth.send(b" " * 80 + b"{}")
            assert (await fifth.end())[0] == 404
            assert (await second.end())[0] == 413
            await first.send(b"}")
            assert (await first.end())[0] == 404

    asyncio.run(upload())
    models.stop()
    assert f'request_count{{model_name="{NAME}",status="UNAVAILABLE"}} 1.0' in metrics.page().decode()


def read_until(client: socket.socket, ending: bytes, pause: float = 0.0) -> bytes:
    """What comes up to an ending; pauses after each of the first reads."""
    received, begun = b"", time.monotonic()
    while not received.endswith(ending):
        data = client.recv(2**16)
        assert data, "the server gave up"
        received += data
        if time.monotonic() - begun < 3 * PATIENCE:
            time.sleep(pause)
    return received


def ask_for_megabytes(server: Server) -> socket.socket:
    """Sends a request whose answer is larger than all buffers, by a client that has a small one."""
    client = server.connect(SO_RCVBUF=4096)
    body = json.dumps({"signature_name": "same_int64", "instances": [2**62] * 500_000}).encode()
    client.sendall(f"{HEAD}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return client


def test_a_client_that_does_not_take_its_answer_holds_nobody_up(server: Server) -> None:
    with ask_for_megabytes(server) as client:
        server.assert_serves_others()
        wait_until(lambda: server.connections() == 0)
        assert 0 < len(read_to_end(client)) < 500_000 * len(str(2**62))


def test_a_client_that_takes_its_answer_slowly_gets_it_whole(server: Server) -> None:
    with ask_for_megabytes(server) as client:
        received = read_until(client, b"]\n}", pause=0.01)
    head, body = received.split(b"\r\n\r\n", 1)
    assert head.startswith(b"HTTP/1.1 200 ")
    assert json.loads(body) == {"predictions": [2**62] * 500_000}


def test_one_connection_takes_request_after_request(server: Server) -> None:
    body = b'{"instances": [1]}'
    request = f"{HEAD}Content-Length: {len(body)}\r\n\r\n".encode() + body
    with server.connect() as client:
        for _ in range(3):
            client.sendall(request[:20])
            time.sleep(0.1)
            client.sendall(request[20:])
            assert read_until(client, b"]\n}").startswith(b"HTTP/1.1 200 ")
        client.sendall(request * 2)  # the second before the first is answered
        received = read_until(client, b"]\n}")
        if received.count(b"HTTP/1.1 200 ") < 2:
            received += read_until(client, b"]\n}")
    assert received.count(b"HTTP/1.1 200 ") == 2


def test_a_connection_stays_open_for_longer_than_clients_keep_theirs(server: Server) -> None:
    body = b'{"instances": [1]}'
    request = f"{HEAD}Content-Length: {len(body)}\r\n\r\n".encode() + body
    with server.connect() as client:
        for pause in (0.0, KEPT_BY_CLIENTS + 1):
            time.sleep(pause)
            client.sendall(request)
            assert read_until(client, b"]\n}").startswith(b"HTTP/1.1 200 ")


def test_the_proxy_gives_idle_connections_up_before_the_server_does() -> None:
    rest = re.search(r"upstream tiles_rest \{(.*?)\}", NGINX.read_text(), re.DOTALL)
    assert rest is not None
    kept = re.search(r"keepalive_timeout (\d+)s;", rest[1])
    assert kept is not None
    assert int(kept[1]) < KEEP_ALIVE
