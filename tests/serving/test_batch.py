"""Batch scoring on a real Ray whose workers and drivers are killed: one row per tile, masks as served."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer
from pyarrow import fs

from serving.batch.cli import main
from serving.client import TileClient
from tests.serving.tiles import encoded, tile

COMMAND = [sys.executable, "-m", "serving.batch"]
# Pillow reads it, TensorFlow does not.
TORN = bytearray(encoded(tile()))
TORN[36] = 200
BAD = {"empty.png": b"", "text.png": b"no image", "torn.png": bytes(TORN)}


def tiles_in(folder: Path, count: int) -> dict[str, bytes]:
    """Tiles that differ, every fifth a good one, in two folders."""
    rng = np.random.default_rng(count)
    files = {}
    for number in range(count):
        gray = tile() if number % 5 else np.full((90, 70), 210, np.uint8)
        gray = gray + rng.integers(0, 9, gray.shape, np.uint8)
        files[f"line{number % 2}/{number:03}.png"] = encoded(gray)
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return files


def rows(out: Path, kind: str = "tiles") -> list[dict[str, Any]]:
    """All rows of a table, whatever Parquet files there are."""
    found: list[dict[str, Any]] = pq.read_table(out / kind).sort_by("image").to_pylist()
    return found


def masks(out: Path) -> list[Path]:
    return [path for path in (out / "masks").rglob("*.png") if not path.name.startswith(".")]


def soon(is_true: Callable[[], Any]) -> None:
    """Waits until something is true, on the slowest machine."""
    end = time.monotonic() + 300
    while not is_true():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.002)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """An object store, in the environment that workers get."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        system, _ = fs.FileSystem.from_uri("s3://tiles?allow_bucket_creation=true")
        system.create_dir("tiles")
        yield "s3://tiles"
    server.stop()


@pytest.fixture(scope="module")
def cluster(bucket: str) -> Iterator[str]:
    """Address of a Ray with one CPU and, as it believes, a GPU, which this process is connected to."""
    import ray

    from serving.batch.job import connected

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_OVERRIDE_RESOURCES", '{"GPU": 1}')
        with connected(None, 1, 2**20):
            yield ray.get_runtime_context().gcs_address


@pytest.fixture(scope="module")
def scored(
    cluster: str, servable_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, Path, dict[str, bytes], str]:
    """A run with bad files, whose worker was killed after its first masks: code, results, tiles, stderr."""
    folder = tmp_path_factory.mktemp("batch")
    source, out = folder / "tiles", folder / "out"
    files = tiles_in(source, 240)
    for name, data in BAD.items():
        (source / name).write_bytes(data)
    killed = []

    def kill() -> None:
        soon(lambda: masks(out))
        for process in psutil.Process().children(recursive=True):
            if process.name().startswith("ray::MapWorker"):
                process.kill()
                killed.append(len(masks(out)))

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.MonkeyPatch.context() as patch, (folder / "stderr").open("w+") as errors:
        patch.setattr("sys.stderr", errors)
        code = main([str(source), "--out", str(out), "--model", str(servable_path)])
    killer.join()
    assert killed[0] < len(files)
    return code, out, files, (folder / "stderr").read_text()


Scored = tuple[int, Path, dict[str, bytes], str]


def test_after_the_kill_of_a_worker_each_tile_has_one_row(scored: Scored) -> None:
    _, out, files, _ = scored
    assert [row["image"] for row in rows(out)] == sorted([*files, *BAD])
    assert sorted(str(path.relative_to(out)) for path in masks(out)) == [
        row["mask"] for row in rows(out) if row["mask"]
    ]
    assert not list(out.rglob(".*"))


def test_masks_are_byte_for_byte_those_of_the_server_and_rows_those_of_the_client(
    scored: Scored, server_url: str
) -> None:
    import base64

    import requests

    _, out, files, _ = scored
    found = {row["image"]: row for row in rows(out)}
    names = list(files)[:12]
    instances = [{"b64": base64.b64encode(files[name]).decode()} for name in names]
    url = f"{server_url}/v1/models/magnetic-tiles:predict"
    request = {"signature_name": "segment", "instances": instances}
    answers = requests.post(url, json=request, timeout=60).json()["predictions"]
    defects = rows(out, "defects")
    with TileClient(server_url) as client:
        for name, answer in zip(names, answers, strict=True):
            row, prediction = found[name], client.predict(files[name])
            assert (out / row["mask"]).read_bytes() == base64.b64decode(answer["mask_bytes"]["b64"])
            assert (row["label"], row["score"]) == (prediction.label, pytest.approx(prediction.score))
            assert (row["height"], row["width"]) == prediction.mask.shape
            assert row["defects"] == len(prediction.defects)
            own = [defect for defect in defects if defect["image"] == name]
            assert [
                ((one["left"], one["top"], one["width"], one["height"]), one["area"], one["area_percent"])
                for one in own
            ] == [(defect.box, defect.area, defect.area_percent) for defect in prediction.defects]
            assert [(one["centroid_x"], one["centroid_y"]) for one in own] == [
                defect.centroid for defect in prediction.defects
            ]
    assert {row["label"] for row in found.values()} == {"defect", "good", None}


def test_bad_files_are_reported_and_make_code_1(scored: Scored) -> None:
    code, out, _, errors = scored
    texts = {row["image"]: row["error"] for row in rows(out) if row["error"]}
    assert code == 1
    assert texts.keys() == BAD.keys()
    assert texts["empty.png"] == "file is empty (0 bytes)"
    assert "not an image" in texts["text.png"]
    assert "Invalid PNG data" in texts["torn.png"]
    for name, text in texts.items():
        assert f"error: {name}: {text}" in errors


