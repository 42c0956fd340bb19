"""The client against a real server, and against one that behaves badly."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from serving.client import AsyncTileClient, Prediction, TileClient
from serving.client.doctor import Check, examine
from serving.client.ordered import ordered_map
from serving.client.tile import Tile
from serving.errors import ImageError, ModelNotFound, RequestRefused, ServerError, ServerUnavailable
from tests.serving.proxies import proxy_before
from tests.serving.tiles import encoded, tile, turned

Answer = tuple[int, bytes]


@contextmanager
def scripted_server(
    answer: Callable[[str], Answer | tuple[int, bytes, dict[str, str]]],
) -> Iterator[str]:
    """A server that answers as a function of the path says; for what a sound server never does."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            told = answer(self.path)
            status, body = told[:2]
            self.send_response(status)
            for header in {"Content-Length": str(len(body)), **(told[2] if len(told) == 3 else {})}.items():
                self.send_header(*header)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def segment_answer(gray: np.ndarray, **changes: Any) -> bytes:
    image = {"b64": base64.b64encode(encoded(np.zeros_like(gray))).decode()}
    one = {"mask_bytes": image, "probability_bytes": image, "score": 0.0, "label": "good", **changes}
    return json.dumps({"predictions": [one]}).encode()


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def client(server_url: str) -> Iterator[TileClient]:
    with TileClient(server_url) as client:
        yield client


def test_the_dark_places_of_a_tile_are_found(client: TileClient) -> None:
    gray = np.full((60, 50), 200, np.uint8)
    gray[10:20, 5:25] = 30

    prediction = client.predict(gray)

    assert np.array_equal(prediction.mask, np.where(gray == 30, 255, 0))
    assert prediction.label == "defect"
    assert prediction.score > 0.99
    assert prediction.score == pytest.approx(prediction.probability.max())
    [defect] = prediction.defects
    assert (defect.box, defect.area) == ((5, 10, 20, 10), 200)


def test_a_bright_tile_is_good(client: TileClient) -> None:
    prediction = client.predict(np.full((300, 200), 210, np.uint8))
    assert (prediction.label, prediction.defects, prediction.mask.max()) == ("good", (), 0)


@pytest.mark.parametrize(("height", "width"), [(60, 50), (120, 100), (324, 270), (100, 632)])
@pytest.mark.parametrize("threshold", [None, 0.9])
def test_both_signatures_give_the_same(
    server_url: str, height: int, width: int, threshold: float | None
) -> None:
    gray = tile(height, width)
    files = TileClient(server_url, threshold=threshold).predict(gray)
    numbers = TileClient(server_url, signature="serving_default", threshold=threshold).predict(gray)
    assert np.abs(files.levels.astype(int) - numbers.levels.astype(int)).max() <= 1
    assert (files.mask != numbers.mask).mean() < 0.002
    assert files.label == numbers.label
    assert files.score == pytest.approx(numbers.score, abs=1.01 / 255)
    assert len(files.defects) == len(numbers.defects)


def test_every_kind_of_source_gives_the_same(client: TileClient, tmp_path: Path) -> None:
    path = tmp_path / "tile.png"
    path.write_bytes(encoded(tile()))
    expected = client.predict(tile())
    for source in (path, str(path), path.read_bytes(), Image.fromarray(tile()), tile()[..., None]):
        assert np.array_equal(client.predict(source).levels, expected.levels)
    assert np.array_equal(client.predict(tile().astype(np.uint16) * 256).levels, expected.levels)


@pytest.mark.parametrize(
    "data",
    [
        turned(Image.fromarray(np.rot90(tile()).copy()), 6),
        encoded(tile().astype(np.uint16) * 256 + 7),
        encoded(Image.fromarray(tile()).convert("P")),
        encoded(Image.fromarray(tile()).convert("RGBA")),
        encoded(tile(), "TIFF"),
        encoded(tile(), "WEBP", lossless=True),
    ],
    ids=["exif", "16 bits", "palette", "rgba", "tiff", "webp"],
)
def test_files_that_the_server_would_misread_arrive_upright_and_grey(client: TileClient, data: bytes) -> None:
    prediction = client.predict(data)
    assert prediction.mask.shape == tile().shape
    assert np.array_equal(prediction.levels, client.predict(tile()).levels)


