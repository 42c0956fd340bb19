"""docs/tutorial.md, followed to the letter in a clone, on few and small synthetic tiles."""

from __future__ import annotations

import os
import sys

import pytest

from serving.up import free_port
from tests.clone import ROOT, SMALL, Clone
from tests.test_docs import TUTORIAL, blocks

CURL = next(
    command for block in blocks(ROOT / "README.md") for command in block.commands if "| curl" in command
)


def script(port: int) -> str:
    """All commands of the tutorial, and the call with curl of the README while the server runs."""
    lines = ["set -euo pipefail", "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT"]
    for block in blocks(TUTORIAL):
        for command in block.commands if block.tests else ():
            if command.startswith("kill"):
                lines.append(CURL.replace("localhost:8501", f"127.0.0.1:{port}"))
            if "serving.client predict" in command:
                command += " || [ $? = 3 ]"  # its exit code where defects were found
            if "serving.up" in command:  # on a port that nobody else has
                command = command.replace("&", f"--rest_api_port={port} &")
            lines.append(command)
    return "\n".join(lines)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    settings = {"data_load": {"synthetic": SMALL["data_load"]["synthetic"]}}
    clone = Clone.of_project(tmp_path_factory.mktemp("tutorial") / "clone", settings)
    # The environment of the tests; make is to think that it is up to date.
    (clone.folder / ".venv").symlink_to(sys.prefix)
    os.utime(clone.folder / "requirements.lock", (0, 0))
    return clone


@pytest.fixture(scope="module")
def printed(clone: Clone) -> str:
    """What a person sees who follows the tutorial."""
    port = free_port()
    return clone.run(
        "bash", "-xc", script(port), MAGNETIC_TILES_URL=f"http://127.0.0.1:{port}", COLUMNS="250"
    )


def after(printed: str, command: str) -> str:
    """What was printed by a command, up to the next one."""
    _, found, rest = printed.partition(f"+ {command}")
    assert found, f"`{command}` was not run"
    return rest.partition("\n+ ")[0]


def test_the_demo_finds_defects_and_draws_them(printed: str, clone: Clone) -> None:
    assert "of the defects found" in after(printed, "make demo")
    assert (clone.folder / "demo/overlays.png").exists()
    assert (clone.folder / "demo/dvc_plots/index.html").exists()


def test_an_experiment_runs_what_its_parameter_changes_and_no_more(printed: str) -> None:
    output = after(printed, "dvc exp run -S train.epochs=10")
    ran = [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]
    assert ran == ["check_packages", "train", "evaluate", "export", "validate"]
    assert "train.epochs" in after(printed, "dvc exp show")


def test_the_server_answers_client_and_curl(printed: str, clone: Clone) -> None:
    assert "tile.jpg" in after(printed, "python -m serving.client predict tile.jpg")
    assert list((clone.folder / "demo/found").rglob("*_overlay.png"))
    assert '"mask_bytes"' in printed


def test_own_images_are_loaded_and_split(printed: str) -> None:
    assert "images of" in after(printed, "dvc exp run -S data_load.source=own")


def test_the_checkout_stays_as_it_was(printed: str, clone: Clone) -> None:
    status = clone.run("git", "status", "--porcelain", "--ignored")
    changed = {line[3:] for line in status.splitlines() if "__pycache__" not in line}
    assert changed == {"demo/", ".venv"}
