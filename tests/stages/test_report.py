"""The report of a real project with two states: its figures, and the page in a real Chromium."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML

from scripts.page_screenshot import chromium_path, launch_options
from stages.report.__main__ import main, write_report
from stages.report.charts import Line, line_chart
from stages.report.comparison import compare_data, compare_metrics, differences
from stages.report.content import gather
from stages.report.pictures import Panel
from stages.report.snapshot import METRICS, Snapshot, last_other_results
from stages.synthetic import draw_surface
from stages.verdicts import ImageRow, as_csv, read_image_rows
from tests.project import Project

EVALUATED = ("check_packages", "data_load", "data_split", "evaluate")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Two commits with results; the working tree has the second, with one parameter more changed."""
    project = Project.with_data(tmp_path_factory.mktemp("project") / "clone")
    environment = project.folder / "environment.txt"
    packages = environment.read_text()
    environment.write_text(packages.replace("pillow==", "pillow==1."))
    project.train_and_evaluate(14)
    project.commit("The first", *EVALUATED)
    project.run("git", "tag", "first")
    environment.write_text(packages)
    project.set_params({"train": {"learning_rate": 0.001, "backbone_weights": "<b>weights</b>"}})
    project.train_and_evaluate(24)
    project.commit("The second", *EVALUATED)
    project.run("git", "commit", "--allow-empty", "-qm", "No other results")
    return project


@pytest.fixture(scope="module")
def report(project: Project) -> Path:
    """Folder of its report, against the commit that it finds itself."""
    out = project.folder / "report"
    write_report(project.folder, None, out, pictures=12)
    return out


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
    if chromium_path() is None:
        pytest.skip("needs Chromium or Chrome on the PATH")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(**launch_options())
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, report: Path) -> Iterator[Any]:
    """The page; at the end it must have asked for nothing and complained of nothing."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    requests: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda said: complaints.append(said.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    url = (report / "report.html").as_uri()
    page.goto(url)
    yield page
    page.close()
    assert [one for one in requests if not one.startswith("data:")] == [url]
    assert complaints == []


def table(page: Any, selector: str) -> dict[str, list[str]]:
    """Cells of a table's rows by the text of the first."""
    rows = [row.locator("th, td").all_inner_texts() for row in page.locator(f"{selector} tbody tr").all()]
    return {first: rest for first, *rest in rows}


@pytest.fixture
def now(project: Project) -> dict[str, Any]:
    """Metrics of the working tree."""
    metrics: dict[str, Any] = project.read("results/evaluate/metrics.json")
    return metrics


@pytest.fixture
def rows(project: Project) -> list[ImageRow]:
    """Images of the working tree."""
    return read_image_rows((project.folder / "results/evaluate/images.csv").read_text())


def test_the_page_shows_the_metrics_of_both_states_and_what_became_of_them(
    project: Project, now: dict[str, Any], page: Any
) -> None:
    before = json.loads(project.run("git", "show", "first:results/evaluate/metrics.json"))
    shown = table(page, "#metrics")
    assert shown["Dice, pixels of all images pooled"][0] == f"{now['dice_pooled']:.3f}"
    assert shown["Dice, pixels of all images pooled"][2] == f"{before['dice_pooled']:.3f}"
    assert now["component_recall"] < before["component_recall"], "the states differ in it"
    assert shown["Defects found"][3].endswith(" points, worse")
    interval = now["component_recall_interval"]
    assert shown["Defects found"][1] == f"{interval['low']:.1%} to {interval['high']:.1%}"
    assert "The first" in page.locator("header").inner_text(), "the newest commit with other results"
    assert page.locator("[role=note]").count() == 0


def test_defects_are_counted_by_class_and_size(now: dict[str, Any], page: Any) -> None:
    shown = table(page, "#defects .pair > :nth-child(1)") | table(page, "#defects .pair > :nth-child(2)")
    for name, counts in {**now["class"], **now["size"]}.items():
        assert shown[name][1:4] == [str(counts[outcome]) for outcome in ("found", "missed", "false")]
    assert shown["good images"][3] == str(now["false_components_on_good"])


def test_the_worst_images_come_first_with_image_truth_and_both_answers(
    rows: list[ImageRow], page: Any
) -> None:
    worst = sorted((row for row in rows if row.wrong), key=lambda row: -row.wrong)[:12]
    assert len(worst) > 3
    cards = page.locator("#worst article")
    assert cards.locator("h3").all_inner_texts() == [row.image.removeprefix("images/") for row in worst]
    captions = ["Image", "True defects", "Found", "Found before"]
    assert [card.locator("figcaption").all_inner_texts() for card in cards.all()] == [captions] * len(worst)


