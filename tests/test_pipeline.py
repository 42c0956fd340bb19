"""The whole pipeline as a user runs it: from a clone to a served model, and nothing to do the second time."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from ruamel.yaml import YAML

from tests.clone import ROOT, Clone


def test_every_stage_runs(clone: Clone) -> None:
    ran = [line.split("'")[1] for line in clone.first_run.splitlines() if line.startswith("Running stage '")]
    assert sorted(ran) == sorted(YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"])


def test_the_second_run_does_nothing(clone: Clone) -> None:
    output = clone.run("dvc", "repro")
    ran = [line for line in output.splitlines() if line.startswith("Running stage '")]
    # It looks at the packages each time, but they are the same.
    assert ran == ["Running stage 'check_packages':"]
    assert "Stage 'train' didn't change, skipping" in output


def test_git_sees_the_lock_file_and_what_it_is_to_keep_itself(clone: Clone) -> None:
    seen = clone.run("git", "status", "--porcelain", "--untracked-files=all").split()[1::2]
    pipeline = YAML(typ="safe").load(ROOT / "dvc.yaml")
    kept = [
        path
        for stage in pipeline["stages"].values()
        for out in stage["outs"]
        if isinstance(out, dict)
        for path, options in out.items()
        if options.get("cache") is False
    ]
    strays = [path for path in seen if not path.startswith(("dvc.lock", *kept))]
    assert strays == []
    assert [path for path in kept if not any(one.startswith(path) for one in seen)] == []


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


def test_the_exported_network_answers_as_the_trained_one(clone: Clone) -> None:
    import keras
    import numpy as np
    import tensorflow as tf

    trained = keras.models.load_model(clone.folder / "models/unet.keras", compile=False)
    images = np.random.default_rng(0).normal(100, 20, (2, *trained.input_shape[1:])).astype(np.float32)
    (version,) = (clone.folder / "models" / "magnetic-tiles").iterdir()
    served = tf.saved_model.load(str(version)).signatures["serving_default"]

    np.testing.assert_allclose(
        served(images=tf.constant(images))["probabilities"], trained(images), atol=1e-5
    )


def test_predictions_and_overlays_of_the_test_side_are_kept(clone: Clone) -> None:
    results = clone.folder / "results" / "evaluate"
    images = clone.read("results/evaluate/metrics.json")["images"]
    assert len(list((results / "predictions").rglob("*.png"))) == images
    assert len(list((results / "overlays").glob("*.png"))) == 2


def test_a_fresh_clone_pulls_it_all_or_needs_none_of_it(clone: Clone, tmp_path: Path) -> None:
    clone = clone.copy(tmp_path / "project")
    clone.run("git", "add", "--all")
    clone.run("git", "commit", "-qm", "A first version")
    clone.run("dvc", "push")
    whole = clone.again(tmp_path / "whole")
    whole.run("dvc", "pull")
    for name in ("data/tiles/tiles.csv", "models/unet.keras"):
        assert (whole.folder / name).read_bytes() == (clone.folder / name).read_bytes()
    bare = clone.again(tmp_path / "bare")
    output = bare.run("dvc", "repro", "--pull", "--allow-missing")
    assert [line for line in output.splitlines() if line.startswith("Running stage '")] == [
        "Running stage 'check_packages':"
    ]
    assert not [name for name in ("data/tiles", "data/own", "models") if (bare.folder / name).exists()]
