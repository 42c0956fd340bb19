"""The commands of the client as a user meets them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import requests
from PIL import Image

from serving.client import TileClient
from serving.client.cli import main
from serving.client.inputs import collect
from tests.serving.forbidden import closed
from tests.serving.proxies import proxy_before
from tests.serving.test_client import closed_port, scripted_server
from tests.serving.tiles import encoded, png_header, tile

COMMAND = [sys.executable, "-m", "serving.client"]


@pytest.fixture
def tiles(tmp_path: Path) -> Path:
    """Two defective tiles with the same name, and a good one."""
    folder = tmp_path / "tiles"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.png").write_bytes(encoded(tile()))
    (folder / "sub" / "a.png").write_bytes(encoded(tile()[::-1]))
    (folder / "good.TIF").write_bytes(encoded(np.full((50, 60), 210, np.uint8), "TIFF"))
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_bytes(b"")
    return folder


def test_a_folder_is_written_out_with_its_subfolders(
    tiles: Path, tmp_path: Path, server_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["predict", str(tiles), "--out", str(out), "--url", server_url]) == 3
    printed = capsys.readouterr()
    assert "3 tiles: 2 with defects, 1 good" in printed.out
    assert printed.err == ""
    stems = ("a", "good", "sub/a")
    expected = {f"{stem}_{kind}.png" for stem in stems for kind in ("mask", "overlay")}
    expected |= {"results.jsonl", "results.csv"}
    assert {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()} == expected
    mask = np.asarray(Image.open(out / "a_mask.png"))
    assert np.array_equal(mask[::-1], np.asarray(Image.open(out / "sub" / "a_mask.png")))
    assert set(np.unique(mask)) == {0, 255}


def test_json_has_an_object_per_image_and_bad_ones_do_not_stop_the_rest(
    tiles: Path, server_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tiles / "empty.png").touch()
    assert main(["predict", str(tiles), "--json", "--url", server_url]) == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(row["image"]).name for row in rows] == ["a.png", "empty.png", "good.TIF", "a.png"]
    assert rows[1]["error"] == "file is empty (0 bytes)"
    assert [row.get("label") for row in rows] == ["defect", None, "good", "defect"]
    assert {"box", "area", "area_percent", "centroid", "peak_probability"} == set(rows[0]["defects"][0])


BAD = {
    "text.png": (b"not an image", "not an image"),
    "cut.png": (encoded(tile())[:150], "truncated or damaged"),
    "empty.png": (b"", "empty (0 bytes)"),
    "dot.png": (encoded(np.zeros((1, 1), np.uint8)), "1 x 1 pixels is too small"),
    "postscript.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "are programs, not pictures"),
    "huge.png": (png_header(20_000, 20_000), "20000 x 20000 pixels is over the limit"),
}


def test_each_bad_image_gets_one_clear_line_and_the_good_one_its_answer(
    tmp_path: Path, server_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, (data, _) in BAD.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "zz.png").write_bytes(encoded(tile()))
    names = [str(tmp_path / name) for name in [*BAD, "missing.png", "zz.png"]]
    assert main(["predict", *names, "--url", server_url]) == 1
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert len(lines) == len(BAD) + 1
    for line, (name, (_, text)) in zip(lines, BAD.items(), strict=False):
        assert line.startswith(f"error: {tmp_path / name}: ")
        assert text in line
    assert "No such file" in lines[-1]
    assert "1 tile: 1 with defects" in printed.out


def test_codes_for_good_tiles_and_for_exit_zero(tiles: Path, server_url: str) -> None:
    assert main(["predict", str(tiles / "good.TIF"), "--url", server_url]) == 0
    assert main(["predict", str(tiles / "a.png"), "--url", server_url, "--exit-zero"]) == 0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--model", "nope"], "no model 'nope'"),
        (["--model-version", "7"], "no version 7 ready; it has: 2"),
        (["--model-label", "nope"], "no version labelled 'nope' ready; it has: 2"),
    ],
)
def test_a_wrong_model_stops_with_one_line(
    tiles: Path, server_url: str, options: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(tiles), "--url", server_url, *options]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert text in line


@pytest.mark.parametrize("command", [["predict"], ["status"], ["doctor"]])
def test_a_server_that_is_down_stops_with_one_line(
    tiles: Path, command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAGNETIC_TILES_URL", f"http://127.0.0.1:{closed_port()}")
    arguments = [*command, *([str(tiles), "--json"] if command == ["predict"] else []), "--retries", "0"]
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert "serving.up" in printed.err + printed.out
    if command == ["predict"]:
        assert "error" in json.loads(printed.out)


def test_an_empty_url_of_the_environment_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MAGNETIC_TILES_URL", "")
    monkeypatch.setattr("serving.client.commands.status", lambda client, _: sys.stdout.write(client.url))
    main(["status"])
    assert capsys.readouterr().out == "http://127.0.0.1:8501"


def test_status_and_doctor_of_a_sound_server(server_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--url", server_url]) == 0
    assert "AVAILABLE" in capsys.readouterr().out
    assert main(["doctor", "--url", server_url]) == 0
    assert "✗" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["predict"],
        ["predict", "a", "--threshold", "0"],
        ["status", "--timeout", "-1"],
        ["status", "--model-label", ""],
        ["doctor", "--model-version", "7", "--model-label", "stable"],
        ["predict", "a"],
    ],
)
def test_wrong_usage_is_code_2(arguments: list[str]) -> None:
    if arguments == ["predict", "a"]:
        arguments = [*arguments, "--concurrency", "0"]
    with pytest.raises(SystemExit, match="2"):
        main(arguments)


def test_an_output_folder_that_cannot_be_is_one_line(
    tiles: Path, server_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tiles / "notes.txt"
    assert main(["predict", str(tiles / "a.png"), "--out", str(out), "--url", server_url]) == 1
    assert f"can't write {out}" in capsys.readouterr().err


def test_a_newer_version_takes_over_in_the_middle_of_a_run(
    tmp_path: Path, server_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The proxy shows the real version as 1 until it is asked for the second tile, then as itself."""
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(encoded(tile()))
    real = str(TileClient(server_url).status()[0].version)
    predictions: list[str] = []

    def alter(path: str, request: bytes, answer: bytes) -> tuple[int, bytes] | None:
        is_old = len(predictions) < 2
        if path.endswith(":predict"):
            predictions.append(path)
        if path.endswith("/versions/1:predict") and is_old:
            return 200, requests.post(f"{server_url}/v1/models/magnetic-tiles:predict", data=request).content
        if not path.endswith("predict") and is_old:
            return 200, answer.replace(real.encode(), b"1")
        return None

    with proxy_before(server_url) as proxy:
        proxy.alter = alter
        names = [str(tmp_path / name) for name in ("a.png", "b.png")]
        assert main(["predict", *names, "--json", "--concurrency", "1", "--url", proxy.url]) == 3
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["version"] for row in rows] == [1, int(real)]


