"""Batches of requests in the embedded server: what is joined, refused, padded, counted and drained."""

from __future__ import annotations

import base64
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from serving.errors import ConfigError
from serving.local.batching import Arrays, Batcher
from serving.local.config import BatchingConfig, read_batching
from serving.local.metrics import BatchMetrics, Metrics
from serving.local.status import RequestError
from serving.up import free_port, running_server
from tests.serving.saved_models import save_half
from tests.serving.test_local_versions import NAME, SECONDS, is_up, start, wait_until
from tests.serving.tiles import encoded, tile

ROOT = Path(__file__).parents[2]
MONITORING = f"--monitoring_config_file={ROOT / 'serving/config/monitoring.config'}"
FULL = "The batch scheduling queue to which this task was submitted is full; "


@dataclass
class Server:
    """One that runs batches of at most 4 rows one after the other, and lets 2 batches wait."""

    url: str
    folder: Path

    def post(self, body: dict[str, Any]) -> requests.Response:
        return requests.post(f"{self.url}/v1/models/{NAME}:predict", json=body, timeout=SECONDS)

    def metric(self, name: str) -> float:
        page = requests.get(f"{self.url}/monitoring/prometheus/metrics", timeout=SECONDS).text
        lines = [line.split() for line in page.splitlines() if line.startswith(f":tensorflow:serving:{name}")]
        return sum(float(value) for _, value in lines)

    def while_busy(self, bodies: Sequence[dict[str, Any]]) -> list[requests.Response]:
        """Sends requests one by one while the only thread runs something else, which then ends."""
        gate = self.folder / f"gate-{len(list(self.folder.iterdir()))}"
        with ThreadPoolExecutor(len(bodies) + 1) as executor:
            busy = executor.submit(self.post, {"signature_name": "wait", "instances": [str(gate)]})
            wait_until(Path(f"{gate}.begun").exists)
            waiting = []
            for body in bodies:
                before = self.metric("batching_session:input_batch_size_count")
                waiting.append(executor.submit(self.post, body))
                wait_until(
                    lambda: self.metric("batching_session:input_batch_size_count") > before  # noqa: B023
                )
            gate.touch()
            assert busy.result().status_code == 200
            return [one.result() for one in waiting]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("batching")
    save_half(folder / "models" / "1")
    parameters = folder / "batching.txt"
    parameters.write_text(
        "max_batch_size { value: 4 } max_enqueued_batches { value: 2 } num_batch_threads { value: 1 }"
    )
    flags = ["--enable_batching", f"--batching_parameters_file={parameters}", MONITORING]
    with running_server(folder / "models", NAME, flags=flags) as url:
        (folder / "gates").mkdir()
        yield Server(url, folder / "gates")


def rows(*values: float) -> dict[str, Any]:
    return {"instances": list(values)}


def test_requests_that_wait_at_the_same_time_share_a_run_and_get_their_own_rows(server: Server) -> None:
    batches, tiles = (f"batching_session:processed_batch_size_{part}" for part in ("count", "sum"))
    before = [server.metric(batches), server.metric(tiles)]
    answers = server.while_busy([rows(0), rows(2, 4), rows(6)])
    assert [one.json()["predictions"] for one in answers] == [[2.0], [3.0, 4.0], [5.0]]
    after = [server.metric(batches), server.metric(tiles)]
    assert np.subtract(after, before).tolist() == [2, 1 + 4], "one run that was busy, one for all that waited"


def test_a_batch_is_never_larger_than_its_limit(server: Server) -> None:
    name = "batching_session:processed_batch_size_count"
    before = server.metric(name)
    answers = server.while_busy([rows(0, 0, 0), rows(2, 2)])
    assert [one.json()["predictions"] for one in answers] == [[2.0, 2.0, 2.0], [3.0, 3.0]]
    assert server.metric(name) - before == 3


def test_what_comes_to_a_full_queue_is_turned_away_at_once(server: Server) -> None:
    first, second, third = server.while_busy([rows(0, 0, 0, 0), rows(2, 2, 2), rows(4, 4)])
    assert (first.status_code, second.status_code) == (200, 200)
    assert third.status_code == 503
    assert third.json() == {"error": f"{FULL}currently 2 batches enqueued and max_enqueued_batches is 2"}


