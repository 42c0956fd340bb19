"""What CI runs: workflows as their linters read them, and the scripts that are their steps, run here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
EXPERIMENT: dict[str, Any] = YAML(typ="safe").load(ROOT / ".github/workflows/experiment.yml")
BIN = Path(sys.executable).parent
SHELL_SCRIPTS = [
    path
    for path in (ROOT / ".ci/run", ROOT / "serving/healthcheck.sh", *sorted((ROOT / "scripts").iterdir()))
    if path.is_file() and path.read_bytes().startswith((b"#!/usr/bin/env bash", b"#!/bin/bash"))
]

# A pipeline that takes no time, with the stages that a release needs.
PIPELINE = """\
stages:
  data_load: {cmd: mkdir -p data && cp source data/tiles, deps: [source], outs: [data/tiles]}
  data_split: {cmd: echo split > data/split, deps: [data/tiles], outs: [data/split]}
  evaluate:
    cmd: echo "predicted after ${train.epochs} epochs" > predictions
    deps: [data/split]
    params: [train.epochs]
    outs: [predictions]
  export: {cmd: cp predictions model, deps: [predictions], outs: [model]}
"""


def run(*command: str | Path, cwd: Path = ROOT, check: bool = True, **environment: str) -> str:
    """Runs a command, with the programs of this environment; returns both its outputs."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert (done.returncode == 0) == check, done.stdout
    return done.stdout


def steps(workflow: Path) -> list[dict[str, Any]]:
    jobs = YAML(typ="safe").load(workflow)["jobs"].values()
    return [step for job in jobs for step in job["steps"]]


def test_workflows_pass_their_linters() -> None:
    """With shellcheck on the PATH, the first also looks into the steps' commands."""
    assert (BIN / "shellcheck").exists()
    run("jactionlint")
    run("zizmor", "--offline", "--quiet", ".github")
    run("check-jsonschema", "--builtin-schema", "vendor.github-workflows", *WORKFLOWS)
    run("check-jsonschema", "--builtin-schema", "vendor.dependabot", ".github/dependabot.yml")
    run("check-jsonschema", "--builtin-schema", "vendor.gitlab-ci", ".gitlab-ci.yml")


def test_shell_scripts_pass_their_linter() -> None:
    assert len(SHELL_SCRIPTS) >= 8
    run("shellcheck", *SHELL_SCRIPTS)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_no_key_that_lasts_gives_access_to_a_cloud(workflow: Path) -> None:
    text = workflow.read_text()
    assert "AWS_ACCESS_KEY_ID" not in text
    # It makes tokens of an hour; GitHub has no other way to register a runner.
    assert set(re.findall(r"secrets\.(\w+)", text)) <= {"RUNNER_APP_PRIVATE_KEY"}
    for step in steps(workflow):
        if "configure-aws-credentials" in step.get("uses", ""):
            assert set(step["with"]) <= {"role-to-assume", "aws-region", "role-duration-seconds"}


def test_roles_that_experiments_have_for_long_are_said_to_need_it() -> None:
    """AWS refuses more than the maximum session of a role, an hour where nothing else was set."""
    roles = {
        step["with"]["role-to-assume"].removeprefix("${{ vars.").removesuffix(" }}")
        for workflow in WORKFLOWS
        for step in steps(workflow)
        if step.get("with", {}).get("role-duration-seconds", 0) > 3600
    }
    [sentence] = re.findall(r"maximum session of (.*?) to", (ROOT / "docs/cicd.md").read_text())
    assert set(re.findall(r"`(\w+)`", sentence)) == roles


def test_an_experiment_by_hand_ends_no_other() -> None:
    assert EXPERIMENT["concurrency"]["group"] == (
        "experiment-${{ github.event_name == 'push' && github.ref || github.run_id }}"
    )


@pytest.mark.parametrize(
    ("launch", "runs"), [("success", True), ("skipped", True), ("failure", False), ("cancelled", False)]
)
def test_an_experiment_for_a_gpu_runs_nowhere_else(launch: str, runs: bool) -> None:
    """A launch that runs out of time counts as cancelled, while the workflow does not."""
    condition = EXPERIMENT["jobs"]["run"]["if"].removeprefix("${{").removesuffix("}}").strip()
    for github, python in (("!cancelled()", "True"), ("needs.launch.result", repr(launch))):
        condition = condition.replace(github, python)
    assert eval(condition.replace("&&", "and").replace("||", "or")) is runs


