"""Experiments as a user runs them, in a clone with a finished and committed pipeline (docs/experiments.md).

No run here may need the network: every one has a proxy that notes who calls.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from stages.data_load import data_load
from stages.params import DataLoadParams
from tests.clone import Clone
from tests.stages.conftest import SYNTHETIC

RATES = (0.001, 0.002)
EPOCHS = 2


class Listener:
    """An HTTP server that takes whatever it is sent.

    Attributes:
        url: of the server.
        asked: requests so far, each with its path and JSON document.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []
        listener = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                listener.asked.append((self.path, json.loads(body or b"null")))
                self.send_response(200)
                self.end_headers()

            do_GET = do_CONNECT = do_POST

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture(scope="module")
def proxy() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.server.shutdown()


@pytest.fixture(scope="module")
def project(clone: Clone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """The finished clone, committed, as the baseline of experiments."""
    project = clone.copy(tmp_path_factory.mktemp("experiments") / "project")
    project.run("git", "add", "--all")
    project.run("git", "commit", "-qm", "The first run")
    yield project
    project.run("dvc", "queue", "stop", "--kill")


@pytest.fixture(scope="module")
def dvc(project: Clone, proxy: Listener) -> Any:
    """Runs DVC without a token for Studio, and with the proxy."""
    without = {name: "" for name in ("DVC_STUDIO_TOKEN", "STUDIO_TOKEN", "NO_PROXY", "no_proxy", "CI")}
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), proxy.url)
    return lambda *command, **extra: project.run("dvc", *command, **without | proxies | extra)


@pytest.fixture(scope="module")
def grid(project: Clone, dvc: Any) -> dict[str, dict[str, Any]]:
    """Experiments and the baseline by name, after two workers have emptied the queue."""
    own = project.folder / "own tiles"  # git does not track it, so the folder of a worker does not have it
    write_own_tiles(own)
    rates = f"train.learning_rate={','.join(map(str, RATES))}"
    dvc("exp", "run", "--queue", "-n", "rate", "-S", rates, "-S", f"train.epochs={EPOCHS}", "train")
    dvc("exp", "run", "--queue", "-n", "own", "-S", "data_load.source=own tiles", "data_load")
    assert dvc("queue", "status").count("Queued") == 3
    dvc("queue", "start", "-j", "2")
    deadline = time.monotonic() + 900
    while re.search("Queued|Running", status := dvc("queue", "status")):
        assert time.monotonic() < deadline, status
        time.sleep(1)
    shutil.rmtree(own)
    failed = [line.split()[0] for line in status.splitlines() if "Failed" in line]
    assert not failed, "\n".join(dvc("queue", "logs", task) for task in failed)
    _, baseline = json.loads(dvc("exp", "show", "--json"))
    experiments = [revision for one in baseline["experiments"] for revision in one["revs"]]
    return {one["name"]: one for one in [baseline, *experiments]}


def write_own_tiles(folder: Path) -> None:
    params = DataLoadParams(source="synthetic", mask_threshold=0, synthetic=SYNTHETIC)
    loaded = folder / "loaded"
    data_load(params, loaded, folder / "cache")
    for kind in ("images", "masks"):
        shutil.copytree(loaded / kind, folder, dirs_exist_ok=True)
    shutil.rmtree(loaded)


def without_nulls(document: Any) -> Any:
    if not isinstance(document, dict):
        return document
    return {name: without_nulls(value) for name, value in document.items() if value is not None}


def rows(table: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(table), delimiter="\t"))


def test_a_grid_in_the_queue_gives_experiments_with_their_own_figures(grid: dict[str, Any]) -> None:
    losses = set()
    for index, rate in enumerate(RATES):
        experiment = grid[f"rate-{index + 1}"]
        assert experiment["error"] is None
        assert experiment["data"]["params"]["params.yaml"]["data"]["train"]["learning_rate"] == rate
        metrics = {path: content["data"] for path, content in experiment["data"]["metrics"].items()}
        assert metrics["results/train/metrics.json"]["step"] == EPOCHS - 1
        losses.add(metrics["results/train/metrics.json"]["eval"]["loss"])
    assert len(losses) == len(RATES)


