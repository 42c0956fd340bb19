"""One version of a model: loading a SavedModel, warming it up, running its signatures."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import json_format  # type: ignore[import-untyped]
from numpy.typing import NDArray

from serving.local.batching import Arrays, Batcher, BatchQueue
from serving.local.status import CODES, RequestError
from serving.quiet import import_tensorflow

__all__ = ["Model"]

log = logging.getLogger(__name__)

DEFAULT_SIGNATURE = "serving_default"
WARMUP_FILE = Path("assets.extra", "tf_serving_warmup_requests")
MAX_WARMUP_RECORDS = 1000


@dataclass(frozen=True)
class _Signature:
    inputs: dict[str, str]  # type name by input
    feeds: dict[str, str]  # tensor of the graph by input
    fetches: dict[str, str]  # tensor of the graph by output
    queue: BatchQueue | None  # where requests are batched


class Model:
    """A loaded version.

    Runs the graph in a session, as TensorFlow Serving does: threads share it, errors are the
    graph's own, and closing it frees its memory.

    Attributes:
        metadata: signatures in the JSON form of `GET .../metadata`.
    """

    def __init__(
        self, path: Path, batcher: Batcher | None = None, *, mixed_precision: str = "", threads: int = 0
    ) -> None:
        """Loads a SavedModel.

        Args:
            path: folder of the version.
            batcher: runs the requests; None for each on its own.
            mixed_precision: "bfloat16" lets TensorFlow compute convolutions in it.
            threads: of the session, 0 for one a core.

        Raises:
            Exception: whatever TensorFlow finds wrong with the files.
        """
        tf = import_tensorflow()
        self._tf = tf
        config = tf.compat.v1.ConfigProto(
            intra_op_parallelism_threads=threads, inter_op_parallelism_threads=threads
        )
        if mixed_precision == "bfloat16":
            config.graph_options.rewrite_options.auto_mixed_precision_onednn_bfloat16 = 1  # on
        self._session = tf.compat.v1.Session(graph=tf.Graph(), config=config)
        try:
            with self._session.graph.as_default():
                graph = tf.compat.v1.saved_model.loader.load(self._session, ["serve"], str(path))
        except BaseException:
            self._session.close()
            raise
        self._session.graph.finalize()
        self._batcher = batcher
        self._signatures = {name: self._signature(info) for name, info in graph.signature_def.items()}
        self.metadata: dict[str, Any] = {
            name: json_format.MessageToDict(
                signature, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
            )
            for name, signature in graph.signature_def.items()
        }

    def _signature(self, info: Any) -> _Signature:
        fetches = {key: tensor.name for key, tensor in sorted(info.outputs.items())}
        return _Signature(
            {key: _type_name(self._tf, tensor.dtype) for key, tensor in sorted(info.inputs.items())},
            {key: tensor.name for key, tensor in info.inputs.items()},
            fetches,
            self._batcher.add_queue(functools.partial(self._run, fetches)) if self._batcher else None,
        )

    def inputs(self, signature: str) -> dict[str, str]:
        """Gives TensorFlow's type name of each input.

        Args:
            signature: its name, "" for the default one.

        Raises:
            RequestError: there is no such signature, or it has no inputs.
        """
        name = signature or DEFAULT_SIGNATURE
        if name not in self._signatures:
            raise RequestError(f'Serving signature name: "{name}" not found in signature def')
        if not self._signatures[name].inputs:
            raise RequestError(f"Failed to get input map for signature: {signature or 'DEFAULT'}")
        return self._signatures[name].inputs

    def predict(
        self, signature: str, inputs: Mapping[str, NDArray[Any]], timeout_ms: int = 0
    ) -> dict[str, NDArray[Any]]:
        """Runs a signature.

        Args:
            signature: its name, "" for the default one.
            inputs: an array for each input.
            timeout_ms: limit of the run, 0 for none.

        Returns:
            An array for each output, in order of names.

        Raises:
            RequestError: the graph doesn't accept the inputs, or fails.
        """
        found = self._signatures[signature or DEFAULT_SIGNATURE]
        feeds = {found.feeds[name]: array for name, array in inputs.items()}
        if found.queue is not None:
            return dict(found.queue.run(feeds, timeout_ms))
        return self._run(found.fetches, feeds, timeout_ms)

    def _run(self, fetches: dict[str, str], feeds: Arrays, timeout_ms: int) -> dict[str, NDArray[Any]]:
        options = self._tf.compat.v1.RunOptions(timeout_in_ms=timeout_ms) if timeout_ms else None
        try:
            outputs = self._session.run(fetches, feeds, options=options)
        except self._tf.errors.OpError as error:
            raise RequestError(_graph_message(error.message), CODES[error.error_code]) from error
        except ValueError as error:  # a shape that the input doesn't have
            raise RequestError(str(error)) from error
        return {name: _as_array(value) for name, value in outputs.items()}

    def warm_up(self, path: Path, iterations: int = 1) -> int:
        """Runs the warm-up requests that lie with the model, if any.

        Args:
            path: folder of the version.
            iterations: how often to run each.

        Returns:
            How many requests there were.

        Raises:
            Exception: a request can't be read, or fails.
        """
        file = path / WARMUP_FILE
        if not file.exists():
            return 0
        from tensorflow_serving.apis import prediction_log_pb2

        count = 0
        for record in self._tf.compat.v1.io.tf_record_iterator(str(file)):
            count += 1
            if count > MAX_WARMUP_RECORDS:
                raise ValueError(f"more than {MAX_WARMUP_RECORDS} warm-up requests in {file}")
            entry = prediction_log_pb2.PredictionLog.FromString(record)
            if entry.WhichOneof("log_type") != "predict_log":
                log.warning("%s: request %d is not a predict request; left out", file, count)
                continue
            request = entry.predict_log.request
            inputs = {name: self._tf.make_ndarray(tensor) for name, tensor in request.inputs.items()}
            self.inputs(request.model_spec.signature_name)
            for _ in range(iterations):
                self.predict(request.model_spec.signature_name, inputs)
        return count

    def close(self) -> None:
        """Frees the model; no run may be under way."""
        if self._batcher is not None:
            self._batcher.remove_queues(one.queue for one in self._signatures.values())
        self._session.close()


def _type_name(tf: Any, dtype: int) -> str:
    name: str = tf.as_dtype(dtype).name
    return {"float32": "float", "float64": "double", "float16": "half"}.get(name, name)


def _graph_message(message: str) -> str:
    # Python adds a heading and the stack of the graph's making, which the C++ server doesn't have.
    return message.removeprefix("Graph execution error:\n\n").split("\n\nOriginal stack trace", 1)[0]


def _as_array(value: Any) -> NDArray[Any]:
    if isinstance(value, bytes):  # a string scalar
        array = np.empty((), dtype=np.object_)
        array[()] = value
        return array
    return np.asarray(value)