def test_every_picture_is_shown_and_described(page: Any) -> None:
    pictures = page.locator("img")
    assert pictures.count() > 20
    pictures.evaluate_all("all => Promise.all(all.map(one => one.decode()))")
    assert pictures.evaluate_all("all => Math.min(...all.map(one => one.naturalWidth))") > 60
    assert pictures.evaluate_all("all => all.filter(one => !one.alt.includes('images/')).length") == 0


def test_answers_that_depend_on_the_exposure_are_shown(
    now: dict[str, Any], rows: list[ImageRow], page: Any
) -> None:
    answers: dict[str, set[str]] = {}
    for row in rows:
        answers.setdefault(row.tile, set()).add(row.answer)
    split = sorted(tile for tile, given in answers.items() if len(given) > 1)
    assert split, "the project has such a tile"
    section = page.locator("#exposures")
    assert section.locator("h3").all_inner_texts() == split
    assert section.locator("img").count() == sum(row.tile in split for row in rows)
    share = len(answers) - len(split)
    assert f"Of {len(answers)} tiles" in section.inner_text()
    assert now["exposure_agreement"] == pytest.approx(share / len(answers))


def test_wrong_answers_of_images_are_listed(rows: list[ImageRow], page: Any) -> None:
    wrong = {row.image.removeprefix("images/") for row in rows if row.truth != row.answer}
    assert wrong
    assert set(page.locator("#images article h3").all_inner_texts()) == wrong


def test_parameters_packages_and_data_are_compared(page: Any) -> None:
    params = table(page, "#changes .pair > :nth-child(1)")
    assert params == {
        "train.backbone_weights": ["none", "<b>weights</b>"],
        "train.learning_rate": ["0.0003", "0.001"],
    }
    ((name, versions),) = table(page, "#changes .pair > :nth-child(2)").items()
    assert name == "pillow"
    assert versions[0] == f"1.{versions[1]}"
    assert "before" in page.locator("#changes .pair > :nth-child(3)").inner_text()


def test_the_page_is_dark_where_the_reader_wants_it_and_fits_a_phone(page: Any) -> None:
    def ground() -> str:
        return str(page.evaluate("() => getComputedStyle(document.body).backgroundColor"))

    light = ground()
    page.emulate_media(color_scheme="dark")
    assert ground() != light
    page.set_viewport_size({"width": 400, "height": 800})
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 400


def test_the_curves_of_both_states_are_drawn(page: Any) -> None:
    assert page.locator("#curves svg[role=img]").count() == 4
    assert page.locator("#curves svg[role=img] .line").count() == 2 * (2 + 2 + 1 + 3)


def test_the_comment_has_the_metrics_and_a_picture_beside_it(report: Path, now: dict[str, Any]) -> None:
    text = (report / "report.md").read_text()
    assert f"\n| Defects found | **{now['component_recall']:.1%}** | " in text
    assert " points | worse |\n" in text
    assert "| `train.learning_rate` | 0.0003 | 0.001 |" in text
    assert "data:" not in text
    (picture,) = re.findall(r"!\[.*\]\((.*)\)", text)
    assert (report / picture).stat().st_size > 10_000


def test_another_revision_or_experiment_can_be_named(project: Project, tmp_path: Path) -> None:
    # An experiment has all outputs; of these nothing here is read.
    project = project.copy(tmp_path / "copy")
    (project.folder / "models/magnetic-tiles").mkdir()
    (project.folder / "models/magnetic-tiles/none").touch()
    for name in ("validate.json", "validated.json"):
        (project.folder / "results" / name).write_text("{}")
    project.run("dvc", "exp", "save", "--name", "tried", "--force")
    for name in ("first", "tried"):
        content = write_report(project.folder, name, tmp_path / name, pictures=1)
        assert content.before is not None
        assert content.before.title.startswith(f"{name}: ")
    verdicts = {row.verdict for row in content.metrics}
    assert verdicts <= {"same", ""}, "it is the working tree itself"


