"""Batches of requests: TensorFlow Serving's batching session and its scheduler.

Requests of one signature that wait at the same time are joined along axis 0, run once, and get their
rows of the outputs. As there, they share their batch's fate: an error of the run is an error of all.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.local.config import BatchingConfig
from serving.local.metrics import BatchMetrics
from serving.local.status import RequestError

__all__ = ["Arrays", "BatchQueue", "Batcher"]

Arrays = Mapping[str, NDArray[Any]]
Run = Callable[[Arrays, int], Arrays]  # of the graph: inputs, limit in milliseconds or 0 -> outputs


@dataclass
class _Task:
    """A request, or a part of one, that waits; `rows` rows in each array."""

    inputs: Arrays
    rows: int
    deadline: float
    since: float = field(default_factory=time.monotonic)
    result: Future[Arrays] = field(default_factory=Future)


@dataclass
class _Batch:
    tasks: list[_Task] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return sum(task.rows for task in self.tasks)


class Batcher:
    """The threads that run batches, shared by all models, versions and signatures in turn."""

    def __init__(self, config: BatchingConfig, metrics: BatchMetrics) -> None:
        """Starts the threads."""
        self.config = config
        self.metrics = metrics
        self.changed = threading.Condition()
        self._queues: deque[BatchQueue] = deque()
        for number in range(config.threads):
            threading.Thread(target=self._work, name=f"{config.thread_name}-{number}", daemon=True).start()

    def add_queue(self, run: Run) -> BatchQueue:
        """Makes the queue of one signature.

        Args:
            run: runs the signature, from one of the threads.
        """
        queue = BatchQueue(self, run)
        with self.changed:
            self._queues.append(queue)
        return queue

    def remove_queues(self, queues: Iterable[BatchQueue | None]) -> None:
        """Forgets queues that nothing waits in."""
        with self.changed:
            for queue in filter(None, queues):
                self._queues.remove(queue)

    def _work(self) -> None:
        while True:
            queue, batch = self._next()
            queue.process(batch)

    def _next(self) -> tuple[BatchQueue, _Batch]:
        with self.changed:
            while True:
                now = time.monotonic()
                for _ in range(len(self._queues)):
                    queue = self._queues[0]
                    self._queues.rotate(-1)
                    if batch := queue.take(now):
                        self.changed.notify()  # another thread looks after what is due next
                        return queue, batch
                due = min((queue.due() for queue in self._queues), default=math.inf)
                self.changed.wait(None if due == math.inf else max(0.0, due - now))


class BatchQueue:
    """Requests of one signature: batches that wait, the last of them open to more."""

    def __init__(self, batcher: Batcher, run: Run) -> None:
        self._batcher = batcher
        self._config = batcher.config
        self._run = run
        self._limit = self._config.split_to or self._config.max_batch_size  # rows of a batch
        self._batches = deque([_Batch()])

    def run(self, inputs: Arrays, timeout_ms: int) -> Arrays:
        """Runs a request in a batch, and waits for its outputs.

        Args:
            inputs: arrays by the graph's tensors, all with as many rows.
            timeout_ms: limit, 0 for none.

        Raises:
            RequestError: the inputs are no batch or too large, too many wait, or the run fails.
        """
        rows = _rows(inputs)
        deadline = time.monotonic() + timeout_ms / 1000 if timeout_ms else math.inf
        with self._batcher.changed:
            for array in inputs.values():
                self._batcher.metrics.input(len(array))
            tasks = self._enqueue(inputs, rows, deadline)
            self._batcher.changed.notify()
        parts = [task.result.result() for task in tasks]
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _enqueue(self, inputs: Arrays, rows: int, deadline: float) -> list[_Task]:
        self._check_room(rows)
        tasks, start = [], 0
        for size in [rows] if self._config.split_to is None else self._split(rows):
            if self._batches[-1].rows + size > self._limit:
                self._batches.append(_Batch())
            part = {name: array[start : start + size] for name, array in inputs.items()}
            tasks.append(_Task(part, size, deadline))
            self._batches[-1].tasks.append(tasks[-1])
            start += size
        return tasks

    def _check_room(self, rows: int) -> None:
        count, limit, open_rows = (
            len(self._batches),
            self._config.max_enqueued_batches,
            self._batches[-1].rows,
        )
        if rows > self._config.max_batch_size:
            raise RequestError(
                f"Task size {rows} is larger than maximum input batch size {self._config.max_batch_size}"
            )
        full = "The batch scheduling queue to which this task was submitted is full; "
        if self._config.split_to is not None:
            room = (limit - count) * self._limit + self._limit - open_rows
            if rows > room:
                raise RequestError(
                    f"{full}task size is {rows} but scheduling capacity is only {room} "
                    f"(num_enqueued_batches={count}, max_enqueued_batches={limit}, "
                    f"open_batch_size={open_rows}, max_execution_batch_size={self._limit})",
                    "UNAVAILABLE",
                )
        elif open_rows + rows > self._limit and count >= limit:
            raise RequestError(
                f"{full}currently {count} batches enqueued and max_enqueued_batches is {limit}", "UNAVAILABLE"
            )

    def _split(self, rows: int) -> list[int]:
        """Sizes of the parts of a request: the first fills the open batch."""
        first = min(rows, self._limit - self._batches[-1].rows) or min(rows, self._limit)
        rest = range(first, rows, self._limit)
        return [first, *(min(self._limit, rows - start) for start in rest)]

    def due(self) -> float:
        """When the open batch should run although it isn't full; infinity if it is empty."""
        tasks = self._batches[-1].tasks
        return tasks[0].since + self._config.timeout if tasks else math.inf

    def take(self, now: float) -> _Batch | None:
        """Takes a batch that is full or due, if there is one."""
        if len(self._batches) == 1 and (now >= self.due() or self._batches[0].rows >= self._limit):
            self._batches.append(_Batch())
        return self._batches.popleft() if len(self._batches) > 1 else None

    def process(self, batch: _Batch) -> None:
        """Runs a batch, and gives each task its part of the outputs, or the error."""
        now = time.monotonic()
        for task in batch.tasks:
            self._batcher.metrics.waited(now - task.since)
        try:
            outputs = self._run_batch(batch, now)
        except Exception as error:  # each request has its own thread to raise it in
            for task in batch.tasks:
                task.result.set_exception(error)
            return
        start = 0
        for task in batch.tasks:
            task.result.set_result({name: one[start : start + task.rows] for name, one in outputs.items()})
            start += task.rows

    def _run_batch(self, batch: _Batch, now: float) -> Arrays:
        left = max(task.deadline for task in batch.tasks) - now
        if left <= 0:
            raise RequestError("Run() timeout exceeded while waiting in batching queue", "RESOURCE_EXHAUSTED")
        rows = batch.rows
        size = next((size for size in self._config.allowed_sizes if size >= rows > 0), rows)
        self._batcher.metrics.batch(size, size - rows)
        inputs = self._merge(batch, size - rows)
        outputs = self._run(inputs, 0 if left == math.inf else max(1, int(1000 * left)))
        for array in outputs.values():
            if array.ndim == 0:
                raise RequestError("Batched output tensor has 0 dimensions", "FAILED_PRECONDITION")
            if len(array) != size:
                raise RequestError(
                    "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension "
                    "sizes of the input tensors",
                    "FAILED_PRECONDITION",
                )
        return outputs

    def _merge(self, batch: _Batch, padding: int) -> Arrays:
        merged = {}
        for name in batch.tasks[0].inputs:
            arrays = [task.inputs[name] for task in batch.tasks]
            if self._config.pad:
                arrays = _padded(arrays)
            elif any(array.shape[1:] != arrays[0].shape[1:] for array in arrays):
                raise RequestError(
                    f"Tensors with name '{name}' from different tasks have different shapes and padding is "
                    "turned off.Set pad_variable_length_inputs to true, or ensure that all tensors with the "
                    "same namehave equal dimensions starting with the first dim.",
                    "FAILED_PRECONDITION",
                )
            # A row that is there is one that the graph takes.
            arrays += [arrays[-1][:1]] * padding
            merged[name] = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        return merged


def _rows(inputs: Arrays) -> int:
    if any(array.ndim == 0 for array in inputs.values()):
        raise RequestError("Batching Run() input tensors must have at least one dimension")
    rows = {len(array) for array in inputs.values()}
    if len(rows) > 1:
        raise RequestError("Batching Run() input tensors must have equal 0th-dimension size")
    return rows.pop()


def _padded(arrays: list[NDArray[Any]]) -> list[NDArray[Any]]:
    """Makes rows of the largest size of each axis, filled with the array's first value."""
    if len({array.ndim for array in arrays}) > 1 or arrays[0].ndim > 6:
        raise RequestError("Only tensors with rank from 1 to 6 can be padded.")
    shape = tuple(max(sizes) for sizes in zip(*(array.shape[1:] for array in arrays), strict=True))
    padded = []
    for array in arrays:
        if array.shape[1:] != shape:
            if not array.size:
                raise RequestError("Got empty tensor in batch of non-empty tensors.")
            larger = np.full((len(array), *shape), array.flat[0], array.dtype)
            larger[tuple(map(slice, array.shape))] = array
            padded.append(larger)
        else:
            padded.append(array)
    return padded
