"""dvc.yaml against the code: a stage that forgets a module keeps results that the code no longer gives."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from ruamel.yaml import YAML

from stages.params import Params, TrainParams
from stages.pretrain import NETWORK

ROOT = Path(__file__).parents[2]
PIPELINE: dict[str, Any] = YAML(typ="safe").load(ROOT / "dvc.yaml")
STAGES: dict[str, dict[str, Any]] = PIPELINE["stages"]

# These decide no result: types of parameters (DVC follows the values), texts of errors, package docstrings.
WITHOUT_EFFECT = {
    "serving/__init__.py",
    "serving/errors.py",
    "serving/naming.py",
    "serving/onednn.py",
    "serving/quiet.py",
    "stages/__init__.py",
    "stages/errors.py",
    "stages/params.py",
}


def paths(entries: Iterable[Any]) -> set[str]:
    """Paths of deps, outs or plots, which may carry options."""
    return {path for entry in entries for path in ([entry] if isinstance(entry, str) else entry)}


def file_of(module: str) -> str | None:
    path = Path(*module.split("."))
    found = (one for one in (path.with_suffix(".py"), path / "__init__.py") if (ROOT / one).is_file())
    return next((one.as_posix() for one in found), None)


def imports(file: str) -> Iterator[str]:
    """Project files that a file imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            if name.split(".")[0] in ("stages", "serving") and (path := file_of(name)):
                yield path


def reached(file: str) -> set[str]:
    """The file and all project files that it imports, directly or not."""
    found, queue = set(), [file]
    while queue:
        if (path := queue.pop()) not in found:
            found.add(path)
            queue += imports(path)
    return found


def covered(path: str, entries: set[str]) -> bool:
    return path in entries or any(parent.as_posix() in entries for parent in PurePosixPath(path).parents)


def module_of(stage: str) -> str:
    words = STAGES[stage]["cmd"].split()
    assert words[:2] == ["python", "-m"]
    return str(words[2])


def outs() -> set[str]:
    return {path for stage in STAGES.values() for path in paths(stage["outs"])}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_runs_the_module_of_its_name(stage: str) -> None:
    assert module_of(stage) == f"stages.{stage}"
    assert file_of(module_of(stage)), "no such module"


# It makes nothing, but checks what people put there: where its list has not changed, it must not want
# to run again, least of all in clones that don't have the folder.
CHECKS_ALONE = "data_own"


@pytest.mark.parametrize("stage", sorted(set(STAGES) - {CHECKS_ALONE}))
def test_a_stage_depends_on_all_project_code_that_it_imports(stage: str) -> None:
    needed = reached(f"stages/{stage}.py") - WITHOUT_EFFECT
    forgotten = {path for path in needed if not covered(path, paths(STAGES[stage]["deps"]))}
    assert not forgotten


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_no_project_code_that_it_does_not_import(stage: str) -> None:
    code = {path for path in paths(STAGES[stage]["deps"]) if path.endswith(".py")}
    assert code <= reached(f"stages/{stage}.py")


@pytest.mark.parametrize("stage", STAGES)
def test_dependencies_are_in_the_repository_or_made_by_a_stage(stage: str) -> None:
    made = outs()
    missing = {
        path
        for path in paths(STAGES[stage]["deps"])
        if not covered(path, made) and not (ROOT / path).exists()
    }
    assert not missing


@pytest.mark.parametrize("stage", sorted(set(STAGES) - {"check_packages", CHECKS_ALONE}))
def test_every_stage_depends_on_the_packages(stage: str) -> None:
    assert "environment.txt" in STAGES[stage]["deps"]


def test_params_sections_exist_and_each_is_read_by_a_stage() -> None:
    used = {name.partition(".")[0] for stage in STAGES.values() for name in stage.get("params", [])}
    assert used == {field.alias or name for name, field in Params.model_fields.items()}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_tracks_the_sections_that_its_main_reads(stage: str) -> None:
    nodes = ast.parse((ROOT / f"stages/{stage}.py").read_text()).body
    main = next(node for node in nodes if isinstance(node, ast.FunctionDef) and node.name == "main")
    read = {
        node.attr.rstrip("_")
        for node in ast.walk(main)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("load_params()", "params")
    } & {name.rstrip("_") for name in Params.model_fields}
    # Of another stage's section these take what that stage has already put into its outputs.
    read -= {"export": {"train"}, "validate": {"export"}}.get(stage, set())
    # A stage may track single keys of a section: pretrain leaves out those of the later training.
    assert read == {name.partition(".")[0] for name in STAGES[stage].get("params", [])}


def test_metrics_plots_and_artifacts_are_outputs_of_stages() -> None:
    shown = paths(PIPELINE["metrics"]) | {one["path"] for one in PIPELINE["artifacts"].values()}
    for plot in PIPELINE["plots"]:
        if isinstance(plot, str):
            shown.add(plot)
        else:
            (options,) = plot.values()
            shown |= {
                path for axis in ("x", "y") if isinstance(options[axis], dict) for path in options[axis]
            }
    assert {path for path in shown if not covered(path, outs())} == set()


def test_dvc_reads_the_pipeline_and_shows_its_stages(tmp_path: Path) -> None:
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.run([*dvc, "init", "--no-scm", "-q"], cwd=tmp_path, check=True)
    answer = subprocess.run(
        [*dvc, "dag", "--mermaid"], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert all(f'"{stage}"' in answer.stdout for stage in STAGES)


def test_train_tracks_every_parameter_of_its_own_that_decides_the_result() -> None:
    tracked = {name for name in STAGES["train"]["params"] if name.startswith("train.")}
    assert tracked == {f"train.{name}" for name in TrainParams.model_fields} - {
        "train.resume",
        "train.workers",
    }


def test_pretrain_goes_on_only_with_the_parameters_that_dvc_tracks_for_it() -> None:
    assert {f"train.{name}" for name in NETWORK} | {"pretrain"} == set(STAGES["pretrain"]["params"])
