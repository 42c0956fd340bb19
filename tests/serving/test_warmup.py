"""Warm-up requests of an exported model, and the command that measures what they are worth."""

from __future__ import annotations

import re
from pathlib import Path

import keras
import pytest
import requests

from benchmarks import warmup
from serving.errors import ServerUnavailable
from serving.up import running_server
from stages.export import export_saved_model
from tests.conftest import MODEL_NAME


def test_warm_up_requests_of_an_exported_model_are_run_before_it_is_available(tmp_path: Path) -> None:
    # A request that fails shows that it was run: the version must not come to serve.
    images = keras.Input((32, 32, 1))
    model = keras.Model(images, keras.layers.Rescaling(1 / 255)(images))
    base_path = tmp_path / MODEL_NAME
    export_saved_model(model, {"name": MODEL_NAME, "threshold": 0.5}, base_path, warmup=[b"no image"])

    with (
        pytest.raises(ServerUnavailable, match=r"(?s)can't load version \d+ of .*neither JPEG, PNG nor BMP"),
        running_server(base_path, MODEL_NAME, backend="embedded"),
    ):
        pass

    with running_server(
        base_path, MODEL_NAME, backend="embedded", flags=["--enable_model_warmup=false"]
    ) as url:
        (status,) = requests.get(f"{url}/v1/models/{MODEL_NAME}", timeout=30).json()["model_version_status"]
        assert status["state"] == "AVAILABLE"


def test_the_command_compares_servers_with_and_without_warm_up(
    servable_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--model_base_path={servable_path}", "--backend=embedded", "--rounds=1"]
    assert warmup.main(flags) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["with", "without"]
    assert all(re.search(r"\d+ ms +\d+ ms +\d+\.\d\d$", line) for line in lines[1:])
