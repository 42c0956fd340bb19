"""oneDNN is on where TensorFlow would leave it off."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

NAME = "TF_ENABLE_ONEDNN_OPTS"
ROOT = Path(__file__).parents[2]
STAND_IN = f"""
import logging, os
from unittest import mock
print(os.environ.get("{NAME}"))
config, get_logger = mock.Mock(), logging.getLogger
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="oneDNN was measured on x86 alone")
@pytest.mark.parametrize(
    "start",
    ["import stages, tensorflow", "from serving.quiet import import_tensorflow as start; start()"],
    ids=["stages", "server"],
)
@pytest.mark.parametrize("given", [None, "0"])
def test_stages_and_server_turn_it_on_before_tensorflow_reads_it_unless_the_environment_says_otherwise(
    start: str, given: str | None, tmp_path: Path
) -> None:
    (tmp_path / "tensorflow.py").write_text(STAND_IN)
    environment = {name: value for name, value in os.environ.items() if name != NAME}
    environment["PYTHONPATH"] = str(tmp_path)
    if given is not None:
        environment[NAME] = given
    done = subprocess.run(
        [sys.executable, "-c", start], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [given or "1"]


def test_the_container_turns_it_on() -> None:
    assert f"ENV {NAME}=1" in (ROOT / "Dockerfile.serving").read_text().splitlines()