def test_the_machine_in_the_cloud_has_a_system_that_actions_run_on() -> None:
    """Left out, CML takes Ubuntu 18.04, which lacks the GLIBC_2.28 of the actions' Node."""
    [launch] = [step for step in EXPERIMENT["jobs"]["launch"]["steps"] if "cml runner" in step.get("run", "")]
    assert '--cloud-image="$IMAGE"' in launch["run"]
    assert "/ubuntu-noble-24.04-amd64-" in launch["env"]["IMAGE"]


@pytest.mark.parametrize(
    ("open_one", "commented"), [("7", "--target=pr/7 --update --publish=false"), ("", "")]
)
def test_the_report_goes_to_the_open_pull_request_of_the_branch(
    tmp_path: Path, open_one: str, commented: str
) -> None:
    """With the rights of the job alone, which may not read checks: gh fails as a whole if asked for them."""
    [step] = [step for step in EXPERIMENT["jobs"]["comment"]["steps"] if "report.md" in step.get("run", "")]
    refused = "GraphQL: Resource not accessible by integration (repository.pullRequest.statusCheckRollup)"
    gh = f"""[[ $* == "pr view exp-1 --json number,state "* ]] || {{ echo '{refused}' >&2; exit 1; }}"""
    stand_in(tmp_path / "bin", "gh", f"{gh}\necho '{open_one}'\n")
    stand_in(tmp_path / "bin", "cml", 'echo "$*"\n')
    (tmp_path / "report.md").write_text("# Report\n![worst](worst.jpg)\n")
    output = run(
        *("bash", "-e", "-c", step["run"]),
        cwd=tmp_path,
        PATH=f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        GITHUB_REF_NAME="exp-1",
        GITHUB_STEP_SUMMARY=str(tmp_path / "summary"),
        PUBLISH="false",
    )
    assert output == (f"comment create {commented} report.md\n" if commented else "")
    assert (tmp_path / "summary").read_text() == "# Report\n"


def test_what_a_workflow_runs_is_there_and_tested() -> None:
    commands = "\n".join(step.get("run", "") for workflow in WORKFLOWS for step in steps(workflow))
    for module in re.findall(r"python -m ((?:stages|serving|scripts)\S+)", commands):
        assert find_spec(module), module
    used = set(re.findall(r"(?:scripts/|\.ci/)\w+", commands))
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert used
    for script in used:
        assert os.access(ROOT / script, os.X_OK), script
        assert script == ".ci/run" or script in tests, f"no test runs {script}"