def test_a_request_larger_than_a_batch_is_refused(server: Server) -> None:
    answer = server.post(rows(1, 2, 3, 4, 5))
    assert answer.status_code == 400
    assert answer.json() == {"error": "Task size 5 is larger than maximum input batch size 4"}


def test_an_error_of_a_batch_is_the_error_of_all_its_requests(server: Server) -> None:
    def decode(image: bytes) -> dict[str, Any]:
        return {
            "signature_name": "decode",
            "instances": [{"b64": base64.b64encode(image).decode()}],
        }

    good = decode(encoded(tile()))
    assert server.post(good).status_code == 200
    answers = server.while_busy([good, decode(b"no image")])
    assert [one.status_code for one in answers] == [400, 400]
    assert len({one.json()["error"] for one in answers}) == 1
    assert server.post(good).status_code == 200


def test_requests_of_different_shapes_spoil_their_batch(server: Server) -> None:
    answers = server.while_busy([rows(0), {"instances": [[0, 0]]}])
    for one in answers:
        assert one.status_code == 400
        assert one.json()["error"].startswith(
            "Tensors with name 'serving_default_x:0' from different tasks have different shapes and padding "
            "is turned off."
        )


def test_what_is_no_batch_is_refused_as_tensorflow_serving_does(server: Server) -> None:
    def error(body: dict[str, Any]) -> str:
        answer = server.post(body)
        assert answer.status_code == 400
        return str(answer.json()["error"])

    assert error({"inputs": 1}) == "Batching Run() input tensors must have at least one dimension"
    many = {"ints": [[1, 2], [3, 4]], "text": ["a"], "flag": [True]}
    assert error({"signature_name": "many", "inputs": many}) == (
        "Batching Run() input tensors must have equal 0th-dimension size"
    )
    assert error({"signature_name": "no_batch", "inputs": [1, 2]}) == "Batched output tensor has 0 dimensions"


def test_a_request_without_rows_is_answered(server: Server) -> None:
    assert server.post({"inputs": []}).json() == {"outputs": []}


def test_waits_and_sizes_are_counted_under_tensorflow_servings_names(server: Server) -> None:
    server.post(rows(1, 2))
    prefix = ":tensorflow:serving:batching_session:"
    page = requests.get(f"{server.url}/monitoring/prometheus/metrics", timeout=SECONDS).text
    for line in (
        f'{prefix}queuing_latency_bucket{{le="120.0",thread_pool_name=""}}',
        f'{prefix}processed_batch_size_bucket{{le="2.0"}}',
        f'{prefix}input_batch_size_bucket{{le="2.0"}}',
        f'{prefix}padding_size_count{{execution_batch_size="2"}}',
    ):
        assert line in page


def test_sigterm_drains_what_runs_and_what_waits_for_a_batch(tmp_path: Path) -> None:
    save_half(tmp_path / "models" / "1", offset=1.0)
    (tmp_path / "one.txt").write_text("num_batch_threads { value: 1 }")
    port = free_port()
    process = start(
        tmp_path / "models",
        port,
        "--enable_batching=true",
        f"--batching_parameters_file={tmp_path / 'one.txt'}",
        MONITORING,
    )
    server = Server(f"http://127.0.0.1:{port}", tmp_path)
    gate = tmp_path / "gate"
    try:
        wait_until(lambda: is_up(server.url))
        with ThreadPoolExecutor(3) as executor:
            running = executor.submit(server.post, {"signature_name": "wait", "instances": [str(gate)]})
            wait_until(Path(f"{gate}.begun").exists)
            waiting = [executor.submit(server.post, rows(value)) for value in (0, 2)]
            wait_until(lambda: server.metric("batching_session:input_batch_size_count") == 3)
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: not is_up(server.url))
            assert process.poll() is None
            gate.touch()
            assert running.result().json() == {"predictions": [1.0]}
            assert [one.result().json() for one in waiting] == [
                {"predictions": [1.0]},
                {"predictions": [2.0]},
            ]
        assert process.wait(SECONDS) == 0
    finally:
        process.kill()
        process.communicate()


