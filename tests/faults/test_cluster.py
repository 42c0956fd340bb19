"""Batch scoring on a Ray cluster of several nodes, one of which dies while it works.

The nodes are Ray's own processes, as on machines of their own, side by side on this one.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from serving.errors import ServingError
from tests.serving.test_batch import COMMAND, masks, rows, soon, tiles_in

STORE = 100 * 2**20


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head that works on nothing, and two nodes of one CPU each, the second of which may be removed."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_health_check_period_ms", "1000")
        cluster = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(2):
            cluster.add_node(num_cpus=1, object_store_memory=STORE)
        cluster.wait_for_nodes()
        yield cluster
        cluster.shutdown()


def test_after_the_death_of_a_node_the_run_goes_on_and_each_tile_has_one_row(
    cluster: Any, servable_path: Path, tmp_path: Path
) -> None:
    source, out = tmp_path / "tiles", tmp_path / "out"
    files = tiles_in(source, 600)
    arguments = [str(source), "--out", str(out), "--model", str(servable_path), "--address", cluster.address]
    with subprocess.Popen([*COMMAND, *arguments], stderr=subprocess.PIPE, text=True) as run:
        soon(lambda: len(masks(out)) >= 64)
        assert run.poll() is None
        cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
        _, said = run.communicate()
    assert run.returncode == 3, said
    assert [row["image"] for row in rows(out)] == sorted(files)
    assert len(masks(out)) == len(files)


def test_a_run_ends_when_machines_die_again_and_again_and_nothing_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray

    from serving.batch import job
    from serving.batch.storage import IMAGES

    names = [f"{number}.png" for number in range(6)]
    given: list[list[str]] = []
    added: list[str] = []

    def rows_until_it_dies(left: pa.Table, *_: object) -> Iterator[pa.Table]:
        given.append(left["image"].to_pylist())
        if len(given) <= 2:
            yield left.slice(0, 2)
        raise ray.exceptions.ActorUnavailableError("gone", None)

    monkeypatch.setattr(job, "_rows", rows_until_it_dies)
    monkeypatch.setattr(job, "PAUSE", 0.0)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 1.0}}])
    results: Any = SimpleNamespace(add=lambda table: added.extend(table["image"].to_pylist()))
    settings: Any = SimpleNamespace(threads=1)
    images = pa.Table.from_pylist([{"image": name} for name in names], schema=IMAGES)
    with pytest.raises(ServingError, match=r"a worker failed: .*gone.*; the same command goes on"):
        list(job.score(images, {}, settings, results, workers=None, gpus=0, seconds=60))
    assert given == [names, names[2:], *[names[4:]] * (job.ATTEMPTS - 1)]
    assert added == names[:4]


def test_a_worker_that_cannot_start_is_not_said_to_want_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from serving.batch import job
    from serving.batch.storage import IMAGES

    def fail(*_: object) -> Iterator[pa.Table]:
        text = "Traceback:\nserving.errors.ServingError: no such model"
        raise ray.exceptions.ActorDiedError(ray.exceptions.RayTaskError("f", text, ValueError()))
        yield

    monkeypatch.setattr(job, "_rows", fail)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 1.0}}])
    settings: Any = SimpleNamespace(threads=1)
    images = pa.Table.from_pylist([{"image": "a.png"}], schema=IMAGES)
    with pytest.raises(ServingError, match="a worker failed: no such model; the same command"):
        list(job.score(images, {}, settings, None, workers=None, gpus=0, seconds=60))


def test_workers_are_as_many_as_machines_have_room_for_and_none_waits_unsaid(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import ray

    from serving.batch import job
    from serving.batch.storage import IMAGES

    nodes = [(True, {"CPU": 3.0, "GPU": 1.0}), (True, {"CPU": 5.0}), (True, {}), (False, {"CPU": 64.0})]
    images = pa.Table.from_pylist([{"image": f"{number}.png"} for number in range(99)], schema=IMAGES)
    given: list[int] = []

    def note(left: pa.Table, _: object, __: object, workers: int, ___: int) -> Iterator[pa.Table]:
        given.append(workers)
        yield left

    def score(threads: int, gpus: int, workers: int | None = None) -> int:
        results: Any = SimpleNamespace(add=lambda table: None)
        settings: Any = SimpleNamespace(threads=threads)
        list(job.score(images, {}, settings, results, workers=workers, gpus=gpus, seconds=60))
        return given.pop()

    monkeypatch.setattr(job, "_rows", note)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": alive, "Resources": has} for alive, has in nodes])
    assert [score(1, 0), score(2, 0), score(4, 0), score(1, 1)] == [8, 3, 1, 1]
    with pytest.raises(ServingError, match=r"no machine with 6 CPUs and 0 GPUs .* take fewer"):
        score(6, 0)
    assert not caplog.text
    assert score(1, 2, workers=4) == 4
    assert "no machine with 1 CPUs and 2 GPUs for a worker; waiting for one" in caplog.text


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            ConnectionError("Failed to connect"),
            "no Ray at head:6379: Failed to connect; where it wants a token",
        ),
        (RuntimeError("other version"), "no Ray at head:6379: other version"),
        ("authentication", "Ray at head:6379 wants another token"),
    ],
    ids=["connection", "version", "token"],
)
def test_a_cluster_that_cannot_be_joined_is_named_with_the_reason(
    error: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    from serving.batch.job import connected

    def refuse(*_: object, **__: object) -> None:
        raise ray.exceptions.AuthenticationError("no token") if error == "authentication" else error

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(ServingError, match=said), connected("head:6379", None, 0):
        pass