@pytest.mark.parametrize(
    ("data", "as_it_is"),
    [
        (encoded(tile()), True),
        (encoded(tile(), "JPEG"), True),
        (encoded(np.dstack([tile()] * 3)), True),
        (turned(Image.fromarray(tile()), 1), True),
        (turned(Image.fromarray(tile()), 3), False),
        (encoded(Image.fromarray(tile()).convert("P")), False),
        (encoded(Image.fromarray(tile()).convert("1")), False),
        (encoded(tile().astype(np.uint16)), False),
        (encoded(tile(), "BMP"), False),
        (encoded(Image.fromarray(tile()).convert("CMYK"), "JPEG"), False),
    ],
)
def test_only_plain_png_and_jpeg_are_sent_as_they_are(data: bytes, as_it_is: bool) -> None:
    sent = Tile.load(data).file
    assert (sent == data) is as_it_is
    assert sent[:4] in (b"\x89PNG", b"\xff\xd8\xff\xe0")


def test_arrays_that_are_no_tile_are_refused() -> None:
    for array in (np.zeros((50, 50)), np.zeros((50, 50, 4), np.uint8), np.zeros((2, 50, 50), np.uint8)):
        with pytest.raises(ImageError, match="is no tile; give"):
            Tile.load(array)
    with pytest.raises(ImageError, match="too small"):
        Tile.load(np.zeros((0, 0), np.uint8))


def test_a_threshold_makes_the_mask_again(server_url: str) -> None:
    plain = TileClient(server_url).predict(tile())
    faint = TileClient(server_url, threshold=0.05).predict(tile())
    assert np.array_equal(faint.levels, plain.levels)
    assert np.array_equal(faint.mask > 0, plain.levels >= 13)
    assert 0 < (plain.mask > 0).sum() < (faint.mask > 0).sum()


def test_a_high_threshold_decides_on_the_tile_and_leaves_its_mask(server_url: str) -> None:
    strict = TileClient(server_url, threshold=0.9)
    assert np.array_equal(strict.predict(tile()).mask, TileClient(server_url).predict(tile()).mask)
    doubtful = np.full((50, 60), 90, np.uint8)  # the detector says 0.78
    assert TileClient(server_url).predict(doubtful).label == "defect"
    answer = strict.predict(doubtful)
    assert (answer.label, answer.defects, answer.mask.any()) == ("good", (), False)


def test_a_threshold_out_of_range_is_refused(server_url: str) -> None:
    with pytest.raises(ValueError, match="threshold must be above 0"):
        TileClient(server_url, threshold=0)


def test_many_tiles_come_back_in_order_and_a_bad_one_is_an_answer(client: TileClient) -> None:
    tiles = [np.full((40 + index, 50), 200, np.uint8) for index in range(12)]
    sources = [*tiles[:5], b"no image", *tiles[5:]]
    answers = list(client.predict_many(sources, concurrency=3))
    assert isinstance(answers.pop(5), ImageError)
    assert [a.mask.shape[0] for a in answers if isinstance(a, Prediction)] == list(range(40, 52))


def test_status_and_model_info(client: TileClient, servable_path: Path) -> None:
    [folder] = servable_path.iterdir()
    [status] = client.status()
    info = client.model_info()
    assert (status.version, status.state) == (int(folder.name), "AVAILABLE")
    assert client.current_version() == status.version
    assert (info.version, info.size, info.threshold) == (int(folder.name), (64, 64), 0.5)
    assert {"segment", "serving_default", "model_info"} <= set(client.signatures())
    assert TileClient(client.url, version=status.version).predict(tile()).version == status.version
    assert TileClient(client.url, signature="serving_default").predict(tile()).version == status.version


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"model": "nope"}, "no model 'nope' at"),
        ({"model": "a/b?c"}, "no model 'a/b[?]c' at"),
        ({"version": 7}, r"no version 7 ready; it has: \d{14} \(AVAILABLE\)"),
        ({"label": "nope"}, r"no version labelled 'nope' ready; it has: \d{14} \(AVAILABLE\)"),
        ({"model": "nope", "label": "nope"}, "no model 'nope' at"),
        ({"signature": "nope"}, "no signature 'nope'; it has: model_info, segment, serving_default"),
    ],
)
def test_what_is_not_there_is_named_with_what_is(
    server_url: str, settings: dict[str, Any], text: str
) -> None:
    with pytest.raises(ModelNotFound, match=text):
        TileClient(server_url, **settings).predict(tile())


def test_a_server_that_is_down_names_the_address_and_the_remedy() -> None:
    url = f"http://127.0.0.1:{closed_port()}"
    with pytest.raises(ServerUnavailable, match=f"{url} .Connection refused.*serving.up"):
        TileClient(url, retries=0).predict(tile())


