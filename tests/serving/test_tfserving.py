"""The REST tests of the embedded server, run against TensorFlow Serving itself: binary or image."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from serving.up import running_server
from tests.serving import test_local_rest as suite
from tests.serving.images import ROOT, Docker, make_context, skip_tfserving, why_not
from tests.serving.saved_models import save_half

pytestmark = pytest.mark.tfserving

NAME = "half"
# Not every signature of the test model has a batch, as batching wants it.
FLAGS = ["--enable_batching=false", "--batching_parameters_file=", "--rest_api_enable_cors_support=false"]

WHY_NOT = {backend: why_not(backend) for backend in ("binary", "docker")}
BACKENDS = [backend for backend, reason in WHY_NOT.items() if not reason]
if not BACKENDS:
    skip_tfserving(" and ".join(WHY_NOT.values()))

# All tests there that ask a running server; here they get the `url` below.
globals().update(
    {
        name: test
        for name, test in vars(suite).items()
        if name.startswith("test_") and "url" in inspect.signature(test).parameters
    }
)


@pytest.fixture(scope="module")
def base_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_half(tmp_path_factory.mktemp("tfserving") / NAME / "123").parent


@pytest.fixture(scope="module", params=BACKENDS)
def url(
    request: pytest.FixtureRequest,
    base_path: Path,
    servable_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    if request.param == "binary":
        with running_server(base_path, NAME, backend="binary") as server:
            yield f"{server}/v1/models/{NAME}"
        return
    image = Docker()
    image.build(make_context(tmp_path_factory.mktemp("context"), servable_path))
    config = _config(tmp_path_factory.mktemp("half"))
    volumes = {config: "/config", base_path: f"/models/{NAME}"}
    with image.run(*FLAGS, volumes=volumes) as container:
        container.wait(lambda: requests.get(f"{container.url}/v1/models/{NAME}", timeout=5).ok)
        yield f"{container.url}/v1/models/{NAME}"


def _config(folder: Path) -> Path:
    """The project's configuration, for the test model."""
    config = shutil.copytree(ROOT / "serving/config", folder / "config")
    message = text_format.Parse(
        (config / "models.config").read_text(), model_server_config_pb2.ModelServerConfig()
    )
    (model,) = message.model_config_list.config
    model.name, model.base_path = NAME, f"/models/{NAME}"
    (config / "models.config").write_text(text_format.MessageToString(message))
    return config


def test_the_suite_is_not_empty() -> None:
    assert sum(name.startswith("test_") for name in globals()) > 20
