"""Several models and versions, labels, and the file that names them, of the embedded server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import requests

from serving.errors import ConfigError
from serving.local.config import ModelConfig, read_models
from serving.local.models import Models
from serving.local.status import RequestError
from serving.local.versions import Loading
from serving.up import running_server
from tests.serving.saved_models import save_half
from tests.serving.test_local_versions import wait_until

ROOT = Path(__file__).parents[2]
NAME = "half"


def config_of(base_path: Path, more: str = "", name: str = NAME) -> str:
    return f'config {{ name: "{name}" base_path: "{base_path}" model_platform: "tensorflow" {more} }}'


def write(file: Path, *configs: str) -> Path:
    draft = file.with_suffix(".draft")
    draft.write_text(f"model_config_list {{ {' '.join(configs)} }}")
    draft.rename(file)  # a reader never sees half of it
    return file


def labels(**versions: int) -> str:
    return " ".join(
        f'version_labels {{ key: "{label}" value: {version} }}' for label, version in versions.items()
    )


ALL = "model_version_policy { all {} } "


@pytest.fixture(scope="module")
def base_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Versions 1, 2 and 3, whose offset is their number."""
    path = tmp_path_factory.mktemp("models") / NAME
    for number in (1, 2, 3):
        save_half(path / str(number), offset=float(number))
    return path


def predict(server: str, path: str) -> float | str:
    """The offset of the version that answers; else the error."""
    answer = requests.post(f"{server}/v1/models/{path}:predict", json={"instances": [0]}, timeout=30).json()
    return float(answer["predictions"][0]) if "predictions" in answer else str(answer["error"])


def test_models_versions_and_labels_are_those_of_the_file_also_when_it_changes(
    base_path: Path, tmp_path: Path
) -> None:
    file = write(tmp_path / "models.config", config_of(base_path, ALL + labels(stable=1)))
    flags = [
        f"--model_config_file={file}",
        "--model_config_file_poll_wait_seconds=0.1",
        "--allow_version_labels_for_unavailable_models=true",
    ]
    with running_server(tmp_path, NAME, flags=flags) as server:
        wait_until(lambda: predict(server, f"{NAME}/versions/1") == 1.0)
        assert predict(server, NAME) == 3.0
        assert predict(server, f"{NAME}/labels/stable") == 1.0
        assert predict(server, f"{NAME}/labels/%73table") == 1.0
        assert predict(server, f"{NAME}/labels/canary") == "Unrecognized servable version label: canary"
        assert predict(server, "other/labels/stable") == "Unrecognized servable version label: stable"
        unknown = requests.get(f"{server}/v1/models/{NAME}/labels/canary/metadata", timeout=30)
        assert unknown.status_code == 400
        metadata = requests.get(f"{server}/v1/models/{NAME}/labels/stable/metadata", timeout=30).json()
        assert metadata["model_spec"] == {"name": NAME, "signature_name": "", "version": "1"}
        # TensorFlow Serving doesn't look at the label here.
        status = requests.get(f"{server}/v1/models/{NAME}/labels/stable", timeout=30).json()
        assert [one["version"] for one in status["model_version_status"]] == ["3", "2", "1"]

        write(file, config_of(base_path, ALL + labels(stable=2, canary=3)), config_of(base_path, name="two"))
        wait_until(lambda: predict(server, "two") == 3.0)
        assert predict(server, f"{NAME}/labels/stable") == 2.0
        assert predict(server, f"{NAME}/labels/canary") == 3.0
        assert predict(server, "two/versions/1") == "Servable not found for request: Specific(two, 1)"

        write(file, config_of(base_path, name="two"))
        wait_until(lambda: predict(server, NAME) == f"Servable not found for request: Latest({NAME})")
        assert predict(server, f"{NAME}/labels/stable") == "Unrecognized servable version label: stable"
        assert predict(server, "two") == 3.0


