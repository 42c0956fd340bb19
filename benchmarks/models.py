"""A model to measure: the exported one, or the same network with random weights, which is as fast."""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

__all__ = [
    "NAME",
    "exported_model",
    "jpeg_files",
    "model_folder",
    "multiply_adds",
    "network",
    "spread",
    "tile_file",
]

NAME = "magnetic-tiles"
Item = TypeVar("Item")
HEIGHT, WIDTH = 324, 270  # the median tile of the public set


def model_folder(text: str) -> Path:
    """The folder of a model's versions, as a type for argparse."""
    if not any(Path(text).glob("*/saved_model.pb")):
        raise argparse.ArgumentTypeError(
            f"no version of a model below {text}; `dvc repro export` makes one, or name another folder"
        )
    return Path(text)


def jpeg_files(text: str) -> list[Path]:
    """The JPEG files below a folder, as a type for argparse."""
    if not (paths := sorted(Path(text).rglob("*.jpg"))):
        raise argparse.ArgumentTypeError(f"no JPEG file (*.jpg) in {text}")
    return paths


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """So many of them, or all, at equal distances: of all classes, which follow one another."""
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


@contextlib.contextmanager
def exported_model(base_path: Path | None) -> Iterator[Path]:
    """Lends the base path of a model with warm-up requests.

    Args:
        base_path: folder of its versions; None exports the network of params.yaml with random weights.
    """
    if base_path is not None:
        yield base_path
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, NAME)
        # In a process of its own: a child of this one, to be measured, would begin with its peak of memory.
        with ProcessPoolExecutor(1, get_context("spawn")) as executor:
            executor.submit(_export, path).result()
        yield path


def _export(path: Path) -> None:
    from stages.export import export_saved_model
    from stages.params import load_params

    params = load_params().export
    export_saved_model(
        network(None),
        {"name": NAME, "threshold": 0.5},
        path,
        warmup=[tile_file()],
        warmup_batches=params.warmup_batches,
        whole_batches=params.whole_batches,
    )


def network(path: Path | None, **changes: Any) -> Any:
    """A Keras model: of a `.keras` file, or that of params.yaml with random weights.

    Args:
        path: the file, or None.
        changes: of `train` in params.yaml, where there is no file.

    Raises:
        pydantic.ValidationError: for changes to what can't be.
    """
    import keras

    from stages.model import build_unet
    from stages.params import TrainParams, load_params

    if path is not None:
        return keras.models.load_model(path, compile=False)
    keras.utils.set_random_seed(0)
    settings = {**dict(load_params().train), "backbone_weights": "none", **changes}
    return build_unet(TrainParams.model_validate(settings))


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
