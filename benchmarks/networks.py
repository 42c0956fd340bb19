"""What size and decoder of the network cost: python -m benchmarks.networks

Exports the network of params.yaml with random weights, which is as fast as a trained one, for each image
size and decoder, and runs one tile at a time, in turns.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from benchmarks.models import NAME, multiply_adds, network
from benchmarks.timing import measure

__all__ = ["main"]

DECODERS = ["256,128,64,32,32", "128,64,32,16,16", "64,32,16,8,8"]


def main(argv: list[str] | None = None) -> int:
    """Prints one line for each network; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.networks", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--backbone", default="resnet18", metavar="NAME", help="default: resnet18")
    add("--sizes", type=int, nargs="+", default=[128, 224, 256], metavar="PX", help="default: 128 224 256")
    add("--decoders", nargs="+", default=DECODERS, metavar="N,N,N,N,N", help=f"default: {' '.join(DECODERS)}")
    add("--threads", type=int, default=1, metavar="N", help="default: 1")
    add("--rounds", type=int, default=20, metavar="N", help="default: 20")
    args = parser.parse_args(argv)
    names = [(size, decoder) for size in args.sizes for decoder in args.decoders]
    with tempfile.TemporaryDirectory() as folder:
        try:
            versions = {
                name: _export(args.backbone, *name, Path(folder, str(index)))
                for index, name in enumerate(names)
            }
        except ValidationError as error:
            parser.error(
                "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
            )
        times = measure(
            {f"{name}": _call(versions[name], name[0], args.threads) for name in names}, args.rounds
        )
        print(f"{args.backbone}, one tile, {args.threads} threads")
        print("  size  decoder                multiply-adds    wall     CPU  CPU / first")
        for name in names:
            one, first = times[f"{name}"], times[f"{names[0]}"]
            print(
                f"{name[0]:6}  {name[1]:20} {multiply_adds(versions[name]) / 1e9:13.2f} G"
                f" {1000 * one.wall:4.0f} ms {1000 * one.cpu:4.0f} ms {one.cpu / first.cpu:12.2f}"
            )
    return 0


def _export(backbone: str, size: int, decoder: str, base_path: Path) -> Path:
    from stages.export import export_saved_model

    filters = decoder.split(",")
    model = network(None, backbone=backbone, image_size=(size, size), decoder_filters=filters)
    return export_saved_model(model, {"name": NAME, "threshold": 0.5}, base_path)


def _call(version: Path, size: int, threads: int) -> Callable[[], object]:
    from serving.local.model import Model

    model = Model(version, threads=threads)
    images = np.random.default_rng(0).normal(150, 12, (1, size, size, 1)).astype(np.float32)
    return lambda: model.predict("", {"images": images})


if __name__ == "__main__":
    sys.exit(main())