def test_help_teaches_and_needs_no_server() -> None:
    text = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, check=True).stdout
    assert "examples:" in text
    assert "exit codes:" in text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_end_with_130(tiles: Path, number: signal.Signals) -> None:
    def slow(path: str) -> tuple[int, bytes]:
        asked.append(path)
        time.sleep(3)
        return 500, b""

    asked: list[str] = []
    with scripted_server(slow) as url:
        process = subprocess.Popen(
            [*COMMAND, "predict", str(tiles), "--url", url],
            stderr=subprocess.PIPE,
            text=True,
            # Where the tests run in the background, a shell has set ^C to be ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        while not asked:
            time.sleep(0.02)
        process.send_signal(number)
        _, errors = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors


def test_a_reader_that_leaves_is_no_traceback(tiles: Path, server_url: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*COMMAND, "predict", str(tiles), "--json", "--url", server_url],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_collect_takes_files_folders_and_globs_once_and_in_order(tiles: Path) -> None:
    def names(*arguments: str) -> list[str]:
        return [one.name for one in collect(arguments)]

    assert names(str(tiles)) == ["a", "good", "sub/a"]
    assert names(f"{tiles}/**/*.png") == ["a", "sub/a"]
    assert names(f"{tiles}/s*") == ["a"]
    assert names(str(tiles / "sub" / "a.png"), str(tiles)) == ["a", "a.png", "good"]
    assert names(str(tiles / "a.png"), str(tiles / "a.png")) == ["a"]


def test_collect_says_what_names_no_image(tmp_path: Path) -> None:
    folder, pattern = collect([str(tmp_path), f"{tmp_path}/*.png"])
    assert (folder.problem, pattern.problem) == ("no images in this folder", "no file matches")


def test_collect_says_what_it_may_not_look_at_and_goes_on(tiles: Path) -> None:
    with closed(tiles / "sub"):
        found = {one.path: one.problem for one in collect([str(tiles), str(tiles / "sub" / "a.png")])}
    nothing = dict.fromkeys((tiles / "a.png", tiles / "good.TIF", tiles / "sub" / "a.png"), "")
    assert found == {tiles / "sub": "can't be listed: Permission denied", **nothing}
    with closed(tiles):
        assert [one.problem for one in collect([str(tiles)])] == ["can't be listed: Permission denied"]


def test_names_of_results_never_collide(tmp_path: Path) -> None:
    for name in ("one/x.png", "one/x.jpg", "one/X.bmp", "two/x.png", "three/x.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    names = [one.name.lower() for one in collect([str(tmp_path / d) for d in ("one", "two", "three")])]
    assert len(set(names)) == 5


def test_a_file_whose_name_looks_like_a_glob_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "a[1].png").touch()
    [one] = collect([str(tmp_path / "a[1].png")])
    assert not one.problem


def test_results_within_the_input_folder_are_not_taken_for_tiles(tiles: Path) -> None:
    (tiles / "out").mkdir()
    (tiles / "out" / "a_mask.png").touch()
    link = tiles.with_name("link")
    link.symlink_to(tiles)
    for out in (tiles / "out", link / "out"):
        assert len(collect([str(tiles)], without=out)) == 3
        assert [one.name for one in collect([f"{tiles}/*"], without=out)] == ["a", "good", "notes", "a.png"]


@pytest.mark.parametrize("option", [[], ["--watch"]])
@pytest.mark.parametrize("out", ["tiles", "tiles/sub/..", "link"])
def test_results_are_never_written_among_the_images(
    tiles: Path,
    option: list[str],
    out: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("serving.client.commands.predict", lambda *_: 0)
    (tiles.parent / "link").symlink_to(tiles)
    there = tiles.parent / out
    with pytest.raises(SystemExit, match="2"):
        main(["predict", *option, str(tiles), "--out", str(there)])
    assert f"name another folder, such as {there}/results" in capsys.readouterr().err
