"""Labels of versions: read from and written to models.config."""

from __future__ import annotations

import os
import shutil
import stat
import threading
from pathlib import Path

import pytest
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from serving.errors import ConfigError
from serving.labels import main, read_labels, set_labels
from tests.serving.forbidden import closed

ROOT = Path(__file__).parents[2]
STABLE, CANARY = 20261124080000, 20261125080000


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return Path(shutil.copy(ROOT / "serving/config/models.config", tmp_path / "models.config"))


@pytest.fixture
def base_path(tmp_path: Path) -> Path:
    for version in (STABLE, CANARY):
        folder = tmp_path / "magnetic-tiles" / str(version)
        folder.mkdir(parents=True)
        (folder / "saved_model.pb").touch()
    (tmp_path / "magnetic-tiles" / "20261126080000").mkdir()  # half copied: no model in it yet
    return tmp_path / "magnetic-tiles"


def parsed(config: Path) -> model_server_config_pb2.ModelServerConfig:
    return text_format.Parse(config.read_text(), model_server_config_pb2.ModelServerConfig())


def test_labels_are_set_moved_and_removed_each_on_its_own(config: Path, base_path: Path) -> None:
    assert read_labels(config) == {}
    assert set_labels(config, {"stable": STABLE}, base_path) == {"stable": STABLE}
    assert set_labels(config, {"canary": CANARY}, base_path) == {"canary": CANARY, "stable": STABLE}
    assert set_labels(config, {"stable": CANARY, "canary": None}, base_path) == {"stable": CANARY}
    assert read_labels(config) == {"stable": CANARY}
    assert set_labels(config, {"stable": None, "never-set": None}, base_path) == {}


def test_the_server_gets_labels_and_all_else_as_it_was(config: Path, base_path: Path) -> None:
    before = parsed(config)
    set_labels(config, {"stable": STABLE}, base_path)
    after = parsed(config)
    (model,) = after.model_config_list.config
    assert dict(model.version_labels) == {"stable": STABLE}
    model.ClearField("version_labels")
    assert after == before


def test_removing_all_labels_gives_back_the_file_as_it_was_comments_included(
    config: Path, base_path: Path
) -> None:
    before = config.read_bytes()
    set_labels(config, {"stable": STABLE}, base_path)
    assert config.read_text().startswith("# Which models are served")
    set_labels(config, {"stable": None}, base_path)
    assert config.read_bytes() == before


def test_other_models_keep_their_labels(config: Path, base_path: Path) -> None:
    message = parsed(config)
    other = message.model_config_list.config.add(name="other", base_path="/models/other")
    other.version_labels["stable"] = 7
    config.write_text(text_format.MessageToString(message))
    set_labels(config, {"stable": STABLE}, base_path)
    assert read_labels(config, "other") == {"stable": 7}


@pytest.mark.parametrize("version", [7, 20261126080000])
def test_a_version_that_is_not_there_is_refused_and_the_file_left_alone(
    config: Path, base_path: Path, version: int
) -> None:
    before = config.read_bytes()
    with pytest.raises(ConfigError, match=f"no version {version} in .*; there: {STABLE}, {CANARY};"):
        set_labels(config, {"stable": STABLE, "canary": version}, base_path)
    assert config.read_bytes() == before


def test_mistakes_in_the_file_are_named(config: Path, base_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no model 'tiles' in .*models\.config; there: magnetic-tiles"):
        read_labels(config, "tiles")
    with pytest.raises(ConfigError, match=r"can't read .*missing\.config: No such file"):
        read_labels(tmp_path / "missing.config")
    with pytest.raises(ConfigError, match="'a/b' can't be a label"):
        set_labels(config, {"a/b": STABLE}, base_path)
    config.write_text("model_config_list { conf {} }")
    with pytest.raises(ConfigError, match=r"no ModelServerConfig: 1:21.*conf"):
        read_labels(config)


def test_a_reader_never_sees_half_a_file(config: Path, base_path: Path) -> None:
    done = threading.Event()
    seen: list[dict[str, int]] = []

    def read() -> None:
        while not done.is_set():
            seen.append(read_labels(config))

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(50):
        set_labels(config, {"stable": STABLE}, base_path)
        set_labels(config, {"stable": CANARY}, base_path)
    done.set()
    reader.join()
    assert seen
    assert all(labels in ({}, {"stable": STABLE}, {"stable": CANARY}) for labels in seen)
    assert [path.name for path in config.parent.glob("*config*")] == ["models.config"]


def test_changes_at_the_same_time_are_all_kept(config: Path, base_path: Path) -> None:
    def change(label: str) -> None:
        set_labels(config, {label: STABLE}, base_path)

    for _ in range(20):
        set_labels(config, {"one": None, "two": None}, base_path)
        threads = [threading.Thread(target=change, args=(label,)) for label in ("one", "two")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert read_labels(config) == {"one": STABLE, "two": STABLE}


def test_the_servers_user_can_read_what_was_written(config: Path, base_path: Path) -> None:
    config.chmod(0o644)
    set_labels(config, {"stable": STABLE}, base_path)
    assert stat.S_IMODE(config.stat().st_mode) == 0o644


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_the_servers_user_can_read_what_root_wrote_where_others_cannot(config: Path, base_path: Path) -> None:
    config.chmod(0o640)
    os.chown(config, 1234, 5678)
    set_labels(config, {"stable": STABLE}, base_path)
    status = config.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o640, 1234, 5678)


def test_the_command_sets_and_prints(
    config: Path, base_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = [f"--config={config}", f"--model_base_path={base_path}"]
    assert main([f"stable={STABLE}", f"canary={CANARY}", *where]) == 0
    assert main(["canary=", *where]) == 0
    capsys.readouterr()
    assert main(where) == 0
    assert capsys.readouterr().out == f"stable {STABLE}\n"
    assert main(["canary=1", *where]) == 1
    assert capsys.readouterr().err.startswith("error: no version 1 in ")


def test_a_folder_that_may_not_be_looked_at_is_one_line(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "closed"
    with closed(folder):
        assert main([f"stable={STABLE}", f"--config={config}", f"--model_base_path={folder}/models"]) == 1
    assert capsys.readouterr().err == f"error: [Errno 13] Permission denied: '{folder}/models'\n"


@pytest.mark.parametrize("argument", ["stable", "stable=newest", "stable=-1"])
def test_the_command_refuses_what_is_no_change(
    config: Path, argument: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main([argument, f"--config={config}"])
    assert exit_info.value.code == 2
    assert f"{argument!r} is not LABEL=VERSION" in capsys.readouterr().err
