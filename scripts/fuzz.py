"""Sends wrong and strange requests and image files to a server, and looks what becomes of it: make fuzz

Starts a server for an exported model and sends it
  api      requests made from serving/openapi.yaml by schemathesis, of which some keep to it and some don't
  bodies   bodies of sound requests, damaged byte by byte, some of them gzipped
  images   damaged files of all formats and bombs, each through the client and as it is
A fault is an answer that serving/openapi.yaml does not describe, an error without a text, no answer in time,
an exception that the client does not promise, memory that grows, and a server that has ended or answers a
sound tile otherwise than at first. The same --seed sends the same.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import io
import json
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import requests
import schemathesis
from hypothesis import strategies as st
from PIL import Image
from schemathesis.checks import CHECKS
from schemathesis.core.failures import FailureGroup
from tqdm import tqdm

from scripts.memory import Memory, process_at
from scripts.mutations import bombs, mutate, originals
from scripts.servers import fault_parser
from serving.client import TileClient
from serving.client.ordered import ordered_map
from serving.client.tile import Tile
from serving.errors import ImageError, RequestRefused, ServingError
from serving.up import running_server

__all__ = ["Fuzzing", "fuzzing", "main"]

DESCRIPTION = Path(__file__).parents[1] / "serving/openapi.yaml"
NAME = "magnetic-tiles"
CODES = {200, 400, 404, 408, 413, 503, 504}
CHECKED = (
    *("not_a_server_error", "status_code_conformance", "content_type_conformance"),
    *("response_schema_conformance", "negative_data_rejection"),
)
"""Not `unsupported_method`: TensorFlow Serving answers 400 where HTTP has 405."""
WORKERS = 4
WARMUP = 5
"""Times that each sound tile is sent before memory is looked at."""


@dataclass
class Fuzzing:
    """What is sent to one server, and what was found.

    Attributes:
        url: of the server.
        rng: decides what is sent.
        timeout: longest that an answer may take, in seconds.
        faults: what is wrong, one line each.
        answers: how many of each status, or of each result of the client.
        slowest: longest time to an answer, in seconds.
        memory: of the server.
        own_memory: of this process while its client sends images.
    """

    url: str
    rng: np.random.Generator
    timeout: float
    memory: Memory
    own_memory: Memory = field(default_factory=Memory)
    faults: list[str] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0

    def api(self, count: int) -> None:
        """Sends requests made from the description of the API."""
        _register_formats()
        versions = requests.get(self._path(), timeout=self.timeout).json()["model_version_status"]
        known = {"model": NAME, "version": int(versions[0]["version"])}
        schema = schemathesis.openapi.from_path(DESCRIPTION)
        operations = [result.ok() for result in schema.get_all_operations()]  # type: ignore[union-attr]
        weights = [5 if one.method == "post" else 1 for one in operations]
        end = self.answers.total() + count
        with tqdm(total=count, unit="request", disable=None) as bar, requests.Session() as session:

            def check(case: Any) -> None:
                self._check_case(case, session)
                bar.update()

            while (left := end - self.answers.total()) > 0:  # of some operations there are few requests
                for operation, weight in zip(operations, weights, strict=True):
                    settings = hypothesis.settings(
                        max_examples=max(1, round(left * weight / sum(weights))),
                        phases=[hypothesis.Phase.generate],
                        suppress_health_check=list(hypothesis.HealthCheck),
                        database=None,
                        deadline=None,
                    )
                    test = settings(hypothesis.given(_cases(operation, known))(check))
                    hypothesis.seed(int(self.rng.integers(2**32)))(test)()

    def bodies(self, count: int) -> None:
        """Sends bodies of sound requests that were damaged."""
        image = {"b64": base64.b64encode(originals()[0]).decode()}
        sound = [
            json.dumps(document).encode()
            for document in (
                {"signature_name": "segment", "instances": [image, {"image_bytes": image}]},
                {"signature_name": "segment", "inputs": {"image_bytes": [image]}},
                {"instances": [[[[0.5], [1e3]], [[-1], [2]]]]},
                {"signature_name": "model_info", "instances": ["ü", "\ud800"]},
            )
        ]
        packed = [gzip.compress(body, mtime=0) for body in sound]
        with requests.Session() as session:
            for number in tqdm(range(count), unit="request", disable=None):
                is_packed = number % 4 == 0
                body = mutate(packed if is_packed else sound, self.rng)
                headers = {"Content-Encoding": "gzip"} if is_packed else {}
                self._post(session, body, f"body {number}", headers)

    def images(self, count: int) -> None:
        """Sends damaged image files and bombs, through the client and as they are."""
        files = originals()
        damaged = ((str(number), mutate(files, self.rng)) for number in range(count))
        with TileClient(self.url, NAME, timeout=self.timeout) as client, requests.Session() as session:

            def send(one: tuple[str, bytes]) -> None:
                self._ask_client(client, *one)
                self._send_file(session, *one)

            for one in tqdm(ordered_map(send, damaged, WORKERS), total=count, unit="image", disable=None):
                assert one is None
        self.bombs()

    def bombs(self) -> None:
        """Sends bombs; none may take a fraction of the memory that it unpacks to."""
        with TileClient(self.url, NAME, timeout=self.timeout) as client, requests.Session() as session:
            for kind, data in bombs().items():
                memories = (Memory(process_at(self.url)), Memory())
                for memory in memories:
                    memory.look()
                before = [memory.peak for memory in memories]
                self._ask_client(client, f"bomb {kind}", data)
                self._send_file(session, f"bomb {kind}", data)
                for memory, least, whose in zip(memories, before, ("server", "client"), strict=True):
                    memory.look()
                    if memory.peak - least > 100:
                        self.faults.append(f"bomb {kind}: {memory.peak - least:.0f} MB more in the {whose}")

    def _check_case(self, case: Any, session: requests.Session) -> None:
        if _is_too_large(case.path_parameters.get("version")):
            return
        start = time.monotonic()
        try:
            answer = case.call(base_url=self.url, session=session, timeout=self.timeout)
        except requests.RequestException as error:
            self._note("none", start, f"{case.as_curl_command()}: {error}")
            return
        self._note(str(answer.status_code), start)
        try:
            case.validate_response(answer, checks=CHECKS.get_by_names(CHECKED))
        except FailureGroup as group:
            what = "; ".join(str(one) for one in group.exceptions)
            self.faults.append(f"{case.as_curl_command()[:400]}: {what}")

    def _ask_client(self, client: TileClient, name: str, data: bytes) -> None:
        self.own_memory.look()
        start = time.monotonic()
        try:
            prediction = client.predict(data)
            if prediction.mask.shape != Tile.load(data).gray.shape:
                self._note("mask of another size", start, f"image {name}: {prediction.mask.shape}")
            else:
                self._note("predicted", start)
        except (ImageError, RequestRefused) as error:
            self._note(
                type(error).__name__, start, "" if str(error) else f"image {name}: an error without text"
            )
        except ServingError as error:
            self._note(type(error).__name__, start, f"image {name}, through the client: {error}")

    def _send_file(self, session: requests.Session, name: str, data: bytes) -> None:
        instance = {"b64": base64.b64encode(data).decode()}
        body = json.dumps({"signature_name": "segment", "instances": [instance]}).encode()
        self._post(session, body, f"image {name}", {})

    def _post(self, session: requests.Session, body: bytes, name: str, headers: dict[str, str]) -> None:
        start = time.monotonic()
        try:
            answer = session.post(f"{self._path()}:predict", data=body, headers=headers, timeout=self.timeout)
        except requests.RequestException as error:
            self._note("none", start, f"{name}: {error}")
            return
        self._note(str(answer.status_code), start, _fault(answer) and f"{name}: {_fault(answer)}")

    def _note(self, answer: str, start: float, fault: str = "") -> None:
        self.slowest = max(self.slowest, time.monotonic() - start)
        self.answers[answer] += 1
        if fault:
            self.faults.append(fault)
        if self.answers.total() % 10 == 0:
            self.memory.look()

    def _path(self) -> str:
        return f"{self.url}/v1/models/{NAME}"


def _register_formats() -> None:
    """What the description calls an image in base64: a sound tile, a damaged one, or any bytes."""
    files = originals()

    def damaged(seed: int) -> bytes:
        return mutate(files, np.random.default_rng(seed))

    data = st.one_of(st.sampled_from(files), st.integers(0, 2**32 - 1).map(damaged), st.binary(max_size=50))
    schemathesis.openapi.format("image-base64", data.map(lambda one: base64.b64encode(one).decode()))


def _cases(operation: Any, known: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Requests of an operation that keep to the description or not, most of them for what is there."""
    names = {one.name for one in operation.path_parameters}
    path = {name: value for name, value in known.items() if name in names}
    positive, negative = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
    kinds = [(positive, path), (positive, None), (negative, None)]
    if operation.method == "post":  # else with this path there would be nothing to do wrong
        kinds += [(positive, path), (negative, path), (negative, path)]
    return st.one_of(
        [operation.as_strategy(generation_mode=mode, path_parameters=path) for mode, path in kinds]
    )


