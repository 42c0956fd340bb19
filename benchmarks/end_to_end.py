"""A tile to its mask, through each way to a server: python -m benchmarks.end_to_end

Files go in, masks of the tile's own size come out. Compares the signature `segment` (alone, with
batching, in bfloat16), numbers in JSON, gRPC, and the original project's design, with the same network and
in turns, and with them what a process takes that needs none of HTTP, JSON and files of images. All share the
cores of this process, unless the client has one of its own, as where it runs on another machine.
Needs `pip install .[benchmarks]`.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import requests

from benchmarks.in_process import InProcess
from benchmarks.models import NAME, exported_model, jpeg_files, model_folder, spread, tile_file
from benchmarks.servers import counted, embedded, module
from benchmarks.timing import core_count
from serving.client import TileClient
from serving.preprocessing import letterbox, read_image

__all__ = ["main"]

BATCHING = (
    "--enable_batching",
    "--batching_parameters_file=serving/config/batching_parameters.txt",
    "--rest_api_num_threads=100",
)
BFLOAT16 = ("--mixed_precision=bfloat16",)
WAYS = ["segment", "segment, batching", "segment, bfloat16", "gRPC", "float JSON", "original design"]
ROUNDS = 3
EACH = 3
"""Requests of a client in a round, at least: as all begin at once, the first ones wait half as long."""

LARGEST_BATCH = 8
NETWORK, DEFECTS = "network alone", "levels to defects"

Ask = Callable[[bytes], object]
Run = Callable[[Executor, list[bytes]], list[float]]


@dataclass
class Way:
    """A way from a tile to its mask, and what was measured of it.

    Attributes:
        run: takes files to their masks, and returns the seconds that each took.
        server: its process; None where there is none.
    """

    run: Run
    server: psutil.Process | None = None
    latencies: list[float] = field(default_factory=list)
    wall: float = 0.0
    server_cpu: float = 0.0
    client_cpu: float = 0.0

    @property
    def speed(self) -> float:
        """Tiles a second."""
        return len(self.latencies) / self.wall


@dataclass(frozen=True)
class Wire:
    """The same way over a connection that is counted.

    Attributes:
        ask: takes a file to its mask.
        counts: bytes there and back.
    """

    ask: Ask
    counts: list[int]


def main(argv: list[str] | None = None) -> int:
    """Prints a table for each concurrency; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.end_to_end", description=__doc__.split("\n")[0]
    )
    add = parser.add_argument
    add("--model_base_path", type=model_folder, metavar="DIR", help="default: random weights")
    add("--tiles", type=jpeg_files, metavar="DIR", help="JPEG files (default: one drawn tile)")
    add("--concurrency", type=int, nargs="+", default=[1, 8, 32], metavar="N", help="default: 1 8 32")
    add("--ways", nargs="+", default=WAYS, choices=WAYS, metavar="WAY", help=f"of {', '.join(WAYS)}")
    add(
        "--requests",
        type=int,
        default=96,
        metavar="N",
        help=f"of each way, {EACH * ROUNDS} a client at least (default: 96)",
    )
    add("--client_core", type=int, metavar="N", help="of this process, for the client alone (Linux)")
    args = parser.parse_args(argv)
    server_cores, all_cores = None, core_count()
    if args.client_core is not None:
        cores = os.sched_getaffinity(0)
        server_cores = cores - {args.client_core}
        if not server_cores or args.client_core not in cores:
            parser.error(f"--client_core is one of {sorted(cores)}, and servers need another")
    paths = spread(args.tiles or [], args.requests)
    tiles = [path.read_bytes() for path in paths] or [tile_file()]
    with exported_model(args.model_base_path) as base_path, contextlib.ExitStack() as stack:
        with _on(server_cores):
            here = stack.enter_context(InProcess(base_path, tiles))
        if args.client_core is not None:
            stack.enter_context(_on({args.client_core}))
        ways, wires = _ways(stack, base_path, args.ways, server_cores)
        where = "" if server_cores is None else f", of which servers have {len(server_cores)}, the client one"
        print(f"{all_cores} cores{where}; {len(tiles)} tiles")
        _print_wire(wires, tiles)
        _print_first_written(here.size, tiles)
        for concurrency in args.concurrency:
            batch_size = min(concurrency, LARGEST_BATCH)
            local = {
                NETWORK: Way(functools.partial(_network, here, batch_size, server_cores)),
                DEFECTS: Way(functools.partial(_defects, here, server_cores)),
            }
            _load(ways | local, tiles, concurrency, args.requests)
            print(
                f"concurrency {concurrency}; {NETWORK}: batches of {batch_size}, in this process, as the next"
            )
            print("                     tiles/s      p50      p95      p99   CPU/tile: server   client")
            for name, way in (ways | local).items():
                print(f"{name:20} {_line(way)}", flush=True)
            for name, way in ways.items():
                print(f"{name:20} {_compared(way, local)}", flush=True)
    return 0


