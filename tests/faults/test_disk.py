"""Disks that are full or read-only, and processes that are killed while they write.

What others test is not here. Kills: data_load in tests/stages/test_data_load.py, train and pretrain in
test_checkpoint.py, data_add in test_data_add.py, promote in tests/serving/test_promote.py, the client in
test_client_results.py, and there its full disk too. Versions that are no model: test_local_versions.py.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import keras
import numpy as np
import pytest

from serving.errors import ConfigError
from serving.local.config import ModelConfig
from serving.local.versions import Loading, Versions
from serving.promote.deployment import Deployment
from stages.errors import run_command
from stages.export import export_saved_model, latest_version, versions
from stages.own import start_anew
from tests.clone import ROOT
from tests.serving.test_local_versions import state_of, wait_until
from tests.stages.conftest import SMALLEST, make_data
from tests.stages.trial import Killed, Trial

MB = 2**20

REASONS = {"full": "No space left on device", "read-only": "Read-only file system"}


class Disk:
    """A file system of its own; needs root."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def set(self, options: str) -> None:
        command = ["mount", "-o", f"remount,{options}", str(self.folder)]
        subprocess.run(command, check=True)


@pytest.fixture
def disk() -> Iterator[Disk]:
    folder = Path(tempfile.mkdtemp())
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True
    )
    if not mounted or mounted.returncode:
        folder.rmdir()
        pytest.skip("can't mount a small tmpfs here; it needs root")
    yield Disk(folder)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
    folder.rmdir()