@pytest.fixture
def make_models() -> Iterator[Callable[..., Models]]:
    made = []

    def make(*, labels_for_unavailable: bool = False) -> Models:
        made.append(Models(Loading(poll_seconds=0.05), labels_for_unavailable=labels_for_unavailable))
        return made[-1]

    yield make
    for models in made:
        models.stop()


def states(models: Models, name: str = NAME) -> dict[str, str]:
    try:
        return {str(one["version"]): str(one["state"]) for one in models.status(name)}
    except RequestError:
        return {}


def offset(models: Models, **choice: object) -> float:
    with models.lease(NAME, **choice) as (_, model):  # type: ignore[arg-type]
        return float(model.predict("", {"x": np.zeros(1, np.float32)})["y"][0])


@pytest.mark.parametrize(
    ("policy", "served"),
    [
        ("", {"3"}),
        ("latest {}", {"3"}),
        ("latest { num_versions: 2 }", {"2", "3"}),
        ("all {}", {"1", "2", "3"}),
        ("specific { versions: 1 versions: 3 }", {"1", "3"}),
    ],
)
def test_the_policy_says_which_versions_are_served(
    base_path: Path, tmp_path: Path, make_models: Callable[..., Models], policy: str, served: set[str]
) -> None:
    models = make_models()
    file = write(tmp_path / "m.config", config_of(base_path, f"model_version_policy {{ {policy} }}"))
    models.apply(read_models(file))
    wait_until(lambda: states(models) == dict.fromkeys(served, "AVAILABLE"))
    assert offset(models) == 3.0


def test_a_change_of_policy_loads_what_is_new_before_it_unloads_what_is_old(
    base_path: Path, make_models: Callable[..., Models]
) -> None:
    models = make_models()
    models.apply([ModelConfig(NAME, base_path)])
    models.wait()
    models.apply([ModelConfig(NAME, base_path, newest=None, only=frozenset({1}))])
    always_served = []

    def is_done() -> bool:
        now = states(models)
        always_served.append("AVAILABLE" in now.values())
        return now == {"1": "AVAILABLE", "3": "END"}

    wait_until(is_done)
    assert all(always_served)
    assert offset(models) == 1.0


def test_a_version_that_the_policy_names_but_the_folder_lacks_is_told(
    base_path: Path, make_models: Callable[..., Models], caplog: pytest.LogCaptureFixture
) -> None:
    models = make_models()
    models.apply([ModelConfig(NAME, base_path, newest=None, only=frozenset({2, 7}))])
    models.wait()
    assert caplog.text.count(f"Version 7 of servable {NAME}, which was requested to be served") == 1
    assert states(models) == {"2": "AVAILABLE"}


def test_a_label_may_name_only_an_available_version(
    base_path: Path, make_models: Callable[..., Models]
) -> None:
    models = make_models()
    text = f"Request to assign label to version 3 of model {NAME}, which is not currently available"
    with pytest.raises(ConfigError, match=text):
        models.apply([ModelConfig(NAME, base_path, labels={"stable": 3})])
    assert NAME not in models
    models.apply([ModelConfig(NAME, base_path)])
    models.wait()
    models.apply([ModelConfig(NAME, base_path, labels={"stable": 3})])
    assert offset(models, label="stable") == 3.0


def test_with_the_flag_a_new_label_may_wait_for_its_version_but_not_one_that_moves(
    base_path: Path, make_models: Callable[..., Models]
) -> None:
    models = make_models(labels_for_unavailable=True)
    models.apply([ModelConfig(NAME, base_path, labels={"stable": 3, "canary": 2})])
    models.wait()
    assert offset(models, label="stable") == 3.0
    with pytest.raises(RequestError, match=r"Servable not found for request: Specific\(half, 2\)"):
        offset(models, label="canary")
    with pytest.raises(ConfigError, match="assign label to version 1"):
        models.apply([ModelConfig(NAME, base_path, newest=None, labels={"stable": 1})])
    assert offset(models, label="stable") == 3.0
    assert states(models) == {"3": "AVAILABLE"}, "a file that is refused is refused whole"