def test_the_baseline_has_its_figures_in_git(project: Clone, grid: dict[str, Any]) -> None:
    branch = project.run("git", "branch", "--show-current").strip()
    metrics = grid[branch]["data"]["metrics"]
    for path in YAML(typ="safe").load(project.folder / "dvc.yaml")["metrics"]:
        kept = json.loads(project.run("git", "show", f"HEAD:{path}"))
        assert metrics[path]["data"] == without_nulls(kept)  # nor does DVC show those


def test_a_file_named_from_the_project_is_found_by_a_worker(grid: dict[str, Any]) -> None:
    outs = {name: grid[name]["data"]["outs"]["data/tiles"] for name in ("own", "rate-1")}
    assert outs["own"]["nfiles"] > outs["rate-1"]["nfiles"]


def test_workers_leave_no_folders(project: Clone, grid: dict[str, Any]) -> None:
    assert list((project.folder / ".dvc/tmp/exps").glob("tmp*")) == []


def test_dvclive_logs_figures_samples_parameters_and_the_use_of_the_machine(
    project: Clone, grid: dict[str, Any]
) -> None:
    def file(path: str) -> str:
        return project.run("git", "show", f"{grid['rate-2']['rev']}:results/train/{path}")

    for name in (
        "train/loss",
        "train/dice",
        "eval/loss",
        "eval/dice",
        "system/cpu_percent",
        "system/memory_gb",
    ):
        table = rows(file(f"plots/metrics/{name}.tsv"))
        assert [int(row["step"]) for row in table] == [0, 1], name
    assert YAML(typ="safe").load(file("params.yaml"))["learning_rate"] == RATES[1]
    system = json.loads(file("metrics.json"))["system"]
    assert 0 < system["cpu_percent"] <= 100
    assert 0.1 < system["memory_gb"] < 100
    outs = grid["rate-2"]["data"]["outs"]
    assert outs["results/train/plots/images"]["nfiles"] == 1
    assert outs["models/unet.keras"]["size"] > 1_000_000
    changed = project.run("git", "diff", "--name-only", "HEAD", grid["rate-2"]["rev"]).split()
    assert "dvc.yaml" not in changed


def test_diff_tells_what_was_changed_and_what_came_of_it(dvc: Any, grid: dict[str, Any]) -> None:
    difference = json.loads(dvc("exp", "diff", "rate-1", "rate-2", "--json"))
    rate = difference["params"]["params.yaml"]["train.learning_rate"]
    assert (rate["old"], rate["new"]) == RATES
    loss = difference["metrics"]["results/train/metrics.json"]["eval.loss"]
    assert loss["diff"] == pytest.approx(loss["new"] - loss["old"])


def test_plots_of_two_experiments_are_one_page_with_the_samples_of_both(
    project: Clone, dvc: Any, grid: dict[str, Any]
) -> None:
    output = dvc("plots", "diff", "rate-1", "rate-2", "--out", "page")
    folder = project.folder / "page"
    page = (folder / "index.html").read_text()
    plots = YAML(typ="safe").load(project.folder / "dvc.yaml")["plots"]
    titles = [title for plot in plots if isinstance(plot, dict) for title in plot]
    assert {"Loss", "Dice", "Precision and recall", "Threshold sweep", "Dice by class"} <= set(titles)
    assert [title for title in titles if f'"text": "{title}"' not in page] == []
    for revision in ("rate-1", "rate-2"):
        assert page.count(f'"rev": "{revision}"') >= 4
        (samples,) = folder.glob(f"static/{revision}_*samples.png")
        assert f'<img src="static/{samples.name}">' in page
    shutil.rmtree(folder)
    assert not re.search("WARNING|ERROR", output)


def test_apply_brings_parameters_results_and_model_into_the_workspace(
    project: Clone, dvc: Any, grid: dict[str, Any]
) -> None:
    dvc("exp", "apply", "rate-2")
    params = YAML(typ="safe").load(project.folder / "params.yaml")
    assert params["train"]["learning_rate"] == RATES[1]
    assert project.read("results/train/metrics.json") == json.loads(
        project.run("git", "show", f"{grid['rate-2']['rev']}:results/train/metrics.json")
    )
    size = grid["rate-2"]["data"]["outs"]["models/unet.keras"]["size"]
    assert (project.folder / "models" / "unet.keras").stat().st_size == size
    assert "Stage 'train' didn't change, skipping" in dvc("repro", "train")
    project.run("git", "checkout", "--", ".")
    dvc("checkout")


