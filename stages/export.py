"""Stage `export`: the trained model as a SavedModel that TensorFlow Serving loads as it is.

The graph takes a tile's file to its mask: decoding, letterboxing, the network with its
weights frozen to constants (so that Conv + BatchNorm + ReLU fuse), resizing back, threshold,
PNG encoding. All of it is stock TensorFlow ops. `serving.preprocessing` and
`serving.postprocessing` are the same steps in NumPy and Pillow; tests compare the two.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from serving.postprocessing import LABELS, OUTLINE, PNG_COMPRESSION, threshold_level
from serving.preprocessing import file_to_send, gray_png, open_image, to_gray
from stages.decoding import decode_gray
from stages.errors import StageError, run_stage
from stages.folding import fold_depthwise_scales, fold_repeated_channels
from stages.params import ExportParams, load_params
from stages.tiles import data_version, read_tiles

__all__ = ["export", "export_saved_model", "latest_version"]

log = logging.getLogger(__name__)


def export(
    params: ExportParams,
    info: dict[str, Any],
    model_path: Path,
    samples: Iterable[Path],
    base_path: Path,
) -> Path:
    """Exports the trained model as the next version of the servable.

    Args:
        params: name, versions to keep, batch sizes of the warm-up, and how a batch is computed.
        info: what to say of the model; needs `threshold`, gets the rest here.
        model_path: `.keras` file that `train` wrote.
        samples: image files for the warm-up requests, in any format that the client takes.
        base_path: folder of the versions.

    Returns:
        Folder of the new version.
    """
    if not model_path.exists():
        raise StageError(f"no {model_path}; run `dvc repro train`")
    model = keras.models.load_model(model_path, compile=False)
    version = export_saved_model(
        model,
        {"name": params.name, **info},
        base_path,
        warmup=[_as_sent(path) for path in samples],
        warmup_batches=params.warmup_batches,
        whole_batches=params.whole_batches,
    )
    for old in versions(base_path)[: -params.keep_versions]:
        shutil.rmtree(base_path / str(old))
    return version


def _as_sent(path: Path) -> bytes:
    """An image file as the client sends it: the graph decodes fewer formats."""
    data = path.read_bytes()
    image = open_image(data)
    return file_to_send(image, data) or gray_png(to_gray(image))


def export_saved_model(
    model: keras.Model,
    info: dict[str, Any],
    base_path: Path,
    *,
    warmup: list[bytes] | None = None,
    warmup_batches: Iterable[int] = (1,),
    whole_batches: bool = False,
) -> Path:
    """Writes a model as a new version below `base_path`; a server that polls it never sees half.

    Args:
        model: (N, H, W, 1) float32, 0-255 -> (N, H, W, 1) probabilities; fixed H and W.
        info: what to say of the model. `threshold` is required.
        base_path: folder of the versions.
        warmup: image files for warm-up requests.
        warmup_batches: a request for each of these batch sizes.
        whole_batches: a batch goes through the network as one, not tile by tile.

    Returns:
        Folder of the new version: `base_path/<UTC time as an integer>`.
    """
    _, height, width, channels = model.input_shape
    number = _next_version(base_path)
    info = {
        **info,
        "version": number,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "input": {"height": height, "width": width, "channels": channels},
        "preprocessing": "letterbox",
        "labels": list(LABELS),
        "tensorflow": tf.__version__,
    }
    base_path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in base_path.parent.glob(f".{base_path.name}-*"):  # of a run that was killed
        shutil.rmtree(leftover)
    # Beside the base path, not in it: on the same disk, and no server looks there.
    with tempfile.TemporaryDirectory(prefix=f".{base_path.name}-", dir=base_path.parent) as scratch:
        folder = Path(scratch) / str(number)
        network = _freeze(model) if whole_batches else _one_by_one(_freeze(model))
        tf.saved_model.save(tf.Module(), str(folder), signatures=_signatures(network, (height, width), info))
        extra = folder / "assets.extra"
        extra.mkdir()
        (extra / "model_info.json").write_text(json.dumps(info, indent=2, sort_keys=True) + "\n")
        if warmup:
            _write_warmup(extra / "tf_serving_warmup_requests", info, warmup, warmup_batches)
        base_path.mkdir(exist_ok=True)
        os.replace(folder, base_path / str(number))
    return base_path / str(number)


def versions(base_path: Path) -> list[int]:
    """Version numbers below a folder, ascending."""
    if not base_path.is_dir():
        return []
    return sorted(int(path.name) for path in base_path.iterdir() if path.name.isdecimal())


def latest_version(base_path: Path) -> Path:
    """Folder of the highest version.

    Raises:
        StageError: if there is none.
    """
    numbers = versions(base_path)
    if not numbers:
        raise StageError(f"no version below {base_path}; run `dvc repro export`")
    return base_path / str(numbers[-1])


def _next_version(base_path: Path) -> int:
    """The UTC time as YYYYMMDDHHMMSS, or one more than the highest version if that is not less."""
    now = int(datetime.now(UTC).strftime("%Y%m%d%H%M%S"))
    return max([now, *(number + 1 for number in versions(base_path))])


def _freeze(model: keras.Model) -> Callable[[tf.Tensor], tf.Tensor]:
    """The network as one function without variables, with all that kernels can take in folded into them."""
    spec = tf.TensorSpec((None, *model.input_shape[1:]), tf.float32, name="images")
    concrete = tf.function(lambda images: model(images, training=False)).get_concrete_function(spec)
    frozen = convert_variables_to_constants_v2(concrete)
    graph = frozen.graph.as_graph_def()
    fold_repeated_channels(graph)
    fold_depthwise_scales(graph)

    def network(images: tf.Tensor) -> tf.Tensor:
        feeds = {frozen.inputs[0].name: images}
        [result] = tf.graph_util.import_graph_def(graph, feeds, [frozen.outputs[0].name], name="")
        return tf.cast(result, tf.float32)

    # One function, so that the signatures share the weights.
    shared: Callable[[tf.Tensor], tf.Tensor] = tf.compat.v1.wrap_function(network, [spec])
    return shared


def _one_by_one(network: Callable[[tf.Tensor], tf.Tensor]) -> Callable[[tf.Tensor], tf.Tensor]:
    """The network with each tile of a batch by itself, as many at once as the server has threads.

    What a layer gives for one tile is still in the cache when the next layer reads it. And a tile has the
    same answer in any batch.
    """

    def each(images: tf.Tensor) -> tf.Tensor:
        one = tf.TensorSpec(images.shape[1:], tf.float32)
        return tf.map_fn(lambda image: network(image[None])[0], images, fn_output_signature=one)

    return each


def _signatures(
    network: Callable[[tf.Tensor], tf.Tensor], size: tuple[int, int], info: dict[str, Any]
) -> dict[str, Any]:
    level = threshold_level(info["threshold"])
    document = json.dumps(info, sort_keys=True)

    @tf.function(input_signature=[tf.TensorSpec((None, *size, 1), tf.float32, name="images")])
    def serving_default(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"probabilities": network(images)}

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string, name="image_bytes")])
    def segment(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        specs = (
            tf.TensorSpec((*size, 1), tf.float32),
            tf.TensorSpec((2,), tf.int32),
            tf.TensorSpec((2,), tf.int32),
        )
        images, tiles, places = tf.map_fn(
            lambda data: _letterbox(decode_gray(data), size), image_bytes, fn_output_signature=specs
        )
        answers = tf.map_fn(
            lambda one: _answer(one[0], one[1], one[2], level),
            (network(images), tiles, places),
            fn_output_signature=(tf.string, tf.string, tf.float32, tf.string),
        )
        return dict(zip(("mask_bytes", "probability_bytes", "score", "label"), answers, strict=True))

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string, name="query")])
    def model_info(query: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"model_info": tf.fill(tf.shape(query), document)}

    return {"serving_default": serving_default, "segment": segment, "model_info": model_info}


def _letterbox(gray: tf.Tensor, size: tuple[int, int]) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """(H, W) -> input (height, width, 1), tile size (2,), size within the input (2,)."""
    tile = tf.shape(gray)
    sides = tf.cast(tile, tf.float64)
    scale = tf.minimum(tf.constant(1.0, tf.float64), tf.reduce_min(tf.constant(size, tf.float64) / sides))
    place = tf.clip_by_value(tf.cast(sides * scale + 0.5, tf.int32), 1, size)
    pixels = tf.cast(gray, tf.float32)
    shrinks = tf.reduce_any(place != tile)
    image = tf.cond(shrinks, lambda: _shrink(pixels, place), lambda: pixels)
    padding = [[0, size[0] - place[0]], [0, size[1] - place[1]]]
    return tf.ensure_shape(tf.pad(image, padding)[..., None], (*size, 1)), tile, place


def _shrink(pixels: tf.Tensor, place: tf.Tensor) -> tf.Tensor:
    """(H, W) -> (place), antialiased: the height, then the width as the height of the transposed.

    TensorFlow adds up the channels of a pixel at once, and pixels one by one. So rows are given to it as
    pixels of W channels, which takes a fifth of the time.
    """
    for side in (place[0], place[1]):
        rows = tf.image.resize(pixels[:, None, :], [side, 1], antialias=True)[:, 0, :]
        pixels = tf.transpose(rows)
    return pixels


def _answer(
    probabilities: tf.Tensor, tile: tf.Tensor, place: tf.Tensor, level: int
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Probabilities (height, width, 1) of one tile -> mask PNG, probability PNG, score, label."""
    # It never shrinks, so that there is nothing to antialias.
    resized = tf.image.resize(probabilities[: place[0], : place[1]], tile)
    levels = tf.cast(tf.floor(tf.clip_by_value(resized, 0.0, 1.0) * 255.0 + 0.5), tf.uint8)
    peak = tf.reduce_max(levels)
    found = (levels >= min(level, threshold_level(OUTLINE))) & (peak >= level)
    score = tf.cast(peak, tf.float32) / 255.0
    label = tf.where(tf.reduce_any(found), LABELS[1], LABELS[0])
    mask = tf.cast(found, tf.uint8) * tf.constant(255, tf.uint8)
    mask_png, levels_png = (tf.io.encode_png(plane, compression=PNG_COMPRESSION) for plane in (mask, levels))
    return mask_png, levels_png, score, label


