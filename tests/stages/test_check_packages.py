"""The environment as a file: stable, complete, and silent about what the pipeline does not use."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from stages.check_packages import check_packages, installed_closure, required_packages
from stages.errors import StageError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages: tile-model needs tile-core, and tile-plots with its extra `plots`."""
    site = tmp_path / "site"
    for name, version, lines in (
        ("tile-core", "2.1", []),
        ("tile-model", "1.0", ["tile-core>=2", 'tile-plots; extra == "plots"']),
        ("tile-plots", "0.3", []),
        ("tile-linter", "9.0", []),
    ):
        folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir(parents=True)
        header = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        extras = ["Provides-Extra: plots"] if name == "tile-model" else []
        text = "\n".join([*header, *extras, *(f"Requires-Dist: {line}" for line in lines)])
        (folder / "METADATA").write_text(text + "\n")
    monkeypatch.syspath_prepend(site)
    return site


def project(folder: Path, dependencies: list[str], pipeline: list[str], **extras: list[str]) -> Path:
    path = folder / "pyproject.toml"
    path.write_text(
        f'[project]\nname = "My-Tiles"\ndependencies = {dependencies}\n'
        f"[project.optional-dependencies]\npipeline = {pipeline}\n"
        + "".join(f"{name} = {wanted}\n" for name, wanted in extras.items())
    )
    return path


@pytest.mark.usefixtures("packages")
def test_what_is_required_is_listed_sorted_with_all_that_it_needs(tmp_path: Path) -> None:
    out = tmp_path / "environment.txt"
    check_packages(project(tmp_path, ["tile-model"], [], dev=["tile-linter"]), out)
    assert out.read_text() == "tile-core==2.1\ntile-model==1.0\n"


@pytest.mark.usefixtures("packages")
def test_an_extra_of_a_package_is_followed(tmp_path: Path) -> None:
    out = tmp_path / "environment.txt"
    check_packages(project(tmp_path, ["tile-model"], ["tile-model[plots]"]), out)
    assert out.read_text() == "tile-core==2.1\ntile-model==1.0\ntile-plots==0.3\n"


@pytest.mark.usefixtures("packages")
def test_an_unchanged_environment_leaves_the_file_alone_and_a_changed_one_does_not(tmp_path: Path) -> None:
    out = tmp_path / "environment.txt"
    check_packages(project(tmp_path, ["tile-core"], []), out)
    before = out.stat()
    check_packages(project(tmp_path, ["tile-core"], []), out)
    assert (out.stat().st_mtime_ns, out.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    check_packages(project(tmp_path, ["tile-core"], ["tile-plots"]), out)
    assert out.read_text() == "tile-core==2.1\ntile-plots==0.3\n"


@pytest.mark.usefixtures("packages")
def test_missing_packages_and_wrong_versions_are_named_all_at_once(tmp_path: Path) -> None:
    out = tmp_path / "environment.txt"
    with pytest.raises(StageError) as caught:
        check_packages(project(tmp_path, ["tile-core>=3", "tile-none"], ["tile-nothing~=1.0"]), out)
    text = str(caught.value)
    assert "make setup" in text
    assert "tile-core>=3: installed is 2.1" in text
    assert "tile-none: not installed" in text
    assert "tile-nothing~=1.0: not installed" in text
    assert not out.exists()


@pytest.mark.usefixtures("packages")
def test_a_requirement_for_another_platform_is_not_asked_for() -> None:
    wanted = [Requirement('tile-none; sys_platform == "amiga"'), Requirement("tile-core")]
    assert installed_closure(wanted) == {"tile-core": "2.1"}


def test_extras_that_name_the_project_itself_are_expanded() -> None:
    table = {
        "name": "My-Tiles",
        "dependencies": ["a"],
        "optional-dependencies": {
            "pipeline": ["my_tiles[server,pipeline]", "b"],
            "server": ["c", "my-tiles[grpc]"],
            "grpc": ["d"],
            "dev": ["e"],
        },
    }
    assert sorted(str(one) for one in required_packages(table, "pipeline")) == ["a", "b", "c", "d"]


def test_what_benchmarks_need_comes_with_their_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {one.name for one in required_packages(project, "benchmarks")}
    assert {"onnxruntime", "openvino", "fastapi", "httpx", "tensorflow", "ray", "pyarrow"} <= names


def test_the_environment_of_this_project_holds_its_framework_and_none_of_its_tools(tmp_path: Path) -> None:
    out = tmp_path / "environment.txt"
    check_packages(ROOT / "pyproject.toml", out)
    names = {line.partition("==")[0] for line in out.read_text().splitlines()}
    assert {"tensorflow", "keras", "keras-cv", "dvc", "dvclive", "numpy"} <= names
    assert not names & {"pytest", "ruff", "mypy", "hypothesis", "moto", "magnetic-tiles"}


def test_every_package_that_the_project_names_has_a_pinned_version() -> None:
    text = (ROOT / "requirements.lock").read_text()
    pinned = {canonicalize_name(line.partition("==")[0]) for line in text.splitlines() if "==" in line}
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {canonicalize_name(one.name) for one in required_packages(table, "dev")} <= pinned
