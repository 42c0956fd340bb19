"""TensorFlow Serving's gRPC services around the embedded server's models: the tests' server as a process.

python -m benchmarks.grpc_server MODEL_BASE_PATH PORT
"""

from __future__ import annotations

import argparse
import sys
import threading
from pathlib import Path

from benchmarks.models import NAME
from stages.export import latest_version
from tests.serving.grpc_server import grpc_server

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """Serves until it is killed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.grpc_server", description=__doc__.split("\n")[0]
    )
    parser.add_argument("model_base_path", type=Path, metavar="MODEL_BASE_PATH")
    parser.add_argument("port", type=int, metavar="PORT")
    args = parser.parse_args(argv)
    with grpc_server(NAME, latest_version(args.model_base_path), args.port):
        threading.Event().wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
