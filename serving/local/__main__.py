"""`python -m serving.local`: the life of the embedded server's process."""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import os
import resource
import signal
import socket
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import NoReturn

import uvicorn

from serving.errors import ConfigError
from serving.local.app import make_app
from serving.local.batching import Batcher
from serving.local.config import BatchingConfig, ModelConfig, read_batching, read_metrics_path, read_models
from serving.local.connection import connection_class
from serving.local.flags import parse
from serving.local.metrics import BatchMetrics, Metrics
from serving.local.models import Models
from serving.local.status import RequestError
from serving.local.versions import Loading

log = logging.getLogger("serving.local")

CONNECTIONS = 2**16  # more can't be open, whatever the system lets through
KEEP_ALIVE = 75
"""Seconds that an idle connection stays open: longer than clients and proxies keep theirs (httpx 5, nginx and
load balancers 60), because a request sent just when the server closes is lost."""


def main(argv: list[str] | None = None) -> int:
    """Runs the server until it is told to end; returns the exit code."""
    args = parse(argv)
    # Not sys.stderr itself: one model's thread silences it while it imports TensorFlow, others log on.
    stream = os.fdopen(os.dup(sys.stderr.fileno()), "w")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=stream)
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, _leave)
    try:
        configs = _configs(args)
        with _bind(args.host, args.rest_api_port) as listener:
            _serve(args, configs, listener)
    except (OSError, ConfigError, RequestError) as error:
        log.error("can't start: %s", error)
        return 1
    return 0


def _configs(args: argparse.Namespace) -> Sequence[ModelConfig] | None:
    if args.model_config_file is not None:
        configs = read_models(args.model_config_file)
    else:
        configs = [ModelConfig(args.model_name, args.model_base_path)]
    for config in configs or ():
        if not config.base_path.is_dir():
            raise ConfigError(
                f"could not find base path {config.base_path} for model {config.name}; "
                "export a model there (`dvc repro export`) or name another folder"
            )
    return configs


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


def _serve(args: argparse.Namespace, configs: Sequence[ModelConfig] | None, listener: socket.socket) -> None:
    metrics = Metrics()
    metrics_path = read_metrics_path(args.monitoring_config_file) if args.monitoring_config_file else None
    loading = Loading(
        poll_seconds=args.file_system_poll_wait_seconds,
        warmup_iterations=args.num_request_iterations_for_warmup if args.enable_model_warmup else 0,
        batcher=_batcher(args, metrics),
        mixed_precision=args.mixed_precision,
        on_load=metrics.loaded,
    )
    models = Models(loading, labels_for_unavailable=args.allow_version_labels_for_unavailable_models)
    models.apply(configs)
    models.wait()
    if args.model_config_file is not None and args.model_config_file_poll_wait_seconds > 0:
        models.follow(args.model_config_file, args.model_config_file_poll_wait_seconds)
    with ThreadPoolExecutor(max(1, args.rest_api_num_threads), "predict") as executor:
        app = make_app(
            models,
            executor,
            timeout_ms=args.rest_api_timeout_in_ms,
            max_body_bytes=args.rest_api_max_request_bytes,
            max_requests=args.rest_api_max_waiting_requests + args.rest_api_num_threads,
            cors=args.rest_api_enable_cors_support,
            metrics=metrics,
            metrics_path=metrics_path,
        )
        names = ", ".join(config.name for config in configs or ()) or "no model"
        host = f"[{args.host}]" if ":" in args.host else args.host
        log.info("serving %s at http://%s:%d", names, host, args.rest_api_port)
        if args.port:
            log.info("nothing listens on port %d: this server speaks no gRPC", args.port)
        seconds = args.rest_api_timeout_in_ms / 1000
        config = uvicorn.Config(
            app,
            http=connection_class(seconds or 30.0),
            ws="none",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="off",
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=math.ceil(seconds) + 5,
        )
        _allow_connections()
        _run(uvicorn.Server(config), listener)
        log.info("ending: all requests are answered")
    models.stop()


def _batcher(args: argparse.Namespace, metrics: Metrics) -> Batcher | None:
    if not args.enable_batching:
        return None
    file = args.batching_parameters_file
    return Batcher(read_batching(file) if file else BatchingConfig(), BatchMetrics(metrics))


def _allow_connections() -> None:
    """Lets idle connections be as many as the system allows, not as a shell does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS if hard == resource.RLIM_INFINITY else min(hard, CONNECTIONS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # macOS has a lower limit that it doesn't tell
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


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