def test_branch_makes_an_experiment_a_branch_with_its_results(
    project: Clone, dvc: Any, grid: dict[str, Any]
) -> None:
    dvc("exp", "branch", "rate-1", "better")
    assert f"learning_rate: {RATES[0]}" in project.run("git", "show", "better:params.yaml")
    step = json.loads(project.run("git", "show", "better:results/train/metrics.json"))["step"]
    assert step == EPOCHS - 1


@pytest.fixture(scope="module")
def studio() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.server.shutdown()


@pytest.fixture(scope="module")
def resumed(project: Clone, dvc: Any, grid: dict[str, Any], studio: Listener) -> str:
    """What DVC said when a run went on that had been killed with all its processes, now with Studio."""
    # Patience changes nothing here, but DVC shall not take this for the run of the grid.
    settings = (f"learning_rate={RATES[0]}", f"epochs={EPOCHS}", "patience=7")
    flags = [flag for setting in settings for flag in ("-S", f"train.{setting}")]
    state = project.folder / "models" / "checkpoint" / "train" / "1"
    with project.start("dvc", "exp", "run", *flags, "train", alone=True) as process:
        while not state.exists():
            assert process.poll() is None, process.communicate()[0][-5000:]
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    return str(
        dvc(
            *("exp", "run", "-n", "resumed", "-S", "train.resume=true", "train"),
            DVC_STUDIO_TOKEN="secret",
            DVC_STUDIO_URL=studio.url,
            DVC_STUDIO_REPO_URL="https://example.org/tiles.git",
            NO_PROXY="127.0.0.1",
        )
    )


def test_a_killed_run_goes_on_and_its_log_is_that_of_an_uninterrupted_one(
    project: Clone, dvc: Any, grid: dict[str, Any], resumed: str
) -> None:
    assert "going on after epoch 1" in resumed
    assert f"Epoch 2/{EPOCHS}" in resumed
    assert f"Epoch 1/{EPOCHS}" not in resumed
    for name in ("train/loss", "eval/loss"):
        path = f"results/train/plots/metrics/{name}.tsv"
        got, expected = (
            rows((project.folder / path).read_text()),
            rows(project.run("git", "show", f"{grid['rate-1']['rev']}:{path}")),
        )
        assert [row["step"] for row in got] == ["0", "1"]
        assert [float(row["loss"]) for row in got] == pytest.approx(
            [float(row["loss"]) for row in expected], rel=1e-3
        )
    assert not (project.folder / "models" / "checkpoint" / "train").exists()


def test_train_resume_alone_makes_no_finished_stage_run_again(project: Clone, dvc: Any, resumed: str) -> None:
    params = project.folder / "params.yaml"
    assert "resume: true" in params.read_text()
    params.write_text(params.read_text().replace("resume: true", "resume: false"))
    output = dvc("repro", "train")
    assert "Stage 'pretrain' didn't change, skipping" in output
    assert "Stage 'train' didn't change, skipping" in output


def test_studio_gets_every_epoch_when_its_token_is_set(resumed: str, studio: Listener) -> None:
    assert {path for path, _ in studio.asked} == {"/api/live"}
    events = [document for _, document in studio.asked]
    assert {event["name"] for event in events} == {"resumed"}
    assert events[0]["type"] == "start"
    assert events[-1]["type"] == "done"
    steps = {event["step"] for event in events if event["type"] == "data"}
    assert EPOCHS - 1 in steps
    figures = [event["metrics"] for event in events if event.get("metrics") and event["type"] == "data"]
    assert "eval" in figures[-1]["results/train/metrics.json"]["data"]
    plots = set().union(*(event.get("plots", ()) for event in events))
    assert "results/train/plots/images/samples.png" in plots
    assert not re.search("WARNING.*[Ss]tudio", resumed)


def test_without_a_token_nobody_asks_the_network(grid: dict[str, Any], proxy: Listener) -> None:
    assert proxy.asked == []
