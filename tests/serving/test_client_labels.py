"""The client asks for a version by its label, and follows the label when it moves."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from serving.client import AsyncTileClient, TileClient, watch
from serving.client.cli import main
from serving.client.doctor import examine
from serving.client.job import Job
from serving.client.results import Results
from serving.errors import ModelNotFound
from serving.labels import set_labels
from serving.up import running_server
from tests.conftest import MODEL_NAME
from tests.serving.test_client_watch import numbered, wait_until
from tests.serving.tiles import encoded, tile

pytest.importorskip("httpx", reason="the extra `async` is not installed")
pytest.importorskip("grpc", reason="the extra `grpc` is not installed")


@dataclass
class Server:
    """A server of two versions of which the older one is `stable`.

    Attributes:
        url: of the server.
        old: the older version.
        new: the newer one, which calls without version and label get.
    """

    url: str
    old: int
    new: int
    config: Path
    base_path: Path

    def label(self, **versions: int | None) -> None:
        """Sets and removes labels, and waits until the server has read them."""
        set_labels(self.config, versions, self.base_path)
        for label, version in versions.items():
            wait_until(lambda label=label, version=version: self.version_of(label) == version)

    def version_of(self, label: str) -> int | None:
        try:
            return TileClient(self.url, label=label).current_version()
        except ModelNotFound:
            return None


@pytest.fixture(scope="module")
def running(servable_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base_path, config = tmp_path_factory.mktemp("labels") / MODEL_NAME, tmp_path_factory.mktemp("config")
    [folder] = servable_path.iterdir()
    old = int(folder.name)
    for version in (old, old + 1):
        shutil.copytree(folder, base_path / str(version))
    file = config / "models.config"
    file.write_text(
        f'model_config_list {{ config {{ name: "{MODEL_NAME}" base_path: "{base_path}" '
        'model_platform: "tensorflow" model_version_policy { all {} } } }'
    )
    flags = [f"--model_config_file={file}", "--model_config_file_poll_wait_seconds=0.05"]
    with running_server(base_path, MODEL_NAME, flags=flags) as url:
        wait_until(lambda: all(one.state == "AVAILABLE" for one in TileClient(url).status()))
        yield Server(url, old, old + 1, file, base_path)


@pytest.fixture
def server(running: Server) -> Server:
    running.label(stable=running.old, canary=None)
    return running


def test_a_label_names_a_version_that_need_not_be_the_latest(server: Server) -> None:
    with TileClient(server.url) as client, TileClient(server.url, label="stable") as stable:
        assert (client.current_version(), stable.current_version()) == (server.new, server.old)
        assert stable.predict(tile()).label == "defect"
        assert stable.using(signature="serving_default").predict(tile()).label == "defect"
        assert stable.model_info() == client.model_info()
        assert set(stable.signatures()) == set(client.signatures())
        assert [one.version for one in stable.status()] == [server.new, server.old]


def test_a_label_is_followed_when_it_moves(server: Server) -> None:
    with TileClient(server.url, label="stable") as client:
        assert client.current_version() == server.old
        server.label(stable=server.new)
        assert client.current_version() == server.new


def test_async_takes_a_label_too(server: Server) -> None:
    async def ask() -> int:
        async with AsyncTileClient(server.url, label="stable") as client:
            assert (await client.predict(tile())).label == "defect"
            return await client.current_version()

    assert asyncio.run(ask()) == server.old


def test_grpc_takes_a_label_too(servable_path: Path) -> None:
    from tests.serving.grpc_server import grpc_server

    [folder] = servable_path.iterdir()
    with (
        grpc_server(MODEL_NAME, folder) as (url, services),
        TileClient(url, label="stable") as client,
    ):
        services.labels = {"stable": services.version}
        assert client.current_version() == client.predict(tile()).version == services.version
        services.labels = {"stable": 7}  # which is not there
        with pytest.raises(ModelNotFound, match="no version labelled 'stable' ready; it has: 2"):
            client.predict(tile())


def test_a_version_takes_the_place_of_a_label_and_the_other_way_round() -> None:
    with TileClient(label="stable") as client:
        assert (client.using(threshold=0.9).version, client.using(threshold=0.9).label) == (None, "stable")
        assert (client.using(version=7).version, client.using(version=7).label) == (7, None)
        assert client.using(version=7).using(label="canary").label == "canary"
        assert client.using(version=7).using(label="canary").version is None
        assert client.using(version=None).label is None


@pytest.mark.parametrize("client", [TileClient, AsyncTileClient])
def test_a_version_and_a_label_at_once_are_refused(client: type[TileClient] | type[AsyncTileClient]) -> None:
    with pytest.raises(ValueError, match=r"a version or a label, not both.*version 7, label 'stable'"):
        client(version=7, label="stable")


@pytest.mark.parametrize("label", ["", "..", "a/b", "stable:predict"])
def test_what_can_be_no_label_is_refused(label: str) -> None:
    with pytest.raises(ValueError, match="label must be letters, digits, - and _"):
        TileClient(label=label)


def test_predict_says_which_version_had_the_label(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def versions(*options: str) -> list[int]:
        assert main(["predict", str(path), "--json", "--url", server.url, *options]) == 3
        return [json.loads(line)["version"] for line in capsys.readouterr().out.splitlines()]

    path = tmp_path / "tile.png"
    path.write_bytes(encoded(tile()))
    assert versions() == [server.new]
    assert versions("--model-label", "stable") == [server.old]
    assert versions("--model-version", str(server.old)) == [server.old]


def test_a_label_that_moves_has_what_is_done_done_again(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "tile.png", tmp_path / "out"
    path.write_bytes(encoded(tile()))
    arguments = ["predict", str(path), "--out", str(out), "--url", server.url, "--model-label", "stable"]
    for version, is_done in ((server.old, False), (server.old, True), (server.new, False)):
        server.label(stable=version)
        assert main(arguments) == 3
        assert ("done by an earlier run" in capsys.readouterr().out) is is_done
        assert json.loads((out / "results.jsonl").read_text())["version"] == version


def test_a_watch_follows_the_label_and_waits_while_it_is_gone(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, stop, found = tmp_path / "in", threading.Event(), []
    folder.mkdir()
    (folder / "0.png").write_bytes(numbered(0))

    def point_again() -> None:
        wait_until(lambda: "no version labelled 'stable' ready" in caplog.text)
        server.label(stable=server.old)

    again = threading.Thread(target=point_again)
    with Results(tmp_path / "out") as results, TileClient(server.url, label="stable") as client:
        for outcome in watch.follow(folder, Job(client, results), results, stop):
            found.append(outcome.facts["version"])
            if len(found) == 1:
                server.label(stable=server.new)
            elif len(found) == 2:
                server.label(stable=None)
                again.start()
            else:
                stop.set()
            (folder / f"{len(found)}.png").write_bytes(numbered(len(found)))
    again.join()
    assert found == [server.old, server.new, server.old]


def test_status_shows_the_version_that_is_named_alone(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    def shown(*options: str) -> tuple[int, str]:
        code = main(["status", "--url", server.url, *options])
        return code, capsys.readouterr().out.split("\n", 1)[1]

    old, new = (f"  {version}  AVAILABLE\n" for version in (server.old, server.new))
    assert shown() == (0, new + old)
    assert shown("--model-version", str(server.old)) == (0, old)
    assert shown("--model-label", "stable") == (0, old)
    missing = f"  7  UNKNOWN  there: {server.new}, {server.old}\n"
    assert shown("--model-version", "7") == (1, missing)


def test_status_of_a_label_that_is_not_there_is_an_error(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", "--url", server.url, "--model-label", "canary"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert f"no version labelled 'canary' ready; it has: {server.new} (AVAILABLE), {server.old}" in line


def test_doctor_says_where_the_label_points(server: Server) -> None:
    checks = list(examine(TileClient(server.url, label="stable")))
    assert [check.text for check in checks if check.state == "failed"] == []
    assert f"label stable points at version {server.old}" in [check.text for check in checks]


def test_doctor_stops_at_a_label_that_the_server_does_not_have(server: Server) -> None:
    last = list(examine(TileClient(server.url, label="canary")))[-1]
    assert last.state == "failed"
    assert "no version labelled 'canary' ready" in last.text
    assert "python -m serving.labels canary=VERSION" in last.mend
