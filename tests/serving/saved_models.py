"""Small SavedModels whose answers are known, for tests of the embedded server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2


def _spec(shape: list[int | None], dtype: Any, name: str) -> Any:
    return tf.TensorSpec(shape, dtype, name=name)


class Half(tf.Module):
    """y = x / 2 + `offset`, as TensorFlow Serving's own test model, and signatures of other types."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.offset = tf.Variable(offset)

    @tf.function(input_signature=[_spec([None], tf.float32, "x")])
    def half(self, x: Any) -> dict[str, Any]:
        return {"y": x / 2 + self.offset}

    @tf.function(
        input_signature=[
            _spec([None, 2], tf.int32, "ints"),
            _spec([None], tf.string, "text"),
            _spec([None], tf.bool, "flag"),
        ]
    )
    def many(self, ints: Any, text: Any, flag: Any) -> dict[str, Any]:
        return {
            "sums": tf.reduce_sum(ints, axis=1),
            "text": tf.strings.join([text, "!"]),
            "raw_bytes": text,
            "inverse": tf.logical_not(flag),
            "doubled": tf.cast(ints, tf.float64) * 2,
        }

    @tf.function(input_signature=[_spec([None], tf.string, "image_bytes")])
    def decode(self, image_bytes: Any) -> dict[str, Any]:
        def encode(image: Any) -> Any:
            return tf.io.encode_png(tf.io.decode_png(image))

        return {"png_bytes": tf.map_fn(encode, image_bytes)}

    @tf.function(input_signature=[_spec([None], tf.float32, "x")])
    def no_batch(self, x: Any) -> dict[str, Any]:
        return {"total": tf.reduce_sum(x)}

    @tf.function(input_signature=[_spec([None], tf.int64, "x")])
    def same_int64(self, x: Any) -> dict[str, Any]:
        return {"y": x + 0}

    @tf.function(input_signature=[_spec([None], tf.uint8, "x")])
    def same_uint8(self, x: Any) -> dict[str, Any]:
        return {"y": x + 0}

    @tf.function(input_signature=[_spec([None], tf.string, "file")])
    def wait(self, file: Any) -> dict[str, Any]:
        """Writes `<file>.begun`, then runs until the file, whose path is the first element, exists."""

        def is_missing(rounds: Any) -> Any:
            return tf.size(tf.io.matching_files(file[0])) == 0

        tf.io.write_file(file[0] + ".begun", "")
        rounds = tf.while_loop(is_missing, lambda rounds: [rounds + 1], [tf.constant(0.0)])
        return {"offset": tf.fill(tf.shape(file), self.offset) + 0 * rounds[0]}


def save_half(path: Path, offset: float = 2.0, *, warmup: list[float] | None = None) -> Path:
    """Writes a version; it appears in its folder all at once."""
    module = Half(offset)
    # A name that is no version, in another folder, until all is written.
    draft = path.parent.parent / f"draft-{path.parent.name}-{path.name}"
    tf.saved_model.save(
        module,
        str(draft),
        signatures={
            "serving_default": module.half,
            "many": module.many,
            "decode": module.decode,
            "no_batch": module.no_batch,
            "same_int64": module.same_int64,
            "same_uint8": module.same_uint8,
            "wait": module.wait,
        },
    )
    if warmup is not None:
        write_warmup(draft, warmup)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft.rename(path)
    return path


def write_warmup(version: Path, values: list[float], signature: str = "serving_default") -> None:
    """Writes one warm-up request per value."""
    file = version / "assets.extra" / "tf_serving_warmup_requests"
    file.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(file)) as writer:
        for value in values:
            request = predict_pb2.PredictRequest()
            request.model_spec.signature_name = signature
            request.inputs["x"].CopyFrom(tf.make_tensor_proto([value], tf.float32))
            log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
            writer.write(log.SerializeToString())
