"""The commands behind the figures of docs/performance.md, each on the least there is to measure."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest

from benchmarks import batch, end_to_end, models, networks, pipeline, runtimes
from benchmarks.in_process import InProcess
from benchmarks.models import NAME, multiply_adds, spread
from benchmarks.timing import core_count
from stages.export import latest_version
from stages.params import TrainParams, load_params
from stages.tiles import Tile, write_tiles


@pytest.fixture
def small_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A network of one convolution, as a file."""
    import keras

    keras.utils.set_random_seed(0)
    images = keras.Input((32, 32, 1))
    path = tmp_path / "small.keras"
    keras.Model(images, keras.layers.Conv2D(1, 3, padding="same", activation="sigmoid")(images)).save(path)
    return path


def test_runtimes_give_the_same_answers(small_network: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert runtimes.main(["--model", str(small_network), "--batch_sizes", "2", "--rounds", "1"]) == 0

    lines = capsys.readouterr().out.splitlines()
    differences = {line[:20].strip(): float(line.split()[-1]) for line in lines[2:]}
    assert differences.keys() == {
        "SavedModel",
        "SavedModel, bfloat16",
        "naive export",
        "ONNX Runtime",
        "ONNX Runtime, 1 by 1",
        "OpenVINO",
        "OpenVINO, 1 by 1",
    }
    half = differences.pop("SavedModel, bfloat16")
    assert max(differences.values()) < 1e-5
    assert half < 0.2, "grey levels that are not standardized make large logits"


def test_each_way_to_a_server_is_measured(servable_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ways = ["segment, bfloat16", "gRPC", "original design"]
    arguments = ["--model_base_path", str(servable_path), "--concurrency", "2", "--requests", "6", "--ways"]
    assert end_to_end.main([*arguments, *ways]) == 0

    out = capsys.readouterr().out
    for way in ways:
        [wire, load, compared] = re.findall(rf"^{way}  +(.*)$", out, re.MULTILINE)
        sent, received = map(float, wire.split())
        assert sent > 10, "a tile is more than 10 kB"
        assert received > 0
        assert float(load.split()[0]) > 0
        assert re.match(r"\d+% of the throughput of the network alone", compared)
    for name in ("network alone", "levels to defects"):
        assert float(re.findall(rf"^{name} +([\d.]+)", out, re.MULTILINE)[0]) > 0
    [first_written] = re.findall(r"RGB, all digits +([\d.]+)", out)
    assert float(first_written) > 32 * 32 * 3 * 5 / 1000


def test_clients_ask_again_and_again_in_each_round() -> None:
    batches: list[int] = []

    def run(_: Executor, tiles: list[bytes]) -> list[float]:
        batches.append(len(tiles))
        return [1.0] * len(tiles)

    end_to_end._load({"way": end_to_end.Way(run)}, [b"tile"], 32, 66)
    assert batches[1:] == [96, 96, 96], "after a warm-up"


def test_tiles_are_spread_over_all_classes() -> None:
    assert spread(range(1344), 600)[-1] >= 1340
    assert spread(range(10), 4) == [0, 2, 5, 7]
    assert spread(range(3), 600) == [0, 1, 2]


def test_the_step_of_training_is_measured_with_tiles_of_all_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = tmp_path / "data/split"
    split.mkdir(parents=True)
    names = [f"{class_}/exp1_num_{number}" for class_ in ("Blowhole", "Free") for number in range(300)]
    kinds = [name.partition("/")[0] for name in names]
    write_tiles(
        split / "train.csv",
        [
            Tile(name, name, kind, 1, 1, name, 9, 9, 0, "", "")
            for name, kind in zip(names, kinds, strict=True)
        ],
    )

    class Asked(Exception):
        pass

    def load_examples(_: Path, tiles: list[Tile], __: object) -> None:
        raise Asked({tile.class_ for tile in tiles})

    monkeypatch.setattr("stages.dataset.load_examples", load_examples)
    with pytest.raises(Asked, match="Free"):
        pipeline._print_step(tmp_path, 1)


def test_without_a_model_the_network_of_the_parameters_is_measured(
    small_network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import keras

    built = []

    def build_unet(params: TrainParams) -> Any:
        built.append(params)
        return keras.models.load_model(small_network)

    monkeypatch.setattr("stages.model.build_unet", build_unet)
    models._export(tmp_path / NAME)
    assert built == [load_params().train.model_copy(update={"backbone_weights": "none"})]


@pytest.mark.parametrize(
    ("command", "arguments", "says"),
    [
        (batch, "--model_base_path nowhere", "no version of a model below nowhere"),
        (batch, "--images nowhere", "no JPEG file"),
        (batch, "--tiles 8", "--tiles must be at least 16"),
        (end_to_end, "--tiles nowhere", "no JPEG file"),
        (networks, "--sizes 100", "image_size.0: Value error, must be a multiple of 32"),
        (networks, "--decoders 8,8", "decoder_filters.2: Field required"),
        (pipeline, "--archive nowhere.zip", "no nowhere.zip"),
        (runtimes, "--model nowhere.keras", "no nowhere.keras"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    command: ModuleType, arguments: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        command.main(arguments.split())
    assert says in capsys.readouterr().err


def test_a_shutdown_after_the_last_tile_is_no_time_of_scoring(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def tiles() -> Iterator[int]:
        for _ in range(4):
            clock[0] += 1
            yield 1
        clock[0] += 100

    monkeypatch.setattr(batch.time, "perf_counter", lambda: clock[0])
    start, rate, _ = batch._measure(tiles(), 4)
    assert (start, rate) == (1, 1)


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="needs Linux and a core for the client beside one for the server",
)
def test_the_client_may_have_a_core_of_its_own(
    servable_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cores = os.sched_getaffinity(0)
    served, networks = [], []
    real = end_to_end.embedded, InProcess.network

    @contextlib.contextmanager
    def embedded(base_path: Path, *flags: str) -> Iterator[tuple[int, psutil.Process]]:
        with real[0](base_path, *flags) as (port, process):
            served.append(set(process.cpu_affinity()))
            yield port, process

    def network(self: InProcess, tiles: list[bytes], batch_size: int) -> list[float]:
        networks.append(os.sched_getaffinity(0))
        return real[1](self, tiles, batch_size)

    monkeypatch.setattr(end_to_end, "embedded", embedded)
    monkeypatch.setattr(InProcess, "network", network)
    arguments = ["--model_base_path", str(servable_path), "--concurrency", "1", "--requests", "3"]
    assert end_to_end.main([*arguments, "--ways", "segment", "--client_core", str(max(cores))]) == 0

    assert served == [cores - {max(cores)}]
    assert networks
    assert all(one == cores - {max(cores)} for one in networks)
    assert os.sched_getaffinity(0) == cores, "as it was before"
    assert f"servers have {len(cores) - 1}, the client one" in capsys.readouterr().out


def test_a_core_that_there_is_not_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        end_to_end.main(["--client_core", "100000"])

    assert "--client_core is one of" in capsys.readouterr().err


def test_multiply_adds_of_a_convolution(small_network: Path, tmp_path: Path) -> None:
    import keras

    from stages.export import export_saved_model

    model = keras.models.load_model(small_network)
    version = export_saved_model(model, {"threshold": 0.5}, tmp_path / "m")

    assert multiply_adds(version) == 32 * 32 * 3 * 3
    assert multiply_adds(latest_version(tmp_path / "m")) == 32 * 32 * 3 * 3


def test_multiply_adds_of_a_kernel_for_each_channel_apart(tmp_path: Path) -> None:
    import keras

    from stages.export import export_saved_model

    images = keras.Input((32, 32, 1))
    x = keras.layers.DepthwiseConv2D(5, padding="same")(keras.layers.Conv2D(4, 1)(images))
    model = keras.Model(images, keras.layers.Conv2D(1, 1, activation="sigmoid")(x))

    version = export_saved_model(model, {"threshold": 0.5}, tmp_path / "m")

    assert multiply_adds(version) == 32 * 32 * (4 + 4 * 5 * 5 + 4)


def test_networks_tells_what_each_costs(
    monkeypatch: pytest.MonkeyPatch, small_network: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import keras

    monkeypatch.setattr(networks, "network", lambda *_, **__: keras.models.load_model(small_network))

    assert networks.main(["--sizes", "32", "--decoders", "8,8,8,8,8", "--rounds", "1"]) == 0

    assert re.search(r"^ +32  8,8,8,8,8 +0.00 G .* 1.00$", capsys.readouterr().out, re.MULTILINE)


def test_start_is_measured_with_a_model_that_finds_defects(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import keras

    from stages.export import export_saved_model

    images = keras.Input((32, 32, 1))
    everywhere = keras.Model(images, keras.layers.Rescaling(0.0, offset=0.9)(images))
    export_saved_model(everywhere, {"name": NAME, "threshold": 0.5}, tmp_path / NAME)

    pipeline._print_start(tmp_path / NAME)

    out = capsys.readouterr().out
    for line in ("server, to its first answer", "client, --help", "client, predict"):
        assert re.search(rf"^{line} +\d+\.\d\d s", out, re.MULTILINE)


def test_cores_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    assert core_count() == 1
