"""Asks more of a server than it can do, then swaps its versions and kills it: python -m scripts.load

  rate      what the server can do, by callers who wait for their answers
  overload  --factor times that rate for --minutes; callers come at random times and don't wait for each other
  swap      new versions come and old ones go, at half the rate
  kill      the server gets SIGKILL while the client does a folder, is started again, and the client too
Each request has to get the right answer, or in an overload to be refused with 503 or 429; memory must not
grow; a swap must fail no request; after the kill no tile of the folder may be missing or be there twice.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from scripts.memory import Memory, process_at
from scripts.servers import fault_parser
from serving.client.ordered import ordered_map
from serving.up import free_port, running_server

__all__ = ["Load", "Result", "kill", "main", "tiles"]

ROOT = Path(__file__).parents[1]
NAME = "magnetic-tiles"
IMAGE_FLAGS = (
    *("--rest_api_num_threads=100", "--enable_batching=true"),
    f"--batching_parameters_file={ROOT / 'serving/config/batching_parameters.txt'}",
)
"""Those of Dockerfile.serving that matter here."""
REFUSED = (503, 429)
TIMEOUT = 120.0
LEVELS, PIXELS = 1, 0.001
"""By how much probabilities, in 1/255, and masks, as a share of the tile, may differ from run to run."""


def tiles(count: int, height: int = 324, width: int = 270, seed: int = 0) -> list[bytes]:
    """JPEGs of the public set's median size, with spots; no two are alike."""
    rng = np.random.default_rng(seed)
    files = []
    for _ in range(count):
        gray = rng.normal(150, 8, (height, width))
        top, left = rng.integers(height - 40), rng.integers(width - 40)
        gray[top : top + rng.integers(5, 40), left : left + rng.integers(5, 40)] -= 110
        buffer = io.BytesIO()
        Image.fromarray(gray.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG")
        files.append(buffer.getvalue())
    return files


@dataclass
class Result:
    """What became of the requests of a phase; times in seconds, from when a request was due."""

    answered: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def __str__(self) -> str:
        parts = [f"{len(self.answered):,} answered ({len(self.answered) / self.seconds:.1f}/s)"]
        for name, times in (("answers", self.answered), ("refusals", self.refused)):
            if times:
                median, late = np.percentile(times, [50, 99])
                parts.append(f"{name}: median {1000 * median:.0f} ms, p99 {1000 * late:.0f} ms")
        parts.insert(1, f"{len(self.refused):,} refused")
        return ", ".join([*parts, f"{self.faults.total():,} faults"])


class Load:
    """Requests for one server, and the right answers to them.

    Args:
        url: of the server, which has nothing else to do yet.
        files: tiles to send, in turn.
        memory: of the server.
    """

    def __init__(self, url: str, files: Sequence[bytes], memory: Memory) -> None:
        self.memory = memory
        self._path = f"{url}/v1/models/{NAME}:predict"
        self._bodies = [_body(data) for data in files]
        self._expected = [_planes(httpx.post(self._path, content=body).content) for body in self._bodies]
        self._known: list[set[bytes]] = [set() for _ in files]

    def closed(self, seconds: float, callers: int) -> Result:
        """Callers who each wait for their answer before they ask again."""

        async def run(client: httpx.AsyncClient, result: Result) -> None:
            end = time.monotonic() + seconds

            async def call(number: int) -> None:
                while time.monotonic() < end:
                    await self._ask(client, number, time.monotonic(), result)
                    number += callers

            await asyncio.gather(*map(call, range(callers)))

        return self._run(run)

    def open(self, seconds: float, rate: float, seed: int = 0) -> Result:
        """Callers who come at random times, `rate` a second, whether others have their answers or not."""

        async def run(client: httpx.AsyncClient, result: Result) -> None:
            asking: set[asyncio.Task[None]] = set()
            async for number, due in _arrivals(seconds, rate, seed):
                task = asyncio.create_task(self._ask(client, number, due, result))
                asking.add(task)
                task.add_done_callback(asking.discard)
            await asyncio.gather(*asking)

        return self._run(run)

    def _run(self, run: Any) -> Result:
        async def main() -> Result:
            result, start = Result(), time.monotonic()
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
            async with httpx.AsyncClient(timeout=TIMEOUT, limits=limits, trust_env=False) as client:
                await run(client, result)
            result.seconds = time.monotonic() - start
            return result

        return asyncio.run(main())

    async def _ask(self, client: httpx.AsyncClient, number: int, due: float, result: Result) -> None:
        index = number % len(self._bodies)
        try:
            answer = await client.post(self._path, content=self._bodies[index])
        except httpx.HTTPError as error:
            result.faults[f"{type(error).__name__}: {error}"] += 1
            return
        took = time.monotonic() - due
        if answer.status_code in REFUSED and _error(answer):
            result.refused.append(took)
        elif answer.status_code == 200 and self._is_right(index, answer.content):
            result.answered.append(took)
        else:
            result.faults[f"{answer.status_code}: {answer.text[:200]}"] += 1
        if number % 20 == 0:
            self.memory.look()

    def _is_right(self, index: int, content: bytes) -> bool:
        if content not in self._known[index]:
            if not _agree(_planes(content), self._expected[index]):
                return False
            self._known[index].add(content)
        return True


async def _arrivals(seconds: float, rate: float, seed: int) -> AsyncIterator[tuple[int, float]]:
    """Numbers of requests, each when it is due, and when that was."""
    rng, start, number = random.Random(seed), time.monotonic(), 0
    due = start
    with tqdm(total=round(seconds), unit="s", disable=None) as bar:
        while (due := due + rng.expovariate(rate)) < start + seconds:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            yield number, due
            number += 1
            bar.update(int(due - start) - bar.n)


def _body(data: bytes) -> bytes:
    instance = {"b64": base64.b64encode(data).decode()}
    return json.dumps({"signature_name": "segment", "instances": [instance]}).encode()


def _error(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        return ""


def _planes(content: bytes) -> list[NDArray[np.uint8]]:
    """Mask and probabilities of an answer."""
    (prediction,) = json.loads(content)["predictions"]
    pictures = (base64.b64decode(prediction[name]["b64"]) for name in ("mask_bytes", "probability_bytes"))
    return [np.asarray(Image.open(io.BytesIO(data))) for data in pictures]


def _agree(one: list[NDArray[np.uint8]], other: list[NDArray[np.uint8]]) -> bool:
    (mask, levels), (other_mask, other_levels) = one, other
    return (
        mask.shape == other_mask.shape
        and float((mask != other_mask).mean()) <= PIXELS
        and int(np.abs(levels.astype(int) - other_levels).max()) <= LEVELS
    )


def swap(load: Load, base_path: Path, count: int, rate: float, pause: float) -> Result:
    """Asks while new versions come, each `pause` seconds, whole and at once, and the oldest go."""

    def change(_: int) -> None:
        time.sleep(pause)
        numbers = sorted(int(path.name) for path in base_path.iterdir() if path.name.isdecimal())
        draft = base_path.parent / "draft"
        shutil.copytree(base_path / str(numbers[-1]), draft)
        draft.rename(base_path / str(numbers[-1] + 1))
        for number in numbers[:-1]:
            shutil.rmtree(base_path / str(number))

    changes = ordered_map(change, range(count), 1)
    result = Result()
    for _ in changes:
        part = load.open(pause, rate)
        result.answered += part.answered
        result.faults += part.faults + Counter({"refused": len(part.refused)} if part.refused else {})
        result.seconds += part.seconds
    return result


def kill(base_path: Path, files: Sequence[bytes], flags: Sequence[str], after: int) -> list[str]:
    """Kills the server once the client has done some tiles of a folder; returns what is wrong at the end."""
    port, faults = free_port(), []
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder, "tiles"), Path(folder, "out")
        source.mkdir()
        for number, data in enumerate(files):
            (source / f"{number:05}.jpg").write_bytes(data)
        command = [
            *(sys.executable, "-m", "serving.client", "predict", str(source), "--out", str(out)),
            *("--url", f"http://127.0.0.1:{port}", "--json"),
        ]
        with running_server(base_path, NAME, port, flags=flags) as url:
            client = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            while client.poll() is None and _done(out) < after:
                time.sleep(0.01)
            process_at(url).kill()
            said = client.communicate(timeout=TIMEOUT)[1].decode()
        if client.returncode != 1 or said.count("\n") != 1:
            faults.append(f"the client ended with {client.returncode} and said: {said}")
        before = _done(out)
        with running_server(base_path, NAME, port, flags=flags):
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3600)
        lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
        names = Counter(Path(line["image"]).name for line in lines if "error" not in line)
        if done.returncode not in (0, 3):
            faults.append(f"the client ended with {done.returncode} and said: {done.stderr}")
        if not 0 < before < len(files):
            faults.append(f"{before} of {len(files)} tiles were done when the server was killed")
        if names != Counter(path.name for path in source.iterdir()):
            faults.append(
                f"{len(names)} of {len(files)} tiles are there, at most {max(names.values())} times"
            )
        if missing := [line["image"] for line in lines if not (out / line["mask"]).is_file()]:
            faults.append(f"{len(missing)} masks are missing")
    return faults


