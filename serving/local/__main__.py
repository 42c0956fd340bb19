"""`python -m serving.local`: the embedded server's command line and the life of its process."""

from __future__ import annotations

import argparse
import logging
import math
import os
import queue
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import NoReturn

import uvicorn

from serving.local.app import make_app
from serving.local.metrics import Metrics, read_metrics_path
from serving.local.status import RequestError
from serving.local.versions import Versions

log = logging.getLogger("serving.local")

_EPILOG = """\
The base path holds one folder per version, named by an integer, each a SavedModel:

  models/magnetic-tiles/20260102030405/saved_model.pb

The newest is served. A newer one that appears is loaded and warmed up while the old one serves,
then takes over; no request fails meanwhile. One that can't be loaded is logged and left alone.

Try it:
  curl http://localhost:8501/v1/models/magnetic-tiles
  python -m serving.client predict tile.jpg

SIGTERM and ^C let running requests end, then the server ends with exit code 0.
Exit code 1: it could not start, and one line says why. Exit code 2: wrong flags.
TF_CPP_MIN_LOG_LEVEL=0 shows TensorFlow's own notices.
"""


def main(argv: list[str] | None = None) -> int:
    """Runs the server until it is told to end; returns the exit code."""
    args = _parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, _leave)
    try:
        if not args.model_base_path.is_dir():
            raise OSError(
                f"could not find base path {args.model_base_path} for model {args.model_name}; "
                "export a model there (`dvc repro export`) or name another --model_base_path"
            )
        with _bind(args.host, args.rest_api_port) as listener:
            _serve(args, listener)
    except (OSError, RequestError) as error:
        log.error("can't start: %s", error)
        return 1
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m serving.local",
        description="Serves a SavedModel as TensorFlow Serving does: the same flags, the same REST API.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--rest_api_port", type=_port, default=8501, metavar="PORT", help="port (default: 8501)")
    add("--host", default="127.0.0.1", help="address (default: 127.0.0.1, this machine; 0.0.0.0: all)")
    add("--model_name", default="default", metavar="NAME", help='model\'s name in URLs (default: "default")')
    add("--model_base_path", type=Path, required=True, metavar="DIR", help="folder of the versions")
    add(
        "--file_system_poll_wait_seconds",
        type=float,
        default=1.0,
        metavar="S",
        help="time between two looks for new versions; 0: look once (default: 1)",
    )
    add(
        "--rest_api_timeout_in_ms",
        type=int,
        default=30_000,
        metavar="MS",
        help="limit of one prediction (default: 30000)",
    )
    add(
        "--rest_api_num_threads",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="requests that run at the same time (default: number of cores)",
    )
    add(
        "--rest_api_max_request_bytes",
        type=int,
        default=64 * 2**20,
        metavar="N",
        help="largest request; larger ones get 413 (default: 64 MiB)",
    )
    add(
        "--enable_model_warmup",
        type=_flag,
        default=True,
        nargs="?",
        const=True,
        metavar="BOOL",
        help="run assets.extra/tf_serving_warmup_requests before a version serves (default: true)",
    )
    add(
        "--num_request_iterations_for_warmup",
        type=int,
        default=1,
        metavar="N",
        help="how often to run each warm-up request (default: 1)",
    )
    add(
        "--rest_api_enable_cors_support",
        type=_flag,
        default=False,
        nargs="?",
        const=True,
        metavar="BOOL",
        help="let web pages of other origins call (default: false)",
    )
    add(
        "--monitoring_config_file",
        type=Path,
        metavar="FILE",
        help="turns metrics for Prometheus on, as serving/config/monitoring.config does",
    )
    return parser.parse_args(argv)


def _port(text: str) -> int:
    number = int(text)
    if not 0 < number < 2**16:
        raise argparse.ArgumentTypeError(f"{text} is not a port, 1 to 65535")
    return number


def _flag(text: str) -> bool:
    values = {"true": True, "1": True, "false": False, "0": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return values[text.lower()]


def _bind(host: str, port: int) -> socket.socket:
    """Takes the port, so that a taken one is known at once; connections are refused until `listen`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio sets TCP_NODELAY: else each answer waits 40 ms for an acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise OSError(
            f"can't listen on {host} port {port}: {error.strerror}; use another --rest_api_port"
        ) from error
    return listener


def _serve(args: argparse.Namespace, listener: socket.socket) -> None:
    metrics = Metrics()
    metrics_path = read_metrics_path(args.monitoring_config_file) if args.monitoring_config_file else None
    versions = Versions(
        args.model_name,
        args.model_base_path,
        poll_seconds=args.file_system_poll_wait_seconds,
        warmup_iterations=args.num_request_iterations_for_warmup if args.enable_model_warmup else 0,
        on_load=metrics.loaded,
    )
    first: queue.SimpleQueue[RequestError | None] = queue.SimpleQueue()
    versions.start(first.put)
    failed = first.get()
    if failed is not None:
        raise failed
    with ThreadPoolExecutor(max(1, args.rest_api_num_threads), "predict") as executor:
        app = make_app(
            {args.model_name: versions},
            executor,
            timeout_ms=args.rest_api_timeout_in_ms,
            max_body_bytes=args.rest_api_max_request_bytes,
            cors=args.rest_api_enable_cors_support,
            metrics=metrics,
            metrics_path=metrics_path,
        )
        log.info("serving %s at http://%s:%d", args.model_name, args.host, args.rest_api_port)
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="off",
            timeout_graceful_shutdown=math.ceil(args.rest_api_timeout_in_ms / 1000) + 5,
        )
        _run(uvicorn.Server(config), listener)
        log.info("ending: all requests are answered")
    versions.stop()


def _run(server: uvicorn.Server, listener: socket.socket) -> None:
    def drain(number: int, frame: FrameType | None) -> None:
        server.should_exit = True

    # uvicorn has its own handlers while it runs, and passes the signal on to these when it ends.
    signal.signal(signal.SIGTERM, drain)
    signal.signal(signal.SIGINT, drain)
    server.run(sockets=[listener])


def _leave(number: int, frame: FrameType | None) -> None:
    """Ends while the first model loads; there is no request yet to wait for."""
    log.info("ending: told to by signal %d", number)
    _end(0)


def _end(exit_code: int) -> NoReturn:
    """Ends at once: a thread that is loading a model would crash in an orderly end of Python."""
    logging.shutdown()
    os._exit(exit_code)


if __name__ == "__main__":
    exit_code = main()
    _end(exit_code)
