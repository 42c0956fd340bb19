"""Training on several devices, in a process of its own: TensorFlow must hear of them before it starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_training_on_two_devices(tmp_path: Path) -> None:
    file = Path(__file__).with_name("two_devices.py")
    command = [
        sys.executable,
        "-m",
        "pytest",
        file,
        f"--basetemp={tmp_path / 'two'}",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(command, cwd=file.parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "5 passed" in done.stdout