def left(folder: Path) -> set[str]:
    """Files below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def load_tiles(folder: Path) -> subprocess.CompletedProcess[str]:
    """`data_load` of the synthetic tiles of a params.yaml."""
    return subprocess.run(
        [sys.executable, "-m", "stages.data_load"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def detector(weights: int = 100_000) -> keras.Model:
    """A network with some weights, so that it takes some room."""
    images = keras.Input((32, 32, 1))
    scaled = keras.layers.Rescaling(1 / 255)(images)
    wide = keras.layers.Conv2D(weights // 10, 3, padding="same")(scaled)
    return keras.Model(images, keras.layers.Conv2D(1, 1, activation="sigmoid")(wide))


# Full and read-only


@pytest.mark.parametrize("kind", ["full", "read-only"])
def test_a_disk_that_refuses_is_one_line_and_the_next_run_starts_clean(disk: Disk, kind: str) -> None:
    text = (ROOT / "params.yaml").read_text()
    text = text.replace("  source: ", "  source: synthetic  # ", 1)
    assert "source: synthetic" in text
    (disk.folder / "params.yaml").write_text(text)
    (disk.folder / "data").mkdir()
    for name in ("pins.csv", "own.sha256"):
        shutil.copy(ROOT / "data" / name, disk.folder / "data")
    start_anew(disk.folder / "data")
    before = left(disk.folder)
    if kind == "read-only":
        disk.set("ro")
    done = load_tiles(disk.folder)
    assert done.returncode == 1, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: can't write")
    assert REASONS[kind] in last
    assert "Traceback" not in done.stderr
    assert left(disk.folder) == before
    disk.set("rw,size=200m")
    assert load_tiles(disk.folder).returncode == 0
    assert (disk.folder / "data/tiles/tiles.csv").is_file()
    assert not list((disk.folder / "data").glob(".tiles-*"))


def test_an_export_to_a_full_disk_leaves_the_version_before_and_no_half(disk: Disk) -> None:
    base_path = disk.folder / "models" / "m"
    first = export_saved_model(detector(1000), {"threshold": 0.5}, base_path)
    before = left(disk.folder)
    with pytest.raises(Exception, match=r"No space left|RESOURCE_EXHAUSTED|[Ff]ailed"):
        export_saved_model(detector(1_000_000), {"threshold": 0.5}, base_path)
    assert versions(base_path) == [int(first.name)]
    assert left(disk.folder) == before
    disk.set("size=100m")
    second = export_saved_model(detector(1_000_000), {"threshold": 0.5}, base_path)
    assert latest_version(base_path) == second


def test_an_export_to_a_read_only_disk_says_so_and_the_next_one_starts_clean(disk: Disk) -> None:
    disk.set("size=100m")
    base_path = disk.folder / "models" / "m"
    first = export_saved_model(detector(1000), {"threshold": 0.5}, base_path)
    before = left(disk.folder)
    disk.set("ro")
    with pytest.raises(OSError, match="Read-only file system"):
        export_saved_model(detector(1000), {"threshold": 0.5}, base_path)
    assert versions(base_path) == [int(first.name)]
    assert left(disk.folder) == before
    disk.set("rw")
    second = export_saved_model(detector(1000), {"threshold": 0.5}, base_path)
    assert versions(base_path) == [int(first.name), int(second.name)]


@pytest.mark.parametrize(("kind", "free"), [("full", 0), ("full", 40_000), ("read-only", 0)])
def test_training_goes_on_from_the_epochs_that_the_disk_had_taken(
    disk: Disk, kind: str, free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk.set("size=20m")
    data, params = make_data(tmp_path), SMALLEST.model_copy(update={"epochs": 3})
    straight = Trial(tmp_path / "straight", data, monkeypatch)
    straight.run(params)
    runs = [Trial(disk.folder / "run", data, monkeypatch) for _ in range(3)]
    runs[0].kill_after = 3
    with pytest.raises(Killed):
        runs[0].run(params)
    states = left(runs[0].states)
    filler = disk.folder / "filler"
    if kind == "full":
        filler.write_bytes(bytes(shutil.disk_usage(disk.folder).free - free))
    else:
        disk.set("ro")
    resumed = params.model_copy(update={"resume": True})
    with pytest.raises(SystemExit, match=f"error: can't write .*{REASONS[kind]}; mend that"):
        run_command(lambda: runs[1].run(resumed))
    assert left(runs[0].states) >= states, "what had been trained is still there"
    if kind == "full":
        filler.unlink()
    else:
        disk.set("rw")
    model = runs[2].run(resumed)
    assert runs[2].logged("train/loss") == pytest.approx(straight.logged("train/loss"), rel=1e-3)
    assert runs[2].model_path.is_file()
    assert not runs[2].states.exists()
    assert model.count_params() > 0


def test_a_promotion_to_a_disk_that_refuses_changes_nothing(disk: Disk) -> None:
    deployment = Deployment(disk.folder / "deploy" / "m")
    with deployment.locked() as scratch:
        (scratch / "1").mkdir()
        (scratch / "1" / "saved_model.pb").write_bytes(b"model")
        (scratch / "1" / "assets.extra").mkdir()
        (scratch / "filler").write_bytes(bytes(2 * MB)[: shutil.disk_usage(disk.folder).free])
        with pytest.raises(ConfigError, match=r"can't write .*deploy/m: No space left on device"):
            deployment.put(scratch / "1", 1, {"reasons": ["x" * MB]})
        assert deployment.versions() == []
        (scratch / "filler").unlink()
        deployment.put(scratch / "1", 1, {})
    assert deployment.versions() == [1]
    disk.set("ro")
    with pytest.raises(ConfigError, match="Read-only file system"), deployment.locked():
        pass


def test_versions_go_to_a_folder_that_is_a_disk_of_its_own_and_leave_it(disk: Disk) -> None:
    deployment = Deployment(disk.folder)
    with deployment.locked() as scratch:
        for number in (1, 2):
            (scratch / str(number) / "assets.extra").mkdir(parents=True)
            (scratch / str(number) / "saved_model.pb").write_bytes(b"model")
            deployment.put(scratch / str(number), number, {})
        deployment.withdraw(2)
        assert deployment.versions() == [1]
        assert deployment.withdrawn(2) is not None
        assert deployment.remove_all_but([]) == [1]
    assert deployment.versions() == []


# Killed


def test_a_killed_export_leaves_no_version_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    base_path = tmp_path / "models" / "m"
    first = export_saved_model(detector(10), {"threshold": 0.5}, base_path)
    code = """
