"""How batch threads and batch sizes share the cores: python -m benchmarks.batching

Runs `segment` under TensorFlow's own batch scheduler, the one that TensorFlow Serving uses, with as
many clients at once as --clients says, and prints throughput and latency for each setting.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.models import exported_model, model_folder, tile_file
from benchmarks.timing import core_count

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """Prints one line for each setting; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batching", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--model_base_path", type=model_folder, metavar="DIR", help="default: random weights")
    add("--clients", type=int, nargs="+", default=[1, 8], metavar="N", help="default: 1 8")
    add("--threads", type=int, nargs="+", default=[1, 2, 4], metavar="N", help="default: 1 2 4")
    add("--batch_sizes", type=int, nargs="+", default=[1, 4, 8], metavar="N", help="default: 1 4 8")
    add("--timeouts_micros", type=int, nargs="+", default=[0], metavar="N", help="default: 0")
    add("--requests", type=int, default=60, metavar="N", help="of each setting (default: 60)")
    args = parser.parse_args(argv)
    with exported_model(args.model_base_path) as base_path:
        import tensorflow as tf

        from stages.export import latest_version

        loaded = tf.saved_model.load(str(latest_version(base_path)))
        segment = loaded.signatures["segment"]
        print(f"{core_count()} cores, {args.requests} requests each")
        print("clients  threads  batch  timeout   tiles/s   median    95 %")
        print(_line(segment, tf, args.requests, 1, None), flush=True)
        for clients in args.clients:
            for threads in args.threads:
                for size in args.batch_sizes:
                    for timeout in args.timeouts_micros:
                        setting = (threads, size, timeout)
                        print(_line(segment, tf, args.requests, clients, setting), flush=True)
    return 0


def _line(segment: Any, tf: Any, requests: int, clients: int, setting: tuple[int, int, int] | None) -> str:
    run = lambda data: segment(image_bytes=data)["mask_bytes"]  # noqa: E731
    if setting is not None:
        threads, size, timeout = setting
        run = tf.nondifferentiable_batch_function(threads, size, timeout, max_enqueued_batches=1000)(run)
    graph = tf.function(run, input_signature=[tf.TensorSpec((None,), tf.string)])
    data = tf.constant([tile_file()])
    rate, times = _measure(lambda: graph(data).numpy(), requests, clients)
    names = (
        ("      -", "    -", "      -")
        if setting is None
        else (f"{setting[0]:7}", f"{setting[1]:5}", f"{setting[2]:7}")
    )
    median, late = statistics.median(times), statistics.quantiles(times, n=20)[-1]
    return f"{clients:7}  {'  '.join(names)}  {rate:8.1f}  {median:4.0f} ms  {late:4.0f} ms"


def _measure(call: Callable[[], object], requests: int, clients: int) -> tuple[float, list[float]]:
    """Tiles a second, and the milliseconds that each request took."""

    def timed(_: int) -> float:
        start = time.perf_counter()
        call()
        return 1000 * (time.perf_counter() - start)

    with ThreadPoolExecutor(clients) as executor:
        list(executor.map(timed, range(2 * clients)))
        start = time.perf_counter()
        times = list(executor.map(timed, range(requests)))
        return requests / (time.perf_counter() - start), times


if __name__ == "__main__":
    sys.exit(main())
