"""Trains; tests/stages/test_jax.py runs it in a process of its own, with a folder and tiles."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import keras
import numpy as np
from dvclive import Live

from stages.checkpoint import Checkpoint
from stages.dataset import load_examples
from stages.train import train
from tests.stages.conftest import SMALLEST

folder = Path(sys.argv[1])
data = pickle.loads(Path(sys.argv[2]).read_bytes())
changes = {"pasted": 0.3, "drawn": 0.3, "answer_weight": 0.1, "ema_momentum": 0.9, "workers": 2}
params = SMALLEST.model_copy(update=changes)
checkpoint = Checkpoint(folder / "states", {}, monitor="val_dice")
with Live(str(folder / "live"), dvcyaml=False, save_dvc_exp=False) as live:
    model = train(params, data.root, data.train, data.val, folder / "unet.keras", live, checkpoint)
images = load_examples(data.root, data.val, params.image_size).images.astype(np.float32)
np.savez(folder / "answer.npz", images=images, probabilities=model.predict(images, verbose=0))
(folder / "backend").write_text(keras.backend.backend())
