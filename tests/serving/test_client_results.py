"""Runs over folders: killed and run again, changed, full disks; JSON lines and the table of defects."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.client.cli import main
from serving.client.outputs import replacing
from serving.client.results import Results, Stamp
from serving.errors import ServingError
from tests.serving.proxies import Proxy, proxy_before
from tests.serving.tiles import encoded, tile

COMMAND = [sys.executable, "-m", "serving.client", "predict"]


@pytest.fixture
def proxy(server_url: str) -> Iterator[Proxy]:
    with proxy_before(server_url) as proxy:
        yield proxy


def make_tiles(folder: Path, count: int) -> Path:
    """Tiles that all differ; every third is good, every tenth is none."""
    folder.mkdir()
    for number in range(count):
        gray = tile() if number % 3 else np.full((60, 50), 210, np.uint8)
        gray[0, 0] = 150 + number
        data = b"" if number % 10 == 9 else encoded(gray)
        (folder / f"{number:03}.png").write_bytes(data)
    return folder


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_a_killed_run_is_completed_by_the_next_and_nothing_is_asked_twice(
    tmp_path: Path, proxy: Proxy, server_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tiles, out, whole = make_tiles(tmp_path / "tiles", 30), tmp_path / "out", tmp_path / "whole"
    command = [*COMMAND, str(tiles), "--out", str(out), "--url", proxy.url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    journal = out / "results.jsonl"
    while process.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < 8):
        time.sleep(0.005)
    proxy.gate.clear()  # so that it can't end before it is killed
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    recorded = lines(out)
    assert 8 <= len(recorded) < 30
    with journal.open("ab") as file:
        file.write(b'{"image": "half a li')

    with proxy_before(server_url) as second:
        assert main(["predict", str(tiles), "--out", str(out), "--url", second.url]) == 1
        assert "by an earlier run" in capsys.readouterr().out

    assert max(Counter(second.sent).values()) == 1
    assert len(second.sent) == 27 - sum("error" not in line for line in recorded)
    assert main(["predict", str(tiles), "--out", str(whole), "--url", server_url]) == 1
    assert contents(out) == contents(whole)
    assert len(lines(out)) == 30
    assert sum("error" in line for line in lines(out)) == 3


def test_a_second_run_asks_for_nothing_and_says_the_same(
    tmp_path: Path, proxy: Proxy, capsys: pytest.CaptureFixture[str]
) -> None:
    tiles, out = make_tiles(tmp_path / "tiles", 6), tmp_path / "out"
    command = ["predict", str(tiles), "--out", str(out), "--url", proxy.url, "--json"]
    assert main(command) == 3
    first, files = capsys.readouterr().out, contents(out)
    proxy.sent.clear()
    assert main(command) == 3
    assert capsys.readouterr().out == first
    assert contents(out) == files
    assert not proxy.sent
    assert json.loads(first.splitlines()[0])["mask"] == str(out / "000_mask.png")


@pytest.mark.parametrize(
    ("change", "asked"),
    [
        (["--threshold", "0.9"], 4),
        (["--mm-per-pixel", "0.1"], 4),
        (["--force"], 4),
        (["--concurrency", "2"], 0),
        ("a tile", 1),
        ("a mask", 1),
        ("one more", 1),
    ],
)
def test_what_has_changed_is_done_again(
    tmp_path: Path, proxy: Proxy, change: list[str] | str, asked: int
) -> None:
    tiles, out = make_tiles(tmp_path / "tiles", 4), tmp_path / "out"
    command = ["predict", str(tiles), "--out", str(out), "--url", proxy.url]
    main(command)
    proxy.sent.clear()
    if change == "a tile":
        (tiles / "001.png").write_bytes(encoded(np.full((70, 50), 220, np.uint8)))
    elif change == "a mask":
        (out / "002_mask.png").unlink()
    elif change == "one more":
        (tiles / "0005.png").write_bytes(encoded(tile()))
    main([*command, *change] if isinstance(change, list) else command)
    assert len(proxy.sent) == asked
    images = [line["image"] for line in lines(out)]
    assert len(images) == len(set(images)) == 4 + (change == "one more")
    assert len(rows(out)) == sum(len(line["defects"]) for line in lines(out))
    if change == "a tile":
        assert [line["height"] for line in lines(out)] == [60, 70, 120, 60]


def test_a_tile_that_has_become_unreadable_leaves_no_old_mask(tmp_path: Path, server_url: str) -> None:
    tiles, out = make_tiles(tmp_path / "tiles", 2), tmp_path / "out"
    command = ["predict", str(tiles), "--out", str(out), "--url", server_url]
    assert main(command) == 3
    (tiles / "001.png").write_bytes(b"no image")
    assert main(command) == 1
    assert sorted(contents(out)) == ["000_mask.png", "000_overlay.png", "results.csv", "results.jsonl"]
    assert lines(out)[1]["error"].startswith("not an image")
    assert rows(out) == []


def test_folders_done_one_after_the_other_share_a_folder_of_results(tmp_path: Path, server_url: str) -> None:
    out = tmp_path / "out"
    for name in ("one", "two"):
        tiles = make_tiles(tmp_path / name, 2)
        main(["predict", str(tiles), "--out", str(out), "--url", server_url])
    names = ("000", "001", "000.png", "001.png")
    assert [line["mask"] for line in lines(out)] == [f"{name}_mask.png" for name in names]


def test_files_with_the_longest_names_are_done(tmp_path: Path, server_url: str) -> None:
    tiles, out = tmp_path / "tiles", tmp_path / "out"
    tiles.mkdir()
    for name in ("m" * 251, "m" * 250 + "n", "a" + "é" * 125):
        (tiles / f"{name}.png").write_bytes(encoded(tile()))
    assert main(["predict", str(tiles), "--out", str(out), "--url", server_url]) == 3
    names = [line["source"]["name"] for line in lines(out)]
    assert len(set(names)) == 3
    assert all((out / line[kind]).is_file() for line in lines(out) for kind in ("mask", "overlay"))
    assert "a" + "é" * 99 + "-" in [name[:-8] for name in names]


def test_results_that_no_file_name_can_hold_are_an_error_of_their_image(
    tmp_path: Path, server_url: str
) -> None:
    out, images = tmp_path / "out", [tmp_path / name for name in ("a.png", "a." + "x" * 250, "b.png")]
    for image in images:
        image.write_bytes(encoded(tile()))
    for _ in range(2):
        assert main(["predict", *map(str, images), "--out", str(out), "--url", server_url]) == 1
        assert ["File name too long" in line.get("error", "") for line in lines(out)] == [False, True, False]


def test_a_file_whose_name_is_as_long_as_can_be_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 255)
    for text in ("1", "2"):
        with replacing(path) as part:
            part.write_text(text)
    assert contents(tmp_path) == {path.name: b"2"}


def test_the_table_has_a_row_per_defect_in_pixels_and_millimetres(tmp_path: Path, server_url: str) -> None:
    image, out = tmp_path / "tile, 1.png", tmp_path / "out"
    gray = np.full((64, 64), 200, np.uint8)
    gray[10:20, 5:25] = 0
    gray[40:44, 40:44] = 0
    image.write_bytes(encoded(gray))
    main(["predict", str(image), "--out", str(out), "--url", server_url, "--mm-per-pixel", "0.5"])
    first, second = rows(out)
    [line] = lines(out)
    assert (first["image"], first["defect"], second["defect"]) == (str(image), "1", "2")
    assert (first["version"], first["threshold"]) == (str(line["version"]), "0.5")
    assert [float(first[name]) for name in ("left", "top", "width", "height", "area")] == [5, 10, 20, 10, 200]
    names = ("left_mm", "top_mm", "width_mm", "height_mm", "area_mm2", "centroid_x_mm", "centroid_y_mm")
    assert [float(first[name]) for name in names] == [2.5, 5, 10, 5, 50, 7.25, 7.25]
    assert float(first["area_percent"]) == pytest.approx(100 * 200 / 64**2, abs=1e-3)
    assert float(first["peak_probability"]) == pytest.approx(1, abs=0.01)
    assert line["defects"][1]["area_mm2"] == 4
    main(["predict", str(image), "--out", str(tmp_path / "px"), "--url", server_url])
    assert not any("mm" in name for name in rows(tmp_path / "px")[0])


def test_two_runs_never_share_a_folder_of_results(
    tmp_path: Path, server_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tiles, out = make_tiles(tmp_path / "tiles", 1), tmp_path / "out"
    with Results(out):
        assert main(["predict", str(tiles), "--out", str(out), "--url", server_url]) == 1
        assert "another run writes to" in capsys.readouterr().err
    assert main(["predict", str(tiles), "--out", str(out), "--url", server_url]) == 0


def test_a_journal_of_another_program_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text('{"mine": 1}\n')
    with pytest.raises(ServingError, match=r"line 1 of .* is none of this program's; name another --out"):
        Results(tmp_path)
    assert contents(tmp_path) == {"results.jsonl": b'{"mine": 1}\n'}


def test_a_large_folder_of_results_takes_little_memory(tmp_path: Path) -> None:
    import tracemalloc

    settings = {"model": "magnetic-tiles", "version": 1}
    document = {"image": "x", "version": 1, "threshold": 0.5, "defects": [], "label": "good", "score": 0.1}
    count = 3000
    with Results(tmp_path / "out") as results:
        tracemalloc.start()
        for number in range(count):
            path = tmp_path / f"{number}.png"
            results.add(path, str(number), Stamp(1, number), settings, {**document, "image": str(path)})
        used = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
    assert used / count < 1000
    with Results(tmp_path / "out") as results:
        assert len(results.names) == count


def test_a_table_of_many_tiles_shows_the_worst(
    tmp_path: Path, server_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tiles = tmp_path / "tiles"
    tiles.mkdir()
    for number in range(60):
        gray = np.full((16, 16), 210 if number < 55 else 20, np.uint8)
        (tiles / f"{number:02}.png").write_bytes(encoded(gray))
    assert main(["predict", str(tiles), "--url", server_url]) == 3
    printed = capsys.readouterr().out
    assert printed.count("defect ") >= 5
    assert "the 50 tiles with the highest scores" in printed
    assert "60 tiles: 5 with defects, 55 good" in printed


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 256 kB."""
    folder = Path(tempfile.mkdtemp())
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True
    )
    if not mounted or mounted.returncode:
        folder.rmdir()
        pytest.skip("can't mount a small tmpfs here; it needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
    folder.rmdir()


def test_a_full_disk_is_one_line_and_the_run_goes_on_once_there_is_room(
    small_disk: Path, tmp_path: Path, server_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tiles, out = make_tiles(tmp_path / "tiles", 9), small_disk / "out"
    noise = np.random.default_rng(0).integers(0, 255, (400, 300), np.uint8)
    for number in range(1, 4):
        (tiles / f"00{number}.png").write_bytes(encoded(noise))
    command = ["predict", str(tiles), "--out", str(out), "--url", server_url]
    assert main(command) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "can't write" in line
    assert "No space left on device" in line
    assert not list(out.rglob("*.part"))
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    assert main(command) == 3
    assert len(lines(out)) == 9