@pytest.fixture
def origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bare repository of a small project, with a remote of DVC beside it."""
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "A tester")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "tester@example.org")
    project = tmp_path / "project"
    (project / "scripts").mkdir(parents=True)
    for script in (ROOT / "scripts").glob("ci_*"):
        shutil.copy(script, project / "scripts")
    (project / "dvc.yaml").write_text(PIPELINE)
    (project / "params.yaml").write_text("train: {epochs: 1}\n")
    (project / "source").write_text("tiles\n")
    run("git", "init", "-q", "-b", "main", cwd=project)
    run("dvc", "init", "-q", cwd=project)
    run("dvc", "remote", "add", "storage", tmp_path / "storage", cwd=project)
    run("git", "add", "--all", cwd=project)
    run("git", "commit", "-qm", "A small project", cwd=project)
    run("git", "clone", "-q", "--bare", project, tmp_path / "origin.git")
    return tmp_path / "origin.git"


def clone(origin: Path, name: str) -> Path:
    run("git", "clone", "-q", origin, name, cwd=origin.parent)
    return origin.parent / name


def ran(output: str) -> list[str]:
    return re.findall(r"^Running stage '(\w+)'", output, re.MULTILINE)


def test_an_experiment_runs_and_comes_home_and_is_not_run_twice(origin: Path) -> None:
    first = clone(origin, "first")
    output = run("scripts/ci_experiment", "exp-1", "train.epochs=3", cwd=first, DVC_REMOTE="storage")
    assert ran(output) == ["data_load", "data_split", "evaluate", "export"]
    run("scripts/ci_push_experiment", "exp-1", cwd=first)

    home = clone(origin, "home")
    assert "exp-1" in run("dvc", "exp", "list", "origin", "--all-commits", cwd=home)
    run("dvc", "remote", "default", "--local", "storage", cwd=home)
    run("dvc", "exp", "pull", "-q", "origin", "exp-1", cwd=home)
    run("dvc", "exp", "apply", "-q", "exp-1", cwd=home)
    assert (home / "model").read_text() == "predicted after 3 epochs\n"

    again = clone(origin, "again")
    output = run("scripts/ci_experiment", "exp-2", "train.epochs=3", cwd=again, DVC_REMOTE="storage")
    assert ran(output) == []
    assert (again / "model").read_text() == "predicted after 3 epochs\n"


def test_a_release_gets_model_tiles_and_predictions_of_its_commit(origin: Path) -> None:
    work = clone(origin, "work")
    run("dvc", "repro", "-q", cwd=work)
    run("dvc", "push", "-q", "-r", "storage", cwd=work)
    run("git", "add", "--all", cwd=work)
    run("git", "commit", "-qm", "Trained", cwd=work)
    run("git", "push", "-q", "origin", "HEAD:main", cwd=work)
    fresh = clone(origin, "fresh")
    run("scripts/ci_pull", cwd=fresh, DVC_REMOTE="storage")
    for name in ("model", "predictions", "data/tiles", "data/split"):
        assert (fresh / name).exists(), name


def test_an_experiment_needs_no_remote(origin: Path) -> None:
    alone = clone(origin, "alone")
    output = run("scripts/ci_experiment", "feature/exp-1", cwd=alone)
    assert ran(output) == ["data_load", "data_split", "evaluate", "export"]
    assert not (origin.parent / "storage").exists()
    assert "feature-exp-1" in run("scripts/ci_push_experiment", "feature/exp-1", cwd=alone)
    missing = run("scripts/ci_push_experiment", "exp-7", cwd=alone, check=False)
    assert missing == "there is no experiment exp-7; see dvc exp list\n"
    assert "usage: " in run("scripts/ci_experiment", cwd=alone, check=False)


def test_tags_of_the_registry_are_understood_and_others_refused(origin: Path) -> None:
    work = clone(origin, "work")
    run("gto", "register", "magnetic-tiles", "--version", "v1.2.3", cwd=work)
    run("gto", "assign", "magnetic-tiles", "--version", "v1.2.3", "--stage", "prod", cwd=work)
    registered = run("scripts/ci_tag", "magnetic-tiles@v1.2.3", cwd=work)
    assert registered == "event=registration\nversion=v1.2.3\nstage=\n"
    assigned = run("scripts/ci_tag", "magnetic-tiles#prod#1", cwd=work)
    assert assigned == "event=assignment\nversion=v1.2.3\nstage=prod\n"
    refused = run("scripts/ci_tag", "v1.2.3", cwd=work, check=False)
    assert refused.endswith("v1.2.3 is no tag of gto register or gto assign\n")


def stand_in(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/usr/bin/env bash\n{text}")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("repository", "logged_in"),
    [
        (
            "123456789012.dkr.ecr.eu-central-1.amazonaws.com/tiles",
            "login --username AWS --password-stdin 123456789012.dkr.ecr.eu-central-1.amazonaws.com: "
            "of eu-central-1\n",
        ),
        ("ghcr.io/owner/tiles", "login --username owner --password-stdin ghcr.io: token\n"),
    ],
)
def test_registries_get_a_password_of_the_job_and_not_on_the_command_line(
    tmp_path: Path, repository: str, logged_in: str
) -> None:
    stand_in(tmp_path / "bin", "docker", 'echo "$*: $(cat)"\n')
    stand_in(
        tmp_path / "bin", "aws", '[[ "$1 $2 $3" == "ecr get-login-password --region" ]] && echo "of $4"\n'
    )
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    output = run("scripts/registry_login", repository, PATH=path, GITHUB_ACTOR="owner", GITHUB_TOKEN="token")
    assert output == logged_in


def test_a_registry_without_a_known_login_is_refused() -> None:
    refused = run("scripts/registry_login", "registry.example/tiles", check=False)
    assert "no login is known for registry.example" in refused
