"""The command line of `python -m serving.local`: TensorFlow Serving's flags, and what they mean."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path

__all__ = ["host", "parse", "port"]

_EPILOG = """\
The base path holds one folder per version, named by an integer, each a SavedModel:

  models/magnetic-tiles/20260102030405/saved_model.pb

The newest is served. A newer one that appears is loaded and warmed up while the old one serves,
then takes over; no request fails meanwhile. One that can't be loaded is logged and left alone.
A --model_config_file can name several models, other versions than the newest, and labels:

  model_config_list { config {
    name: "magnetic-tiles" base_path: "/models/magnetic-tiles" model_platform: "tensorflow"
    model_version_policy { all {} }                    # or latest { num_versions: 2 }
    version_labels { key: "stable" value: 20260102030405 }   # .../magnetic-tiles/labels/stable:predict
  } }

Try it:
  curl http://localhost:8501/v1/models/magnetic-tiles
  python -m serving.client predict tile.jpg

SIGTERM and ^C let running requests end, then the server ends with exit code 0.
Exit code 1: it could not start, and one line says why. Exit code 2: wrong flags.
TF_CPP_MIN_LOG_LEVEL=0 shows TensorFlow's own notices.
"""


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parses the flags; ends the process with a message if they are wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m serving.local",
        description="Serves SavedModels as TensorFlow Serving does: the same flags, the same REST API.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_models(parser)
    _add_http(parser)
    _add_batching(parser)
    args = parser.parse_args(argv)
    if args.model_config_file is None and args.model_base_path is None:
        parser.error("one of --model_base_path and --model_config_file is needed")
    if args.batching_parameters_file is not None and not args.enable_batching:
        parser.error("--batching_parameters_file is set without --enable_batching")
    return args


def _add_models(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("models").add_argument
    add("--model_name", default="default", metavar="NAME", help='model\'s name in URLs (default: "default")')
    add("--model_base_path", type=_path, metavar="DIR", help="folder of the versions")
    add(
        "--model_config_file",
        type=_path,
        metavar="FILE",
        help="models, versions, labels, as in serving/config/models.config; the two above are ignored",
    )
    add(
        "--model_config_file_poll_wait_seconds",
        type=_seconds,
        default=0.0,
        metavar="S",
        help="time between two looks at that file; a refused one changes nothing (default: 0, look once)",
    )
    _add_flag(
        add,
        "--allow_version_labels_for_unavailable_models",
        default=False,
        help="let labels that are new name versions that aren't loaded yet, as at the start (default: false)",
    )
    add(
        "--file_system_poll_wait_seconds",
        type=_seconds,
        default=1.0,
        metavar="S",
        help="time between two looks for new versions; 0: look once (default: 1)",
    )
    _add_flag(
        add,
        "--enable_model_warmup",
        default=True,
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
        "--mixed_precision",
        default="",
        choices=("", "bfloat16"),
        help="bfloat16: faster where the CPU has it (AVX512_BF16, AMX), masks differ a little (default: off)",
    )


def _add_http(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("HTTP").add_argument
    add("--rest_api_port", type=port, default=8501, metavar="PORT", help="port (default: 8501)")
    add(
        "--port",
        type=int,
        default=0,
        metavar="PORT",
        help="of gRPC, which this server doesn't speak: ignored",
    )
    add(
        "--host",
        type=host,
        default="127.0.0.1",
        help="address (default: 127.0.0.1, this machine; 0.0.0.0: all)",
    )
    add(
        "--rest_api_timeout_in_ms",
        type=int,
        default=30_000,
        metavar="MS",
        help="limit of one prediction, and of a client that sends or takes nothing (default: 30000)",
    )
    add(
        "--rest_api_num_threads",
        type=int,
        default=4 * (os.cpu_count() or 1),
        metavar="N",
        help="requests that run or wait for a batch at the same time (default: 4 x cores)",
    )
    add(
        "--rest_api_max_waiting_requests",
        type=int,
        default=64,
        metavar="N",
        help="requests that wait for one of these threads; more get 503 at once (default: 64)",
    )
    add(
        "--rest_api_max_request_bytes",
        type=int,
        default=64 * 2**20,
        metavar="N",
        help="largest request; larger ones get 413 (default: 64 MiB)",
    )
    _add_flag(
        add,
        "--rest_api_enable_cors_support",
        default=False,
        help="let web pages of other origins call (default: false)",
    )
    add(
        "--monitoring_config_file",
        type=_path,
        metavar="FILE",
        help="turns metrics for Prometheus on, as serving/config/monitoring.config does",
    )


def _add_batching(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("batching").add_argument
    _add_flag(
        add,
        "--enable_batching",
        default=False,
        help="join requests that wait at the same time into one run of the graph (default: false)",
    )
    add(
        "--batching_parameters_file",
        type=_path,
        metavar="FILE",
        help="sizes and waits, as in serving/config/batching_parameters.txt",
    )


def _add_flag(add: Callable[..., argparse.Action], name: str, *, default: bool, help: str) -> None:
    add(name, type=_flag, default=default, nargs="?", const=True, metavar="BOOL", help=help)


def _path(text: str) -> Path | None:
    """A file; `--flag=` takes back what came before."""
    return Path(text) if text else None


def host(text: str) -> str:
    """An address to listen on, for `argparse`."""
    if not text:  # of a variable that is not set, say; the system would take it for all addresses
        raise argparse.ArgumentTypeError("an empty text is no address; 0.0.0.0 stands for all")
    return text


def port(text: str) -> int:
    """A port to listen on, for `argparse`."""
    number = int(text)
    if not 0 < number < 2**16:
        raise argparse.ArgumentTypeError(f"{text} is not a port, 1 to 65535")
    return number


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds, at least 0")
    return seconds


def _flag(text: str) -> bool:
    values = {"true": True, "1": True, "false": False, "0": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return values[text.lower()]