def _is_too_large(version: object) -> bool:
    """TensorFlow Serving refuses such a version without a word."""
    return str(version).isdecimal() and int(str(version)) >= 2**63


def _fault(answer: requests.Response) -> str:
    """What is wrong with an answer; empty if nothing."""
    try:
        document: Any = answer.json()
    except ValueError:
        return f"{answer.status_code} without JSON: {answer.text[:200]!r}"
    if answer.status_code not in CODES:
        return f"{answer.status_code}: {answer.text[:500]!r}"
    if answer.status_code >= 400 and not (document.keys() == {"error"} and document["error"]):
        return f"{answer.status_code} without an error text: {answer.text[:200]!r}"
    return ""


def _large() -> bytes:
    """An image of as many rows as some of the damaged ones claim and get."""
    buffer = io.BytesIO()
    Image.new("L", (50, 65_535), 150).save(buffer, "PNG")
    return buffer.getvalue()


@contextmanager
def fuzzing(url: str, seed: int, timeout: float) -> Iterator[Fuzzing]:
    """A server to send to; at the end of the block it must be as it was at the start."""
    process = process_at(url)
    one = Fuzzing(url, np.random.default_rng(seed), timeout, Memory(process))
    sound = [data for data in originals() if Tile.load(data).original]
    with TileClient(url, NAME) as client:
        first = [client.predict(data).levels for data in sound]
        # As many at once and as large as later, so that what these take is not taken for growth.
        for _ in ordered_map(client.predict, [_large(), *sound] * WARMUP, WORKERS):
            pass
        yield one
        if not process.is_running():
            one.faults.append("the server has ended")
            return
        after = [client.predict(data).levels for data in sound]
    if not all(np.array_equal(*pair) for pair in zip(first, after, strict=True)):
        one.faults.append("a sound tile gets another answer than at first")


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0, 1 if a fault was found, 2 for wrong arguments."""
    args = _parse(argv)
    warnings.filterwarnings("ignore", module="PIL")  # they are what the files are for
    started = time.monotonic()
    flags = ["--rest_api_timeout_in_ms=20000"]
    with (
        running_server(args.model_base_path, NAME, flags=flags) as url,
        fuzzing(url, args.seed, args.timeout) as one,
    ):
        for kind in ("api", "bodies", "images"):
            getattr(one, kind)(getattr(args, kind))
    for memory, whose in ((one.memory, "server"), (one.own_memory, "client")):
        if memory.growth > args.max_growth:
            one.faults.append(f"the memory of the {whose} has grown by {memory.growth:.0f} MB")
    seconds = time.monotonic() - started
    counts = ", ".join(f"{count:,} {answer}" for answer, count in sorted(one.answers.items()))
    print(f"{one.answers.total():,} in {seconds:,.0f} s, slowest {one.slowest:.1f} s: {counts}")
    print(f"memory of the server {one.memory}\nmemory of the client {one.own_memory}")
    for fault in one.faults[:50]:
        print(f"fault: {fault}", file=sys.stderr)
    print(f"{len(one.faults):,} faults")
    return 1 if one.faults else 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = fault_parser("scripts.fuzz", __doc__)
    add = parser.add_argument
    add("--api", type=int, default=10_000, metavar="N", help="requests by the description (default: 10000)")
    add("--bodies", type=int, default=2_000, metavar="N", help="damaged bodies (default: 2000)")
    add("--images", type=int, default=2_000, metavar="N", help="damaged images (default: 2000)")
    add("--seed", type=int, default=1, metavar="N", help="default: 1")
    add("--timeout", type=float, default=30.0, metavar="S", help="longest wait for an answer (default: 30)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