def test_429_and_503_are_tried_again() -> None:
    answers = [(429, b"{}"), (503, b"{}"), (200, segment_answer(tile()))]
    with scripted_server(lambda path: answers.pop(0)) as url:
        assert TileClient(url, retries=2).predict(tile()).label == "good"
    assert not answers


def test_a_server_does_not_decide_how_long_the_client_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    with (
        scripted_server(lambda path: (503, b'{"error": "closed"}', {"Retry-After": "3600"})) as url,
        pytest.raises(ServerUnavailable, match="503: closed"),
    ):
        TileClient(url, retries=2).predict(tile())
    assert pauses == [0.4]


@pytest.mark.parametrize("status", [408, 429, 499, 502, 503, 504])
def test_a_server_that_could_answer_later_is_unavailable(status: int) -> None:
    with (
        scripted_server(lambda path: (status, b'{"error": "busy"}')) as url,
        pytest.raises(ServerUnavailable, match=f"{status}: busy.*try again later"),
    ):
        TileClient(url, retries=1).predict(tile())


def test_a_late_answer_is_not_asked_for_again() -> None:
    seen, late = [], threading.Event()

    def answer(path: str) -> Answer:
        seen.append(path)
        late.wait(5)
        return 200, segment_answer(tile())

    with scripted_server(answer) as url:
        with pytest.raises(ServerUnavailable, match=r"no answer within 0.2 s"):
            TileClient(url, timeout=0.2, retries=3).predict(tile())
        late.set()
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"<html>hello</html>", "no model server"),
        (b"[1]", "no model server"),
        (b"{}", "missing 'predictions'"),
        (b'{"predictions": []}', "makes no sense"),
        (b'{"predictions": [3]}', "makes no sense"),
        (b'{"predictions": [{"mask_bytes": {"b64": "!"}}]}', "no base64"),
        (segment_answer(tile(), mask_bytes={"b64": "AAAA"}), "no PNG"),
        (segment_answer(tile()[:50]), r"PNG of \(100, 50\)"),
        (segment_answer(tile(), label="maybe"), "a label or a mask that is none"),
        (segment_answer(tile(), score=None), "makes no sense"),
    ],
)
def test_an_answer_that_makes_no_sense_is_a_server_error(body: bytes, text: str) -> None:
    with scripted_server(lambda path: (200, body)) as url, pytest.raises(ServerError, match=text):
        TileClient(url).predict(tile())


def test_a_refusal_carries_the_words_of_the_server() -> None:
    with (
        scripted_server(lambda path: (413, b'{ "error": "too\n large" }')) as url,
        pytest.raises(RequestRefused, match=r"413: .*too large"),
    ):
        TileClient(url).predict(tile())


def test_probabilities_that_are_not_finite_are_a_server_error(client: TileClient) -> None:
    info = json.dumps(client.model_info().document)

    def answer(path: str) -> Answer:
        answer.calls += 1  # type: ignore[attr-defined]
        if answer.calls == 1:  # type: ignore[attr-defined]
            return 200, json.dumps({"predictions": [info]}).encode()
        return 200, json.dumps({"predictions": [np.full((64, 64, 1), np.nan).tolist()]}).encode()

    answer.calls = 0  # type: ignore[attr-defined]
    with scripted_server(answer) as url, pytest.raises(ServerError, match="not finite"):
        TileClient(url, signature="serving_default").predict(tile())


def test_a_url_without_a_scheme_is_http(server_url: str) -> None:
    assert TileClient(server_url.removeprefix("http://") + "/").status()


def test_a_url_that_is_none_is_a_server_error() -> None:
    with pytest.raises(ServerError, match="can't ask"):
        TileClient("gopher://x").status()
    for client in (TileClient, AsyncTileClient):
        with pytest.raises(ServerError, match=r"can't ask http://\[::1: "):
            client("http://[::1")


def test_ordered_map_never_runs_far_ahead() -> None:
    taken = []

    def items() -> Iterator[int]:
        for number in range(1000):
            taken.append(number)
            yield number

    results = ordered_map(lambda number: number * 2, items(), 3)
    assert [next(results) for _ in range(5)] == [0, 2, 4, 6, 8]
    assert len(taken) <= 5 + 2 * 3
    results.close()  # type: ignore[attr-defined]


def states(checks: Iterable[Check]) -> list[str]:
    return [check.state for check in checks]


