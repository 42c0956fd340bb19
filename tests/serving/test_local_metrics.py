"""Metrics of the embedded server: TensorFlow Serving's names and labels, at the configured path."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from serving.local.app import make_app
from serving.local.config import ModelConfig, read_metrics_path
from serving.local.metrics import Metrics
from serving.local.models import Models
from serving.local.versions import Loading
from serving.up import running_server
from tests.serving.saved_models import save_half
from tests.serving.test_config import METRICS, queries
from tests.serving.test_local_clients import Upload

NAME = "half"
CONFIG = Path(__file__).parents[2] / "serving/config/monitoring.config"


def test_predictions_and_loads_are_counted_and_timed(tmp_path: Path) -> None:
    save_half(tmp_path / "1")
    with running_server(tmp_path, NAME, flags=[f"--monitoring_config_file={CONFIG}"]) as server:
        predict = f"{server}/v1/models/{NAME}:predict"
        for _ in range(3):
            assert requests.post(predict, json={"instances": [1]}, timeout=30).ok
        assert requests.post(predict, json={"instances": ["x"]}, timeout=30).status_code == 400
        assert requests.post(f"{server}/v1/models/other:predict", json={}, timeout=30).status_code == 404
        answer = requests.get(f"{server}/monitoring/prometheus/metrics", timeout=30)
    assert answer.headers["content-type"].startswith("text/plain")
    lines = answer.text.splitlines()
    assert f':tensorflow:serving:request_count{{model_name="{NAME}",status="OK"}} 3.0' in lines
    assert f':tensorflow:serving:request_count{{model_name="{NAME}",status="INVALID_ARGUMENT"}} 1.0' in lines
    assert "# TYPE :tensorflow:serving:request_count counter" in lines
    times = f'API="predict",entrypoint="REST",model_name="{NAME}"'
    assert f":tensorflow:serving:request_latency_count{{{times}}} 3.0" in lines
    runs = f'API="Predict",model_name="{NAME}",runtime="TF1"'
    assert f":tensorflow:serving:runtime_latency_count{{{runs}}} 3.0" in lines
    spent = next(
        line for line in lines if line.startswith(f":tensorflow:serving:request_latency_sum{{{times}")
    )
    assert 3 * 10 < float(spent.split()[-1]) < 3 * 30e6  # microseconds
    loads = f'model_path="{tmp_path / "1"}",status="success"'
    assert f":tensorflow:cc:saved_model:load_attempt_count{{{loads}}} 1.0" in lines
    assert "other" not in answer.text
    names = {line.split()[2] for line in lines if line.startswith("# TYPE")}
    assert names <= set(METRICS)


def test_a_fault_of_the_server_is_counted_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(body: bytes) -> None:
        raise ZeroDivisionError("no such request")

    monkeypatch.setattr("serving.local.app.decode_request", fail)

    async def ask(name: str) -> tuple[int, str]:
        return await Upload(make_app(models, executor, metrics=metrics), name).end()

    metrics, models = Metrics(), Models(Loading(poll_seconds=0))
    models.apply([ModelConfig(NAME, tmp_path)])
    with ThreadPoolExecutor(1) as executor:
        for name in (NAME, "other"):
            code, text = asyncio.run(ask(name))
            assert (code, json.loads(text)) == (500, {"error": "ZeroDivisionError: no such request"})
    models.stop()
    page = metrics.page().decode()
    assert f':tensorflow:serving:request_count{{model_name="{NAME}",status="INTERNAL"}} 1.0' in page
    assert "other" not in page


def test_dashboard_and_alerts_find_what_they_ask_for(tmp_path: Path) -> None:
    save_half(tmp_path / "1")
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "saved_model.pb").write_bytes(b"no model")
    flags = [f"--monitoring_config_file={CONFIG}", "--enable_batching"]
    with running_server(tmp_path, NAME, flags=flags) as server:
        for instances in ([1], ["x"]):
            requests.post(f"{server}/v1/models/{NAME}:predict", json={"instances": instances}, timeout=30)
        page = requests.get(f"{server}/monitoring/prometheus/metrics", timeout=30).text
    samples = [
        (line.split("{")[0].split()[0], dict(re.findall(r'(\w+)="([^"]*)"', line)))
        for line in page.splitlines()
        if not line.startswith("#")
    ]
    asked = [
        (where, name, re.findall(r'(\w+)(!?=)"([^"]*)"', selector))
        for where, query in queries().items()
        for name, selector in re.findall(r"(:[a-z_:]+)(?:\{([^}]*)\})?", query)
    ]
    assert len(asked) > 10
    for where, name, conditions in asked:
        assert any(
            name == found
            and all((labels.get(key) == value) == (sign == "=") for key, sign, value in conditions)
            for found, labels in samples
        ), f"{where}: no {name} {conditions}"


def test_without_the_flag_there_are_none(tmp_path: Path) -> None:
    save_half(tmp_path / "1")
    with running_server(tmp_path, NAME) as server:
        assert requests.get(f"{server}/monitoring/prometheus/metrics", timeout=30).status_code == 404


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("prometheus_config { enable: true path: '/here' }", "/here"),
        ("prometheus_config { enable: true }", "/monitoring/prometheus/metrics"),
        ("prometheus_config { path: '/here' }", None),
        ("", None),
    ],
)
def test_the_file_says_where_they_are(tmp_path: Path, text: str, path: str | None) -> None:
    (tmp_path / "m.config").write_text(text)
    assert read_metrics_path(tmp_path / "m.config") == path


def test_a_mistake_in_the_file_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "m.config").write_text("prometheus { on: yes }")
    command = [sys.executable, "-m", "serving.local", "--rest_api_port=18499"]
    done = subprocess.run(
        [*command, f"--model_base_path={tmp_path}", f"--monitoring_config_file={tmp_path / 'm.config'}"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=CONFIG.parents[2],
    )
    assert done.returncode == 1
    assert "m.config is no MonitoringConfig" in done.stderr
    assert "Traceback" not in done.stderr
