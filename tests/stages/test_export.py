"""The exported SavedModel answers as the model and the shared pre- and postprocessing do."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorflow_serving.apis import prediction_log_pb2

from serving.postprocessing import mask_at, probability_levels
from serving.preprocessing import letterbox, read_image
from stages.errors import StageError
from stages.export import export, export_saved_model, latest_version, main, versions
from stages.model import build_unet
from stages.params import ExportParams
from tests.conftest import DETECTOR_SIZE, DETECTOR_THRESHOLD, dark_detector
from tests.stages.conftest import SMALLEST

STOCK_SIZES = [(64, 64), (40, 50), (200, 90), (31, 333), (64, 10), (9, 8), (1, 1), (403, 632)]


@pytest.fixture(scope="module")
def signatures(servable_path: Path) -> Any:
    return tf.saved_model.load(str(latest_version(servable_path))).signatures


def encode(pixels: np.ndarray, image_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format)
    return buffer.getvalue()


def smooth_tile(height: int, width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (6, 6), np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def expected_levels(gray: np.ndarray) -> np.ndarray:
    image, place = letterbox(gray, DETECTOR_SIZE)
    probabilities = (1 / (1 + np.exp(-(100 - image) / 8))).astype(np.float32)
    return probability_levels(probabilities, place, *gray.shape)


@pytest.mark.parametrize(("height", "width"), STOCK_SIZES)
def test_segment_equals_the_shared_pre_and_postprocessing(signatures: Any, height: int, width: int) -> None:
    gray = smooth_tile(height, width)

    answer = signatures["segment"](image_bytes=tf.constant([encode(gray)]))

    levels = np.asarray(Image.open(io.BytesIO(answer["probability_bytes"][0].numpy())))
    mask = np.asarray(Image.open(io.BytesIO(answer["mask_bytes"][0].numpy())))
    expected = expected_levels(gray)
    assert levels.shape == mask.shape == gray.shape
    assert np.abs(levels.astype(int) - expected.astype(int)).max() <= 1
    assert np.array_equal(mask, mask_at(levels, DETECTOR_THRESHOLD))
    assert answer["score"][0].numpy() == pytest.approx(levels.max() / 255)
    assert answer["label"][0].numpy().decode() == ("defect" if mask.any() else "good")


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.97])
def test_the_graph_decides_on_the_tile_and_outlines_as_postprocessing_does(
    tmp_path: Path, threshold: float
) -> None:
    export_saved_model(dark_detector(), {"threshold": threshold}, tmp_path / "m")
    segment = tf.saved_model.load(str(latest_version(tmp_path / "m"))).signatures["segment"]
    verdicts = set()
    for darkest in (60, 75, 90, 99, 101, 120):  # the detector finds what is dark: 0.99 at 60, 0.07 at 120
        gray = np.maximum(smooth_tile(50, 44), darkest).astype(np.uint8)
        answer = segment(image_bytes=tf.constant([encode(gray)]))
        planes = [
            np.asarray(Image.open(io.BytesIO(answer[f"{name}_bytes"][0].numpy())))
            for name in ("mask", "probability")
        ]
        assert np.array_equal(planes[0], mask_at(planes[1], threshold))
        verdicts.add(answer["label"][0].numpy().decode())
    assert verdicts == {"good", "defect"}


def test_on_another_backend_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(StageError, match=r"SavedModel is TensorFlow's.*Keras on torch; unset KERAS_BACKEND"):
        main()


def test_segment_answers_a_batch_of_different_sizes_as_it_answers_each_alone(signatures: Any) -> None:
    files = [encode(smooth_tile(h, w, seed)) for seed, (h, w) in enumerate(STOCK_SIZES)]

    together = signatures["segment"](image_bytes=tf.constant(files))

    for index, file in enumerate(files):
        alone = signatures["segment"](image_bytes=tf.constant([file]))
        for name, values in together.items():
            assert values[index].numpy() == alone[name][0].numpy(), name


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "I;16"])
def test_graph_and_pillow_read_the_same_grey_levels(signatures: Any, mode: str) -> None:
    gray = smooth_tile(50, 44)
    if mode == "I;16":
        data = encode(gray.astype(np.uint16) * 256 + 77)
    else:
        colours = np.stack([gray, gray[::-1], gray[:, ::-1]], axis=-1)
        buffer = io.BytesIO()
        Image.fromarray(colours).convert(mode).save(buffer, "PNG")
        data = buffer.getvalue()

    answer = signatures["segment"](image_bytes=tf.constant([data]))

    levels = np.asarray(Image.open(io.BytesIO(answer["probability_bytes"][0].numpy())))
    expected = expected_levels(read_image(data))
    assert np.abs(levels.astype(int) - expected.astype(int)).max() <= 1


def test_jpeg_is_decoded_alike(signatures: Any) -> None:
    data = encode(np.random.default_rng(0).integers(60, 160, (60, 60), np.uint8), "JPEG")
    answer = signatures["segment"](image_bytes=tf.constant([data]))
    levels = np.asarray(Image.open(io.BytesIO(answer["probability_bytes"][0].numpy())))
    assert np.abs(levels.astype(int) - expected_levels(read_image(data)).astype(int)).max() <= 1


def test_what_is_no_image_is_an_invalid_argument(signatures: Any) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError):
        signatures["segment"](image_bytes=tf.constant([b"no image"]))


def test_model_info_comes_back_through_a_signature_and_a_file(signatures: Any, servable_path: Path) -> None:
    document = signatures["model_info"](query=tf.constant(["", ""]))["model_info"].numpy()
    folder = latest_version(servable_path)
    info = json.loads(document[1])
    assert info == json.loads((folder / "assets.extra" / "model_info.json").read_text())
    assert info["threshold"] == DETECTOR_THRESHOLD
    assert info["version"] == int(folder.name)
    assert info["input"] == {"height": 64, "width": 64, "channels": 1}


def test_weights_are_constants(servable_path: Path) -> None:
    assert not list(tf.saved_model.load(str(latest_version(servable_path))).signatures["segment"].variables)


def test_only_stock_operations_are_used(servable_path: Path) -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel.FromString(
        (latest_version(servable_path) / "saved_model.pb").read_bytes()
    )
    graph = saved.meta_graphs[0].graph_def
    used = {node.op for node in graph.node} | {n.op for f in graph.library.function for n in f.node_def}
    assert not {op for op in used if op.startswith(("Py", "EagerPy")) or "Xla" in op}
    assert {"DecodeImage", "EncodePng"} <= used


def test_warmup_requests_name_both_signatures(servable_path: Path) -> None:
    records = tf.data.TFRecordDataset(
        str(latest_version(servable_path) / "assets.extra" / "tf_serving_warmup_requests")
    )
    logs = [prediction_log_pb2.PredictionLog.FromString(record.numpy()) for record in records]
    requests = [entry.predict_log.request for entry in logs]
    assert [request.model_spec.signature_name for request in requests] == ["segment", "serving_default"] * 2
    assert {request.model_spec.name for request in requests} == {"magnetic-tiles"}


def detector() -> keras.Model:
    images = keras.Input((32, 32, 1))
    return keras.Model(images, keras.layers.Rescaling(1 / 255)(images))


@pytest.fixture(scope="module")
def both_ways(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """Signatures of one network that computes tile by tile, and of one that computes whole batches."""
    keras.utils.set_random_seed(0)
    model = build_unet(SMALLEST.model_copy(update={"image_size": (64, 96)}))
    folder = tmp_path_factory.mktemp("ways")
    versions_ = (
        export_saved_model(model, {"threshold": 0.5}, folder / str(whole), whole_batches=whole)
        for whole in (False, True)
    )
    one_by_one, whole = (tf.saved_model.load(str(version)).signatures for version in versions_)
    return one_by_one, whole


def test_a_tile_has_the_same_answer_in_any_batch_to_the_last_bit(both_ways: tuple[Any, Any]) -> None:
    images = np.random.default_rng(0).normal(150, 12, (5, 64, 96, 1)).astype(np.float32)
    serving_default = both_ways[0]["serving_default"]

    together = serving_default(images=tf.constant(images))["probabilities"].numpy()

    alone = [serving_default(images=tf.constant(image[None]))["probabilities"].numpy()[0] for image in images]
    np.testing.assert_array_equal(together, alone)
    assert together.std(axis=0).max() > 0


def test_whole_batches_give_what_tiles_one_by_one_give(both_ways: tuple[Any, Any]) -> None:
    images = np.random.default_rng(1).normal(150, 12, (5, 64, 96, 1)).astype(np.float32)

    one_by_one, whole = (way["serving_default"](images=tf.constant(images)) for way in both_ways)

    np.testing.assert_allclose(one_by_one["probabilities"], whole["probabilities"], atol=1e-5)


def test_an_empty_batch_has_an_empty_answer(both_ways: tuple[Any, Any]) -> None:
    answer = both_ways[0]["serving_default"](images=tf.zeros((0, 64, 96, 1)))
    assert answer["probabilities"].shape == (0, 64, 96, 1)


def loops(signature: Any) -> int:
    graph = signature.graph.as_graph_def()
    nodes = itertools.chain(graph.node, *(function.node_def for function in graph.library.function))
    return sum("While" in node.op for node in nodes)


def test_whole_batches_go_through_the_network_as_one(both_ways: tuple[Any, Any]) -> None:
    assert [loops(way["serving_default"]) for way in both_ways] == [1, 0]


def test_a_tile_in_a_format_that_the_graph_cannot_decode_warms_up_as_the_client_sends_it(
    tmp_path: Path,
) -> None:
    gray = smooth_tile(40, 50)
    for name, image_format in (("a.jpg", "JPEG"), ("b.tif", "TIFF"), ("c.webp", "WEBP")):
        (tmp_path / name).write_bytes(encode(gray, image_format))
    dark_detector().save(tmp_path / "unet.keras")
    params = ExportParams(name="m", keep_versions=1, warmup_batches=[3], whole_batches=False)
    samples = [tmp_path / name for name in ("a.jpg", "b.tif", "c.webp")]
    folder = export(params, {"threshold": 0.5}, tmp_path / "unet.keras", samples, tmp_path / "m")
    record = next(iter(tf.data.TFRecordDataset(str(folder / "assets.extra" / "tf_serving_warmup_requests"))))
    log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
    sent = list(log.predict_log.request.inputs["image_bytes"].string_val)
    assert sent[0] == samples[0].read_bytes()
    answer = tf.saved_model.load(str(folder)).signatures["segment"](image_bytes=tf.constant(sent))
    assert len(answer["mask_bytes"]) == 3
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(sent[1]))), gray)


def test_versions_ascend_even_within_a_second(tmp_path: Path) -> None:
    first, second = (export_saved_model(detector(), {"threshold": 0.5}, tmp_path / "m") for _ in range(2))
    assert int(first.name) < int(second.name)
    assert latest_version(tmp_path / "m") == second


def test_a_failing_export_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    def full_disk(*_: object, **__: object) -> Callable[..., None]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("stages.export._write_warmup", full_disk)
    with pytest.raises(OSError, match="No space left"):
        export_saved_model(detector(), {"threshold": 0.5}, tmp_path / "m", warmup=[b"x"])
    assert versions(tmp_path / "m") == []
    assert [path.name for path in tmp_path.iterdir()] in ([], ["m"])