def _write_warmup(path: Path, info: dict[str, Any], images: list[bytes], batches: Iterable[int]) -> None:
    """Writes the requests that a server runs before it says that a version is available."""
    size = info["input"]
    with tf.io.TFRecordWriter(str(path)) as writer:
        for batch in batches:
            files = [images[index % len(images)] for index in range(batch)]
            tensors = np.zeros((batch, size["height"], size["width"], size["channels"]), np.float32)
            requests = {"segment": ("image_bytes", files), "serving_default": ("images", tensors)}
            for signature, (name, values) in requests.items():
                request = predict_pb2.PredictRequest()
                request.model_spec.name = info["name"]
                request.model_spec.signature_name = signature
                request.inputs[name].CopyFrom(tf.make_tensor_proto(values))
                entry = prediction_log_pb2.PredictionLog(
                    predict_log=prediction_log_pb2.PredictLog(request=request)
                )
                writer.write(entry.SerializeToString())


def git_revision() -> str:
    """The commit of the working tree, with `-dirty` if it has changes, or `unknown`."""
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def main() -> None:
    """Runs the stage on params.yaml."""
    if keras.backend.backend() != "tensorflow":
        raise StageError(
            f"a SavedModel is TensorFlow's, and this is Keras on {keras.backend.backend()}; unset "
            "KERAS_BACKEND for this stage: what another backend has trained is exported alike"
        )
    params, data = load_params(), Path("data/tiles")
    metrics = json.loads(Path("results/evaluate/metrics.json").read_text())
    info = {
        "threshold": metrics["threshold"],
        "params": params.train.model_dump(mode="json"),
        "data_version": data_version(data / "tiles.csv"),
        "git_revision": git_revision(),
        "metrics": metrics,
    }
    samples = [data / tile.image for tile in read_tiles(Path("data/split/val.csv"))[:8]]
    folder = export(
        params.export, info, Path("models/unet.keras"), samples, Path("models") / params.export.name
    )
    log.info("exported %s", folder)


if __name__ == "__main__":
    run_stage(main)
