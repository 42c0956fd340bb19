"""params.yaml: mistakes are named with their path, and every parameter is explained."""

from __future__ import annotations

import inspect
import re
import shlex
import subprocess
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.hydra import apply_overrides
from pydantic import BaseModel
from ruamel.yaml import YAML

from stages import params as module
from stages.backbones import build_backbone
from stages.errors import StageError
from stages.params import MinRecall, Params, load_params

ROOT = Path(__file__).parents[2]
SECTIONS = [
    one
    for _, one in inspect.getmembers(module, inspect.isclass)
    if issubclass(one, BaseModel) and one.__module__ == module.__name__ and one is not Params
]


def changed(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The committed parameters after a change."""
    yaml = YAML(typ="safe")
    values = yaml.load(ROOT / "params.yaml")
    change(values)
    path = tmp_path / "params.yaml"
    yaml.dump(values, path)
    return path


def message(path: Path) -> str:
    with pytest.raises(StageError) as caught:
        load_params(path)
    return str(caught.value)


def test_the_committed_parameters_are_valid_and_complete() -> None:
    params = load_params(ROOT / "params.yaml")
    assert params.data_load.source.startswith("https://")
    assert set(YAML(typ="safe").load(ROOT / "params.yaml")) == {
        field.alias or name for name, field in Params.model_fields.items()
    }


@pytest.mark.parametrize(
    "point", ["min_recall", 0.5, {"min_recall": 0}, {"min_recall": 0.9, "max_false_alarm_rate": 0.1}]
)
def test_a_wrong_operating_point_is_one_mistake_and_the_four_are_named(tmp_path: Path, point: Any) -> None:
    said = message(changed(tmp_path, lambda values: values["evaluate"].update(operating_point=point)))
    assert "1 mistake(s):\n  evaluate.operating_point: " in said
    for name in ("best_balanced_accuracy", "best_dice", "{max_false_alarm_rate: ", "{min_recall: "):
        assert name in said
    assert "Received: " in said


def test_one_operating_point_with_a_number_replaces_another_as_the_reference_says(tmp_path: Path) -> None:
    words = re.findall(r"-S '([+~]evaluate[^']*)'", (ROOT / "docs/reference.md").read_text())
    point = {"max_false_alarm_rate": 0.01}
    path = changed(tmp_path, lambda values: values["evaluate"].update(operating_point=point))
    apply_overrides(path, words)
    assert load_params(path).evaluate.operating_point == MinRecall(min_recall=0.95)


def recipe(network: str) -> list[tuple[str, str]]:
    """Names and values that `make real` sets."""
    said = subprocess.run(
        ["make", "--dry-run", "real", "DATA=tiles.zip", f"NETWORK={network}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    words = shlex.split(said[said.index("dvc exp run") :].replace("\\\n", " "))
    return [
        (name, value)
        for before, word in pairwise(words)
        if before == "-S"
        for name, _, value in [word.partition("=")]
    ]


def test_no_recipe_of_make_real_leaves_what_the_other_one_has_set() -> None:
    one, other = ({name for name, _ in recipe(network)} for network in ("efficientnet_lite0", "slim18"))
    assert one == other


@pytest.mark.parametrize("network", ["efficientnet_lite0", "slim18"])
def test_the_recipes_of_make_real_are_valid_and_all_they_say_is_taken(tmp_path: Path, network: str) -> None:
    def apply(values: dict[str, Any]) -> None:
        for name, value in recipe(network):
            section, key = name.split(".")
            assert key in values[section], name
            values[section][key] = YAML(typ="safe").load(value)

    params = load_params(changed(tmp_path, apply))
    assert params.train.backbone == network
    assert Path(params.data_load.source).name == "tiles.zip"
    assert build_backbone(network, params.train.backbone_weights, (32, 32)).name == network
    start = params.pretrain.weights
    assert start == "none" or (ROOT / start).is_file()
    refused = ["make", "real", "DATA=tiles.zip", "NETWORK=vgg", "VENV=no-such", "-o", "setup"]
    answer = subprocess.run(refused, cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 2
    assert "NETWORK is efficientnet_lite0 or slim18" in answer.stderr


def test_an_unknown_key_is_named_with_its_path(tmp_path: Path) -> None:
    path = changed(tmp_path, lambda values: values["train"]["augment"].update(colour=1))
    assert "train.augment.colour" in message(path)


def test_a_missing_key_is_named_with_its_path(tmp_path: Path) -> None:
    path = changed(tmp_path, lambda values: values["data_load"]["synthetic"].pop("seed"))
    assert "data_load.synthetic.seed: Field required" in message(path)


def test_a_missing_section_is_named(tmp_path: Path) -> None:
    assert "validate: Field required" in message(changed(tmp_path, lambda values: values.pop("validate")))


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("train", "epochs", "many"),
        ("train", "epochs", 2.5),
        ("train", "epochs", 0),
        ("train", "backbone", "vgg"),
        ("train", "dice_weight", 1.5),
        ("train", "learning_rate", 0),
        ("train", "learning_rate", -1),
        ("train", "decoder_filters", [8, 8]),
        ("train", "seed", -1),
        ("data_split", "strategy", "mixed"),
        ("data_split", "test_fraction", 1.0),
        ("data_load", "mask_threshold", 255),
        ("data_load", "source", ""),
        ("evaluate", "component_overlap", 0),
        ("export", "name", "a name"),
        ("export", "keep_versions", 0),
        ("validate", "max_probability_difference", 256),
    ],
)
def test_a_wrong_type_or_range_is_named_with_its_path(
    tmp_path: Path, section: str, key: str, value: object
) -> None:
    text = message(changed(tmp_path, lambda values: values[section].update({key: value})))
    assert f"{section}.{key}" in text
    assert "1 mistake" in text or key == "decoder_filters"


@pytest.mark.parametrize("key", ["epochs", "batch_size", "decoder_filters"])
@pytest.mark.parametrize("value", [0, -8])
def test_counts_that_nothing_can_be_built_from_are_refused(tmp_path: Path, key: str, value: int) -> None:
    wrong = [8, 8, value, 8, 8] if key == "decoder_filters" else value
    assert f"train.{key}" in message(changed(tmp_path, lambda values: values["train"].update({key: wrong})))


def test_warmup_batches_of_nothing_are_refused(tmp_path: Path) -> None:
    path = changed(tmp_path, lambda values: values["export"].update(warmup_batches=[1, 0]))
    assert "export.warmup_batches.1" in message(path)


def test_a_side_that_is_no_multiple_of_32_is_refused_with_the_reason(tmp_path: Path) -> None:
    text = message(changed(tmp_path, lambda values: values["train"].update(image_size=[256, 100])))
    assert "train.image_size.1" in text
    assert "multiple of 32" in text


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    def three(values: dict[str, Any]) -> None:
        values["train"]["epochs"] = -1
        values["data_split"]["seed"] = "x"
        values["extra"] = 1

    text = message(changed(tmp_path, three))
    assert "3 mistake(s)" in text
    assert all(name in text for name in ("train.epochs", "data_split.seed", "extra"))


def test_a_missing_file_says_where_to_run(tmp_path: Path) -> None:
    assert "run from the root" in message(tmp_path / "params.yaml")


@pytest.mark.parametrize("text", ["train: [1, 2", "train:\n\t- x", "", "just text"])
def test_what_is_no_parameter_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    assert str(path) in message(path)


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_parameter_is_explained(section: type[BaseModel]) -> None:
    explained = set(re.findall(r"^\s+(\w+): \S", inspect.getdoc(section) or "", flags=re.MULTILINE))
    assert explained == set(section.model_fields)
