"""Training runs on Keras' other backends, where they have a GPU, and TensorFlow serves what comes of it."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np

from tests.stages.conftest import Data


def test_what_jax_has_trained_answers_alike_on_tensorflow(data: Data, tmp_path: Path) -> None:
    tiles = tmp_path / "tiles.pickle"
    tiles.write_bytes(pickle.dumps(data))
    done = subprocess.run(
        [sys.executable, "-m", "tests.stages.jax_training", tmp_path, tiles],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "KERAS_BACKEND": "jax", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "backend").read_text() == "jax"
    assert keras.backend.backend() == "tensorflow"
    model = keras.models.load_model(tmp_path / "unet.keras", compile=False)
    with np.load(tmp_path / "answer.npz") as answer:
        found = model.predict(answer["images"], verbose=0)
        np.testing.assert_allclose(found, answer["probabilities"], atol=1e-4)
        assert np.ptp(found) > 0.01
    logged = json.loads((tmp_path / "live/metrics.json").read_text())
    assert {"loss", "dice"} <= set(logged["train"])
