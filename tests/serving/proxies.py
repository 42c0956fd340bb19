"""A proxy before a real server that counts, delays and fails, as networks do."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import requests


class Proxy:
    """What the proxy has seen, and how it behaves.

    Attributes:
        url: of the proxy.
        sent: files that clients sent with the signature `segment`, in order.
        is_down: whether it answers 503 instead of asking the server.
        gate: requests for predictions wait for it.
        alter: given path, request and answer, may give another answer: status, content.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.sent: list[bytes] = []
        self.is_down = False
        self.gate = threading.Event()
        self.gate.set()
        self.alter: Callable[[str, bytes, bytes], tuple[int, bytes] | None] = lambda *_: None


@contextmanager
def proxy_before(server_url: str, port: int = 0) -> Iterator[Proxy]:
    """Runs a proxy before a server for the length of a `with` block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._pass(requests.get(server_url + self.path, timeout=30), b"")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            document = json.loads(body)
            if document["signature_name"] == "segment":
                proxy.gate.wait(30)
                if not proxy.is_down:
                    proxy.sent.append(base64.b64decode(document["instances"][0]["image_bytes"]["b64"]))
            self._pass(requests.post(server_url + self.path, data=body, timeout=30), body)

        def _pass(self, answer: requests.Response, body: bytes) -> None:
            status, content = answer.status_code, answer.content
            status, content = proxy.alter(self.path, body, content) or (status, content)
            if proxy.is_down:
                status, content = 503, b'{"error": "down"}'
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass  # a client that was killed

    server = Server(("127.0.0.1", port), Handler)
    proxy = Proxy(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield proxy
    finally:
        proxy.gate.set()
        server.shutdown()
        server.server_close()
        thread.join()
