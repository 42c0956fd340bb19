"""The files that TensorFlow Serving's flags name, in protobuf's text format."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf import (  # type: ignore[import-untyped]
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
    wrappers_pb2,
)

from serving.errors import ConfigError

__all__ = ["BatchingConfig", "ModelConfig", "read_batching", "read_metrics_path", "read_models"]

METRICS_PATH = "/monitoring/prometheus/metrics"


@dataclass(frozen=True)
class ModelConfig:
    """What is served of one model.

    Attributes:
        name: of the model.
        base_path: folder of the versions.
        newest: how many of the newest versions are served; None for all.
        only: the versions that may be served; None for all.
        labels: version by label.
    """

    name: str
    base_path: Path
    newest: int | None = 1
    only: frozenset[int] | None = None
    labels: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class BatchingConfig:
    """How requests share runs of the graph; the defaults are TensorFlow Serving's.

    Attributes:
        max_batch_size: rows of the largest request, and of a batch unless `split_to` says otherwise.
        timeout: how long a batch that isn't full waits for more, in seconds.
        max_enqueued_batches: how many batches may wait.
        threads: how many batches run at the same time.
        thread_name: of these threads.
        allowed_sizes: sizes that batches are filled up to, ascending; empty for no filling.
        pad: whether rows of different shapes are padded to one.
        split_to: rows of a batch, where larger requests are split; None for no splitting.
    """

    max_batch_size: int = 1000
    timeout: float = 0.0
    max_enqueued_batches: int = 10
    threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    thread_name: str = "batch_threads"
    allowed_sizes: tuple[int, ...] = ()
    pad: bool = False
    split_to: int | None = None


def read_models(file: Path) -> list[ModelConfig] | None:
    """Reads a `--model_config_file`.

    Returns:
        The models; None for a file that says nothing at all.

    Raises:
        ConfigError: the file can't be read, is no `ModelServerConfig`, or asks for what can't be.
    """
    # Imported here: `--help` should not wait for it.
    from tensorflow_serving.config import model_server_config_pb2

    message = _parse(file, model_server_config_pb2.ModelServerConfig())
    if message.WhichOneof("config") == "custom_model_config":
        raise ConfigError(f"{file}: ModelServer does not yet support custom model config.")
    if message.WhichOneof("config") is None:
        return None
    models: dict[str, ModelConfig] = {}
    for config in message.model_config_list.config:
        problem = _problem(config, models)
        if problem:
            raise ConfigError(f"{file}: {problem}")
        models[config.name] = _model(config)
    return list(models.values())


def _problem(config: Any, before: Mapping[str, ModelConfig]) -> str:
    """What TensorFlow Serving says against a model; empty if nothing."""
    name, path = config.name, config.base_path
    setting = "ModelServerConfig::model_type (deprecated)", "ModelServerConfig::model_platform."
    platform = config.model_platform or ("tensorflow" if config.model_type == 1 else "")
    if name in before:
        return f"Illegal to list model {name} multiple times in config list"
    if not Path(path).is_absolute():
        return f"Expected model {name} to have an absolute path or URI; got base_path()={path}"
    if config.model_type and config.model_platform:
        return "Illegal setting both {} and {}".format(*setting)
    if config.model_type > 1:
        return f"ModelServerConfig::model_type choice {config.model_type} not supported."
    if not platform:
        return "Illegal setting neither {} nor {}".format(*setting)
    if platform != "tensorflow":
        return f"Model {name} requests unsupported platform {platform}"
    return ""


def _model(config: Any) -> ModelConfig:
    policy = config.model_version_policy
    choice = policy.WhichOneof("policy_choice")
    return ModelConfig(
        config.name,
        Path(config.base_path),
        newest=max(1, policy.latest.num_versions) if choice in (None, "latest") else None,
        only=frozenset(policy.specific.versions) if choice == "specific" else None,
        labels=dict(config.version_labels),
    )


def read_batching(file: Path) -> BatchingConfig:
    """Reads a `--batching_parameters_file`.

    Raises:
        ConfigError: the file can't be read, is no `BatchingParameters`, or asks for what can't be.
    """
    message = _parse(file, _BatchingParameters())
    default = BatchingConfig()

    def get(name: str, otherwise: Any) -> Any:
        return getattr(message, name).value if message.HasField(name) else otherwise

    size = get("max_batch_size", default.max_batch_size)
    config = BatchingConfig(
        size,
        get("batch_timeout_micros", 0) / 1e6,
        get("max_enqueued_batches", default.max_enqueued_batches),
        get("num_batch_threads", default.threads),
        get("thread_pool_name", default.thread_name),
        tuple(message.allowed_batch_sizes),
        message.pad_variable_length_inputs,
        get("max_execution_batch_size", size) if get("enable_large_batch_splitting", False) else None,
    )
    for name, value in (
        ("max_batch_size", size),
        ("max_enqueued_batches", config.max_enqueued_batches),
        ("num_batch_threads", config.threads),
        ("max_execution_batch_size", config.split_to or 1),
    ):
        if value < 1:
            raise ConfigError(f"{file}: {name} must be positive; was {value}")
    if config.allowed_sizes and config.allowed_sizes[-1] != size:
        raise ConfigError(
            f"{file}: Last entry in allowed_batch_sizes must match max_batch_size; last entry was "
            f"{config.allowed_sizes[-1]}; expected {size}"
        )
    if config.split_to is not None and config.split_to > size:
        raise ConfigError(f"{file}: max_execution_batch_size must not be larger than max_batch_size")
    return config


def read_metrics_path(file: Path) -> str | None:
    """Reads a `--monitoring_config_file`.

    Returns:
        Path of the metrics in URLs; None where the file doesn't enable them.

    Raises:
        ConfigError: the file can't be read, or is no `MonitoringConfig`.
    """
    prometheus = _parse(file, _MonitoringConfig()).prometheus_config
    return (prometheus.path or METRICS_PATH) if prometheus.enable else None


def _parse(file: Path, message: Any) -> Any:
    try:
        return text_format.Parse(file.read_text(encoding="utf-8"), message)
    except OSError as error:
        raise ConfigError(f"can't read {file}: {error.strerror}") from error
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is no {message.DESCRIPTOR.name}: {error}") from error


def _message(name: str, **fields: Any) -> Any:
    """Makes a message type that tensorflow-serving-api leaves out; types by field, a list if repeated."""
    file = descriptor_pb2.FileDescriptorProto(
        name=f"serving/local/{name}.proto", package="serving.local", syntax="proto3"
    )
    descriptor = file.message_type.add(name=name)
    for number, (key, kind) in enumerate(fields.items(), 1):
        added = descriptor.field.add(name=key, number=number, label=3 if isinstance(kind, list) else 1)
        one = kind[0] if isinstance(kind, list) else kind
        if isinstance(one, str):
            added.type = descriptor_pb2.FieldDescriptorProto.Type.Value(f"TYPE_{one.upper()}")
        else:
            added.type = descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE
            added.type_name = f".{one.DESCRIPTOR.full_name}"
            if one.DESCRIPTOR.file.name not in file.dependency:
                file.dependency.append(one.DESCRIPTOR.file.name)
    pool = descriptor_pool.Default()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"serving.local.{name}"))


# Of servables/tensorflow/session_bundle_config.proto; the text format needs names, not numbers.
_BatchingParameters = _message(
    "BatchingParameters",
    max_batch_size=wrappers_pb2.Int64Value,
    batch_timeout_micros=wrappers_pb2.Int64Value,
    max_enqueued_batches=wrappers_pb2.Int64Value,
    num_batch_threads=wrappers_pb2.Int64Value,
    thread_pool_name=wrappers_pb2.StringValue,
    allowed_batch_sizes=["int64"],
    pad_variable_length_inputs="bool",
    enable_large_batch_splitting=wrappers_pb2.BoolValue,
    max_execution_batch_size=wrappers_pb2.Int64Value,
)
# Of config/monitoring_config.proto.
_PrometheusConfig = _message("PrometheusConfig", enable="bool", path="string")
_MonitoringConfig = _message("MonitoringConfig", prometheus_config=_PrometheusConfig)
