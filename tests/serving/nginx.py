"""Debian's nginx with the project's configuration, before servers of this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests
import trustme

from serving.up import free_port

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "serving/deploy/nginx/magnetic-tiles.conf"
PROGRAM = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")

MAIN = """\
daemon off;
{user}
pid nginx.pid;
error_log error.log;
events {{}}
http {{
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    include conf.d/*.conf;
}}
"""


@dataclass(frozen=True)
class Nginx:
    """One that runs: `127.0.0.1:port`, with a certificate of the CA."""

    port: int
    folder: Path
    ca_file: Path

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def access_log(self) -> str:
        return (self.folder / "access.log").read_text()


@contextmanager
def nginx_before(
    rest_url: str, grpc_url: str, keys: dict[str, str], folder: Path, rate: str = "50r/s"
) -> Iterator[Nginx]:
    """Runs nginx for the length of a `with` block.

    Args:
        rest_url: `http://...` of the server.
        grpc_url: `grpc://...` of the server.
        keys: API key by caller.
        folder: empty; takes the place of /etc/nginx.
        rate: instead of the configured one.
    """
    port = free_port()
    text = CONFIG.read_text()
    for here, there in (
        ("listen 443 ssl http2;", f"listen 127.0.0.1:{port} ssl http2;"),
        ("server 127.0.0.1:8501;", f"server {rest_url.removeprefix('http://')};"),
        ("server 127.0.0.1:8500;", f"server {grpc_url.removeprefix('grpc://')};"),
        ("rate=50r/s;", f"rate={rate};"),
        ("/var/log/nginx/magnetic-tiles.log", "access.log"),
    ):
        assert text.count(here) == 1, here
        text = text.replace(here, there)
    (folder / "conf.d").mkdir()
    (folder / "conf.d/magnetic-tiles.conf").write_text(text)
    (folder / "nginx.conf").write_text(MAIN.format(user="user root;" if os.getuid() == 0 else ""))
    secrets = folder / "magnetic-tiles"
    secrets.mkdir()
    (secrets / "api_keys").write_text("".join(f'"Bearer {key}" {name};\n' for name, key in keys.items()))
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(secrets / "tls.key")
    certificate.cert_chain_pems[0].write_to_path(secrets / "tls.crt")
    authority.cert_pem.write_to_path(folder / "ca.crt")
    (folder / "error.log").touch()
    nginx = Nginx(port, folder, folder / "ca.crt")
    assert PROGRAM
    process = subprocess.Popen([PROGRAM, "-p", str(folder), "-c", "nginx.conf", "-e", "error.log"])
    try:
        _wait(nginx, process)
        yield nginx
    finally:
        process.terminate()
        process.wait(30)


def _wait(nginx: Nginx, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            requests.get(nginx.url, verify=nginx.ca_file, timeout=5)
            return
        except requests.ConnectionError:
            log = (nginx.folder / "error.log").read_text()
            assert process.poll() is None, log
            assert time.monotonic() < deadline, log
            time.sleep(0.05)