class Graph:
    """Adds 1 to `x`, once it may; keeps what it ran."""

    def __init__(self) -> None:
        self.may_run = threading.Event()
        self.may_run.set()
        self.running = threading.Semaphore(0)
        self.ran: list[list[Any]] = []

    def run(self, inputs: Arrays, timeout_ms: int) -> Arrays:
        self.running.release()
        assert self.may_run.wait(SECONDS)
        self.ran.append(inputs["x"].tolist())
        return {"y": inputs["x"] + 1}


def ask(executor: ThreadPoolExecutor, queue: Any, values: Any, timeout_ms: int = 0) -> Future[Any]:
    return executor.submit(lambda: queue.run({"x": np.array(values)}, timeout_ms)["y"].tolist())


def batcher(metrics: Metrics | None = None, **parameters: Any) -> Batcher:
    return Batcher(BatchingConfig(**{"threads": 1, **parameters}), BatchMetrics(metrics or Metrics()))


def wait_until_enqueued(metrics: Metrics, requests: int) -> None:
    line = f":tensorflow:serving:batching_session:input_batch_size_count {requests}.0\n"
    wait_until(lambda: line in metrics.page().decode())


def test_a_batch_waits_for_more_rows_until_it_is_full() -> None:
    graph = Graph()
    queue = batcher(timeout=10 * SECONDS, max_batch_size=3).add_queue(graph.run)
    with ThreadPoolExecutor(3) as executor:
        answers = [ask(executor, queue, [value]) for value in (1, 2, 3)]
        assert [one.result(SECONDS) for one in answers] == [[2], [3], [4]]
    assert [sorted(one) for one in graph.ran] == [[1, 2, 3]]


def test_a_batch_that_is_not_full_runs_when_its_time_is_over() -> None:
    graph = Graph()
    queue = batcher(timeout=0.05).add_queue(graph.run)
    assert queue.run({"x": np.array([1])}, 0)["y"].tolist() == [2]


def test_batches_are_filled_up_to_an_allowed_size_with_rows_that_are_there() -> None:
    graph = Graph()
    queue = batcher(max_batch_size=8, allowed_sizes=(1, 4, 8)).add_queue(graph.run)
    assert queue.run({"x": np.array([5, 6, 7])}, 0)["y"].tolist() == [6, 7, 8]
    assert queue.run({"x": np.array([5])}, 0)["y"].tolist() == [6]
    assert graph.ran == [[5, 6, 7, 5], [5]]


def test_rows_of_different_shapes_are_padded_where_that_is_on() -> None:
    graph = Graph()
    queue = batcher(max_batch_size=2, timeout=10 * SECONDS, pad=True).add_queue(graph.run)
    with ThreadPoolExecutor(2) as executor:
        long, short = ask(executor, queue, [[1, 2, 3]]), ask(executor, queue, [[7]])
        assert long.result(SECONDS) == [[2, 3, 4]]
        assert short.result(SECONDS) == [[8, 8, 8]]


def test_a_large_request_is_split_where_that_is_on() -> None:
    graph, metrics = Graph(), Metrics()
    queue = batcher(metrics, max_batch_size=5, split_to=2, max_enqueued_batches=3).add_queue(graph.run)
    assert queue.run({"x": np.array([1, 2, 3, 4, 5])}, 0)["y"].tolist() == [2, 3, 4, 5, 6]
    assert graph.ran == [[1, 2], [3, 4], [5]]
    with pytest.raises(RequestError, match="Task size 6 is larger than maximum input batch size 5"):
        queue.run({"x": np.arange(6)}, 0)
    graph.may_run.clear()
    with ThreadPoolExecutor(2) as executor:
        busy = ask(executor, queue, [0])
        for _ in range(4):
            assert graph.running.acquire(timeout=SECONDS)
        waiting = ask(executor, queue, [1, 2, 3])
        wait_until_enqueued(metrics, 4)
        with pytest.raises(RequestError) as refused:
            queue.run({"x": np.arange(4)}, 0)
        assert refused.value.code == "UNAVAILABLE"
        assert refused.value.message == (
            f"{FULL}task size is 4 but scheduling capacity is only 3 (num_enqueued_batches=2, "
            "max_enqueued_batches=3, open_batch_size=1, max_execution_batch_size=2)"
        )
        graph.may_run.set()
        assert (busy.result(SECONDS), waiting.result(SECONDS)) == ([1], [2, 3, 4])


