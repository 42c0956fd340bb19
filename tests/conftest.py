"""Fixtures shared by all tests: a servable whose answers are known, and a server for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.clone import Clone

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

MODEL_NAME = "magnetic-tiles"
DETECTOR_SIZE = (64, 64)
DETECTOR_THRESHOLD = 0.5
LONGEST = ("test_tutorial.py", "test_experiments.py")


def pytest_xdist_auto_num_workers() -> int:
    """As many as there are cores, but three on two, as tests wait for processes that they start."""
    return min(4, max(3, os.cpu_count() or 1))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first, so that no worker waits for them at the end."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone in which `dvc repro` has been run, and nothing committed since.

    Workers of pytest-xdist run it once, and copy it.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    said = shared / "dvc-repro.txt"
    with FileLock(shared / "dvc-repro.lock"):
        if not said.exists():
            said.write_text(Clone.of_project(shared / "dvc-repro").run("dvc", "repro"))
    clone = Clone(shared / "dvc-repro").copy(tmp_path_factory.mktemp("pipeline") / "clone")
    clone.first_run = said.read_text()
    return clone


def dark_detector() -> Any:
    """A model that finds dark pixels: sigmoid((100 - grey) / 8)."""
    import keras

    images = keras.Input((*DETECTOR_SIZE, 1))
    output = keras.layers.Activation("sigmoid")(keras.layers.Rescaling(-1 / 8, offset=100 / 8)(images))
    return keras.Model(images, output)


@pytest.fixture(scope="session")
def servable_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base path with one version of the `dark_detector`.

    It goes through the real export, so that its signatures are those of a trained model.
    """
    import numpy as np

    from stages.export import export_saved_model

    gray = np.full((40, 50), 200, np.uint8)
    base_path = tmp_path_factory.mktemp("models") / MODEL_NAME
    export_saved_model(
        dark_detector(),
        {"name": MODEL_NAME, "threshold": DETECTOR_THRESHOLD},
        base_path,
        warmup=[_png(gray)],
        warmup_batches=(1, 2),
    )
    return base_path


@pytest.fixture(scope="session")
def server_url(servable_path: Path) -> Iterator[str]:
    """URL of a running embedded server for `servable_path`."""
    from serving.up import running_server

    with running_server(servable_path, MODEL_NAME, backend="embedded") as url:
        yield url


def _png(gray: object) -> bytes:
    import io

    import numpy as np
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.asarray(gray)).save(buffer, "PNG")
    return buffer.getvalue()
