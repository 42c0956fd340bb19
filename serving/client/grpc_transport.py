"""gRPC to a model server; needs `pip install .[grpc]`.

The messages come from tensorflow-serving-api, which imports TensorFlow. That takes seconds, so
only a `grpc://` URL imports this module.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from serving.client import access, rest
from serving.client.conversation import METADATA, STATUS, Answer, Call, Refused, malformed
from serving.errors import ServerError, ServerUnavailable

try:
    import grpc  # type: ignore[import-untyped]
    import tensorflow as tf
    from google.protobuf import json_format  # type: ignore[import-untyped]
    from tensorflow_serving.apis import (
        get_model_metadata_pb2,
        get_model_status_pb2,
        model_service_pb2_grpc,
        predict_pb2,
        prediction_service_pb2_grpc,
    )
except ImportError as error:
    raise ServerError(f"a grpc:// URL needs more ({error}); install it with `pip install .[grpc]`") from error

__all__ = ["GrpcTransport"]

HTTP_STATUS = {
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNKNOWN: 500,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.DATA_LOSS: 500,
}
"""As TensorFlow Serving's REST API has them; all others are 400."""

MOST_TRIES = 5
"""gRPC makes no more, whatever it is told."""


class GrpcTransport:
    """Speaks gRPC.

    Args:
        url: `grpc://host:port`, or `grpcs://host:port` for TLS.
        timeout: seconds to wait for an answer.
        retries: further tries after connection errors and where the server is busy; gRPC makes at most 4.
        api_key: sent as a bearer token.
        ca_file: certificates (PEM) to trust instead of the usual ones.

    Raises:
        ServerError: if the URL has no host and port, or key or file can't be used.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float,
        retries: int,
        api_key: str | None = None,
        ca_file: str | os.PathLike[str] | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self.timeout = timeout
        try:
            parts = urlsplit(self.url)
            if not parts.hostname or not parts.port or parts.path:
                raise ValueError("it needs a host and a port, as in grpc://127.0.0.1:8500")
        except ValueError as error:  # of a port that is no number too
            raise ServerError(f"can't ask {self.url}: {error}") from error
        options = _options(parts.hostname, retries)
        authorization = access.authorization(self.url, api_key)
        metadata = [("authorization", authorization)] if authorization else None
        self._settings = {"timeout": timeout, "metadata": metadata}
        if parts.scheme == "grpcs":
            credentials = grpc.ssl_channel_credentials(_certificates(ca_file))
            self._channel = grpc.secure_channel(parts.netloc, credentials, options)
        else:
            self._channel = grpc.insecure_channel(parts.netloc, options)
        self._predictions = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)

    def ask(self, call: Call) -> Answer | Refused:
        """See `Transport.ask`."""
        exchange = {STATUS: self._status, METADATA: self._metadata}.get(call.kind, self._predict)
        try:
            return exchange(call)
        except grpc.RpcError as error:
            return self._refusal(error)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise malformed(self.url, call.model, call.signature or call.kind, error) from error

    def close(self) -> None:
        """Closes the connections."""
        self._channel.close()

    def _status(self, call: Call) -> Answer:
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = call.model
        answer = self._models.GetModelStatus(request, **self._settings)
        return Answer(_as_json(answer)["model_version_status"])

    def _metadata(self, call: Call) -> Answer:
        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        _name(request.model_spec, call)
        answer = self._predictions.GetModelMetadata(request, **self._settings)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        answer.metadata["signature_def"].Unpack(signatures)
        return Answer(_as_json(signatures)["signature_def"], _version(answer.model_spec))

    def _predict(self, call: Call) -> Answer:
        request = predict_pb2.PredictRequest()
        _name(request.model_spec, call)
        request.model_spec.signature_name = call.signature
        for name, value in call.inputs.items():
            request.inputs[name].CopyFrom(
                tf.make_tensor_proto(value[None] if isinstance(value, np.ndarray) else [value])
            )
        answer = self._predictions.Predict(request, **self._settings)
        outputs = {name: _value(name, tensor) for name, tensor in answer.outputs.items()}
        return Answer(outputs, _version(answer.model_spec))

    def _refusal(self, error: Any) -> Refused:
        code, said = error.code(), rest.clip(error.details() or "no reason given")
        if code == grpc.StatusCode.UNAVAILABLE:
            raise rest.unavailable(self.url, said) from error
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            raise rest.late(self.url, self.timeout) from error
        if code == grpc.StatusCode.CANCELLED:
            raise ServerUnavailable(f"{self.url} broke off ({said}); try again later") from error
        is_too_large = code == grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in said
        status = 413 if is_too_large else HTTP_STATUS.get(code, 400)
        return rest.refused(self.url, f"{code.name}: {said}", status)


def _certificates(ca_file: str | os.PathLike[str] | None) -> bytes | None:
    if not ca_file:
        return None
    access.trust(ca_file)
    return Path(ca_file).read_bytes()


def _options(host: str, retries: int) -> list[tuple[str, Any]]:
    policy = {
        "maxAttempts": min(MOST_TRIES, retries + 1),
        "initialBackoff": f"{2 * rest.BACKOFF}s",
        "maxBackoff": f"{rest.LONGEST_PAUSE}s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
    }
    methods = [{"name": [{}], "retryPolicy": policy}] if retries else []
    return [
        ("grpc.service_config", json.dumps({"methodConfig": methods})),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 5000),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
        # A proxy for the web must not get what is meant for this machine.
        ("grpc.enable_http_proxy", int(host not in rest.LOOPBACK)),
    ]


def _name(spec: Any, call: Call) -> None:
    spec.name = call.model
    if call.version is not None:
        spec.version.value = call.version
    elif call.label is not None:
        spec.version_label = call.label


def _version(spec: Any) -> int | None:
    return int(spec.version.value) if spec.HasField("version") else None


def _as_json(message: Any) -> dict[str, Any]:
    """A message in the JSON form of the REST API."""
    document: dict[str, Any] = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return document


def _value(name: str, tensor: Any) -> Any:
    """The first of a batch: an array, a number, or a string; bytes if the name ends so."""
    first = tf.make_ndarray(tensor)[0]
    if isinstance(first, bytes) and not name.endswith("_bytes"):
        return first.decode("utf-8", "replace")
    return first