def test_a_request_whose_time_is_over_before_its_batch_begins_is_not_run() -> None:
    graph, metrics = Graph(), Metrics()
    graph.may_run.clear()
    queue = batcher(metrics).add_queue(graph.run)
    with ThreadPoolExecutor(2) as executor:
        busy = ask(executor, queue, [0])
        assert graph.running.acquire(timeout=SECONDS)
        late = ask(executor, queue, [1], timeout_ms=1)
        wait_until_enqueued(metrics, 2)
        threading.Event().wait(0.01)
        graph.may_run.set()
        assert busy.result(SECONDS) == [1]
        with pytest.raises(RequestError, match=r"RESOURCE_EXHAUSTED: Run\(\) timeout exceeded while waiting"):
            late.result(SECONDS)
    assert graph.ran == [[0]]


def test_queues_take_turns() -> None:
    graphs, metrics = [Graph(), Graph()], Metrics()
    graphs[0].may_run.clear()
    one = batcher(metrics, max_batch_size=1)
    first, second = (one.add_queue(graph.run) for graph in graphs)
    with ThreadPoolExecutor(4) as executor:
        answers = [ask(executor, first, [0])]
        assert graphs[0].running.acquire(timeout=SECONDS)
        answers += [ask(executor, first, [value]) for value in (1, 2)]
        answers.append(ask(executor, second, [3]))
        wait_until_enqueued(metrics, 4)
        order: list[int] = []
        for graph, number in zip(graphs, (1, 2), strict=True):
            graph.ran = _Noted(order, number)
        graphs[0].may_run.set()
        for answer in answers:
            answer.result(SECONDS)
    assert order == [1, 2, 1, 1]


class _Noted(list[list[Any]]):
    """Notes in `order` who ran."""

    def __init__(self, order: list[int], number: int) -> None:
        super().__init__()
        self._order, self._number = order, number

    def append(self, value: list[Any]) -> None:
        self._order.append(self._number)


def test_the_projects_file_is_understood_unchanged() -> None:
    assert read_batching(ROOT / "serving/config/batching_parameters.txt") == BatchingConfig(
        max_batch_size=8, timeout=0.0, max_enqueued_batches=9, threads=2, thread_name="tiles"
    )


def test_all_parameters_are_read(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text(
        "max_batch_size { value: 8 } batch_timeout_micros { value: 2500 } max_enqueued_batches { value: 3 } "
        "num_batch_threads { value: 5 } allowed_batch_sizes: 4 allowed_batch_sizes: 8 "
        "pad_variable_length_inputs: true enable_large_batch_splitting { value: true } "
        "max_execution_batch_size { value: 4 }"
    )
    assert read_batching(tmp_path / "b.txt") == BatchingConfig(
        8, 0.0025, 3, 5, allowed_sizes=(4, 8), pad=True, split_to=4
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_batch_size: 8", r"b\.txt is no BatchingParameters: 1:17"),
        ("max_batch_size { value: 0 }", "max_batch_size must be positive; was 0"),
        ("num_batch_threads { value: -1 }", "num_batch_threads must be positive; was -1"),
        (
            "max_batch_size { value: 8 } allowed_batch_sizes: 4",
            "Last entry in allowed_batch_sizes must match max_batch_size; last entry was 4; expected 8",
        ),
    ],
)
def test_mistakes_in_the_file_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "b.txt").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_batching(tmp_path / "b.txt")


def test_a_file_without_batching_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "serving.local", f"--model_base_path={tmp_path}"]
    done = subprocess.run(
        [*command, "--batching_parameters_file=b.txt"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 2
    assert "--batching_parameters_file is set without --enable_batching" in done.stderr
