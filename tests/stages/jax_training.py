"""Pretrains and trains; tests/stages/test_jax.py runs it in a process of its own, with a folder and tiles."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import keras
import numpy as np
from dvclive import Live

from serving.preprocessing import read_image
from stages.checkpoint import Checkpoint
from stages.dataset import load_examples
from stages.params import PretrainParams
from stages.pretrain import pretrain
from stages.train import train
from tests.stages.conftest import SMALLEST

folder = Path(sys.argv[1])
data = pickle.loads(Path(sys.argv[2]).read_bytes())
params = SMALLEST.model_copy(update={"pasted": 0.3, "drawn": 0.3, "answer_weight": 0.1, "ema_momentum": 0.9})
good = [read_image(data.root / tile.image) for tile in data.train if not tile.defect_pixels]
first = PretrainParams(weights="none", drawings="plain", steps=10, batch_size=4, learning_rate=0.001)
weights = folder / "pretrained.weights.h5"
pretrain(first, params.model_copy(update={"workers": 2}), good, weights, Checkpoint(folder / "first", {}))
checkpoint = Checkpoint(folder / "then", {}, monitor="val_dice")
with Live(str(folder / "live"), dvcyaml=False, save_dvc_exp=False) as live:
    model = train(params, data.root, data.train, data.val, folder / "unet.keras", live, checkpoint, weights)
images = load_examples(data.root, data.val, params.image_size).images.astype(np.float32)
np.savez(folder / "answer.npz", images=images, probabilities=model.predict(images, verbose=0))
(folder / "backend").write_text(keras.backend.backend())
