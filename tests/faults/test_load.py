"""More requests than a server can answer, versions that change meanwhile, and a server that is killed.

`python -m scripts.load` does the same for longer, with a model of one's own.
"""

from __future__ import annotations

import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import requests

from scripts.load import IMAGE_FLAGS, Load, Result, main, tiles
from scripts.memory import Memory, process_at
from serving.up import running_server
from tests.conftest import MODEL_NAME
from tests.serving.saved_models import save_half
from tests.serving.test_local_versions import wait_until


def test_more_than_may_wait_is_refused_at_once_and_the_state_is_told_meanwhile(tmp_path: Path) -> None:
    save_half(tmp_path / "half" / "1")
    config = tmp_path / "monitoring.config"
    config.write_text("prometheus_config { enable: true }")
    flags = [
        *("--rest_api_num_threads=1", "--rest_api_max_waiting_requests=1"),
        f"--monitoring_config_file={config}",
    ]
    gate = tmp_path / "gate"
    with running_server(tmp_path / "half", "half", flags=flags) as url, ThreadPoolExecutor(3) as executor:

        def ask() -> requests.Response:
            body = {"signature_name": "wait", "instances": [str(gate)]}
            return requests.post(f"{url}/v1/models/half:predict", json=body, timeout=60)

        asked = [executor.submit(ask)]
        wait_until(Path(f"{gate}.begun").exists)
        asked += [executor.submit(ask) for _ in range(2)]
        refused = next(as_completed(asked)).result()
        assert requests.get(f"{url}/v1/models/half", timeout=60).ok
        gate.touch()
        assert sorted(one.result().status_code for one in asked) == [200, 200, 503]
        assert ask().ok
        page = requests.get(f"{url}/monitoring/prometheus/metrics", timeout=60).text
    assert refused.json() == {"error": "2 requests run or wait already; try again a little later"}
    assert 'status="UNAVAILABLE"' in page


@pytest.mark.parametrize("settings", [(), IMAGE_FLAGS], ids=["embedded", "image"])
def test_in_an_overload_each_request_gets_its_answer_or_503(
    servable_path: Path, settings: tuple[str, ...]
) -> None:
    # Few may wait, so that a machine with other work, too, sends more than that.
    few = ("--rest_api_num_threads=8", "--rest_api_max_waiting_requests=8")
    with running_server(servable_path, MODEL_NAME, backend="embedded", flags=(*settings, *few)) as url:
        load = Load(url, tiles(5, 900, 800), Memory(process_at(url)))
        rate = len(load.closed(2, 4).answered) / 2
        burst = load.open(2, 100 + 5 * rate)
        after = load.closed(1, 2)
    assert not burst.faults
    assert burst.answered
    assert burst.refused
    assert not after.faults
    assert not after.refused


def test_an_answer_that_is_not_the_right_one_is_a_fault(server_url: str) -> None:
    load = Load(server_url, tiles(2), Memory(process_at(server_url)))
    assert not load.closed(0.3, 2).faults
    load._expected.reverse()
    load._known = [set(), set()]
    assert load.closed(0.3, 2).faults


def test_the_command_goes_through_all_phases(
    servable_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base_path = Path(shutil.copytree(servable_path, tmp_path / "models"))
    short = [
        "--minutes=0.03",
        "--factor=0.5",
        "--seconds=1",
        "--swaps=2",
        "--pause=2",
        "--tiles=10",
        "--max_growth=500",
    ]
    assert main([f"--model_base_path={base_path}", *short]) == 0
    phases = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert phases == ["rate", "overload", "swap", "kill"]
    assert len(list(base_path.iterdir())) == 1, "what is served is a copy"


def test_a_server_without_a_right_answer_is_a_fault_that_is_told(
    servable_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = Result(faults=Counter(["500: out of order"]), seconds=1.0)
    monkeypatch.setattr("scripts.load.running_server", lambda *_, **__: nullcontext("http://127.0.0.1:1"))
    monkeypatch.setattr("scripts.load.process_at", lambda _: None)
    monkeypatch.setattr(Load, "__init__", lambda *_: None)
    monkeypatch.setattr(Load, "closed", lambda *_: answers)
    assert main([f"--model_base_path={servable_path}"]) == 1
    told = capsys.readouterr().err
    assert "500: out of order" in told
    assert "no request got the right answer" in told


def test_tiles_are_all_different() -> None:
    files = tiles(20)
    assert len(set(files)) == 20
    assert np.array_equal(files, tiles(20))
