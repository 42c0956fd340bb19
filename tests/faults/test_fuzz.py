"""The REST API as serving/openapi.yaml describes it, and a server that gets what no sound client sends.

`make fuzz` does the same for longer, with a model of one's own.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import validate
from ruamel.yaml import YAML

from scripts.fuzz import DESCRIPTION, Fuzzing, fuzzing, main
from scripts.memory import Memory
from scripts.mutations import bombs, mutate, originals
from serving.errors import ImageError
from serving.preprocessing import open_image
from tests.conftest import MODEL_NAME

MB = 2**20


@pytest.fixture(scope="module")
def description() -> dict[str, Any]:
    document: dict[str, Any] = YAML(typ="safe").load(DESCRIPTION)
    return document


@pytest.fixture(scope="module")
def server(server_url: str) -> Iterator[Fuzzing]:
    with fuzzing(server_url, seed=1, timeout=60) as one:
        yield one
    assert one.faults == []


# The description


def test_the_description_is_valid_openapi(description: dict[str, Any]) -> None:
    validate(description)


@pytest.mark.parametrize(
    "body",
    [
        {"signature_name": "segment", "instances": [{"b64": "/9j/"}]},
        {"signature_name": "segment", "inputs": [{"b64": "/9j/"}]},
        {"signature_name": "model_info", "instances": [""]},
        {"instances": np.zeros((1, 64, 64, 1)).tolist()},
        {"inputs": np.zeros((1, 64, 64, 1)).tolist()},
    ],
    ids=["rows", "columns", "info", "tensor", "tensor in columns"],
)
def test_what_it_allows_is_answered_as_it_says(
    description: dict[str, Any], server_url: str, body: dict[str, Any]
) -> None:
    def check(name: str, document: object) -> None:
        OAS31Validator({"$ref": f"#/components/schemas/{name}", **description}).validate(document)

    check("Request", body)
    tile = {"b64": base64.b64encode(originals()[0]).decode()}
    body = {key: [tile] if value == [{"b64": "/9j/"}] else value for key, value in body.items()}
    answer = requests.post(f"{server_url}/v1/models/{MODEL_NAME}:predict", json=body, timeout=60)
    assert answer.status_code == 200
    check("Predictions", answer.json())


# What is sent


def test_originals_are_sound_and_mutations_follow_their_seed() -> None:
    assert all(open_image(data).size == (50, 60) for data in originals())
    files = originals()
    for seed in range(20):
        data = mutate(files, np.random.default_rng(seed))
        assert data == mutate(files, np.random.default_rng(seed))
        assert data not in files


@pytest.mark.parametrize("kind", ["png", "png wide", "jpeg", "bmp", "gif", "tiff"])
def test_bombs_are_small_and_refused_by_the_client_from_their_headers(kind: str) -> None:
    data = bombs()[kind]
    assert len(data) < MB
    memory = Memory()
    memory.look()
    before = memory.peak
    with pytest.raises(ImageError, match="is over the limit of 64 megapixels"):
        open_image(data)
    memory.look()
    assert memory.peak - before < 50


def test_requests_made_from_the_description_are_answered_as_it_says(server: Fuzzing) -> None:
    server.api(150)
    assert server.faults == []
    assert server.answers["200"] > 10
    assert server.answers["400"] > 10


def test_damaged_bodies_are_refused_with_a_reason(server: Fuzzing) -> None:
    server.bodies(300)
    assert server.faults == []


@pytest.mark.filterwarnings("ignore")
def test_damaged_images_are_refused_or_answered_at_their_size(server: Fuzzing) -> None:
    server.images(150)
    assert server.faults == []
    assert server.answers["ImageError"] > 20
    assert server.answers["predicted"] > 20


# The command


def test_the_command_reports_what_it_sent_and_found(
    servable_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = ["--api=5", "--bodies=10", "--images=5", "--max_growth=-1000"]
    assert main([f"--model_base_path={servable_path}", *limits]) == 1
    said = capsys.readouterr()
    assert "fault: the memory of the server has grown" in said.err
    assert said.out.endswith("2 faults\n")
