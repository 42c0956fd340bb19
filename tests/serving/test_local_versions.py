"""Loading, swapping and unloading versions, and the life of the embedded server's process."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import requests

from serving.local.config import ModelConfig
from serving.local.flags import parse
from serving.local.status import RequestError
from serving.local.versions import Loading, Versions, _fingerprint, find_versions
from serving.up import free_port, running_server
from tests.serving.forbidden import closed
from tests.serving.saved_models import save_half, write_warmup

NAME = "half"
SECONDS = 60.0  # limit of anything a test waits for


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(0.02)


@pytest.fixture
def base_path(tmp_path: Path) -> Path:
    path = tmp_path / NAME
    path.mkdir()
    return path


@pytest.fixture
def watch(base_path: Path) -> Iterator[Callable[[], Versions]]:
    started = []

    def start() -> Versions:
        versions = Versions(ModelConfig(NAME, base_path), Loading(poll_seconds=0.05))
        versions.start()
        started.append(versions)
        return versions

    yield start
    for versions in started:
        versions.stop()


def state_of(versions: Versions, number: int) -> str:
    try:
        (status,) = versions.status(number)
    except RequestError:
        return ""
    return str(status["state"])


def answer_of(versions: Versions) -> tuple[int, float]:
    with versions.lease() as (number, model):
        return number, float(model.predict("", {"x": np.zeros(1, np.float32)})["y"][0])


def test_only_integer_folders_with_a_model_are_versions(base_path: Path) -> None:
    for name in ("1", "20", "x", "3.tmp", "-4", "\u0665"):
        (base_path / name).mkdir()
        (base_path / name / "saved_model.pb").touch()
    (base_path / "30").mkdir()
    assert find_versions(base_path) == {1: base_path / "1", 20: base_path / "20"}


def test_a_version_with_leading_zeros_is_served_from_its_own_folder(
    base_path: Path, watch: Callable[[], Versions]
) -> None:
    save_half(base_path / "00000123", offset=9.0)
    versions = watch()
    wait_until(lambda: state_of(versions, 123) != "" and versions.first.done())
    assert answer_of(versions) == (123, 9.0)


def test_of_two_folders_with_one_number_the_one_without_zeros_is_taken(base_path: Path) -> None:
    for name in ("001", "1", "01"):
        (base_path / name).mkdir()
        (base_path / name / "saved_model.pb").touch()
    assert find_versions(base_path) == {1: base_path / "1"}


def test_the_newest_version_is_served_and_a_deleted_one_rolled_back(
    base_path: Path, watch: Callable[[], Versions]
) -> None:
    save_half(base_path / "9", offset=9.0)
    save_half(base_path / "10", offset=10.0)
    versions = watch()
    wait_until(lambda: state_of(versions, 10) == "AVAILABLE")
    assert answer_of(versions) == (10, 10.0)
    assert state_of(versions, 9) == ""
    shutil.rmtree(base_path / "10")
    wait_until(lambda: state_of(versions, 10) == "END")
    assert answer_of(versions) == (9, 9.0)
    with pytest.raises(RequestError, match=r"Specific\(half, 10\)"), versions.lease(10):
        pass


def test_a_broken_version_is_refused_named_and_retried_when_mended(
    base_path: Path, watch: Callable[[], Versions], caplog: pytest.LogCaptureFixture
) -> None:
    save_half(base_path / "1", offset=1.0)
    versions = watch()
    wait_until(lambda: state_of(versions, 1) == "AVAILABLE")
    (base_path / "2").mkdir()
    (base_path / "2" / "saved_model.pb").write_bytes(b"no model")
    wait_until(lambda: state_of(versions, 2) == "END")
    (status,) = versions.status(2)
    assert status["status"] != {"error_code": "OK", "error_message": ""}
    wait_until(lambda: f"can't load version 2 of {NAME} from {base_path / '2'}" in caplog.text)
    assert answer_of(versions) == (1, 1.0)
    time.sleep(0.2)  # several looks
    assert caplog.text.count("can't load version 2") == 1

    shutil.rmtree(base_path / "2")
    save_half(base_path / "2", offset=2.0)
    wait_until(lambda: state_of(versions, 2) == "AVAILABLE")
    assert answer_of(versions) == (2, 2.0)


def test_a_version_that_may_not_be_read_is_refused_named_and_loaded_once_it_may(
    base_path: Path, watch: Callable[[], Versions]
) -> None:
    save_half(base_path / "1", offset=1.0)
    save_half(base_path / "2", offset=2.0)
    with closed(base_path / "2"):
        versions = watch()
        wait_until(versions.first.done)
        assert answer_of(versions) == (1, 1.0)
        (status,) = versions.status(2)
        assert "Permission denied" in str(status["status"])
    wait_until(lambda: state_of(versions, 2) == "AVAILABLE")


def test_a_broken_version_is_tried_again_when_its_permissions_change(base_path: Path) -> None:
    save_half(base_path / "1")
    before = _fingerprint(base_path / "1")
    time.sleep(0.02)  # clocks of file systems tick every few milliseconds
    (base_path / "1" / "saved_model.pb").chmod(0o640)
    assert _fingerprint(base_path / "1") != before


def test_a_restart_with_a_broken_newest_version_serves_the_one_before(
    base_path: Path, watch: Callable[[], Versions]
) -> None:
    save_half(base_path / "1", offset=1.0)
    (base_path / "2").mkdir()
    (base_path / "2" / "saved_model.pb").write_bytes(b"no model")
    versions = watch()
    wait_until(lambda: state_of(versions, 1) == "AVAILABLE")
    assert state_of(versions, 2) == "END"
    assert answer_of(versions) == (1, 1.0)


def test_what_is_served_outlives_its_folder(base_path: Path, watch: Callable[[], Versions]) -> None:
    save_half(base_path / "1", offset=1.0)
    versions = watch()
    wait_until(lambda: state_of(versions, 1) == "AVAILABLE")
    shutil.rmtree(base_path)
    time.sleep(0.2)  # several looks
    assert answer_of(versions) == (1, 1.0)


def test_a_version_whose_warm_up_fails_is_refused(
    base_path: Path, watch: Callable[[], Versions], caplog: pytest.LogCaptureFixture
) -> None:
    save_half(base_path / "1", warmup=[1.0, 2.0])
    with caplog.at_level("INFO"):
        versions = watch()
        wait_until(lambda: "2 warm-up requests" in caplog.text)  # told once the state has changed
        assert state_of(versions, 1) == "AVAILABLE"
    draft = save_half(base_path.parent / "elsewhere" / "2")
    write_warmup(draft, [1.0], signature="missing")
    draft.rename(base_path / "2")
    wait_until(lambda: state_of(versions, 2) == "END")
    assert "missing" in str(versions.status(2))
    assert state_of(versions, 1) == "AVAILABLE"


def test_a_version_is_unloaded_only_after_its_last_request(
    base_path: Path, tmp_path: Path, watch: Callable[[], Versions]
) -> None:
    save_half(base_path / "1", offset=1.0)
    versions = watch()
    wait_until(lambda: state_of(versions, 1) == "AVAILABLE")
    gate = tmp_path / "gate"

    def ask() -> float:
        with versions.lease() as (_, model):
            file = np.array([str(gate).encode()], dtype=np.object_)
            return float(model.predict("wait", {"file": file})["offset"][0])

    with ThreadPoolExecutor(1) as executor:
        running = executor.submit(ask)
        wait_until(Path(f"{gate}.begun").exists)
        save_half(base_path / "2", offset=2.0)
        wait_until(lambda: state_of(versions, 2) == "AVAILABLE")
        assert answer_of(versions) == (2, 2.0)
        wait_until(lambda: state_of(versions, 1) == "UNLOADING")
        assert not running.done()
        gate.touch()
        assert running.result(SECONDS) == 1.0
    wait_until(lambda: state_of(versions, 1) == "END")


@pytest.mark.parametrize("batching", ["false", "true"])
def test_no_request_fails_while_versions_are_swapped(base_path: Path, batching: str) -> None:
    save_half(base_path / "1", offset=1.0)
    stop = threading.Event()

    def ask(url: str) -> list[tuple[int, str]]:
        answers = []
        with requests.Session() as session:
            while not stop.is_set():
                answer = session.post(f"{url}/v1/models/{NAME}:predict", json={"instances": [0]}, timeout=30)
                answers.append((answer.status_code, answer.text))
        return answers

    flags = ["--file_system_poll_wait_seconds=0.1", f"--enable_batching={batching}"]
    with running_server(base_path, NAME, flags=flags) as url, ThreadPoolExecutor(3) as executor:
        asking = [executor.submit(ask, url) for _ in range(3)]
        try:
            for number in (2, 3):
                save_half(base_path / str(number), offset=float(number))
                wait_until(lambda: last_served(url) == str(number))  # noqa: B023
        finally:
            stop.set()
    for one in asking:
        answers = one.result()
        assert {code for code, _ in answers} == {200}
        served = [float(text.split("[")[1].split()[0]) for _, text in answers]
        assert served == sorted(served)
        assert served[0] == 1.0


def last_served(url: str) -> str:
    statuses = requests.get(f"{url}/v1/models/{NAME}", timeout=30).json()["model_version_status"]
    return max((one["version"] for one in statuses if one["state"] == "AVAILABLE"), default="")


def start(base_path: Path, port: int, *flags: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "serving.local", "--model_name", NAME),
            *("--model_base_path", str(base_path), "--rest_api_port", str(port), *flags),
        ],
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def is_up(url: str) -> bool:
    try:
        return requests.get(f"{url}/v1/models/{NAME}", timeout=5).status_code == 200
    except requests.ConnectionError:
        return False


def test_the_server_waits_for_a_first_version_and_drains_on_sigterm(base_path: Path, tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = start(base_path, port, "--file_system_poll_wait_seconds=0.1")
    try:
        assert process.stderr is not None
        assert (
            f"No versions of servable {NAME} found under base path {base_path}" in process.stderr.readline()
        )
        assert not is_up(url)
        save_half(base_path / "1", offset=1.0)
        wait_until(lambda: is_up(url))

        gate = tmp_path / "gate"
        body = {"signature_name": "wait", "instances": [str(gate)]}
        with ThreadPoolExecutor(1) as executor:
            running = executor.submit(
                requests.post, f"{url}/v1/models/{NAME}:predict", json=body, timeout=SECONDS
            )
            wait_until(Path(f"{gate}.begun").exists)
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: not is_up(url))
            assert process.poll() is None
            gate.touch()
            assert running.result().json() == {"predictions": [1.0]}
        assert process.wait(SECONDS) == 0
    finally:
        process.kill()
        process.communicate()


def test_a_taken_port_is_one_clear_line(base_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = start(base_path, port)
        _, text = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    (line,) = text.splitlines()
    assert f"can't listen on 127.0.0.1 port {port}: Address already in use" in line
    assert "--rest_api_port" in line


def test_a_missing_base_path_is_one_clear_line(tmp_path: Path) -> None:
    process = start(tmp_path / "missing", free_port())
    _, text = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    (line,) = text.splitlines()
    assert f"could not find base path {tmp_path / 'missing'} for model {NAME}" in line


def test_the_server_ends_when_its_only_version_is_broken(base_path: Path) -> None:
    (base_path / "1").mkdir()
    (base_path / "1" / "saved_model.pb").write_bytes(b"no model")
    process = start(base_path, free_port())
    _, text = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert f"can't load version 1 of {NAME} from {base_path / '1'}" in text
    assert "Traceback" not in text


def test_limits_and_cors(base_path: Path, tmp_path: Path) -> None:
    save_half(base_path / "1")
    flags = [
        "--rest_api_max_request_bytes=1000",
        "--rest_api_timeout_in_ms=500",
        "--rest_api_enable_cors_support=true",
    ]
    with running_server(base_path, NAME, flags=flags) as server:
        url = f"{server}/v1/models/{NAME}"
        for size in (1001, 20_000_000):
            answer = requests.post(f"{url}:predict", data=b" " * size, timeout=SECONDS)
            assert answer.status_code == 413
            assert "larger than 1000 bytes" in answer.json()["error"]
        chunked = requests.post(f"{url}:predict", data=iter([b" " * 900] * 5), timeout=SECONDS)
        assert chunked.status_code == 413
        body = {"signature_name": "wait", "instances": [str(tmp_path / "never")]}
        late = requests.post(f"{url}:predict", json=body, timeout=SECONDS)
        assert late.status_code == 504
        answer = requests.post(f"{url}:predict", json={"instances": [1]}, timeout=SECONDS)
        assert answer.json() == {"predictions": [2.5]}
        assert answer.headers["access-control-allow-origin"] == "*"
        asked = requests.options(f"{url}:predict", timeout=SECONDS)
        assert asked.status_code == 200
        assert asked.headers["access-control-allow-methods"] == "POST, GET"
        assert asked.headers["access-control-allow-headers"] == "Content-Type"
        host, port = server.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=SECONDS) as slow:
            slow.sendall(
                f"POST /v1/models/{NAME}:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n".encode()
            )
            assert slow.recv(1000).startswith(b"HTTP/1.1 408")


def test_help_is_fast_and_teaches() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "serving.local", "--help"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env=dict(os.environ),
        check=True,
    )
    dockerfile = (Path(__file__).parents[2] / "Dockerfile.serving").read_text()
    flags = re.findall(r'"(--\w+)=', dockerfile)
    assert len(flags) > 5
    for flag in (*flags, "--model_base_path", "--file_system_poll_wait_seconds", "curl"):
        assert flag in done.stdout, flag
    assert "tensorflow" not in done.stderr


@pytest.mark.parametrize("seconds", ["-1", "nan", "inf"])
def test_a_time_between_two_looks_that_is_none_is_wrong_usage(
    seconds: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for flag in ("--file_system_poll_wait_seconds", "--model_config_file_poll_wait_seconds"):
        with pytest.raises(SystemExit, match="2"):
            parse(["--model_base_path=models", f"{flag}={seconds}"])
        assert f"{seconds} is not a number of seconds, at least 0" in capsys.readouterr().err