def test_a_refused_file_is_told_once_and_taken_when_it_is_mended(
    base_path: Path, tmp_path: Path, make_models: Callable[..., Models], caplog: pytest.LogCaptureFixture
) -> None:
    file = write(tmp_path / "m.config", config_of(base_path))
    models = make_models()
    models.apply(read_models(file))
    models.wait()
    models.follow(file, 0.02)
    for mistake in ("model_config_list { conf {} }", ""):
        file.write_text(mistake)
        said = f"{file} is refused, what was served before goes on"
        wait_until(lambda: said in caplog.text)  # noqa: B023
        assert offset(models) == 3.0
        write(file, config_of(base_path, ALL))
        wait_until(lambda: set(states(models)) == {"1", "2", "3"})
        assert caplog.text.count(said) == 1
        caplog.clear()


def test_an_empty_file_serves_nothing_until_it_names_a_model(
    base_path: Path, tmp_path: Path, make_models: Callable[..., Models]
) -> None:
    file = tmp_path / "m.config"
    file.write_text("# nothing yet\n")
    models = make_models()
    models.apply(read_models(file))
    models.wait()
    models.follow(file, 0.02)
    assert NAME not in models
    write(file, config_of(base_path))
    wait_until(lambda: states(models) == {"3": "AVAILABLE"})


def test_a_model_that_is_taken_out_is_unloaded_and_can_come_back(
    base_path: Path, make_models: Callable[..., Models]
) -> None:
    models = make_models()
    models.apply([ModelConfig(NAME, base_path)])
    models.wait()
    models.apply([])
    wait_until(lambda: states(models) == {"3": "END"})
    with pytest.raises(RequestError, match=r"Latest\(half\)"):
        offset(models)
    models.apply([ModelConfig(NAME, base_path)])
    wait_until(lambda: states(models) == {"3": "AVAILABLE"})
    assert offset(models) == 3.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model_config_list { config { nam: 'x' } }", r"m\.config is no ModelServerConfig: 1:30"),
        ("custom_model_config {}", "ModelServer does not yet support custom model config"),
        (
            f"model_config_list {{ {config_of(Path('/m'))} {config_of(Path('/m'))} }}",
            "Illegal to list model half multiple times in config list",
        ),
        (
            f"model_config_list {{ {config_of(Path('m'))} }}",
            r"Expected model half to have an absolute path or URI; got base_path\(\)=m",
        ),
        (
            "model_config_list { config { name: 'm' base_path: '/m' } }",
            "Illegal setting neither ModelServerConfig::model_type",
        ),
        (
            "model_config_list { config { name: 'm' base_path: '/m' model_platform: 'onnx' } }",
            "Model m requests unsupported platform onnx",
        ),
    ],
)
def test_mistakes_in_the_file_are_named_as_tensorflow_serving_does(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "m.config").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_models(tmp_path / "m.config")
    with pytest.raises(ConfigError, match=r"can't read .*none\.config: No such file"):
        read_models(tmp_path / "none.config")


def test_the_projects_file_is_understood() -> None:
    name = "magnetic-tiles"
    assert read_models(ROOT / "serving/config/models.config") == [
        ModelConfig(name, Path("/models", name), newest=None)
    ]


def start(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "serving.local", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)


def test_a_start_with_a_refused_file_is_one_clear_line(base_path: Path, tmp_path: Path) -> None:
    done = start(
        f"--model_config_file={write(tmp_path / 'm.config', config_of(base_path, labels(stable=3)))}"
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert f"can't start: Request to assign label to version 3 of model {NAME}" in line
    done = start(f"--model_config_file={write(tmp_path / 'm.config', config_of(tmp_path / 'none'))}")
    assert f"could not find base path {tmp_path / 'none'} for model {NAME}" in done.stderr


def test_a_start_without_a_model_is_refused() -> None:
    done = start("--rest_api_port=8501")
    assert done.returncode == 2
    assert "one of --model_base_path and --model_config_file is needed" in done.stderr