def _ways(
    stack: contextlib.ExitStack, base_path: Path, names: list[str], cores: set[int] | None
) -> tuple[dict[str, Way], dict[str, Wire]]:
    @functools.cache
    def server(name: str) -> tuple[int, psutil.Process]:
        flags = {"embedded": (), "batching": BATCHING, "bfloat16": BFLOAT16}
        with _on(cores):
            if name in flags:
                return stack.enter_context(embedded(base_path, *flags[name]))
            return stack.enter_context(module(f"benchmarks.{name}", base_path))

    def client(scheme: str, port: int, signature: str) -> Ask:
        one = TileClient(f"{scheme}://127.0.0.1:{port}", NAME, signature=signature, timeout=600.0)
        return stack.enter_context(one).predict

    def analyze(_: str, port: int, __: str) -> Ask:
        session = stack.enter_context(requests.Session())
        url = f"http://127.0.0.1:{port}/analyze"
        session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=32))
        return lambda data: np.array(session.post(url, data, timeout=600.0).json()["pred"], np.uint8)

    def way(name: str, signature: str, scheme: str, make: Callable[[str, int, str], Ask]) -> tuple[Way, Wire]:
        direct, process = server(name)
        relayed, counts = stack.enter_context(counted(direct))
        run = functools.partial(_asked, make(scheme, direct, signature))
        return Way(run, process), Wire(make(scheme, relayed, signature), counts)

    recipes: dict[str, tuple[str, str, str, Callable[[str, int, str], Ask]]] = {
        "segment": ("embedded", "segment", "http", client),
        "segment, batching": ("batching", "segment", "http", client),
        "segment, bfloat16": ("bfloat16", "segment", "http", client),
        "gRPC": ("grpc_server", "segment", "grpc", client),
        "float JSON": ("embedded", "serving_default", "http", client),
        "original design": ("original", "", "http", analyze),
    }
    pairs = {name: way(*recipes[name]) for name in names}
    return {name: pair[0] for name, pair in pairs.items()}, {name: pair[1] for name, pair in pairs.items()}


def _print_wire(wires: dict[str, Wire], tiles: list[bytes]) -> None:
    print("                      request    answer   kB a tile on the wire")
    for name, wire in wires.items():
        wire.ask(tiles[0])  # opens the connection and warms up
        start = list(wire.counts)
        for tile in tiles[:10]:
            wire.ask(tile)
        sent, received = (
            (now - before) / 1000 / len(tiles[:10]) for now, before in zip(wire.counts, start, strict=True)
        )
        print(f"{name:20} {sent:8.1f}  {received:8.1f}", flush=True)


def _print_first_written(size: tuple[int, int], tiles: list[bytes]) -> None:
    """What one writes first: three equal channels from 0 to 1, with all digits."""
    bodies = []
    for tile in tiles[:10]:
        image, _ = letterbox(read_image(tile), size)
        bodies.append(json.dumps({"instances": [(image.astype(float).repeat(3, axis=-1) / 255).tolist()]}))
    print(f"{'  RGB, all digits':20} {statistics.mean(map(len, bodies)) / 1000:8.1f}         -", flush=True)


def _load(ways: dict[str, Way], tiles: list[bytes], concurrency: int, number: int) -> None:
    """Sends requests to each way in turns, and keeps the times."""
    for way in ways.values():
        way.latencies.clear()
        way.wall = way.server_cpu = way.client_cpu = 0.0
    source = itertools.cycle(tiles)
    with ThreadPoolExecutor(concurrency) as executor:
        for way in ways.values():
            way.run(executor, tiles[:LARGEST_BATCH])  # warms up
        for _ in range(ROUNDS):
            batch = list(itertools.islice(source, max(number // ROUNDS, EACH * concurrency)))
            for way in ways.values():
                cpu, own, start = _cpu(way.server), time.process_time(), time.perf_counter()
                way.latencies += way.run(executor, batch)
                way.wall += time.perf_counter() - start
                way.client_cpu += time.process_time() - own
                way.server_cpu += _cpu(way.server) - cpu


def _asked(ask: Ask, executor: Executor, tiles: list[bytes]) -> list[float]:
    """Seconds that each tile takes by a server, with as many in flight as there are threads."""

    def one(tile: bytes) -> float:
        start = time.perf_counter()
        ask(tile)
        return time.perf_counter() - start

    return list(executor.map(one, tiles))


def _network(
    here: InProcess, batch_size: int, cores: set[int] | None, _: Executor, tiles: list[bytes]
) -> list[float]:
    with _on(cores):
        return here.network(tiles, batch_size)


def _defects(here: InProcess, cores: set[int] | None, _: Executor, tiles: list[bytes]) -> list[float]:
    with _on(cores):
        return here.defects(tiles)


@contextlib.contextmanager
def _on(cores: set[int] | None) -> Iterator[None]:
    """Keeps this thread on some cores, and the threads and processes that it starts; None for any."""
    if cores is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _cpu(process: psutil.Process | None) -> float:
    if process is None:
        return 0.0
    times = process.cpu_times()
    return float(times.user + times.system)


def _line(way: Way) -> str:
    count, cuts = len(way.latencies), statistics.quantiles(way.latencies, n=100, method="inclusive")
    percentiles = "  ".join(f"{1000 * cuts[index]:4.0f} ms" for index in (49, 94, 98))
    return (
        f"{way.speed:8.1f}  {percentiles} {1000 * way.server_cpu / count:14.1f} ms"
        f" {1000 * way.client_cpu / count:6.1f} ms"
    )


def _compared(way: Way, local: dict[str, Way]) -> str:
    """What a server costs over what runs in one process."""
    network, defects = local[NETWORK].speed, local[DEFECTS].speed
    taken, found, bare = 1 / way.speed, 1 / defects, 1 / network
    return (
        f"{way.speed / network:.0%} of the throughput of the {NETWORK}: {taken / bare - 1:.0%} over it, "
        f"of which HTTP, JSON and files {(taken - found) / bare:.0%}"
    )


if __name__ == "__main__":
    sys.exit(main())
