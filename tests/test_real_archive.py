"""The real archive, where it is at hand: all of it is read, and the split by tiles does not leak."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from stages.data_load import data_load
from stages.data_split import data_split
from stages.params import load_params
from stages.tiles import Tile, read_tiles

ROOT = Path(__file__).parents[1]
ARCHIVE = Path(
    os.environ.get("MAGNETIC_TILES_ZIP", ROOT.parent / "shared" / "data" / "magnetic-tiles.zip")
).expanduser()
PARAMS = load_params(ROOT / "params.yaml")

pytestmark = pytest.mark.skipif(
    not ARCHIVE.is_file(), reason=f"no {ARCHIVE}; MAGNETIC_TILES_ZIP names the archive of the real tiles"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("real") / "tiles"


@pytest.fixture(scope="module")
def tiles(data: Path) -> list[Tile]:
    return data_load(
        PARAMS.data_load.model_copy(update={"source": str(ARCHIVE)}), data, data.with_name("cache")
    )


def test_every_image_is_there_with_its_mask(tiles: list[Tile]) -> None:
    assert Counter(tile.class_ for tile in tiles) == {
        "Blowhole": 115,
        "Break": 85,
        "Crack": 57,
        "Fray": 32,
        "Uneven": 103,
        "Free": 952,
    }
    without = Counter(tile.class_ for tile in tiles if not tile.defect_pixels)
    assert without == {"Free": 952, "Uneven": 4}


def test_images_of_a_tile_are_found_by_their_numbers(tiles: list[Tile]) -> None:
    sizes = Counter(tile.tile for tile in tiles)
    assert len(sizes) == 255
    assert max(sizes.values()) <= 7  # three tiles have an exposure 0 besides the usual six
    exposures: dict[str, list[int]] = {}
    for tile in tiles:
        exposures.setdefault(tile.tile, []).append(tile.exposure)
    assert all(len(set(seen)) == len(seen) for seen in exposures.values())


def test_the_grouped_split_does_not_leak_and_has_every_class_on_every_side(
    data: Path, tiles: list[Tile], tmp_path: Path
) -> None:
    summary = data_split(PARAMS.data_split, data, tiles, tmp_path)
    sides = {side: read_tiles(tmp_path / f"{side}.csv") for side in ("train", "val", "test")}
    assert not any(summary["leaks"].values())
    # Pieces that were photographed in two rounds, as looking at their pictures tells.
    for one, other in ((86064, 86828), (85665, 85781), (320864, 320895), (8676, 9196), (304293, 304305)):
        where = [name for name, rows in sides.items() for row in rows if row.number in (one, other)]
        assert len(where) == 2
        assert len(set(where)) == 1
    assert sum(map(len, sides.values())) == 1344
    assert len(sides["test"]) == pytest.approx(0.2 * 1344, rel=0.1)
    assert len(sides["val"]) == pytest.approx(0.15 * 1344, rel=0.1)
    assert all(min(counts.values()) > 0 for counts in summary["images"].values())


def test_the_random_split_reports_how_much_it_leaks(data: Path, tiles: list[Tile], tmp_path: Path) -> None:
    params = PARAMS.data_split.model_copy(update={"strategy": "random"})
    summary = data_split(params, data, tiles, tmp_path)
    leaking = summary["leaks"]["test_images_with_sibling_in_train"]
    assert leaking / sum(summary["images"]["test"].values()) > 0.9