def test_a_run_whose_driver_was_killed_is_completed_by_running_it_again(
    cluster: str, servable_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out, manifest = tmp_path / "tiles", tmp_path / "out", tmp_path / "out" / "manifest.json"
    files = tiles_in(source, 240)
    arguments = [str(source), "--out", str(out), "--model", str(servable_path), "--commit-every", "0.001"]
    driver = subprocess.Popen([*COMMAND, *arguments, "--address", cluster], stderr=subprocess.DEVNULL)
    soon(lambda: manifest.exists() and json.loads(manifest.read_text())["parts"])
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    document = json.loads(manifest.read_text())
    parts, document["parts"] = document["parts"], []
    before = {
        row["image"]: row
        for part in parts
        for row in pq.read_table(out / f"tiles/{part}.parquet").to_pylist()
    }
    assert 0 < len(before) < len(files)
    changed = min(before)
    (source / changed).write_bytes(encoded(np.full((40, 40), 210, np.uint8)))

    assert main(arguments) == 3
    after = {row["image"]: row for row in rows(out)}
    assert len(rows(out)) == len(after) == len(files)
    assert (after.pop(changed)["label"], before.pop(changed)["label"]) == (
        "good",
        "defect" if "1" in changed else "good",
    )
    assert {name: after[name] for name in before} == before
    assert len(set(parts) - set(json.loads(manifest.read_text())["parts"])) == 1  # that of the changed tile
    assert f"{len(before)} of them were done by an earlier run" in capsys.readouterr().out
    defects = rows(out, "defects")
    assert len(defects) == sum(row["defects"] for row in after.values())
    assert main([*arguments, "--exit-zero"]) == 0  # nothing is left to do


def test_a_worker_on_a_gpu_runs_and_when_it_fails_the_reason_is_said(
    cluster: str, servable_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiles_in(tmp_path / "tiles", 2)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/masks").write_bytes(b"a file where a folder is to be")
    arguments = [str(tmp_path / "tiles"), "--out", str(tmp_path / "out"), "--model", str(servable_path)]
    assert main([*arguments, "--gpus-per-worker", "1"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: a worker failed: can't write {tmp_path}/out/masks/")
    assert error.endswith("; the same command goes on where it stopped")


def test_tiles_and_results_in_an_object_store(
    cluster: str, bucket: str, servable_path: Path, scored: Scored
) -> None:
    _, local, files, _ = scored
    names = list(files)[:10]
    system, _ = fs.FileSystem.from_uri(bucket)
    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    client.put_object(Bucket="tiles", Key="in/double//slash.png", Body=files[names[0]])
    for name in [*names, ".hidden/x.png", "out/y.png", "notes.txt"]:
        with system.open_output_stream(f"tiles/in/{name}") as stream:
            stream.write(files.get(name, b""))
    for path in (path for path in servable_path.rglob("*") if path.is_file()):
        with system.open_output_stream(f"tiles/models/{path.relative_to(servable_path)}") as stream:
            stream.write(path.read_bytes())
    out = f"{bucket}/in/%6Fut"  # "out" in another spelling
    arguments = [f"{bucket}/in", "--out", out, "--model", f"{bucket}/models"]
    assert main(arguments) == 1
    table = pq.read_table("tiles/in/out/tiles", filesystem=system).sort_by("image")
    errors = dict(zip(*(table[name].to_pylist() for name in ("image", "error")), strict=True))
    assert "empty part" in errors.pop("double//slash.png")
    assert errors == dict.fromkeys(names)
    client.delete_object(Bucket="tiles", Key="in/double//slash.png")
    for name in names:
        mask = system.open_input_stream(f"tiles/in/out/masks/{name}.png").read()
        assert mask == (local / "masks" / f"{name}.png").read_bytes()
    assert main(arguments) == 3
    assert pq.read_table("tiles/in/out/tiles", filesystem=system).num_rows == len(errors) + 1


def test_help_teaches_and_starts_neither_ray_nor_tensorflow() -> None:
    code = (
        "import sys; from serving.batch.cli import main\ntry: main(['--help'])\nfinally: print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "examples:" in done.stdout
    assert "exit codes:" in done.stdout
    assert not {"ray", "tensorflow", "pyarrow"} & set(done.stdout.split())


@pytest.mark.parametrize("arguments", [[], ["tiles"], ["tiles", "--out", "o", "--workers", "0"]])
def test_wrong_usage_is_code_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)


def test_what_cannot_be_is_one_line(
    scored: Scored, servable_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _, _ = scored
    source, model = out.parent / "tiles", ["--model", str(servable_path)]
    (tmp_path / "empty").mkdir()
    cases = {
        "no version 7 of a model": [str(source), "--out", str(out), *model, "--version", "7"],
        "no version of a model": [str(source), "--out", str(out), "--model", str(tmp_path)],
        "results of threshold 0.5, not 0.7": [str(source), "--out", str(out), *model, "--threshold", "0.7"],
        f"results of source {source}": [str(tmp_path), "--out", str(out), *model],
        "no images in": [str(tmp_path / "empty"), "--out", str(tmp_path / "o"), *model],
        "no such folder": [str(tmp_path / "nope"), "--out", str(tmp_path / "o"), *model],
        "would be among the tiles": [str(source), "--out", str(out.parent), *model],
        "can't use ftp://x": ["ftp://x", "--out", str(out), *model],
        "leave out what begins with ?": [str(source), "--out", "s3://b/o?region=eu-west-1", *model],
        "Not a directory": [str(source), "--out", str(source / "text.png" / "o"), *model],
    }
    for text, arguments in cases.items():
        assert main(arguments) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ")
        assert text in error
