"""TensorFlow Serving's gRPC services around the embedded server's models, for tests."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import tensorflow as tf
from google.protobuf import json_format
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from serving.local.model import Model
from serving.local.status import RequestError


class _Services(
    prediction_service_pb2_grpc.PredictionServiceServicer, model_service_pb2_grpc.ModelServiceServicer
):
    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.version, self.model = name, int(folder.name), Model(folder)
        self.labels: dict[str, int] = {}
        self.busy = 0
        self.refusal = (grpc.StatusCode.UNAVAILABLE, "busy")

    def Predict(self, request: Any, context: Any) -> Any:
        if self.busy:
            self.busy -= 1
            context.abort(*self.refusal)
        self._check(request.model_spec, context)
        inputs = {name: tf.make_ndarray(tensor) for name, tensor in request.inputs.items()}
        try:
            self.model.inputs(request.model_spec.signature_name)
            outputs = self.model.predict(request.model_spec.signature_name, inputs)
        except RequestError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, error.message)
        answer = predict_pb2.PredictResponse()
        answer.model_spec.version.value = self.version
        for name, array in outputs.items():
            answer.outputs[name].CopyFrom(tf.make_tensor_proto(array))
        return answer

    def GetModelMetadata(self, request: Any, context: Any) -> Any:
        self._check(request.model_spec, context)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        json_format.ParseDict({"signature_def": self.model.metadata}, signatures)
        answer = get_model_metadata_pb2.GetModelMetadataResponse()
        answer.model_spec.version.value = self.version
        answer.metadata["signature_def"].Pack(signatures)
        return answer

    def GetModelStatus(self, request: Any, context: Any) -> Any:
        request.model_spec.ClearField("version_label")  # which is not looked at here
        self._check(request.model_spec, context)
        answer = get_model_status_pb2.GetModelStatusResponse()
        answer.model_version_status.add(version=self.version, state="AVAILABLE").status.error_code = 0
        return answer

    def _check(self, spec: Any, context: Any) -> None:
        version = spec.version.value if spec.HasField("version") else self.version
        if spec.HasField("version_label"):
            if spec.version_label not in self.labels:
                unknown = f"Unrecognized servable version label: {spec.version_label}"
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, unknown)
            version = self.labels[spec.version_label]
        if (spec.name, version) != (self.name, self.version):
            context.abort(
                grpc.StatusCode.NOT_FOUND,
                f"Servable not found for request: Specific({spec.name}, {version})",
            )


@contextmanager
def grpc_server(name: str, folder: Path, port: int = 0) -> Iterator[tuple[str, _Services]]:
    """Serves a version for the length of a `with` block; yields the URL and the services."""
    services = _Services(name, folder)
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.max_receive_message_length", -1)])
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(services, server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(services, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield f"grpc://127.0.0.1:{port}", services
    finally:
        server.stop(None).wait()
        services.model.close()
