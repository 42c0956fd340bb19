"""The whole pipeline as a user runs it: from a clone to a served model, and nothing to do the second time."""

from __future__ import annotations

import json
import shutil

from ruamel.yaml import YAML

from tests.clone import ROOT, Clone


def test_every_stage_runs_in_the_order_of_the_file(clone: Clone) -> None:
    ran = [line.split("'")[1] for line in clone.first_run.splitlines() if line.startswith("Running stage '")]
    assert ran == [*YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]]


def test_the_second_run_does_nothing(clone: Clone) -> None:
    output = clone.run("dvc", "repro")
    ran = [line for line in output.splitlines() if line.startswith("Running stage '")]
    # It looks at the packages each time, but they are the same.
    assert ran == ["Running stage 'check_packages':"]
    assert "Stage 'train' didn't change, skipping" in output


def test_git_sees_the_lock_file_metrics_and_plots(clone: Clone) -> None:
    new = set(clone.run("git", "status", "--porcelain", "--untracked-files=all").split()[1::2])
    pipeline = YAML(typ="safe").load(ROOT / "dvc.yaml")
    assert {"dvc.lock", *pipeline["metrics"], "results/train/plots/metrics/eval/dice.tsv"} <= new
    assert {name for name in new if not name.endswith((".json", ".tsv", ".yaml"))} == {"dvc.lock"}


def test_metrics_are_written_and_dvc_shows_them(clone: Clone) -> None:
    shown = json.loads(clone.run("dvc", "metrics", "show", "--json"))[""]["data"]
    assert set(shown) == set(YAML(typ="safe").load(ROOT / "dvc.yaml")["metrics"])
    metrics = clone.read("results/evaluate/metrics.json")
    assert 0 <= metrics["dice_pooled"] <= 1
    assert set(metrics["class"]) == {"Blowhole", "Break", "Crack", "Fray", "Uneven"}
    assert clone.read("results/validate.json")["images"] == metrics["images"]


def test_plots_are_written_and_dvc_draws_them(clone: Clone) -> None:
    output = clone.run("dvc", "plots", "show", "--out", "page")
    page = (clone.folder / "page" / "index.html").read_text()
    shutil.rmtree(clone.folder / "page")
    titles = [
        name
        for plot in YAML(typ="safe").load(ROOT / "dvc.yaml")["plots"]
        if not isinstance(plot, str)
        for name in plot
    ]
    assert [title for title in titles if title not in page] == []
    assert "ERROR" not in output
    assert "WARNING" not in output


def test_one_version_is_exported_with_what_there_is_to_say_of_it(clone: Clone) -> None:
    (version,) = (clone.folder / "models" / "magnetic-tiles").iterdir()
    assert (version / "saved_model.pb").exists()
    info = clone.read(f"{version}/assets.extra/model_info.json")
    assert str(info["version"]) == version.name
    metrics = clone.read("results/evaluate/metrics.json")
    assert info["threshold"] == metrics["threshold"]
    assert info["params"]["image_size"] == [32, 32]
    assert info["git_revision"].startswith(clone.run("git", "rev-parse", "HEAD").strip())


def test_predictions_and_overlays_of_the_test_side_are_kept(clone: Clone) -> None:
    results = clone.folder / "results" / "evaluate"
    images = clone.read("results/evaluate/metrics.json")["images"]
    assert len(list((results / "predictions").rglob("*.png"))) == images
    assert len(list((results / "overlays").glob("*.png"))) == 2
