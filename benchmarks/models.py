"""A model to measure: the exported one, or the same network with random weights, which is as fast."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["NAME", "exported_model", "multiply_adds", "network", "tile_file"]

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
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, NAME)
        # In a process of its own: a child of this one, to be measured, would begin with its peak of memory.
        with ProcessPoolExecutor(1, get_context("spawn")) as executor:
            executor.submit(_export, path, backbone).result()
        yield path


def _export(path: Path, backbone: str) -> None:
    from stages.export import export_saved_model
    from stages.model import build_unet
    from stages.params import load_params

    params = load_params()
    train = params.train.model_copy(update={"backbone": backbone, "backbone_weights": "none"})
    export_saved_model(
        build_unet(train),
        {"name": NAME, "threshold": 0.5},
        path,
        warmup=[tile_file()],
        warmup_batches=params.export.warmup_batches,
    )


def network(path: Path | None, **changes: Any) -> Any:
    """A Keras model: of a `.keras` file, or that of params.yaml with random weights.

    Args:
        path: the file, or None.
        changes: of `train` in params.yaml, where there is no file.
    """
    import keras

    from stages.model import build_unet
    from stages.params import load_params

    if path is not None:
        return keras.models.load_model(path, compile=False)
    keras.utils.set_random_seed(0)
    return build_unet(load_params().train.model_copy(update={"backbone_weights": "none", **changes}))


def multiply_adds(version: Path) -> int:
    """Multiplications, each with an addition, of the convolutions that one tile takes as it is served."""
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    served = tf.saved_model.load(str(version)).signatures["serving_default"]
    [spec] = served.structured_input_signature[1].values()
    inlined = convert_variables_to_constants_v2(served)
    with tf.Graph().as_default() as graph:
        images = tf.compat.v1.placeholder(tf.float32, (1, *spec.shape[1:]))
        tf.graph_util.import_graph_def(inlined.graph.as_graph_def(), {inlined.inputs[0].name: images})
    # What one output value reads of a kernel: rows, columns, and channels unless each has its own.
    read = {"Conv2D": 3, "DepthwiseConv2dNative": 2}
    return sum(
        int(np.prod(node.inputs[1].shape[: read[node.type]]) * np.prod(node.outputs[0].shape))
        for node in graph.get_operations()
        if node.type in read
    )


def tile_file(seed: int = 0) -> bytes:
    """A JPEG of the public set's median size, with the texture of a tile."""
    noise = np.random.default_rng(seed).normal(150, 12, (HEIGHT, WIDTH))
    buffer = io.BytesIO()
    Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()
