"""TensorFlow runs on oneDNN also on CPUs on which it would not do so by itself."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

NAME = "TF_ENABLE_ONEDNN_OPTS"
ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="oneDNN was measured on x86 alone")
@pytest.mark.parametrize(
    "start", ["import stages", "from serving.local.model import import_tensorflow as start; start()"]
)
@pytest.mark.parametrize("given", [None, "0"])
def test_stages_and_server_turn_it_on_unless_the_environment_says_otherwise(
    start: str, given: str | None
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != NAME}
    if given is not None:
        environment[NAME] = given
    code = f"{start}\nimport os; print(os.environ['{NAME}'])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [given or "1"]


def test_the_container_turns_it_on() -> None:
    assert f"ENV {NAME}=1" in (ROOT / "Dockerfile.serving").read_text().splitlines()
