"""The folder of results of batch scoring, and what a worker does, without Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving.batch import scorer
from serving.batch.results import MANIFEST, Results
from serving.batch.scorer import ROWS, Scorer, Settings
from serving.batch.storage import IMAGES, Folder
from serving.client import TileClient
from serving.client.outputs import write_pictures
from serving.client.tile import Tile
from serving.errors import ServingError
from serving.local.model import Model
from tests.serving.forbidden import closed
from tests.serving.tiles import encoded, tile

RUN = {"source": "tiles", "model": "m", "version": 7, "fingerprint": "f", "threshold": 0.5}
DEFECT = {"left": 1, "top": 2, "width": 3, "height": 4, "area": 12, "area_percent": 1.0}
DEFECT |= {"centroid_x": 2.0, "centroid_y": 3.5, "peak_probability": 0.9}


def images(*names: str, modified: int = 1) -> pa.Table:
    return pa.Table.from_pylist([{"image": n, "size": 9, "modified": modified} for n in names], IMAGES)


def scored(*names: str, modified: int = 1, error: str | None = None) -> pa.Table:
    """Results of images: one defect for each letter of the name, or an error."""
    facts: dict[str, Any] = {
        "label": "defect",
        "score": 0.9,
        "width": 10,
        "height": 10,
        "mask": "masks/x.png",
    }
    rows = [
        {**one, "error": error}
        if error
        else {**one, **facts, "defects": [DEFECT | {"left": i} for i, _ in enumerate(one["image"])]}
        for one in images(*names, modified=modified).to_pylist()
    ]
    return pa.Table.from_pylist(rows, ROWS)


def names(out: Path, kind: str) -> list[str]:
    found: list[str] = pq.read_table(out / kind)["image"].to_pylist()
    return sorted(found)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Results of two runs: a and bb are done, c could not be used."""
    out = tmp_path / "out"
    for rows in (scored("a", "bb"), scored("c", error="damaged")):
        results = Results(Folder(str(out)), RUN)
        results.begin(images())
        results.add(rows)
    return out


def test_the_next_run_knows_what_is_done(out: Path) -> None:
    results = Results(Folder(str(out)), RUN)
    assert results.counts(images("a", "bb", "c")) == {"defect": 2, "good": 0, "error": 1}
    todo = results.left_to_do(pa.concat_tables([images("a", "c", "d"), images("bb", modified=2)]))
    assert todo["image"].to_pylist() == ["bb", "c", "d"]
    assert names(out, "tiles") == ["a", "bb", "c"]
    assert names(out, "defects") == ["a", "bb", "bb"]
    row = pq.read_table(out / "defects").sort_by("image").to_pylist()[0]
    assert row == {"image": "a", **DEFECT, "left": 0, "version": 7, "threshold": 0.5}


def test_what_is_done_again_has_one_result(out: Path) -> None:
    results = Results(Folder(str(out)), RUN)
    again = pa.concat_tables([images("bb", modified=2), images("c")])
    results.begin(again)
    assert names(out, "tiles") == ["a"]
    results.add(scored("bb", "c", modified=2))
    assert names(out, "tiles") == ["a", "bb", "c"]
    assert names(out, "defects") == ["a", "bb", "bb", "c"]
    for one in (results, Results(Folder(str(out)), RUN)):
        assert one.counts(images("a", "bb", "c")) == {"defect": 3, "good": 0, "error": 0}


def test_what_has_left_the_source_stays_in_the_tables_but_is_not_counted(out: Path) -> None:
    results = Results(Folder(str(out)), RUN)
    results.begin(images("d"))
    assert results.counts(images("bb", "d")) == {"defect": 1, "good": 0, "error": 0}
    assert names(out, "tiles") == ["a", "bb", "c"]


def test_a_bad_file_that_is_done_again_and_again_leaves_no_empty_parts(out: Path) -> None:
    for _ in range(3):
        results = Results(Folder(str(out)), RUN)
        results.begin(images("c"))
        results.add(scored("c", error="damaged"))
    assert len(json.loads((out / MANIFEST).read_text())["parts"]) == 2
    assert len(list((out / "tiles").iterdir())) == len(list((out / "defects").iterdir())) == 2
    assert names(out, "tiles") == ["a", "bb", "c"]


def test_what_a_killed_run_left_without_naming_it_goes_and_nothing_else(out: Path) -> None:
    kept = {path.relative_to(out) for path in out.rglob("*")}
    for kind in ("tiles", "defects"):
        (out / kind / f"{'0' * 16}.parquet").write_bytes(b"half")
        (out / kind / "mine.parquet").write_bytes(b"of somebody else")
    Results(Folder(str(out)), RUN).begin(images())
    kept |= {Path("tiles/mine.parquet"), Path("defects/mine.parquet")}
    assert {path.relative_to(out) for path in out.rglob("*")} == kept


def test_a_run_that_another_has_taken_over_from_adds_nothing(out: Path) -> None:
    rows = pa.concat_tables([scored("e"), scored("f", error="damaged")])
    results = Results(Folder(str(out)), RUN)
    results.begin(images())
    results.add(rows)
    first, second = Results(Folder(str(out)), RUN), Results(Folder(str(out)), RUN)
    again = images("c", "d", "f")
    first.begin(again)  # puts new parts into the place of those that the second has read
    second.begin(again)
    with pytest.raises(ServingError, match=r"another run has taken .* over"):
        first.add(scored("d"))
    second.add(scored("c", "d", "f"))
    assert names(out, "tiles") == ["a", "bb", "c", "d", "e", "f"]
    Results(Folder(str(out)), RUN)  # no part is missing


