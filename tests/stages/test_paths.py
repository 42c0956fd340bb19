"""Files that parameters name are found from the project, also where a worker of DVC's queue runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.paths import named_file


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    worker = tmp_path / "project" / ".dvc" / "tmp" / "exps" / "tmp1234"
    worker.mkdir(parents=True)
    monkeypatch.chdir(worker)
    return tmp_path / "project"


def test_what_git_does_not_track_is_found_in_the_project(project: Path) -> None:
    (project / "tiles.zip").touch()
    assert named_file("tiles.zip").samefile(project / "tiles.zip")


def test_what_the_worker_has_itself_comes_first(project: Path) -> None:
    (project / "tiles.zip").touch()
    Path("tiles.zip").touch()
    assert named_file("tiles.zip") == Path("tiles.zip")


def test_what_is_nowhere_keeps_its_name_for_the_message(project: Path) -> None:
    assert named_file("tiles.zip") == Path("tiles.zip")


def test_outside_of_a_worker_only_the_working_folder_counts(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "tiles.zip").touch()
    (project / "folder").mkdir()
    monkeypatch.chdir(project / "folder")
    assert not named_file("tiles.zip").exists()


def test_the_home_folder_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert named_file("~/tiles.zip") == tmp_path / "tiles.zip"