def _done(out: Path) -> int:
    journal = out / "results.jsonl"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0, 1 if anything is wrong, 2 for wrong arguments."""
    args = _parse(argv)
    flags = ["--file_system_poll_wait_seconds=0.2", *(IMAGE_FLAGS if args.batching else ())]
    faults: Counter[str] = Counter()
    files = tiles(args.tiles)
    with tempfile.TemporaryDirectory() as folder:
        base_path = Path(shutil.copytree(args.model_base_path, Path(folder, NAME)))
        with running_server(base_path, NAME, flags=flags) as url:
            load = Load(url, files, Memory(process_at(url)))
            measured = load.closed(args.seconds, 2 * (os.cpu_count() or 1))
            print(f"rate      {measured}", flush=True)
            if not measured.answered:
                return _report(measured.faults + Counter(["no request got the right answer"]))
            rate = len(measured.answered) / measured.seconds
            result = load.open(60 * args.minutes, args.factor * rate)
            print(f"overload  {result}; {args.factor * rate:.1f}/s came; memory {load.memory}", flush=True)
            faults += measured.faults + result.faults
            if load.memory.growth > args.max_growth:
                faults[f"memory has grown by {load.memory.growth:.0f} MB"] += 1
            if args.factor > 1 and args.minutes > 0 and not result.refused:
                faults["nothing was refused"] += 1
            result = swap(load, base_path, args.swaps, rate / 2, args.pause)
            print(f"swap      {result}; {args.swaps} versions", flush=True)
            faults += result.faults
        killed = kill(base_path, files * 4, flags, len(files))
        print(f"kill      {4 * len(files)} tiles, {len(killed)} faults", flush=True)
        faults += Counter(killed)
    return _report(faults)


def _report(faults: Counter[str]) -> int:
    """Prints what is wrong; returns the exit code."""
    for fault, count in faults.most_common(50):
        print(f"fault: {count:,} times {fault}", file=sys.stderr)
    return 1 if faults else 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = fault_parser("scripts.load", __doc__)
    add = parser.add_argument
    add("--minutes", type=float, default=30.0, metavar="M", help="of the overload (default: 30)")
    add("--factor", type=float, default=1.5, metavar="X", help="of the rate (default: 1.5)")
    add(
        "--seconds", type=float, default=20.0, metavar="S", help="in which the rate is measured (default: 20)"
    )
    add("--swaps", type=int, default=10, metavar="N", help="versions that come (default: 10)")
    add(
        "--pause",
        type=float,
        default=5.0,
        metavar="S",
        help="seconds before each of them, under load (default: 5)",
    )
    add("--tiles", type=int, default=50, metavar="N", help="that are sent in turn (default: 50)")
    add(
        "--batching",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="the server with the settings of the image, or with its own (default: those of the image)",
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