import os, sys
from pathlib import Path
from stages.errors import run_command
from stages.export import export_saved_model
from tests.faults.test_disk import detector
os.replace = lambda *_: os._exit(9)  # the last step, once all is written
export_saved_model(detector(10), {"threshold": 0.5}, Path(sys.argv[1]))
"""
    done = subprocess.run([sys.executable, "-c", code, str(base_path)], cwd=ROOT, capture_output=True)
    assert done.returncode == 9, done.stderr
    assert versions(base_path) == [int(first.name)]
    assert len(list(base_path.parent.iterdir())) == 2, "it was killed half way"
    second = export_saved_model(detector(10), {"threshold": 0.5}, base_path)
    assert versions(base_path) == [int(first.name), int(second.name)]
    assert list(base_path.parent.iterdir()) == [base_path]


@pytest.fixture
def repository(tmp_path: Path, run: Callable[..., str]) -> Path:
    """400 files under DVC, and a folder that stands for a bucket."""
    folder = tmp_path / "repository"
    (folder / "data").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(400):
        (folder / "data" / f"{number}.bin").write_bytes(rng.bytes(MB // 8))
    (folder / ".dvc").mkdir()
    settings = f"[core]\n  remote = bucket\n['remote \"bucket\"']\n  url = {tmp_path / 'bucket'}\n"
    (folder / ".dvc/config").write_text(settings)
    (folder / ".dvc/.gitignore").write_text("/cache\n/tmp\n")
    for command in ("git init -q", "dvc add -q data", "git add --all", "git commit -qm data"):
        run(folder, *command.split())
    return folder


@pytest.fixture
def run() -> Callable[..., str]:
    def command(folder: Path, *words: str) -> str:
        done = subprocess.run(words, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return command


PERSON = {f"GIT_{role}_{key}": "a@b.c" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
ENVIRONMENT = os.environ | PERSON | {"PATH": PATH, "DVC_NO_ANALYTICS": "1"}


def test_a_killed_push_is_completed_by_the_next(
    repository: Path, run: Callable[..., str], tmp_path: Path
) -> None:
    bucket = tmp_path / "bucket"
    pushing = subprocess.Popen(
        ["dvc", "push", "-q", "-j", "1"], cwd=repository, env=ENVIRONMENT, start_new_session=True
    )
    wait_until(lambda: pushing.poll() is not None or len(left(bucket)) >= 5)
    os.killpg(pushing.pid, signal.SIGKILL)
    assert pushing.wait() == -signal.SIGKILL, "it ended before it could be killed"
    assert len(left(bucket)) < 401
    run(repository, "dvc", "push", "-q")
    run(tmp_path, "git", "clone", "-q", str(repository), "clone")
    run(tmp_path / "clone", "dvc", "pull", "-q")
    for path in (repository / "data").iterdir():
        assert (tmp_path / "clone" / "data" / path.name).read_bytes() == path.read_bytes()


# Corrupt


@pytest.mark.parametrize("how", ["cut", "a hole", "warm-up cut"])
def test_a_version_that_came_damaged_is_refused_and_named_while_the_old_one_serves(
    servable_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    base_path = tmp_path / "m"
    shutil.copytree(latest_version(servable_path), base_path / "1")
    watched = Versions(ModelConfig("m", base_path), Loading(poll_seconds=0.05))
    watched.start()
    try:
        wait_until(lambda: state_of(watched, 1) == "AVAILABLE")
        draft = Path(shutil.copytree(base_path / "1", tmp_path / "draft"))
        name = "assets.extra/tf_serving_warmup_requests" if how == "warm-up cut" else "saved_model.pb"
        content = (draft / name).read_bytes()
        middle = len(content) // 2
        hole = content[:middle] + bytes(1000) + content[middle + 1000 :]
        (draft / name).write_bytes(hole if how == "a hole" else content[:middle])
        draft.rename(base_path / "2")
        wait_until(lambda: state_of(watched, 2) == "END")
        time.sleep(0.2)
        assert state_of(watched, 1) == "AVAILABLE"
        assert f"can't load version 2 of m from {base_path / '2'}" in caplog.text
        assert "version 1 goes on; mend or replace the folder" in caplog.text
    finally:
        watched.stop()
