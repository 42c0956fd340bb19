"""Starts a model server: TensorFlow Serving where it is, else the embedded server.

`python -m serving.up` picks `tensorflow_model_server` on the PATH, else Docker with a running
engine, else the embedded server. `running_server` does so for the length of a `with` block.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

from serving import onednn
from serving.errors import ServerUnavailable
from serving.local.flags import host, port

__all__ = ["BACKENDS", "IMAGE", "choose_backend", "free_port", "main", "running_server", "server_command"]

# The version of TensorFlow that the models are exported with, see requirements.lock.
IMAGE = "tensorflow/serving:2.21.0"
BACKENDS = ("binary", "docker", "embedded")
BINARY = "tensorflow_model_server"
STOP_SECONDS = 15.0

_EPILOG = """\
Backends, in the order in which `auto` looks for them:
  binary    tensorflow_model_server on the PATH
  docker    Docker with a running engine; runs %(image)s
  embedded  python -m serving.local, which needs nothing else

tensorflow_model_server has no flag for an address: `binary` listens on all, whatever --host says.
All other flags go to the server, say --rest_api_enable_cors_support=true.

Exit codes: that of the server; 0 after ^C, SIGTERM or SIGHUP; 1 if it could not start; 2 for wrong flags.
""" % {"image": IMAGE}  # noqa: UP031


@dataclass(frozen=True)
class _Server:
    """What is to be started."""

    backend: str
    base_path: Path
    name: str
    port: int
    host: str
    flags: Sequence[str] = ()


def choose_backend(backend: str = "auto") -> str:
    """Picks how to serve.

    Args:
        backend: one of `BACKENDS`, or "auto" for the first that this machine has.

    Raises:
        ServerUnavailable: the backend is not on this machine; says what to do.
    """
    if backend not in ("auto", *BACKENDS):
        raise ServerUnavailable(f"no backend {backend!r}; there are auto, {', '.join(BACKENDS)}")
    reasons: dict[str, Callable[[], str]] = {"binary": _no_binary, "docker": _no_docker, "embedded": str}
    if backend == "auto":
        return next(name for name in BACKENDS if not reasons[name]())
    reason = reasons[backend]()
    if reason:
        raise ServerUnavailable(f"{reason}; mend that, or use --backend auto")
    return backend


def _no_binary() -> str:
    return "" if shutil.which(BINARY) else f"no {BINARY} on the PATH"


def _no_docker() -> str:
    if not shutil.which("docker"):
        return "no docker on the PATH"
    if platform.machine() not in ("x86_64", "AMD64"):
        return f"{IMAGE} is for x86-64 alone, and this machine is {platform.machine()}"
    try:
        done = subprocess.run(
            ["docker", "info", "--format", "{{.ServerVersion}}"], capture_output=True, text=True, timeout=20
        )
    except subprocess.TimeoutExpired:
        return "the Docker engine does not answer"
    lines = (done.stderr or done.stdout).strip().splitlines()
    return f"no Docker engine runs ({lines[-1] if lines else 'no reason given'})" if done.returncode else ""


def server_command(
    backend: str,
    base_path: Path,
    name: str,
    port: int,
    *,
    host: str = "127.0.0.1",
    flags: Sequence[str] = (),
) -> list[str]:
    """Makes the command line of a server.

    Args:
        backend: one of `BACKENDS`.
        base_path: folder of the versions.
        name: of the model.
        port: of the REST API.
        host: address to listen on; `binary` listens on all whatever it says.
        flags: further flags of `tensorflow_model_server`.
    """
    path = base_path.resolve()
    all_flags = [f"--rest_api_port={port}", f"--model_name={name}", f"--model_base_path={path}", *flags]
    if backend == "binary":
        return [BINARY, "--port=0", *all_flags]
    if backend == "embedded":
        return [sys.executable, "-m", "serving.local", f"--host={host}", *all_flags]
    return [
        *("docker", "run", "--rm", "--init", "--name", _container(port)),
        *("-p", f"{_in_url(host)}:{port}:8501"),
        *("-v", f"{path}:/models/{name}:ro", "-e", f"MODEL_NAME={name}"),
        *("-e", "TF_ENABLE_ONEDNN_OPTS=1"),
        IMAGE,
        *flags,
    ]


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _container(port: int) -> str:
    return f"magnetic-tiles-{port}-{os.getpid()}"


@contextlib.contextmanager
def running_server(
    model_base_path: Path,
    model_name: str,
    port: int = 0,
    backend: str = "embedded",
    *,
    timeout: float = 120.0,
    flags: Sequence[str] = (),
) -> Iterator[str]:
    """Runs a server for the length of a `with` block.

    Args:
        model_base_path: folder of the versions.
        model_name: of the model.
        port: of the REST API, 0 for a free one.
        backend: one of `BACKENDS`, or "auto".
        timeout: limit of the start, in seconds.
        flags: further flags of `tensorflow_model_server`.

    Yields:
        The server's URL, once a version is available.

    Raises:
        ServerUnavailable: it did not start; has the last lines of its log.
    """
    server = _Server(
        choose_backend(backend), model_base_path, model_name, port or free_port(), "127.0.0.1", flags
    )
    with tempfile.TemporaryFile() as output:
        process = _start(server, output)
        try:
            _wait(server, process, timeout, output)
            yield f"http://127.0.0.1:{server.port}"
        finally:
            _stop(server, process)


def free_port() -> int:
    """Finds a port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _start(server: _Server, output: IO[bytes] | None = None) -> subprocess.Popen[bytes]:
    """Starts the server in a process group of its own, so that it gets no signal but ours.

    Raises:
        ServerUnavailable: the port is in use; else what answers there would pass for ours.
    """
    _check_port(server)
    root = str(Path(__file__).resolve().parent.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    command = server_command(
        server.backend, server.base_path, server.name, server.port, host=server.host, flags=server.flags
    )
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
        env={**onednn.SETTING, **os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )


def _check_port(server: _Server) -> None:
    with socket.socket(socket.AF_INET6 if ":" in server.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((server.host, server.port))
        except OSError as error:
            raise ServerUnavailable(
                f"can't listen on {server.host} port {server.port}: {error.strerror}; "
                "use another --rest_api_port"
            ) from error


def _stop(server: _Server, process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        if server.backend == "docker":
            subprocess.run(["docker", "kill", _container(server.port)], capture_output=True, check=False)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait(server: _Server, process: subprocess.Popen[bytes], timeout: float, output: IO[bytes]) -> None:
    deadline = time.monotonic() + timeout
    while not _is_available(server):
        if process.poll() is not None:
            reason = f"ended with exit code {process.returncode}"
        elif time.monotonic() > deadline:
            reason = f"had no version of {server.name} available after {timeout:g} s"
        else:
            time.sleep(0.1)
            continue
        output.seek(0)
        lines = output.read().decode(errors="replace").strip().splitlines()[-10:]
        raise ServerUnavailable(
            "\n  ".join([f"the {server.backend} server for {server.base_path} {reason}:", *lines])
        )


def _is_available(server: _Server) -> bool:
    host = "127.0.0.1" if server.host in ("0.0.0.0", "::") else server.host
    connection = http.client.HTTPConnection(host, server.port, timeout=5)
    try:
        connection.request("GET", f"/v1/models/{server.name}")
        answer = connection.getresponse()
        states = json.loads(answer.read()).get("model_version_status", []) if answer.status == 200 else []
        return any(one.get("state") == "AVAILABLE" for one in states)
    except (OSError, http.client.HTTPException, ValueError):
        return False
    finally:
        connection.close()


def main(argv: list[str] | None = None) -> int:
    """Runs a server until it ends or is told to; returns the exit code."""
    args = _parse(argv)
    try:
        server = _Server(
            choose_backend(args.backend),
            args.model_base_path,
            args.model_name,
            args.rest_api_port,
            args.host,
            args.flags,
        )
        if not server.base_path.is_dir():
            raise ServerUnavailable(
                f"no folder {server.base_path}; export a model there (`dvc repro export`) "
                "or name another --model_base_path, that of `make demo` is demo/models/magnetic-tiles"
            )
        print(f"backend: {server.backend}", file=sys.stderr)
        if server.backend == "binary" and server.host not in ("0.0.0.0", "::"):
            print(
                f"warning: {BINARY} listens on all addresses, not on {server.host} alone; "
                "--backend docker or embedded does",
                file=sys.stderr,
            )
        return _run(server)
    except (ServerUnavailable, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run(server: _Server) -> int:
    """Runs the server in the foreground, forwarding signals."""
    process = _start(server)
    told = threading.Event()

    def forward(number: int, frame: FrameType | None) -> None:
        told.set()
        with contextlib.suppress(ProcessLookupError):
            # SIGHUP, of a terminal that closes, would end the server amid its requests.
            os.killpg(process.pid, signal.SIGTERM if number == signal.SIGHUP else number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, forward)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup sets it
        signal.signal(signal.SIGHUP, forward)
    threading.Thread(target=_announce, args=(server, lambda: process.poll() is None), daemon=True).start()
    code = process.wait()
    if told.is_set() and code in (
        0,
        -signal.SIGTERM,
        -signal.SIGINT,
        128 + signal.SIGTERM,
        128 + signal.SIGINT,
    ):
        return 0
    return 128 - code if code < 0 else code


def _announce(server: _Server, is_running: Callable[[], bool]) -> None:
    """Says how to try the server, once it has a model."""
    while not _is_available(server):
        if not is_running():
            return
        time.sleep(0.2)
    host = "localhost" if server.host in ("127.0.0.1", "0.0.0.0", "::") else _in_url(server.host)
    url = f"http://{host}:{server.port}"
    print(
        f"{server.name} is served at {url}; ^C ends it. Try it:\n"
        f"  curl {url}/v1/models/{server.name}\n"
        f"  python -m serving.client predict --url {url} --model {server.name} tile.jpg",
        file=sys.stderr,
    )


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m serving.up",
        description="Starts a model server: TensorFlow Serving where it is, else the embedded server.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--backend", default="auto", choices=("auto", *BACKENDS), help="what to start (default: auto)")
    add("--rest_api_port", type=port, default=8501, metavar="PORT", help="port (default: 8501)")
    add(
        "--host",
        type=host,
        default="127.0.0.1",
        help="address (default: 127.0.0.1, this machine; 0.0.0.0: all); not of `binary`",
    )
    add("--model_name", default="magnetic-tiles", metavar="NAME", help="default: magnetic-tiles")
    add(
        "--model_base_path",
        type=Path,
        default=Path("models/magnetic-tiles"),
        metavar="DIR",
        help="folder of the versions (default: models/magnetic-tiles)",
    )
    args, flags = parser.parse_known_args(argv)
    args.flags = flags
    return args


if __name__ == "__main__":
    sys.exit(main())