@pytest.mark.parametrize(("name", "value"), [("version", 8), ("threshold", 0.6), ("source", "other")])
def test_results_of_another_run_are_refused(out: Path, name: str, value: object) -> None:
    with pytest.raises(ServingError, match=rf"has results of {name} {RUN[name]}, not {value}\."):
        Results(Folder(str(out)), {**RUN, name: value})


def test_a_foreign_manifest_and_a_lost_part_are_refused(out: Path) -> None:
    [part, _] = json.loads((out / MANIFEST).read_text())["parts"]
    (out / "tiles" / f"{part}.parquet").unlink()
    with pytest.raises(ServingError, match=rf"tiles/{part}.parquet, which .* is missing or damaged"):
        Results(Folder(str(out)), RUN)
    (out / MANIFEST).write_text('{"parts": 1}')
    with pytest.raises(ServingError, match="none of this program's"):
        Results(Folder(str(out)), RUN)


def test_results_within_the_source_are_no_tiles_in_any_spelling(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    link.symlink_to(real)
    for name in ("a.png", "out/masks/a.png.png"):
        (real / name).parent.mkdir(parents=True, exist_ok=True)
        (real / name).write_bytes(b"")
    for source, out in ((real, link), (link, real)):
        found = Folder(str(source)).images(without=Folder(str(out / "out")))
        assert found["image"].to_pylist() == ["a.png"]
        assert Folder(str(out)).contains(Folder(str(source / "out")))
    assert not Folder(str(real / "ou")).contains(Folder(str(real / "out")))


def test_the_mask_of_a_tile_that_can_no_longer_be_used_goes(tmp_path: Path, servable_path: Path) -> None:
    [version] = servable_path.iterdir()
    scorer = Scorer(version, Settings(Folder(str(tmp_path)), Folder(str(tmp_path / "out")), None, 8, 1))
    (tmp_path / "a.png").write_bytes(encoded(tile()))
    [row] = scorer(images("a.png")).to_pylist()
    assert (tmp_path / "out" / row["mask"]).exists()
    (tmp_path / "a.png").write_bytes(b"no image")
    [row] = scorer(images("a.png")).to_pylist()
    assert "not an image" in row["error"]
    assert not (tmp_path / "out/masks/a.png.png").exists()


def test_a_name_too_long_for_a_mask_is_an_error_of_that_tile_alone(
    tmp_path: Path, servable_path: Path
) -> None:
    [version] = servable_path.iterdir()
    scorer = Scorer(version, Settings(Folder(str(tmp_path)), Folder(str(tmp_path / "out")), None, 8, 1))
    long = f"{'x' * 251}.png"
    for name in ("a.png", long):
        (tmp_path / name).write_bytes(encoded(tile()))
    good, bad = scorer(images("a.png", long)).to_pylist()
    assert (tmp_path / "out" / good["mask"]).exists()
    assert "too long" in bad["error"]


def test_a_threshold_of_ones_own_gives_the_files_and_rows_of_the_client(
    tmp_path: Path, servable_path: Path, server_url: str
) -> None:
    data = encoded(tile())
    (tmp_path / "a.png").write_bytes(data)
    [version] = servable_path.iterdir()
    with TileClient(server_url, threshold=0.05) as client:
        prediction = client.predict(data)
    write_pictures(Tile.load(data), prediction, tmp_path, "client")
    settings = Settings(Folder(str(tmp_path)), Folder(str(tmp_path)), 0.05, batch_size=8, threads=1)
    [row] = Scorer(version, settings)(images("a.png")).to_pylist()
    assert (tmp_path / row["mask"]).read_bytes() == (tmp_path / "client_mask.png").read_bytes()
    assert [one["area"] for one in row["defects"]] == [one.area for one in prediction.defects]
    assert row["label"] == prediction.label
    with TileClient(server_url) as client:
        assert client.predict(data).mask.sum() < prediction.mask.sum()


def test_a_worker_computes_with_the_threads_it_has_been_given(
    tmp_path: Path, servable_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions: list[Any] = []

    class Noted(Model):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            sessions.append(self._session)

    monkeypatch.setattr(scorer, "Model", Noted)
    [version] = servable_path.iterdir()
    for threads in (1, 3):
        Scorer(version, Settings(Folder(str(tmp_path)), Folder(str(tmp_path)), None, 8, threads))
    configs = [session._config for session in sessions]
    assert [config.intra_op_parallelism_threads for config in configs] == [1, 3]
    assert [config.inter_op_parallelism_threads for config in configs] == [1, 3]


def test_a_folder_that_cannot_be_listed_is_a_row_and_the_others_go_on(tmp_path: Path) -> None:
    for name in ("a/1.png", "b/2.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"1")
    with closed(tmp_path / "b"):
        found = Folder(str(tmp_path)).images(Folder(str(tmp_path / "out")))
    assert found["image"].to_pylist() == ["a/1.png", "b"]
    with closed(tmp_path), pytest.raises(ServingError, match=f"can't list {tmp_path}: Permission denied"):
        Folder(str(tmp_path)).images(Folder(str(tmp_path / "out")))
