"""The exported model against other runtimes: python -m benchmarks.runtimes

Runs the SavedModel as it is served, the same network exported naively (with variables), and ONNX Runtime
and OpenVINO on the same weights, inputs and number of threads, in turns. Needs `pip install .[benchmarks]`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.models import NAME, multiply_adds, network
from benchmarks.timing import measure

__all__ = ["main"]

Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]

MATRIX = 1536
"""Side of the matrices whose product shows what the machine can do."""


def main(argv: list[str] | None = None) -> int:
    """Prints a table for each batch size; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.runtimes", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--model", type=Path, metavar="FILE", help=".keras file (default: params.yaml's with random weights)")
    add("--batch_sizes", type=int, nargs="+", default=[1, 8, 32], metavar="N", help="default: 1 8 32")
    add("--threads", type=int, default=1, metavar="N", help="of each runtime (default: 1)")
    add("--rounds", type=int, default=20, metavar="N", help="default: 20")
    args = parser.parse_args(argv)
    if args.model and not args.model.is_file():
        parser.error(f"no {args.model}; `dvc repro train` makes models/unet.keras")
    model = network(args.model)
    with tempfile.TemporaryDirectory() as folder:
        runs, work = _runs(model, Path(folder), args.threads)
        rng = np.random.default_rng(0)
        product = _product(args.threads)
        for size in args.batch_sizes:
            images = rng.normal(150, 12, (size, *model.input_shape[1:])).astype(np.float32)
            expected = model.predict_on_batch(images)
            calls = {name: (lambda run=run, images=images: run(images)) for name, run in runs.items()}
            times = measure({**calls, "product": product}, args.rounds)
            peak = MATRIX**3 / times.pop("product").cpu
            served = times["SavedModel"]
            print(f"batch {size}, {args.threads} threads, {size * work / 1e9:.2f} G multiply-adds")
            print(
                "                        wall      CPU  wall / SavedModel   CPU  of peak  largest difference"
            )
            for name, one in times.items():
                difference = np.abs(runs[name](images) - expected).max()
                print(
                    f"{name:20} {1000 * one.wall:5.0f} ms {1000 * one.cpu:5.0f} ms"
                    f" {one.wall / served.wall:18.2f} {one.cpu / served.cpu:5.2f}"
                    f" {size * work / one.cpu / peak:8.0%} {difference:19.1e}",
                    flush=True,
                )
    return 0


def _runs(model: Any, folder: Path, threads: int) -> tuple[dict[str, Run], int]:
    """What is compared, and the multiply-adds of a tile as it is served."""
    from stages.export import export_saved_model

    version = export_saved_model(model, {"name": NAME, "threshold": 0.5}, folder / NAME)
    naive, onnx = folder / "naive", folder / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the converter, about names in NumPy
        model.predict_on_batch(np.zeros((1, *model.input_shape[1:]), np.float32))  # else it won't convert
        model.export(naive, verbose=False)
        model.export(onnx, format="onnx", verbose=False)
    runs = {
        "SavedModel": _saved_model(version, "images", "probabilities", threads),
        "SavedModel, bfloat16": _saved_model(version, "images", "probabilities", threads, "bfloat16"),
        "naive export": _saved_model(naive, None, None, threads),
        "ONNX Runtime": (onnx_runtime := _onnx_runtime(onnx, threads)),
        "ONNX Runtime, 1 by 1": _one_by_one(onnx_runtime),
        "OpenVINO": (openvino := _openvino(onnx, threads)),
        "OpenVINO, 1 by 1": _one_by_one(openvino),
    }
    return runs, multiply_adds(version)


def _saved_model(
    version: Path, feed: str | None, fetch: str | None, threads: int, mixed_precision: str = ""
) -> Run:
    from serving.local.model import Model

    model = Model(version, threads=threads, mixed_precision=mixed_precision)
    name = feed or next(iter(model.inputs("")))

    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        outputs = model.predict("", {name: images})
        return outputs[fetch or next(iter(outputs))]

    return run


def _onnx_runtime(path: Path, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def _openvino(path: Path, threads: int) -> Run:
    import openvino

    core = openvino.Core()
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",  # else bfloat16, where the CPU has it
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = core.compile_model(core.read_model(path), "CPU", settings).create_infer_request()
    return lambda images: request.infer([images])[0]


def _one_by_one(run: Run) -> Run:
    """The same tile by tile, as the SavedModel does it."""
    return lambda images: np.concatenate([run(image[None]).copy() for image in images])


def _product(threads: int) -> Callable[[], object]:
    import tensorflow as tf

    config = tf.compat.v1.ConfigProto(
        intra_op_parallelism_threads=threads, inter_op_parallelism_threads=threads
    )
    with tf.Graph().as_default():
        matrix = tf.random.stateless_normal((MATRIX, MATRIX), (1, 2))
        kept = tf.compat.v1.get_variable("matrix", initializer=matrix)
        result = tf.reduce_max(tf.matmul(kept, kept))
        session = tf.compat.v1.Session(config=config)
        session.run(kept.initializer)
    return lambda: session.run(result)


if __name__ == "__main__":
    sys.exit(main())
