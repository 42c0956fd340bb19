"""A watched folder: nothing is missed, read half-written or sent twice, whatever server and camera do."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.client import TileClient, watch
from serving.client.cli import main
from serving.client.job import Job, Outcome
from serving.client.results import Results, Stamp
from serving.client.watch import PATIENCE, SETTLED, STRIKES, Arrivals
from tests.serving.forbidden import closed
from tests.serving.proxies import Proxy, proxy_before
from tests.serving.test_client import closed_port
from tests.serving.tiles import encoded, tile


@pytest.fixture
def proxy(server_url: str) -> Iterator[Proxy]:
    with proxy_before(server_url) as proxy:
        yield proxy


def numbered(number: int) -> bytes:
    gray = tile()
    gray[0, :2] = 150 + np.array(divmod(number, 50))
    return encoded(gray)


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(condition)
        time.sleep(0.02)


def recorded(out: Path) -> list[dict[str, Any]]:
    journal = out / "results.jsonl"
    return [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []


@contextmanager
def watching(folder: Path, out: Path, url: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A watch that is ended with SIGTERM, cleanly, unless it has ended by then."""
    command = [sys.executable, "-m", "serving.client", "predict", "--watch", str(folder), "--out", str(out)]
    process = subprocess.Popen(
        [*command, "--url", url, "--retries", "0", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
        if process.poll() is None:
            process.terminate()
            process.wait(20)
            assert process.returncode == 0
    finally:
        process.kill()
        process.wait()


def test_every_file_is_sent_once_however_it_comes_and_over_restarts(tmp_path: Path, proxy: Proxy) -> None:
    folder, out = tmp_path / "in", tmp_path / "in" / "out"
    (folder / "deep").mkdir(parents=True)
    for number in range(5):
        (folder / "deep" / f"before{number}.png").write_bytes(numbered(number))
    stop = threading.Event()

    def drop() -> None:
        """Files that come while it starts, in new folders and by renaming, and some that are no tiles."""
        for number in range(10, 50):
            place = folder / f"batch{number // 10}"
            place.mkdir(exist_ok=True)
            part = place / f".{number}.png"
            part.write_bytes(numbered(number))
            part.rename(place / f"{number}.png")
            (place / "notes.txt").write_text("no tile")
            if stop.wait(0.03):
                return

    dropping = threading.Thread(target=drop)
    dropping.start()
    with watching(folder, out, proxy.url):
        wait_until(lambda: len(recorded(out)) >= 20)
    dropping.join()
    with watching(folder, out, proxy.url) as process:
        wait_until(lambda: len(recorded(out)) >= 45)
        (folder / "again.png").write_bytes(numbered(100))
        wait_until(lambda: len(recorded(out)) >= 46)
        (folder / "again.png").write_bytes(numbered(101))
        wait_until(lambda: (len(proxy.sent)) >= 47)
        process.terminate()
        printed, said = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "ended: " in said
    assert "again.png" in printed
    assert set(Counter(proxy.sent).values()) == {1}
    assert sorted(proxy.sent) == sorted(numbered(n) for n in [*range(5), *range(10, 50), 100, 101])
    images = [line["image"] for line in recorded(out)]
    assert len(images) == len(set(images)) == 46
    assert len(list(out.rglob("*_mask.png"))) == 46


def test_a_file_that_is_written_slowly_is_sent_once_and_whole(tmp_path: Path, proxy: Proxy) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    rng = np.random.default_rng(1)
    data = encoded(rng.integers(0, 255, (120, 100), np.uint8), "BMP")  # decodes when half of it is zero
    with watching(folder, out, proxy.url):
        wait_until(lambda: (out / "results.jsonl").exists())
        with (folder / "slow.bmp").open("wb") as file:
            file.truncate(len(data))
            for start in range(0, len(data), len(data) // 12):
                file.write(data[start : start + len(data) // 12])
                file.flush()
                time.sleep(SETTLED / 10)
        wait_until(lambda: len(recorded(out)) == 1)
    assert len(proxy.sent) == 1
    [line] = recorded(out)
    assert line["source"]["size"] == len(data)


def test_a_server_that_is_down_is_waited_for(tmp_path: Path, server_url: str) -> None:
    folder, out, port = tmp_path / "in", tmp_path / "out", closed_port()
    folder.mkdir()
    (folder / "1.png").write_bytes(numbered(1))
    with watching(folder, out, f"http://127.0.0.1:{port}") as process:
        assert process.stderr is not None
        assert "watching" in process.stderr.readline()
        assert f"waiting: no model server at http://127.0.0.1:{port}" in process.stderr.readline()
        with proxy_before(server_url, port) as proxy:
            assert "answers again" in process.stderr.readline()
            wait_until(lambda: len(recorded(out)) == 1)
            proxy.is_down = True
            (folder / "2.png").write_bytes(numbered(2))
            assert "waiting: " in process.stderr.readline()
            proxy.is_down = False
            wait_until(lambda: len(recorded(out)) == 2)
    assert sorted(proxy.sent) == sorted([numbered(1), numbered(2)])


def test_ctrl_c_lets_what_is_begun_end_and_begins_no_more(tmp_path: Path, proxy: Proxy) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number}.png").write_bytes(numbered(number))
    with watching(folder, out, proxy.url, "--concurrency", "2", "--json") as process:
        wait_until(lambda: len(recorded(out)) >= 3)
        proxy.gate.clear()
        process.send_signal(signal.SIGINT)
        threading.Timer(0.3, proxy.gate.set).start()
        printed, said = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "Traceback" not in said
    done = recorded(out)
    assert len(done) == len(printed.splitlines()) == len(proxy.sent) < 40
    assert len(list(out.glob("*_mask.png"))) == len(done)


def test_the_folder_itself_is_looked_at_when_notices_are_lost(
    tmp_path: Path, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out, stop = tmp_path / "in", tmp_path / "out", threading.Event()
    folder.mkdir()

    def no_notices(*_: object, **options: Any) -> Iterator[set[Any]]:
        while not stop.wait(0.02):
            yield set()

    monkeypatch.setattr(watch, "watch", no_notices)
    monkeypatch.setattr(watch, "RESCAN", 0.1)
    follow_until(2, folder, out, proxy, stop)
    assert len(proxy.sent) == 2


def test_polling_takes_over_where_there_are_no_notices(
    tmp_path: Path, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder, out, stop = tmp_path / "in", tmp_path / "out", threading.Event()
    folder.mkdir()
    real = watch.watch

    def limited(*paths: Any, **options: Any) -> Iterator[set[Any]]:
        if not options.get("force_polling"):
            raise OSError("OS file watch limit reached")
        return real(*paths, **options)

    monkeypatch.setattr(watch, "watch", limited)
    monkeypatch.setattr(watch, "RESCAN", 1e9)
    follow_until(2, folder, out, proxy, stop)
    assert "no notices of changes" in caplog.text


def follow_until(count: int, folder: Path, out: Path, proxy: Proxy, stop: threading.Event) -> None:
    """Watches a folder that gets files one after the other, until as many are done."""
    (folder / "0.png").write_bytes(numbered(0))
    with Results(out) as results, TileClient(proxy.url) as client:
        for number, _ in enumerate(watch.follow(folder, Job(client, results), results, stop), start=1):
            if number == count:
                stop.set()
            (folder / f"{number}.png").write_bytes(numbered(number))


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A watch that looks all the time, and waits for nothing."""

    def no_notices(*_: object, stop_event: threading.Event, **options: Any) -> Iterator[set[Any]]:
        while not stop_event.wait(0.005):
            yield set()

    monkeypatch.setattr(watch, "watch", no_notices)
    for name in ("SETTLED", "RESCAN", "LONGEST_WAIT"):
        monkeypatch.setattr(watch, name, 0.0)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    ("status", "times"), [(429, 7), (502, 7), (503, 7), (504, 7), (408, 4), (499, 4), (500, 4)]
)
def test_a_tile_that_the_server_could_not_do_for_a_while_is_not_lost(
    tmp_path: Path, proxy: Proxy, status: int, times: int
) -> None:
    refusals = failing(proxy, numbered(0), status, times)
    assert [one.error for one in followed(tmp_path, proxy, 1)] == [""]
    assert not refusals


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("status", [408, 500])
def test_a_tile_on_which_the_server_fails_each_time_is_given_up_and_others_are_done(
    tmp_path: Path, proxy: Proxy, status: int
) -> None:
    failing(proxy, numbered(0), status, 99)
    bad, *good = sorted(followed(tmp_path, proxy, 3), key=lambda one: one.image)
    assert f"given up after {STRIKES} tries: " in bad.error
    assert f"{status}: no" in bad.error
    assert proxy.sent.count(numbered(0)) == STRIKES
    assert [one.error for one in good] == ["", ""]


@pytest.mark.usefixtures("hasty")
def test_a_tile_for_which_the_server_is_always_busy_does_not_keep_it_from_others(
    tmp_path: Path, proxy: Proxy
) -> None:
    failing(proxy, numbered(0), 504, 99)
    assert [(Path(one.image).name, one.error) for one in followed(tmp_path, proxy, 3, ends_at=2)] == [
        ("1.png", ""),
        ("2.png", ""),
    ]


def failing(proxy: Proxy, file: bytes, status: int, times: int) -> list[int]:
    """Has the first answers to a file be refusals; returns those that are still to come."""
    refusals = times * [status]

    def alter(path: str, request: bytes, answer: bytes) -> tuple[int, bytes] | None:
        if base64.b64encode(file) in request and refusals:
            return refusals.pop(), b'{"error": "no"}'
        return None

    proxy.alter = alter
    return refusals


def followed(folder: Path, proxy: Proxy, count: int, ends_at: int | None = None) -> list[Outcome]:
    """What becomes of numbered tiles in a watched folder, one at a time."""
    for number in range(count):
        (folder / f"{number}.png").write_bytes(numbered(number))
    stop, outcomes = threading.Event(), []
    with Results(folder / "out") as results, TileClient(proxy.url, retries=0) as client:
        for outcome in watch.follow(folder, Job(client, results), results, stop, concurrency=1):
            outcomes.append(outcome)
            if len(outcomes) == (ends_at or count):
                stop.set()
    return outcomes


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def arrivals(tmp_path: Path, clock: Clock) -> Arrivals:
    return Arrivals(tmp_path, lambda path, stamp: path.name == "done.png", clock=clock)


def test_a_file_must_stay_as_it_is_for_a_while(tmp_path: Path, arrivals: Arrivals, clock: Clock) -> None:
    path = tmp_path / "a.png"
    with path.open("wb") as file:  # its last change is one of its contents
        file.write(b"12")
    (tmp_path / "done.png").write_bytes(b"1")
    arrivals.look()
    if os.stat(path).st_ctime_ns == os.stat(path).st_mtime_ns:
        assert arrivals.ready() == []
    clock.now = SETTLED
    path.write_bytes(b"123")
    assert arrivals.ready() == []
    clock.now = 2 * SETTLED
    assert arrivals.ready() == [path]
    path.unlink()
    assert arrivals.ready() == []


def test_a_file_that_was_moved_here_is_ready_at_once(tmp_path: Path, arrivals: Arrivals) -> None:
    part = tmp_path / "a.tmp"
    part.write_bytes(b"12")
    time.sleep(0.02)  # clocks of file systems tick every few milliseconds
    part.rename(tmp_path / "a.png")
    arrivals.notice([tmp_path / "a.png"])
    assert arrivals.ready() == [tmp_path / "a.png"]


def test_a_file_that_is_postponed_waits_each_time_for_longer_unless_it_changes(
    tmp_path: Path, arrivals: Arrivals, clock: Clock
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"1")
    arrivals.look()
    clock.now = SETTLED
    for pause in (1, 2, 4, 8, 15, 15):
        assert arrivals.ready() == [path]
        arrivals.postpone(path)
        clock.now += pause - 0.1
        assert arrivals.ready() == []
        clock.now += 0.1
    arrivals.postpone(path)
    path.write_bytes(b"12")
    arrivals.ready()
    clock.now += SETTLED
    assert arrivals.ready() == [path]


def test_an_empty_or_unreadable_file_is_given_time(tmp_path: Path, arrivals: Arrivals, clock: Clock) -> None:
    path = tmp_path / "a.png"
    path.touch()
    arrivals.look()
    clock.now = PATIENCE - 0.1
    assert arrivals.ready() == []
    assert arrivals.is_fresh(path)
    clock.now = PATIENCE
    assert arrivals.ready() == [path]
    assert not arrivals.is_fresh(path)


def test_what_is_hidden_or_no_image_or_a_result_is_left_alone(tmp_path: Path) -> None:
    link = tmp_path / ".link"
    link.symlink_to(tmp_path)
    arrivals = Arrivals(tmp_path, lambda path, stamp: False, without=link / "out")
    for name in (".a.png", "a.txt", ".hidden/b.png", "out/c_mask.png", "sub/d.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"1")
        arrivals.notice([path, path.parent])
    arrivals.look()
    assert list(arrivals._candidates) == [tmp_path / "sub" / "d.png"]


def test_a_folder_that_cannot_be_listed_is_told_of_once_until_it_can(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "in" / "sub"
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(b"1")
    arrivals = Arrivals(tmp_path / "in", lambda path, stamp: False)
    said = [f"can't look into {folder}: Permission denied; images there have to wait"]
    for number in (1, 2):
        with closed(folder):
            arrivals.look()
            arrivals.look()
            arrivals.notice([folder])
        assert caplog.messages == number * said
        arrivals.look()
        assert list(arrivals._candidates) == [folder / "a.png"]
    (tmp_path / "in").rename(tmp_path / "gone")
    arrivals.look()
    assert caplog.messages[-1].startswith(f"can't look into {tmp_path / 'in'}: No such file or directory")


def test_a_stamp_changes_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"1")
    before = Stamp.of(path)
    os.utime(path, ns=(0, before.modified + 1))
    assert Stamp.of(path) != before


@pytest.mark.parametrize(
    "arguments",
    [
        ["--watch", "in"],
        ["--watch", "in", "--out", "out", "a.png"],
        ["--watch", "in", "--out", "out", "--force"],
        ["a.png", "--force"],
        ["a.png", "--mm-per-pixel", "0"],
    ],
)
def test_options_that_do_not_go_together_are_wrong_usage(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["predict", *arguments])


def test_a_folder_that_is_not_there_can_not_be_watched(
    tmp_path: Path, server_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    out = str(tmp_path / "out")
    assert main(["predict", "--watch", str(tmp_path / "no"), "--out", out, "--url", server_url]) == 1
    assert "to watch" in capsys.readouterr().err
