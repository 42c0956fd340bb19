"""Metrics under TensorFlow Serving's names, for Prometheus, and the file that turns them on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, Histogram, disable_created_metrics, generate_latest

from serving.local.status import RequestError

__all__ = ["Metrics", "read_metrics_path"]

DEFAULT_PATH = "/monitoring/prometheus/metrics"
MICROSECONDS = tuple(10 * 1.8**power for power in range(33))
"""Upper bounds of the latencies, as in TensorFlow Serving."""


class Metrics:
    """Counts requests, loads and their times, in microseconds; threads may share it."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        prefix, registry = ":tensorflow:serving:", self._registry
        # Gauges, since the library's counters all end in _total; `page` gives them their type.
        self._requests = Gauge(
            f"{prefix}request_count",
            "The total number of requests.",
            ["model_name", "status"],
            registry=registry,
        )
        self._loads = Gauge(
            ":tensorflow:cc:saved_model:load_attempt_count",
            "The number of times a SavedModel was requested to be loaded.",
            ["model_path", "status"],
            registry=registry,
        )
        self._request_latency = Histogram(
            f"{prefix}request_latency",
            "Distribution of wall time (in microseconds) for request processing.",
            ["model_name", "API", "entrypoint"],
            registry=registry,
            buckets=MICROSECONDS,
        )
        self._runtime_latency = Histogram(
            f"{prefix}runtime_latency",
            "Distribution of wall time (in microseconds) for the run of the graph.",
            ["model_name", "API", "runtime"],
            registry=registry,
            buckets=MICROSECONDS,
        )

    def answered(self, model: str, error: RequestError | None, seconds: float) -> None:
        """Counts a prediction that was asked for; its time only if it came."""
        self._requests.labels(model, error.code if error else "OK").inc()
        if error is None:
            self._request_latency.labels(model, "Predict", "REST").observe(seconds * 1e6)

    def ran(self, model: str, seconds: float) -> None:
        """Counts a run of the graph."""
        self._runtime_latency.labels(model, "Predict", "TF1").observe(seconds * 1e6)

    def loaded(self, path: Path, success: bool) -> None:
        """Counts an attempt to load a version."""
        self._loads.labels(str(path), "success" if success else "fail").inc()

    def page(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self._registry).replace(b" gauge\n", b" counter\n")


def read_metrics_path(config: Path) -> str | None:
    """Reads a `--monitoring_config_file`.

    Returns:
        Path of the metrics in URLs; None where the file doesn't enable them.

    Raises:
        OSError: the file can't be read, or is no `MonitoringConfig`.
    """
    from google.protobuf import text_format  # type: ignore[import-untyped]

    try:
        message = text_format.Parse(config.read_text(encoding="utf-8"), _monitoring_config()())
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise OSError(f"{config} is no MonitoringConfig: {error}") from error
    prometheus = message.prometheus_config
    return (prometheus.path or DEFAULT_PATH) if prometheus.enable else None


def _monitoring_config() -> Any:
    """The message type, which tensorflow-serving-api leaves out; config/monitoring_config.proto has it."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="serving/local/monitoring_config.proto", syntax="proto3")
    file.package = "serving.local"
    kind = descriptor_pb2.FieldDescriptorProto
    inner = file.message_type.add(name="PrometheusConfig")
    inner.field.add(name="enable", number=1, label=kind.LABEL_OPTIONAL, type=kind.TYPE_BOOL)
    inner.field.add(name="path", number=2, label=kind.LABEL_OPTIONAL, type=kind.TYPE_STRING)
    outer = file.message_type.add(name="MonitoringConfig")
    outer.field.add(
        name="prometheus_config",
        number=1,
        label=kind.LABEL_OPTIONAL,
        type=kind.TYPE_MESSAGE,
        type_name=".serving.local.PrometheusConfig",
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("serving.local.MonitoringConfig"))
