"""AsyncTileClient and gRPC give the same results and errors as TileClient over HTTP."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.client import AsyncTileClient, Prediction, TileClient
from serving.client.cli import main
from serving.client.doctor import examine
from serving.errors import ImageError, ModelNotFound, RequestRefused, ServerError, ServerUnavailable
from tests.conftest import MODEL_NAME
from tests.serving.test_client import closed_port, scripted_server, segment_answer
from tests.serving.tiles import encoded, tile

pytest.importorskip("httpx", reason="the extra `async` is not installed")
pytest.importorskip("grpc", reason="the extra `grpc` is not installed")
pytest.importorskip("tensorflow_serving", reason="the extra `grpc` is not installed")

Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def grpc_url(servable_path: Path) -> Iterator[str]:
    from tests.serving.grpc_server import grpc_server

    [folder] = servable_path.iterdir()
    with grpc_server(MODEL_NAME, folder) as (url, _):
        yield url


def run_async(url: str, question: str, *arguments: Any, **settings: Any) -> Any:
    async def ask() -> Any:
        async with AsyncTileClient(url, **settings) as client:
            return await getattr(client, question)(*arguments)

    return asyncio.run(ask())


def run(url: str, question: str, *arguments: Any, **settings: Any) -> Any:
    with TileClient(url, **settings) as client:
        return getattr(client, question)(*arguments)


@pytest.fixture(params=["async", "grpc"])
def other(request: pytest.FixtureRequest, server_url: str) -> Ask:
    """Asks a question with a client to be compared with TileClient over HTTP."""
    url = server_url if request.param == "async" else request.getfixturevalue("grpc_url")
    ask = run_async if request.param == "async" else run
    return lambda question, *arguments, **settings: ask(url, question, *arguments, **settings)


def same(one: Prediction, two: Prediction) -> bool:
    """gRPC tells the version too; all else must be equal."""
    fields = ("score", "label", "defects")
    return (
        all(getattr(one, field) == getattr(two, field) for field in fields)
        and np.array_equal(one.mask, two.mask)
        and np.array_equal(one.levels, two.levels)
    )


@pytest.mark.parametrize("signature", ["segment", "serving_default"])
@pytest.mark.parametrize("threshold", [None, 0.9])
@pytest.mark.parametrize("source", [tile(), tile(324, 270), encoded(tile(), "TIFF")], ids=["a", "b", "tiff"])
def test_predictions_are_the_same(
    server_url: str, other: Ask, signature: str, threshold: float | None, source: Any
) -> None:
    settings = {"signature": signature, "threshold": threshold}
    one, two = run(server_url, "predict", source, **settings), other("predict", source, **settings)
    if signature == "serving_default":  # numbers are rounded to a thousandth in JSON
        assert np.abs(one.levels.astype(int) - two.levels.astype(int)).max() <= 1
        assert (one.label, len(one.defects), one.version) == (two.label, len(two.defects), two.version)
    else:
        assert same(one, two)


@pytest.mark.parametrize("question", ["status", "current_version", "signatures", "model_info"])
def test_questions_about_the_model_have_the_same_answers(server_url: str, other: Ask, question: str) -> None:
    assert other(question) == run(server_url, question)


@pytest.mark.parametrize(
    "settings",
    [{"model": "nope"}, {"version": 7}, {"label": "nope"}, {"signature": "nope"}],
    ids=["model", "version", "label", "signature"],
)
def test_what_is_not_there_gives_the_same_error(
    server_url: str, other: Ask, settings: dict[str, Any]
) -> None:
    def text(ask: Ask) -> str:
        with pytest.raises(ModelNotFound) as caught:
            ask("predict", tile(), **settings)
        return re.sub(r"\w+://[\d.:]+", "URL", str(caught.value))

    assert text(other) == text(lambda *arguments, **keywords: run(server_url, *arguments, **keywords))


def test_bad_images_are_the_same_error(other: Ask) -> None:
    with pytest.raises(ImageError, match="not an image"):
        other("predict", b"no image")


@pytest.mark.parametrize(("scheme", "ask"), [("http", run_async), ("grpc", run)], ids=["async", "grpc"])
def test_a_server_that_is_down_names_the_address_and_the_remedy(scheme: str, ask: Ask) -> None:
    url = f"{scheme}://127.0.0.1:{closed_port()}"
    with pytest.raises(ServerUnavailable, match=f"no model server at {url} .*serving.up"):
        ask(url, "predict", tile(), retries=0)


def test_grpc_tries_again_when_the_server_is_busy_and_says_which_version_answered(
    servable_path: Path,
) -> None:
    import grpc

    from tests.serving.grpc_server import grpc_server

    [folder] = servable_path.iterdir()
    with grpc_server(MODEL_NAME, folder) as (url, services), TileClient(url, retries=2) as client:
        for code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED):
            services.busy, services.refusal = 2, (code, "busy")
            prediction = client.predict(tile())
            assert (prediction.label, prediction.version) == ("defect", int(folder.name))
            services.busy = 3
            with pytest.raises(ServerUnavailable, match="busy"):
                client.predict(tile())
        services.busy, services.refusal = 3, (code, "Received message larger than max (9 vs. 4)")
        with pytest.raises(RequestRefused, match="larger than max") as caught:
            client.predict(tile())
        assert caught.value.status == 413  # type: ignore[attr-defined]


def test_grpc_that_is_late_says_so(servable_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.serving.grpc_server import grpc_server

    [folder] = servable_path.iterdir()
    late = threading.Event()
    with grpc_server(MODEL_NAME, folder) as (url, services):
        monkeypatch.setattr(services.model, "predict", lambda *_: late.wait(5))
        with pytest.raises(ServerUnavailable, match=r"no answer within 0.2 s"):
            TileClient(url, timeout=0.2).predict(tile())
        late.set()


def test_commands_take_a_grpc_url(grpc_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(tile()))
    assert main(["predict", str(path), "--url", grpc_url, "--out", str(tmp_path / "out")]) == 3
    assert "1 tile: 1 with defects" in capsys.readouterr().out
    assert [check.text for check in examine(TileClient(grpc_url)) if check.state == "failed"] == []


@pytest.mark.parametrize(
    "url", ["grpc://host", "grpc://:1", "grpc://host:port", "grpc://host:1/path", "grpc://[::1"]
)
def test_a_grpc_url_needs_host_and_port(url: str) -> None:
    with pytest.raises(ServerError, match=re.escape(f"can't ask {url}: ")):
        TileClient(url)


def test_async_answers_come_in_order_and_a_bad_one_is_an_answer(server_url: str) -> None:
    tiles = [np.full((40 + index, 50), 200, np.uint8) for index in range(12)]

    async def ask() -> list[Any]:
        async with AsyncTileClient(server_url) as client:
            sources = [*tiles[:5], b"no image", *tiles[5:]]
            return [answer async for answer in client.predict_many(sources, concurrency=3)]

    answers = asyncio.run(ask())
    assert isinstance(answers.pop(5), ImageError)
    assert [answer.mask.shape[0] for answer in answers] == list(range(40, 52))


def test_async_takes_no_more_sources_than_it_needs_and_ends_when_it_is_left(server_url: str) -> None:
    taken = []

    def sources() -> Iterator[np.ndarray]:
        for number in range(1000):
            taken.append(number)
            yield tile()

    async def ask() -> None:
        async with AsyncTileClient(server_url) as client:
            answers = client.predict_many(sources(), concurrency=3)
            for _ in range(5):
                await anext(answers)
            await answers.aclose()  # type: ignore[attr-defined]

    asyncio.run(ask())
    assert len(taken) <= 5 + 2 * 3


def test_async_tries_429_and_503_again_but_not_what_is_late() -> None:
    answers = [(429, b"{}"), (503, b"{}"), (200, segment_answer(tile()))]
    with scripted_server(lambda path: answers.pop(0)) as url:
        assert run_async(url, "predict", tile(), retries=2).label == "good"
    assert not answers
    seen, late = [], threading.Event()

    def slow(path: str) -> tuple[int, bytes]:
        seen.append(path)
        late.wait(5)
        return 200, segment_answer(tile())

    with scripted_server(slow) as url:
        with pytest.raises(ServerUnavailable, match=r"no answer within 0.2 s"):
            run_async(url, "predict", tile(), timeout=0.2)
        late.set()
    assert len(seen) == 1


BOTH = pytest.mark.parametrize("ask", [run, run_async], ids=["blocking", "async"])
CUT = {"Content-Length": "100000"}


@BOTH
def test_an_answer_that_breaks_off_is_asked_for_again(ask: Ask) -> None:
    answers = [(200, segment_answer(tile())), (200, b'{"pred', CUT), (200, b'{"pred', CUT)]
    with scripted_server(lambda path: answers.pop()) as url:
        assert ask(url, "predict", tile(), retries=2).label == "good"
    assert not answers
    with (
        scripted_server(lambda path: (200, b'{"pred', CUT)) as url,
        pytest.raises(ServerUnavailable, match="the connection broke"),
    ):
        ask(url, "predict", tile(), retries=1)


@BOTH
def test_an_answer_that_stops_in_its_middle_is_late(ask: Ask) -> None:
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n{")
                over.wait(10)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ServerUnavailable, match=r"no answer within 0.2 s"):
            ask(f"http://127.0.0.1:{server.getsockname()[1]}", "predict", tile(), timeout=0.2)
        over.set()
        thread.join()


@BOTH
def test_a_redirect_that_loses_the_request_names_the_url_to_use(ask: Ask) -> None:
    def answer(path: str) -> tuple[int, bytes, dict[str, str]]:
        return (200, b"{}", {}) if path.startswith("/there") else (302, b"", {"Location": f"/there{path}"})

    with (
        scripted_server(answer) as url,
        pytest.raises(ServerError, match=f"name that server itself: --url {url}/there$"),
    ):
        ask(url, "predict", tile())


def test_an_async_client_leaves_the_event_loop_free(server_url: str) -> None:
    async def ask() -> int:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0)
                ticks += 1

        ticking = asyncio.create_task(tick())
        async with AsyncTileClient(server_url) as client:
            await client.predict(np.full((3000, 2000), 200, np.uint8))
        ticking.cancel()
        return ticks

    assert asyncio.run(ask()) > 100


def test_async_speaks_http_alone() -> None:
    with pytest.raises(ServerError, match="AsyncTileClient speaks HTTP alone"):
        AsyncTileClient("grpc://127.0.0.1:8500")


@pytest.mark.parametrize(
    ("module", "code", "text"),
    [
        ("grpc", "TileClient('grpc://127.0.0.1:1')", "pip install .[grpc]"),
        ("httpx", "serving.client.AsyncTileClient", "pip install .[async]"),
    ],
)
def test_a_missing_extra_is_named(module: str, code: str, text: str) -> None:
    script = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "import serving.client; from serving.client import TileClient\n"
        "from serving.errors import ServerError\n"
        f"try: {code}\nexcept ServerError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert text in done.stdout


def test_nothing_but_a_grpc_url_imports_tensorflow(server_url: str) -> None:
    script = (
        "import sys, serving.client, serving.client.commands\n"
        f"serving.client.TileClient({server_url!r}).status(); serving.client.AsyncTileClient\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"tensorflow", "keras", "grpc"} & set(done.stdout.split())