def test_an_unknown_revision_is_named(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with project.entered():
        assert main(["--against", "nowhere", "--out", str(tmp_path)]) == 1
    assert re.fullmatch(r"error: .*'nowhere'.*git fetch.*\n", capsys.readouterr().err)


def test_a_state_without_results_is_said_to_have_none(project: Project, tmp_path: Path) -> None:
    start = project.run("git", "rev-list", "--max-parents=0", "HEAD").strip()
    content = write_report(project.folder, start, tmp_path, pictures=1)
    assert content.before is None
    (notice,) = content.notices
    assert notice.startswith(f"Nothing to compare with: {start} has no results/evaluate/metrics.json")
    page = (tmp_path / "report.html").read_text()
    assert "Nothing to compare with" in page
    assert "Nothing to compare with" in (tmp_path / "report.md").read_text()
    assert ">before<" not in page


def test_what_dvc_cannot_give_is_left_out_and_named(project: Project, tmp_path: Path) -> None:
    project = project.copy(tmp_path / "copy")
    shutil.rmtree(project.folder / ".dvc" / "cache")
    content = write_report(project.folder, "first", tmp_path / "out", pictures=2)
    assert content.before is not None
    (notice,) = content.notices
    assert "results/evaluate/images.csv" in notice
    assert "dvc fetch" in notice
    kinds = {panel.kind for card in content.cards["worst"] for panel in card.panels}
    assert kinds == {"image", "truth", "now"}
    assert content.metrics[0].before != "-", "metrics come from git"


def test_a_class_or_size_without_images_now_is_shown_with_what_it_was(
    project: Project, tmp_path: Path
) -> None:
    project = project.copy(tmp_path / "copy")
    metrics = project.read(METRICS)
    name, counts = "Crack", metrics["class"].pop("Crack")
    metrics["size"].popitem()
    (project.folder / METRICS).write_text(json.dumps(metrics))
    content = write_report(project.folder, "HEAD", tmp_path / "out", pictures=0)
    assert (name, {}) in [(one, now) for one, now, _ in content.classes]
    assert {} in [now for _, now, _ in content.sizes]
    share = f"{counts['found'] / (counts['found'] + counts['missed']):.0%}"
    page = (tmp_path / "out" / "report.html").read_text()
    row = re.search(rf'<th scope="row">{name}</th>.*?</tr>', page, re.DOTALL)
    assert row
    assert re.findall(r"<td[^>]*>([^<]*)</td>", row[0]) == ["-", "-", "-", "-", share]


def test_exposures_that_are_all_left_out_are_not_called_missing(project: Project, tmp_path: Path) -> None:
    project = project.copy(tmp_path / "copy")
    row = ImageRow("images/Crack/a.jpg", "Crack", "a", 1, "defect", "defect", 0.9, 1.0, 0.0, 1, 0, 0)
    other = replace(row, image="images/Free/a.jpg", exposure=2, truth="good")
    table = project.folder / "results/evaluate/images.csv"
    table.unlink()
    table.write_text(as_csv(ImageRow, [row, other]))
    write_report(project.folder, "HEAD", tmp_path / "out", pictures=0)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "1 more are left out" in page
    assert "No tile of the test side was photographed more than once" not in page


def test_without_an_evaluation_there_is_no_report(
    tmp_path: Path, project: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "clone"
    project.run("git", "clone", "-q", ".", str(copy))
    shutil.rmtree(copy / "results")
    monkeypatch.chdir(copy)
    assert main([]) == 1
    assert "the working tree has no results/evaluate/metrics.json; run `dvc repro`" in capsys.readouterr().err


def relock(project: Project, stage: str) -> None:
    """Makes dvc.lock say that the first output of a stage is another."""
    lock = YAML(typ="safe").load(project.folder / "dvc.lock")
    lock["stages"][stage]["outs"][0]["md5"] = "0" * 32
    YAML().dump(lock, project.folder / "dvc.lock")


def test_the_commit_to_compare_with_has_other_results(project: Project, tmp_path: Path) -> None:
    project = project.copy(tmp_path / "copy")
    first, second = (project.run("git", "rev-parse", "--short", rev).strip() for rev in ("first", "HEAD~"))
    assert last_other_results(project.folder) == first
    lock = project.folder / "dvc.lock"
    lock.write_text(lock.read_text() + "# nothing that was evaluated\n")
    assert last_other_results(project.folder) == first
    relock(project, "evaluate")
    assert last_other_results(project.folder) == second


def test_a_commit_of_new_data_with_old_results_is_not_what_new_results_are_compared_with(
    project: Project, tmp_path: Path
) -> None:
    project = project.copy(tmp_path / "copy")
    second = project.run("git", "rev-parse", "--short", "HEAD~").strip()
    relock(project, "data_load")
    project.run("git", "commit", "-qam", "Data, version 2: dvc repro data_split")
    relock(project, "evaluate")
    assert last_other_results(project.folder) == second
    content = write_report(project.folder, "HEAD", tmp_path / "out", pictures=0)
    assert any("The results of HEAD are older than its data/tiles" in notice for notice in content.notices)


def test_a_commit_that_deleted_the_results_is_none_to_compare_with(project: Project, tmp_path: Path) -> None:
    project = project.copy(tmp_path / "copy")
    second = project.run("git", "rev-parse", "--short", "HEAD~").strip()
    project.run("git", "rm", "-q", "--cached", "dvc.lock")
    project.run("git", "commit", "-qm", "Results start anew")
    relock(project, "evaluate")
    assert last_other_results(project.folder) == second


# By hand


def snapshot(**values: Any) -> Snapshot:
    mappings = {key: {} for key in ("metrics", "params", "packages", "tiles", "images", "training")}
    others = {"name": "s", "title": "s", "data_version": "", "thresholds": [], "missing": []}
    return Snapshot(**{**mappings, **others, "newer": [], "_files": None, **values})


EVALUATED_BY_HAND: dict[str, Any] = {
    "metrics": {"threshold": 0.5},
    "training": {(side, name): [] for side in ("train", "eval") for name in ("dice", "loss")},
}


def image_row(name: str) -> ImageRow:
    return ImageRow(name, "Crack", name, 0, "defect", "defect", 0.9, 1.0, 0.0, 1, 0, 0)


def test_better_and_worse_follow_the_direction_of_each_metric() -> None:
    now = {"dice_pooled": 0.5, "false_alarm_rate": 0.25, "auroc": None, "threshold": 0.3}
    before = {"dice_pooled": 0.4, "false_alarm_rate": 0.2, "auroc": 0.9, "threshold": 0.2}
    now["false_components"] = before["false_components"] = 4
    rows = {row.key: (row.change, row.verdict) for row in compare_metrics(now, before)}
    assert rows == {
        "dice_pooled": ("+0.100", "better"),
        "false_alarm_rate": ("+5.0 points", "worse"),
        "auroc": ("", ""),
        "threshold": ("+0.100", ""),
        "false_components": ("0", "same"),
    }
    assert {row.before for row in compare_metrics(now, {})} == {"-"}


def test_data_that_came_went_or_changed_is_told_apart() -> None:
    def rows(**images: tuple[str, str]) -> dict[str, dict[str, str]]:
        return {name: {"image_sha256": i, "mask_sha256": m} for name, (i, m) in images.items()}

    before = snapshot(tiles=rows(a=("1", "1"), b=("2", "2"), c=("3", "3")), images={"a": None, "b": None})
    now = snapshot(tiles=rows(a=("1", "1"), b=("2", "9"), d=("4", "4")), images={"a": None, "d": None})
    assert compare_data(now, before) == {
        "added": ["d"],
        "removed": ["c"],
        "other mask": ["b"],
        "new in the test side": ["d"],
        "no longer in the test side": ["b"],
    }
    assert compare_data(now, now) == compare_data(now, snapshot()) == {}


def test_only_changes_of_the_test_side_make_figures_of_different_data() -> None:
    def state(**masks: str) -> Snapshot:
        tiles = {name: {"image_sha256": "1", "mask_sha256": mask} for name, mask in masks.items()}
        return snapshot(tiles=tiles, images={"tested": image_row("tested")}, **EVALUATED_BY_HAND)

    before = state(tested="1", trained="1")
    assert gather(state(tested="1", trained="2", added="1"), before, pictures=0).notices == []
    (notice,) = gather(state(tested="2", trained="1"), before, pictures=0).notices
    assert "1 test images are in both, 1 in this one, 1 in the other" in notice


@pytest.mark.parametrize("last", [float("nan"), float("inf")])
def test_a_training_that_went_astray_is_drawn_up_to_there(last: float) -> None:
    training = {key: [0.5, 0.4, last] for key in EVALUATED_BY_HAND["training"]}
    now = snapshot(metrics=EVALUATED_BY_HAND["metrics"], training=training)
    dice, loss = gather(now, None, pictures=0).charts
    assert [line.points for line in (*dice.lines, *loss.lines)] == [[(1, 0.5), (2, 0.4)]] * 4


def test_differences_name_what_is_on_one_side_alone() -> None:
    found = differences({"a": 1, "b": 2}, {"b": 3, "c": 0})
    assert [(one.name, one.before, one.now) for one in found] == [("a", None, 1), ("b", 3, 2), ("c", 0, None)]


def test_curves_stay_within_their_axes() -> None:
    chart = line_chart("t", [Line("<x>", [(0, 0), (1, 1), (2, 9)])], "x", "y", x_top=None)
    assert "&lt;x&gt;" in chart
    points = re.findall(r"([\d.]+),([\d.]+)", re.search(r'points="([^"]+)"', chart)[1])  # type: ignore[index]
    assert points == [("44.0", "212.0"), ("216.0", "10.0"), ("388.0", "10.0")]


def test_a_real_test_set_gives_a_page_of_a_few_megabytes() -> None:
    # 12 worst images with 4 pictures, 12 false alarms and 12 passed with 2, 6 tiles of 6 exposures.
    pictures = 12 * 4 + 12 * 2 + 12 * 2 + 6 * 6
    surface = np.clip(150 + draw_surface(324, 270, np.random.default_rng(1)), 0, 255).astype(np.uint8)
    panel = Panel("image", "Image", Image.fromarray(surface).convert("RGB"))
    assert len(panel.uri) * pictures < 8_000_000
