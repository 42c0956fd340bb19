"""A model to measure: the exported one, or the same network with random weights, which is as fast."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["NAME", "exported_model", "tile_file"]

NAME = "magnetic-tiles"
HEIGHT, WIDTH = 324, 270  # the median tile of the public set


@contextlib.contextmanager
def exported_model(base_path: Path | None, backbone: str = "resnet18") -> Iterator[Path]:
    """Lends the base path of a model with warm-up requests.

    Args:
        base_path: folder of its versions; None exports the network of params.yaml with random weights.
        backbone: of that network.
    """
    if base_path is not None:
        yield base_path
        return
    from stages.export import export_saved_model
    from stages.model import build_unet
    from stages.params import load_params

    params = load_params()
    train = params.train.model_copy(update={"backbone": backbone, "backbone_weights": "none"})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, NAME)
        export_saved_model(
            build_unet(train),
            {"name": NAME, "threshold": 0.5},
            path,
            warmup=[tile_file()],
            warmup_batches=params.export.warmup_batches,
        )
        yield path


def tile_file(seed: int = 0) -> bytes:
    """A JPEG of the public set's median size, with the texture of a tile."""
    noise = np.random.default_rng(seed).normal(150, 12, (HEIGHT, WIDTH))
    buffer = io.BytesIO()
    Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()
