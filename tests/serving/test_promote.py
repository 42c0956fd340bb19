"""Promotion of real versions of a real project, before a real server that polls the folder."""

from __future__ import annotations

import json
import math
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from serving.errors import ConfigError
from serving.fingerprint import BLESSING, fingerprint
from serving.labels import read_labels, set_labels
from serving.promote.__main__ import main
from serving.promote.criteria import Criterion, compare_metrics, read_criteria
from serving.promote.deployment import Deployment
from serving.up import running_server
from tests.conftest import MODEL_NAME
from tests.project import Project
from tests.serving.forbidden import closed

ROOT = Path(__file__).parents[2]
SECONDS = 60.0  # limit of anything a test waits for


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Two versions: a good one at the tag `good`, then a worse one, at `worse` and in the working tree."""
    project = Project.with_data(tmp_path_factory.mktemp("project") / "clone")
    for darkness, tag in ((14, "good"), (24, "worse")):
        project.train_and_evaluate(darkness)
        project.export_and_validate()
        project.commit(f"A {tag} model")
        project.run("git", "tag", tag)
    return project


@pytest.fixture(scope="module")
def numbers(project: Project) -> dict[str, int]:
    """Version by tag."""
    good, worse = sorted(int(path.name) for path in (project.folder / "models" / MODEL_NAME).iterdir())
    return {"good": good, "worse": worse}


class Place:
    """A serving folder and its labels, and the command with both."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.base_path = folder / "deploy" / MODEL_NAME
        self.config = Path(shutil.copy(ROOT / "serving/config/models.config", folder))
        self.lenient = folder / "lenient.toml"
        self.lenient.write_text('[dice_pooled]\nbetter = "higher"\ntolerance = 1\n')
        self.flags = [f"--to={self.base_path}", f"--config={self.config}", "--grace=0"]

    def promote(self, *arguments: str, lenient: bool = False) -> int:
        criteria = [f"--criteria={self.lenient}"] if lenient else []
        return main([*self.flags, *criteria, *arguments])

    def command(self, *arguments: str, before: str = "") -> list[str]:
        """The same for a process of its own, which may be made to end before its time."""
        code = f"import os\n{before}\nfrom serving.promote.__main__ import main\nraise SystemExit(main())"
        return [sys.executable, "-c", code, *arguments, *self.flags, f"--criteria={self.lenient}"]

    @property
    def versions(self) -> list[int]:
        return Deployment(self.base_path).versions()

    @property
    def labels(self) -> dict[str, int]:
        return read_labels(self.config)

    def blessing(self, number: int) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.base_path / str(number) / BLESSING).read_text())
        return document


