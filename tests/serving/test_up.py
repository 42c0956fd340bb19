"""Choosing, starting and stopping a model server."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from serving import up
from serving.errors import ServerUnavailable
from serving.local.flags import parse
from serving.up import IMAGE, choose_backend, free_port, main, running_server, server_command
from tests.serving.forbidden import closed
from tests.serving.saved_models import save_half

ROOT = Path(__file__).parents[2]
NAME = "half"


@pytest.fixture(scope="module")
def base_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("up") / NAME
    save_half(path / "1", offset=1.0)
    return path


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that alone is on the PATH."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def write_program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def predict(url: str) -> object:
    return requests.post(f"{url}/v1/models/{NAME}:predict", json={"instances": [1]}, timeout=30).json()


def test_auto_prefers_the_binary_then_docker_then_the_embedded_server(programs: Path) -> None:
    assert choose_backend() == "embedded"
    write_program(programs / "docker", "exit 0")
    assert choose_backend() == "docker"
    write_program(programs / "tensorflow_model_server", "exit 0")
    assert choose_backend() == "binary"


def test_docker_without_an_engine_does_not_count(programs: Path) -> None:
    write_program(programs / "docker", "echo 'Cannot connect to the Docker daemon' >&2; exit 1")
    assert choose_backend() == "embedded"
    with pytest.raises(ServerUnavailable, match=r"no Docker engine runs \(Cannot connect .*--backend auto"):
        choose_backend("docker")


def test_docker_does_not_count_where_its_image_does_not_run(
    programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_program(programs / "docker", "exit 0")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert choose_backend() == "embedded"
    with pytest.raises(ServerUnavailable, match="is for x86-64 alone, and this machine is arm64"):
        choose_backend("docker")


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ("binary", "no tensorflow_model_server on the PATH"),
        ("docker", "no docker on the PATH"),
        ("podman", "no backend 'podman'; there are auto, binary, docker, embedded"),
    ],
)
def test_a_backend_that_is_not_there_is_named(programs: Path, backend: str, message: str) -> None:
    with pytest.raises(ServerUnavailable, match=message):
        choose_backend(backend)


def test_docker_gets_the_model_as_its_image_expects_it(tmp_path: Path) -> None:
    command = server_command("docker", tmp_path / "tiles", "tiles", 8600, flags=["--enable_batching=true"])
    text = " ".join(command)
    assert "-p 127.0.0.1:8600:8501" in text
    assert f"-v {tmp_path}/tiles:/models/tiles:ro" in text
    assert "-e MODEL_NAME=tiles" in text
    assert "-e TF_ENABLE_ONEDNN_OPTS=1" in text
    assert text.endswith(f"{IMAGE} --enable_batching=true")
    assert "[::1]:8600:8501" in server_command("docker", tmp_path, "tiles", 8600, host="::1")


def test_the_binary_is_started_with_flags_it_has(base_path: Path, programs: Path, tmp_path: Path) -> None:
    # The embedded server stands in; it takes no --port, which switches gRPC off.
    write_program(
        programs / "tensorflow_model_server",
        f'echo "$@" > {tmp_path}/flags; shift; exec {sys.executable} -m serving.local "$@"',
    )
    with running_server(base_path, NAME, backend="auto") as url:
        assert predict(url) == {"predictions": [1.5]}
    port = url.rsplit(":", 1)[1]
    flags = (tmp_path / "flags").read_text().split()
    assert flags == [
        "--port=0",
        f"--rest_api_port={port}",
        f"--model_name={NAME}",
        f"--model_base_path={base_path}",
    ]
    with pytest.raises(requests.ConnectionError):
        predict(url)


def test_the_server_stops_when_the_block_fails(
    base_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # it starts from any folder
    with contextlib.suppress(KeyError), running_server(base_path, NAME) as url:
        assert predict(url) == {"predictions": [1.5]}
        raise KeyError
    with pytest.raises(requests.ConnectionError):
        predict(url)


def test_a_server_that_ends_at_once_is_reported_with_its_log(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with (
        pytest.raises(
            ServerUnavailable, match=f"ended with exit code 1:\n.*could not find base path {missing}"
        ),
        running_server(missing, NAME),
    ):
        pass


def test_a_server_without_a_model_is_reported_after_the_time_out(tmp_path: Path, programs: Path) -> None:
    write_program(
        programs / "tensorflow_model_server", "echo 'No versions of servable half'; exec /bin/sleep 60"
    )
    with (
        pytest.raises(
            ServerUnavailable, match=r"no version of half available after 2 s(.|\n)*No versions of"
        ),
        running_server(tmp_path, NAME, backend="binary", timeout=2),
    ):
        pass


def test_the_embedded_server_says_what_it_misses(tmp_path: Path) -> None:
    command = server_command("embedded", tmp_path, NAME, free_port())
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as server:
        assert server.stderr is not None
        assert any("No versions of servable half" in line for line in server.stderr)
        server.kill()


def test_a_server_that_ignores_sigterm_is_killed(
    tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.up.STOP_SECONDS", 0.2)
    write_program(
        programs / "tensorflow_model_server",
        f"trap '' TERM; echo $$ > {tmp_path}/pid; while true; do /bin/sleep 0.1; done",
    )
    with pytest.raises(ServerUnavailable), running_server(tmp_path, NAME, backend="binary", timeout=1):
        pass
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def start(*flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "serving.up", *flags]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_command_says_how_to_try_it_and_ends_when_told_to(
    base_path: Path, number: signal.Signals
) -> None:
    port = free_port()
    process = start(
        "--backend=embedded", f"--rest_api_port={port}", "--model_name=half", f"--model_base_path={base_path}"
    )
    try:
        assert process.stderr is not None
        assert process.stderr.readline() == "backend: embedded\n"
        lines = ""
        while "python -m serving.client" not in lines:
            line = process.stderr.readline()
            assert line, lines
            lines += line
        assert f"curl http://localhost:{port}/v1/models/half" in lines
        assert predict(f"http://localhost:{port}") == {"predictions": [1.5]}
        process.send_signal(number)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("host", "shown"),
    [("127.0.0.1", "localhost"), ("::", "localhost"), ("192.0.2.7", "192.0.2.7"), ("::1", "[::1]")],
)
def test_the_url_to_try_is_one_at_which_the_server_listens(
    host: str, shown: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(up, "_is_available", lambda _: True)
    up._announce(up._Server("embedded", Path(), NAME, 8600, host), lambda: True)
    assert f"served at http://{shown}:8600; " in capsys.readouterr().err


def test_the_command_ends_with_the_servers_exit_code(base_path: Path) -> None:
    process = start("--backend=embedded", "--no_such_flag", f"--model_base_path={base_path}")
    _, text = process.communicate(timeout=60)
    assert "unrecognized arguments: --no_such_flag" in text
    assert process.returncode == 2


def test_a_number_that_is_no_port_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--rest_api_port=99999"])
    assert "99999 is not a port, 1 to 65535" in capsys.readouterr().err


@pytest.mark.parametrize("command", [main, parse])
def test_an_empty_host_does_not_open_the_server_to_all(
    command: Callable[[list[str]], object], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        command(["--model_base_path=models", "--host="])
    assert "an empty text is no address" in capsys.readouterr().err


def test_a_port_in_use_is_told_before_a_server_starts(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = (
            f"can't listen on 127.0.0.1 port {port}: Address already in use; use another --rest_api_port"
        )
        flags = ["--backend=embedded", f"--rest_api_port={port}", f"--model_base_path={tmp_path}"]
        assert main(flags) == 1
        assert capfd.readouterr().err == f"backend: embedded\nerror: {message}\n"
        with pytest.raises(ServerUnavailable, match=message), running_server(tmp_path, NAME, port):
            pass


def test_a_binary_that_listens_on_all_addresses_is_warned_of(
    tmp_path: Path, programs: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.up._run", lambda server: 0)
    write_program(programs / "tensorflow_model_server", "exit 0")
    assert main([f"--model_base_path={tmp_path}"]) == 0
    warning = "warning: tensorflow_model_server listens on all addresses, not on 127.0.0.1 alone"
    assert warning in capfd.readouterr().err
    assert main([f"--model_base_path={tmp_path}", "--host=0.0.0.0"]) == 0
    assert "warning" not in capfd.readouterr().err


def test_the_command_names_a_missing_folder(tmp_path: Path) -> None:
    process = start(f"--model_base_path={tmp_path}/missing")
    _, text = process.communicate(timeout=60)
    assert text == (
        f"error: no folder {tmp_path}/missing; export a model there (`dvc repro export`) "
        "or name another --model_base_path, that of `make demo` is demo/models/magnetic-tiles\n"
    )
    assert process.returncode == 1


def test_a_folder_that_may_not_be_looked_at_is_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with closed(tmp_path):
        assert main(["--backend=embedded", f"--model_base_path={tmp_path}/models"]) == 1
    assert capfd.readouterr().err == f"error: [Errno 13] Permission denied: '{tmp_path}/models'\n"


def test_starting_a_server_imports_no_tensorflow() -> None:
    code = "import sys, serving.up; sys.exit('tensorflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_all_tensorflow_servings_are_of_the_pinned_version() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    (pinned,) = re.findall(r"^tensorflow==(\S+)", lock, re.MULTILINE)
    dockerfile = (ROOT / "Dockerfile.serving").read_text()
    assert f"tensorflow/serving:{pinned}" == IMAGE
    assert re.findall(r"^ARG TF_SERVING_VERSION=(\S+)$", dockerfile, re.MULTILINE) == [pinned]
