"""Metrics under TensorFlow Serving's names, for Prometheus."""

from __future__ import annotations

from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, Histogram, disable_created_metrics, generate_latest

from serving.local.status import RequestError

__all__ = ["BatchMetrics", "Metrics"]

MICROSECONDS = tuple(10 * 1.8**power for power in range(33))
"""Upper bounds of the latencies, as in TensorFlow Serving."""
WAITS = tuple(100 * 1.2**power for power in range(52))
ROWS = tuple(2.0**power for power in range(14))


class Metrics:
    """Counts requests, loads and their times, in microseconds; threads may share it."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        registry = self.registry = CollectorRegistry()
        prefix = ":tensorflow:serving:"
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
            # As the path spells it; with gRPC and in runtime_latency it is "Predict".
            self._request_latency.labels(model, "predict", "REST").observe(seconds * 1e6)

    def ran(self, model: str, seconds: float) -> None:
        """Counts a run of the graph."""
        self._runtime_latency.labels(model, "Predict", "TF1").observe(seconds * 1e6)

    def loaded(self, path: Path, success: bool) -> None:
        """Counts an attempt to load a version."""
        self._loads.labels(str(path), "success" if success else "fail").inc()

    def page(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self.registry).replace(b" gauge\n", b" counter\n")


class BatchMetrics:
    """Counts batches, where requests are batched."""

    def __init__(self, metrics: Metrics) -> None:
        """Adds to what `Metrics.page` shows."""
        prefix, registry = ":tensorflow:serving:batching_session:", metrics.registry
        self._waits = Histogram(
            f"{prefix}queuing_latency",
            "Distribution of wall time spent (in microseconds) in queuing",
            ["thread_pool_name"],
            registry=registry,
            buckets=WAITS,
        )
        self._inputs = Histogram(
            f"{prefix}input_batch_size",
            "Tracks the batch size distribution on the inputs.",
            registry=registry,
            buckets=ROWS,
        )
        self._sizes = Histogram(
            f"{prefix}processed_batch_size",
            "Tracks the batch size distribution on processing.",
            registry=registry,
            buckets=ROWS,
        )
        self._paddings = Histogram(
            f"{prefix}padding_size",
            "Tracks the padding size distribution on batches.",
            ["execution_batch_size"],
            registry=registry,
            buckets=ROWS,
        )

    def input(self, rows: int) -> None:
        """Counts an input of a request."""
        self._inputs.observe(rows)

    def waited(self, seconds: float) -> None:
        """Counts a request, or a part of one, whose batch begins."""
        # TensorFlow Serving leaves the name of its threads empty here.
        self._waits.labels("").observe(seconds * 1e6)

    def batch(self, rows: int, padding: int) -> None:
        """Counts a batch; `rows` include the padding."""
        self._sizes.observe(rows)
        self._paddings.labels(str(rows)).observe(padding)