@pytest.fixture
def place(tmp_path: Path, project: Project, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.chdir(project.folder)
    return Place(tmp_path / "server")


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(0.05)


# Before a server


def test_promoted_refused_rolled_back_while_a_server_answers(
    place: Place, numbers: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    place.config.write_text(place.config.read_text().replace("/models/magnetic-tiles", str(place.base_path)))
    flags = [
        f"--model_config_file={place.config}",
        "--model_config_file_poll_wait_seconds=0.1",
        "--file_system_poll_wait_seconds=0.1",
        "--allow_version_labels_for_unavailable_models=true",
    ]
    answered: dict[str, list[int]] = {"": [], "/labels/stable": []}
    failures: list[str] = []
    done = threading.Event()

    def ask(url: str) -> None:
        """Asks with and without a label who answers, all the time."""
        while not done.is_set():
            for path, versions in answered.items():
                answer = requests.post(
                    f"{url}/v1/models/{MODEL_NAME}{path}:predict",
                    json={"signature_name": "model_info", "instances": [""]},
                    timeout=30,
                )
                if answer.status_code == 200:
                    versions.append(json.loads(answer.json()["predictions"][0])["version"])
                else:
                    failures.append(answer.text)

    def serve(tag: str) -> Callable[[], bool]:
        return lambda: all(versions[-1:] == [numbers[tag]] for versions in answered.values())

    assert place.promote("good") == 0
    with running_server(place.base_path, MODEL_NAME, flags=flags) as url:
        wait_until(lambda: requests.get(f"{url}/v1/models/{MODEL_NAME}/labels/stable", timeout=30).ok)
        asking = threading.Thread(target=ask, args=(url,))
        asking.start()
        try:
            wait_until(serve("good"))
            assert place.promote("worse") == 3
            assert place.versions == [numbers["good"]]
            assert place.promote("worse", lenient=True) == 0
            wait_until(serve("worse"))
            assert place.promote("--rollback", "--grace=5") == 0
            wait_until(serve("good"))
        finally:
            done.set()
            asking.join()
    assert failures == []
    for versions in answered.values():
        changes = [new for old, new in zip([0, *versions], versions, strict=False) if new != old]
        assert changes == [numbers["good"], numbers["worse"], numbers["good"]]
    out = capsys.readouterr().out
    assert (
        f"version {numbers['worse']} is out of {place.base_path}; stable is version {numbers['good']}" in out
    )


# What is promoted


def test_a_version_comes_with_the_reasons_why_it_is_served(
    place: Place, numbers: dict[str, int], project: Project
) -> None:
    assert place.promote("good") == 0
    number = numbers["good"]
    blessing = place.blessing(number)
    metrics = json.loads(project.run("git", "show", "good:results/evaluate/metrics.json"))
    assert blessing["version"] == number
    assert blessing["source"] == project.run("git", "rev-parse", "good").strip()
    assert blessing["compared_with"] is None
    assert blessing["reasons"][0].startswith("validate passed: ")
    assert f"dice_pooled {metrics['dice_pooled']:.4g}, served now: none: good enough" in blessing["reasons"]
    copied, exported = place.base_path / str(number), project.folder / "models" / MODEL_NAME / str(number)
    assert fingerprint(copied) == fingerprint(exported) == blessing["sha256"]


def test_without_a_revision_it_is_the_working_tree(place: Place, numbers: dict[str, int]) -> None:
    assert place.promote() == 0
    assert place.versions == [numbers["worse"]]
    assert place.blessing(numbers["worse"])["source"] == "working tree"


@pytest.mark.parametrize(("folder", "folders", "files"), [(0o755, 0o755, 0o644), (0o2770, 0o2770, 0o660)])
def test_who_may_list_the_serving_folder_may_read_the_version_whatever_the_umask(
    place: Place, numbers: dict[str, int], folder: int, folders: int, files: int
) -> None:
    place.base_path.mkdir(parents=True)
    place.base_path.chmod(folder)
    before = os.umask(0o077)
    try:
        assert place.promote("good") == 0
        version = place.base_path / str(numbers["good"])
        version.chmod(0o700)  # as versions were left before
        assert place.promote("good") == 0, "blessed once more"
    finally:
        os.umask(before)
    for path in (version, *version.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (folders if path.is_dir() else files), path


def test_a_folder_that_none_but_its_owner_can_read_is_told_of(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    before = os.umask(0o077)
    try:
        assert place.promote("good") == 0
    finally:
        os.umask(before)
    assert f"note: none but its owner can read {place.base_path}, " in capsys.readouterr().out


def test_the_same_version_again_changes_nothing(place: Place, numbers: dict[str, int]) -> None:
    assert place.promote("good") == 0
    assert place.promote("worse", lenient=True) == 0
    assert place.promote("worse", lenient=True) == 0
    assert place.versions == [numbers["good"], numbers["worse"]]
    assert place.blessing(numbers["worse"])["previous"] == numbers["good"], "it can still be rolled back"


def test_a_canary_becomes_stable(place: Place, numbers: dict[str, int]) -> None:
    good, worse = numbers["good"], numbers["worse"]
    assert place.promote("good") == 0
    assert place.promote("worse", "--label=canary", lenient=True) == 0
    assert place.labels == {"canary": worse, "stable": good}
    assert place.promote("worse", lenient=True) == 0
    assert place.labels == {"stable": worse}
    assert place.promote("--rollback") == 0
    assert (place.labels, place.versions) == ({"stable": good}, [good])


def test_a_canary_is_taken_back(place: Place, numbers: dict[str, int]) -> None:
    assert place.promote("good") == 0
    assert place.promote("worse", "--label=canary", lenient=True) == 0
    assert place.promote("--rollback", "--label=canary") == 0
    assert (place.labels, place.versions) == ({"stable": numbers["good"]}, [numbers["good"]])


def test_old_versions_leave_but_for_the_one_to_go_back_to(place: Place, numbers: dict[str, int]) -> None:
    assert place.promote("good") == 0
    good = place.base_path / str(numbers["good"])
    for number in (1, 2, 3):
        shutil.copytree(good, place.base_path / str(number))
    assert place.promote("worse", "--keep=1", lenient=True) == 0
    assert place.versions == [numbers["good"], numbers["worse"]]


def test_check_says_so_and_changes_nothing(
    place: Place, numbers: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert place.promote("good", "--check") == 0
    assert f"version {numbers['good']} could be stable" in capsys.readouterr().out
    assert (place.versions, place.labels) == ([], {})


def test_check_of_a_rollback_says_so_and_changes_nothing(
    place: Place, numbers: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    good, worse = numbers["good"], numbers["worse"]
    for tag in ("good", "worse"):
        assert place.promote(tag, lenient=True) == 0
    capsys.readouterr()
    assert place.promote("--rollback", "--check") == 0
    said = f"version {worse} would leave {place.base_path}; stable would be version {good}\n"
    assert capsys.readouterr().out == said
    assert (place.versions, place.labels) == ([good, worse], {"stable": worse})
    assert place.promote("worse", lenient=True) == 0, "no rollback is left to be finished"
    assert place.labels == {"stable": worse}


# What is refused


def test_each_criterion_that_is_not_met_is_a_line(
    place: Place, numbers: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert place.promote("good") == 0
    capsys.readouterr()
    assert place.promote("worse") == 3
    said = capsys.readouterr()
    refused = said.err.splitlines()
    assert [line.split()[1] for line in refused] == ["dice_pooled", "component_recall"]
    assert all(line.startswith("refused: ") and " worse by more than 0.02" in line for line in refused)
    assert "ok: false_alarm_rate" in said.out
    assert (place.versions, place.labels) == ([numbers["good"]], {"stable": numbers["good"]})


def test_a_model_that_was_not_validated_is_refused(
    place: Place,
    project: Project,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy = project.copy(tmp_path / "copy")
    monkeypatch.chdir(copy.folder)
    number = max(int(path.name) for path in (copy.folder / "models" / MODEL_NAME).iterdir())
    model = copy.folder / "models" / MODEL_NAME / str(number) / "saved_model.pb"
    model.write_bytes(model.read_bytes() + b" ")
    assert place.promote() == 3
    assert capsys.readouterr().err == f"refused: validate passed for version {number}, not for these files\n"
    (copy.folder / "results/validated.json").unlink()
    assert place.promote() == 3
    assert capsys.readouterr().err == "refused: validate has not passed there; `dvc repro validate`\n"
    assert place.versions == []


def test_a_version_that_was_rolled_back_is_refused(
    place: Place, numbers: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    for tag in ("good", "worse"):
        assert place.promote(tag, lenient=True) == 0
    assert place.promote("--rollback") == 0
    assert place.promote("worse", lenient=True) == 3
    line = capsys.readouterr().err
    assert line.startswith(f"refused: version {numbers['worse']} was rolled back; to allow it again, delete ")
    shutil.rmtree(line.split("delete ")[1].strip())
    assert place.promote("worse", lenient=True) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "'nowhere'"),
        (["HEAD~2"], "no version|can't get models/magnetic-tiles of HEAD~2: "),
        (["--rollback"], "no version is labelled stable"),
        (["--criteria=missing.toml"], "can't read missing.toml"),
        (["--config=missing.config"], "can't read missing.config"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    place: Place, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*place.flags, *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
    assert any(part in error for part in message.split("|"))
    assert place.versions == []


def test_a_folder_that_may_not_be_looked_at_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with closed(tmp_path):
        assert main(["--rollback", f"--to={tmp_path}/tiles"]) == 1
    assert capsys.readouterr().err == f"error: [Errno 13] Permission denied: '{tmp_path}/tiles'\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--keep=0"],
        ["good", "--rollback"],
        ["--label=newest"],
        ["--stage="],
        [""],
        ["--rollback", "--grace=-1"],
        ["--rollback", "--grace=nan"],
    ],
)
def test_wrong_arguments_end_with_2(place: Place, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        place.promote(*arguments)
    assert ended.value.code == 2
    assert not place.base_path.exists()


def test_the_first_version_cannot_be_rolled_back(
    place: Place, numbers: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert place.promote("good") == 0
    assert place.promote("--rollback") == 1
    assert f"nothing to go back to from version {numbers['good']}" in capsys.readouterr().err
    assert place.versions == [numbers["good"]]


def test_a_canary_that_is_the_only_version_cannot_be_rolled_back(
    place: Place, numbers: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert place.promote("good", "--label=canary") == 0
    assert place.promote("--rollback", "--label=canary") == 1
    assert f"nothing to go back to from version {numbers['good']}" in capsys.readouterr().err
    assert place.versions == [numbers["good"]]


def test_a_label_that_points_nowhere_is_named(
    place: Place, numbers: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert place.promote("good") == 0
    set_labels(place.config, {"stable": numbers["good"]}, place.base_path)
    shutil.rmtree(place.base_path / str(numbers["good"]))
    assert place.promote("good") == 1
    assert "mend one of them" in capsys.readouterr().err


def refuse(*_: object) -> None:
    """In the place of `set_labels`."""
    raise ConfigError("can't write models.config: Permission denied")


def test_a_version_that_cannot_be_labelled_leaves_the_folder_again(
    place: Place, numbers: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert place.promote("good") == 0
    with monkeypatch.context() as patch:
        patch.setattr("serving.promote.steps.set_labels", refuse)
        assert place.promote("worse", lenient=True) == 1
    assert (place.versions, place.labels) == ([numbers["good"]], {"stable": numbers["good"]})
    assert place.promote("worse", lenient=True) == 0


def test_a_rollback_that_cannot_set_labels_is_not_done_by_a_later_promotion(
    place: Place, numbers: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for tag in ("good", "worse"):
        assert place.promote(tag, lenient=True) == 0
    with monkeypatch.context() as patch:
        patch.setattr("serving.promote.steps.set_labels", refuse)
        assert place.promote("--rollback") == 1
    assert place.promote("worse", lenient=True) == 0
    assert (place.versions, place.labels) == (sorted(numbers.values()), {"stable": numbers["worse"]})


def test_a_version_that_was_copied_back_by_hand_can_be_rolled_back_again(
    place: Place, numbers: dict[str, int]
) -> None:
    good, worse = numbers["good"], numbers["worse"]
    for tag in ("good", "worse"):
        assert place.promote(tag, lenient=True) == 0
    assert place.promote("--rollback") == 0
    aside = Deployment(place.base_path).withdrawn(worse)
    assert aside
    shutil.copytree(aside, place.base_path / str(worse))
    set_labels(place.config, {"stable": worse}, place.base_path)
    assert place.promote("--rollback") == 0
    assert (place.versions, place.labels) == ([good], {"stable": good})
    assert aside.exists()


def test_a_broken_blessing_or_note_of_a_rollback_is_named(
    place: Place, numbers: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert place.promote("good") == 0
    hidden = place.base_path.parent / f".{MODEL_NAME}"
    for path in (place.base_path / str(numbers["good"]) / BLESSING, hidden / "rollback.json"):
        path.write_text("")
        capsys.readouterr()
        assert place.promote("--rollback") == 1
        assert capsys.readouterr().err.startswith(f"error: can't read {path}: ")
    assert (place.versions, place.labels) == ([numbers["good"]], {"stable": numbers["good"]})


def test_half_a_version_in_the_folder_is_not_blessed(
    place: Place, numbers: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    half = place.base_path / str(numbers["good"])
    (half / "assets.extra").mkdir(parents=True)
    assert place.promote("good") == 1
    assert f"has a version {numbers['good']} of other contents" in capsys.readouterr().err
    assert not (half / BLESSING).exists()


# Killed, and at the same time

ENDS = {
    "before it is judged": "import serving.fingerprint as one; one.fingerprint = lambda *a: os._exit(9)",
    "before the version is there": "os.replace = lambda *a: os._exit(9)",
    "before the label is set": "import serving.labels; serving.labels.set_labels = lambda *a: os._exit(9)",
}


@pytest.mark.parametrize("end", ENDS)
def test_a_promotion_that_is_killed_leaves_whole_versions_and_can_be_run_again(
    place: Place, numbers: dict[str, int], project: Project, end: str
) -> None:
    assert place.promote("good") == 0
    killed = subprocess.run(place.command("worse", before=ENDS[end]), check=False, cwd=project.folder)
    assert killed.returncode == 9
    assert place.labels == {"stable": numbers["good"]}
    for number in place.versions:
        assert place.blessing(number)["sha256"] == fingerprint(place.base_path / str(number))
    assert sorted(path.name for path in place.base_path.iterdir()) == [str(one) for one in place.versions]
    assert place.promote("worse", lenient=True) == 0
    assert place.labels == {"stable": numbers["worse"]}
    assert not list(place.base_path.parent.glob(".*/scratch-*"))


@pytest.mark.parametrize(
    "end",
    [
        "import serving.labels; serving.labels.set_labels = lambda *a: os._exit(9)",
        "import time; time.sleep = lambda *a: os._exit(9)",
    ],
)
def test_a_rollback_that_is_killed_is_finished_by_the_next_and_goes_no_further(
    place: Place, numbers: dict[str, int], project: Project, end: str
) -> None:
    assert place.promote("good") == 0
    shutil.copytree(place.base_path / str(numbers["good"]), place.base_path / "1")
    assert place.promote("worse", "--keep=3", lenient=True) == 0
    killed = subprocess.run(place.command("--rollback", before=end), check=False, cwd=project.folder)
    assert killed.returncode == 9
    assert numbers["worse"] in place.versions, "a server with the old labels still finds it"
    assert place.promote("--rollback") == 0
    assert place.labels == {"stable": numbers["good"]}
    assert place.versions == [1, numbers["good"]]
    assert place.promote("--rollback") == 1, "the one before was the first"


def test_two_promotions_at_once_come_one_after_the_other(
    place: Place, numbers: dict[str, int], project: Project
) -> None:
    both = [subprocess.Popen(place.command(tag), cwd=project.folder) for tag in ("good", "worse")]
    assert [one.wait(SECONDS) for one in both] == [0, 0]
    assert place.versions == sorted(numbers.values())
    (stable,) = place.labels.values()
    (other,) = set(numbers.values()) - {stable}
    assert place.blessing(stable)["compared_with"] == other
    assert place.blessing(other)["compared_with"] is None


# From the registry


def test_a_stage_of_gto_is_promoted_and_dvc_gets_the_model_by_name(
    place: Place, numbers: dict[str, int], project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GTO spoils pytest's capture of stderr, so it gets processes of its own.
    none = subprocess.run(
        place.command("--stage=prod"), cwd=project.folder, capture_output=True, text=True, check=False
    )
    assert none.returncode == 1
    assert none.stderr.startswith("error: no version of magnetic-tiles is in stage 'prod'; `gto assign")
    origin = project.copy(tmp_path / "origin")
    origin.run("dvc", "remote", "add", "-d", "--local", "shelf", str(tmp_path / "shelf"))
    origin.run("gto", "register", MODEL_NAME, "good")
    origin.run("gto", "assign", MODEL_NAME, "good", "--stage", "prod")
    origin.run("gto", "register", MODEL_NAME, "worse")
    shown = origin.run("gto", "show")
    assert "v0.0.2" in shown
    assert "prod" in shown
    origin.run("dvc", "push", "--all-tags", "--quiet")
    # A machine that has the repository and the remote, and nothing of DVC's cache.
    (tmp_path / "machine").mkdir()
    machine = origin.copy(tmp_path / "machine" / "clone")
    shutil.rmtree(machine.folder / ".dvc" / "cache")
    shutil.rmtree(machine.folder / "models")
    monkeypatch.chdir(machine.folder)
    subprocess.run(place.command("--stage=prod"), cwd=machine.folder, check=True)
    assert place.versions == [numbers["good"]]
    machine.run("dvc", "artifacts", "get", ".", MODEL_NAME, "--stage", "prod", "-o", "got")
    got = machine.folder / "got" / str(numbers["good"])
    assert fingerprint(got) == fingerprint(place.base_path / str(numbers["good"]))
    assert place.promote(f"{MODEL_NAME}@v0.0.2", lenient=True) == 0
    assert place.labels == {"stable": numbers["worse"]}


# Criteria, by hand


def verdicts(criterion: Criterion, new: dict[str, Any], old: dict[str, Any] | None) -> tuple[bool, str]:
    (finding,) = compare_metrics([criterion], new, old)
    return finding.passed, finding.text


@pytest.mark.parametrize(
    ("better", "new", "old", "passed"),
    [
        ("higher", 0.78, 0.80, True),
        ("higher", 0.7799, 0.80, False),
        ("higher", 0.9, 0.8, True),
        ("lower", 0.12, 0.10, True),
        ("lower", 0.121, 0.10, False),
        ("lower", 0.0, 0.5, True),
        ("higher", 0.1, None, True),
        ("higher", None, 0.5, False),
        ("higher", None, None, True),
    ],
)
def test_a_metric_may_be_worse_by_the_tolerance(
    better: str, new: float | None, old: float | None, passed: bool
) -> None:
    criterion = Criterion("a.b", better, 0.02)
    assert verdicts(criterion, {"a": {"b": new}}, {"a": {"b": old}})[0] is passed


def test_a_limit_holds_whatever_is_served() -> None:
    criterion = Criterion("rate", "lower", 0.5, limit=0.1)
    assert verdicts(criterion, {"rate": 0.1}, None)[0]
    assert verdicts(criterion, {"rate": 0.2}, {"rate": 0.3}) == (
        False,
        "rate 0.2, served now 0.3: worse than the limit, 0.1",
    )
    assert not verdicts(criterion, {"rate": None}, None)[0]


def test_a_metric_that_does_not_exist_is_no_metric_that_passes() -> None:
    assert verdicts(Criterion("dice", "higher", 0.02), {"dice_pooled": 1.0}, None) == (
        False,
        "dice: no such metric, or no number",
    )
    assert not verdicts(Criterion("dice", "higher", 0.02), {"dice": math.nan}, {"dice": 0.9})[0]
    assert not verdicts(Criterion("class.Crack", "higher", 0.1), {"class": {"Crack": {"dice": 1}}}, None)[0]


def test_the_criteria_of_the_project_name_metrics_that_evaluate_writes(project: Project) -> None:
    metrics = project.read("results/evaluate/metrics.json")
    criteria = read_criteria(ROOT / "serving/promotion.toml")
    assert len(criteria) == 5
    assert [one.metric for one in criteria if metrics.get(one.metric) is None] == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[dice]\nbetter = 'more'\ntolerance = 0", r'\[dice\] better must be "higher" or "lower"'),
        ("[dice]\nbetter = 'higher'", r"\[dice\] needs better and tolerance"),
        ("[dice]\nbetter = 'higher'\ntolerance = -1", "tolerance not below 0"),
        ("[dice]\nbetter = 'higher'\ntolerance = '0.1'", "must be numbers"),
        ("[dice]\nbetter = 'higher'\ntolerance = nan", "must be numbers"),
        ("[dice]\nbetter = 'higher'\ntolerance = 0\nlimit = nan", "must be numbers"),
        ("[dice]\nbetter = 'higher'\ntolerance = 0\nlimits = 1", "may have limit"),
        ("dice = 3", r"\[dice\] needs better"),
        ("[dice", "is not TOML"),
    ],
)
def test_mistakes_in_the_criteria_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "criteria.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_criteria(path)
