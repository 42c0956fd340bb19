"""The image of Dockerfile.serving, built and run: with Docker where it is, and without any engine."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import requests

from serving.client import TileClient
from serving.labels import set_labels
from tests.serving.images import (
    NAME,
    ROOT,
    Buildah,
    Container,
    Docker,
    Engine,
    make_context,
    skip_tfserving,
    why_no_buildah,
    why_not,
)
from tests.serving.tiles import tile

PAGE = {"Origin": "http://page.example"}


@pytest.fixture(scope="module", params=["stand-in", pytest.param("docker", marks=pytest.mark.tfserving)])
def engine(
    request: pytest.FixtureRequest, servable_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Engine:
    folder = tmp_path_factory.mktemp("image")
    if request.param == "docker" and (reason := why_not("docker")):
        skip_tfserving(reason)
    if request.param == "stand-in" and (reason := why_no_buildah(folder)):
        pytest.skip(reason)
    engine: Engine = Docker() if request.param == "docker" else Buildah(folder)
    engine.build(make_context(tmp_path_factory.mktemp("context"), servable_path))
    return engine


@pytest.fixture(scope="module")
def container(engine: Engine) -> Iterator[Container]:
    with engine.run(volumes={}) as container:
        wait_until_healthy(engine, container)
        yield container


def health(engine: Engine, container: Container) -> str:
    """Runs the image's health check; empty if it is healthy, else what it says."""
    kind, *command = engine.config()["Healthcheck"]["Test"]
    assert kind == "CMD"
    done = container.run(*command, container.port)
    return f"exit code {done.returncode}: {done.stdout}{done.stderr}" if done.returncode else ""


def wait_until_healthy(engine: Engine, container: Container) -> None:
    container.wait(lambda: not health(engine, container))


def test_the_client_gets_its_masks_from_the_container(container: Container) -> None:
    gray = tile()
    with TileClient(container.url) as client:
        answer = client.predict(gray)
    expected = np.zeros_like(gray)
    expected[30:50, 20:60] = expected[80:90, 70:80] = 255
    assert answer.label == "defect"
    assert [defect.area for defect in answer.defects] == pytest.approx([800, 100], rel=0.2)
    assert np.mean(answer.mask != expected) < 0.02


def test_it_runs_as_a_user_without_rights(engine: Engine, container: Container) -> None:
    user, group = engine.config()["User"].split(":")
    assert int(user) >= 10_000  # a number, so that Kubernetes can see that it is not root
    assert int(group) >= 10_000
    assert container.run("/bin/bash", "-c", "echo $UID").stdout == f"{user}\n"


@pytest.mark.parametrize("path", ["/", "/config", f"/models/{NAME}", "/usr/local/bin"])
def test_nothing_of_its_root_can_be_written(container: Container, path: str) -> None:
    done = container.run("/bin/bash", "-c", f"echo > {path}/file")
    assert done.returncode != 0
    assert "Read-only file system" in done.stderr


def test_model_and_configuration_are_inside_and_nothing_else_of_the_project(container: Container) -> None:
    listed = container.run("/bin/bash", "-c", f"echo /models/* /config/* /models/{NAME}/*/saved_model.pb")
    config = sorted(f"/config/{path.name}" for path in (ROOT / "serving/config").iterdir())
    *found, model = listed.stdout.split()
    assert found == [f"/models/{NAME}", *config]
    assert re.fullmatch(rf"/models/{NAME}/\d{{14}}/saved_model.pb", model)


def test_the_health_check_tells_the_model_from_a_server_without_it(
    engine: Engine, container: Container
) -> None:
    assert health(engine, container) == ""
    check = engine.config()["Healthcheck"]["Test"][1:]
    without = container.run(*check, container.port, "no-such-model")
    assert without.returncode == 1
    assert "no version of no-such-model is available" in without.stdout
    nobody = container.run(*check, "1")
    assert nobody.returncode == 1
    assert "Connection refused" in nobody.stderr


def test_pages_of_other_origins_may_call_unless_flags_take_that_away(
    engine: Engine, container: Container
) -> None:
    path = f"/v1/models/{NAME}"
    assert requests.get(container.url + path, headers=PAGE, timeout=30).headers[
        "Access-Control-Allow-Origin"
    ] in ("*", PAGE["Origin"])
    with engine.run("--rest_api_timeout_in_ms=20000", volumes={}) as other:
        wait_until_healthy(engine, other)
        answer = requests.get(other.url + path, headers=PAGE, timeout=30)
    assert "Access-Control-Allow-Origin" not in answer.headers


def test_the_image_says_what_it_is(engine: Engine) -> None:
    config = engine.config()
    assert set(config["ExposedPorts"]) == {"8500/tcp", "8501/tcp"}
    labels = config["Labels"]
    assert labels["org.opencontainers.image.title"] == NAME
    assert labels["org.opencontainers.image.base.name"]
    assert labels["org.opencontainers.image.revision"] == "unknown"


def test_metrics_are_where_prometheus_looks(container: Container) -> None:
    with TileClient(container.url) as client:
        client.predict(tile())
    page = requests.get(f"{container.url}/monitoring/prometheus/metrics", timeout=30)
    assert page.status_code == 200
    assert f':tensorflow:serving:request_count{{model_name="{NAME}",status="OK"}}' in page.text
    assert ":tensorflow:serving:batching_session:processed_batch_size_count" in page.text


def test_labels_of_a_mounted_configuration_work_and_move_without_a_restart(
    engine: Engine, servable_path: Path, tmp_path: Path
) -> None:
    config, models = tmp_path / "config", tmp_path / "models" / NAME
    shutil.copytree(ROOT / "serving/config", config)
    (old,) = (int(path.name) for path in servable_path.iterdir())
    for version in (old, old + 1):
        shutil.copytree(servable_path / str(old), models / str(version))
    set_labels(config / "models.config", {"stable": old}, models)
    flags = ["--model_config_file_poll_wait_seconds=1"]
    with engine.run(*flags, volumes={config: "/config", models: f"/models/{NAME}"}) as container:
        wait_until_healthy(engine, container)
        container.wait(lambda: version_of(container, "stable") == old)
        assert version_of(container, "canary") is None
        set_labels(config / "models.config", {"stable": old + 1, "canary": old + 1}, models)
        container.wait(lambda: version_of(container, "stable") == old + 1)
        assert version_of(container, "canary") == old + 1


def version_of(container: Container, label: str) -> int | None:
    answer = requests.get(f"{container.url}/v1/models/{NAME}/labels/{label}/metadata", timeout=30)
    return int(answer.json()["model_spec"]["version"]) if answer.ok else None