def test_doctor_finds_a_sound_server_sound(client: TileClient) -> None:
    checks = list(examine(client))
    assert [check.text for check in checks if check.state == "failed"] == []
    texts = " ".join(check.text for check in checks)
    for topic in ("answers at", "versions", "signatures", "warm-up", "p95", "payload", "MB", "agree"):
        assert topic in texts


def test_doctor_stops_at_what_is_wrong(server_url: str) -> None:
    for settings in ({"model": "nope"}, {"version": 7}, {"label": "nope"}):
        checks = list(examine(TileClient(server_url, **settings)))
        assert checks[0].state == "ok"
        assert checks[-1].state == "failed"
        assert checks[-1].mend
    [down] = examine(TileClient(f"http://127.0.0.1:{closed_port()}", retries=0))
    assert down.state == "failed"


def test_doctor_hints_at_a_cold_first_request_and_tells_the_later_ones(client: TileClient) -> None:
    def seconds() -> Iterator[float]:
        """Ends and starts of requests that take 1 s, then 10 ms each."""
        now = 0.0
        for duration in [1.0] + 20 * [0.01]:
            yield now
            yield (now := now + duration)

    times = seconds()
    checks = {check.text.split(":")[0]: check for check in examine(client, lambda: next(times))}
    assert (checks["warm-up"].state, checks["latency"].state) == ("hint", "ok")
    assert "first request took 1000 ms, the later ones 10 ms" in checks["warm-up"].text
    assert "--enable_model_warmup" in checks["warm-up"].mend
    assert "p50 10 ms, p95 10 ms" in checks["latency"].text


@contextmanager
def altered(server_url: str, alter: Callable[[str, bytes, bytes], Answer | None]) -> Iterator[str]:
    """A proxy that answers in place of the server where `alter` gives an answer."""
    with proxy_before(server_url) as proxy:
        proxy.alter = alter
        yield proxy.url


@pytest.mark.parametrize(
    ("path", "found", "put", "state", "text", "mend"),
    [
        ("/metadata", b'"segment"', b'"segments"', "failed", "signatures are missing: segment", "export"),
        ("/metadata", b"DT_FLOAT", b"DT_HALF", "failed", "other inputs, outputs or types", "revision"),
        ("magnetic-tiles", b"AVAILABLE", b"LOADING", "failed", "no version is available", "integer name"),
        (":predict", b"letterbox", b"centre-crop", "failed", "preprocessing 'centre-crop'", "revision"),
    ],
)
def test_doctor_names_what_is_wrong_with_a_model(
    server_url: str, path: str, found: bytes, put: bytes, state: str, text: str, mend: str
) -> None:
    def alter(asked: str, request: bytes, answer: bytes) -> Answer | None:
        return (200, answer.replace(found, put)) if asked.endswith(path) else None

    with altered(server_url, alter) as url:
        last = list(examine(TileClient(url)))[-1]
    assert last.state == state
    assert text in last.text
    assert mend in last.mend


def test_doctor_tells_of_a_version_that_failed_and_of_a_proxy_that_refuses_large_requests(
    server_url: str,
) -> None:
    broken = {"version": "1", "state": "END", "status": {"error_code": "NOT_FOUND", "error_message": "gone"}}

    def alter(asked: str, request: bytes, answer: bytes) -> Answer | None:
        if asked.endswith("magnetic-tiles"):
            document = json.loads(answer)
            document["model_version_status"].append(broken)
            return 200, json.dumps(document).encode()
        return (413, b"<html>too large</html>") if len(request) > 100_000 else None

    with altered(server_url, alter) as url:
        hints = [check for check in examine(TileClient(url)) if check.state != "ok"]
    assert set(states(hints)) <= {"hint"}
    texts = " ".join(f"{check.text} {check.mend}" for check in hints)
    assert "1 END gone" in texts
    assert "is refused" in texts
    assert "client_max_body_size" in texts


def test_the_client_is_thin_and_help_thinner() -> None:
    def modules(code: str) -> set[str]:
        command = [sys.executable, "-c", f"import sys; {code}; print(*sys.modules)"]
        return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())

    heavy = {"tensorflow", "keras", "grpc", "scipy", "rich", "tqdm", "httpx", "watchfiles"}
    assert not heavy & modules("from serving.client import TileClient")
    assert not (heavy | {"numpy", "PIL", "requests"}) & modules(
        "from serving.client.cli import _parser; _parser().format_help()"
    )


def test_public_names_are_there() -> None:
    import serving.client

    for name in serving.client.__all__:
        assert getattr(serving.client, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Nope'"):
        _ = serving.client.Nope
