"""Agreement of labels: pictures are laid over one another, and only what both show is compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import labels
from benchmarks.labels import agreement, coincide
from stages.synthetic import draw_surface
from stages.tiles import Tile, write_tiles


def cut(folder: Path, exposure: int, piece: int, top: int, left: int, truth: np.ndarray) -> Tile:
    """A picture of 100 x 80 pixels out of a larger one of a piece, and its mask."""
    rng = np.random.default_rng(piece)
    whole = 128 + draw_surface(130, 110, rng)
    window = slice(top, top + 100), slice(left, left + 80)
    name = f"exp{exposure}_num_{piece}"
    light = np.clip(whole * (0.6 + 0.1 * exposure), 0, 255).astype(np.uint8)
    Image.fromarray(light[window]).save(folder / f"{name}.png")
    Image.fromarray((truth[window] * np.uint8(255)).astype(np.uint8)).save(folder / f"{name}-mask.png")
    pixels = int(truth[window].sum())
    return Tile(
        f"{name}.png", f"{name}-mask.png", "Break", exposure, piece, str(piece), 80, 100, pixels, "", ""
    )


@pytest.fixture
def truth() -> np.ndarray:
    truth = np.zeros((130, 110), bool)
    truth[40:60, 30:50] = True
    return truth


def test_masks_are_compared_where_the_pictures_coincide(tmp_path: Path, truth: np.ndarray) -> None:
    tiles = [cut(tmp_path, 1, 5, 0, 0, truth), cut(tmp_path, 2, 5, 12, 7, truth)]
    found, apart = agreement(tmp_path, tiles, 0.5)
    assert apart == 0
    assert found["Break"] == found["all"]
    assert (found["all"].pairs, found["all"].both, found["all"].dice) == (1, 400, 1.0)


def test_a_label_that_differs_shows(tmp_path: Path, truth: np.ndarray) -> None:
    half = truth.copy()
    half[50:60] = False
    tiles = [cut(tmp_path, 1, 5, 0, 0, truth), cut(tmp_path, 2, 5, 12, 7, half)]
    found, _ = agreement(tmp_path, tiles, 0.5)
    assert found["Break"].dice == pytest.approx(2 * 200 / 600)


def test_pictures_of_different_pieces_are_left_out(tmp_path: Path, truth: np.ndarray) -> None:
    one, other = cut(tmp_path, 1, 5, 0, 0, truth), cut(tmp_path, 2, 6, 0, 0, truth)
    found, apart = agreement(tmp_path, [one, replace(other, tile=one.tile)], 0.5)
    assert apart == 1
    assert found["all"].pairs == 0
    assert coincide(*np.zeros((2, 20, 20), np.float32), 0.5) is None


def test_the_command_prints_each_class(
    tmp_path: Path, truth: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    assert labels.main(["--data", str(tmp_path)]) == 1
    assert "dvc repro data_load" in capsys.readouterr().err
    tiles = [cut(tmp_path, exposure, 5, 3 * exposure, exposure, truth) for exposure in (1, 2, 3)]
    write_tiles(tmp_path / "tiles.csv", tiles)
    assert labels.main(["--data", str(tmp_path)]) == 0
    assert "| Break | 3 | 1.000 |" in capsys.readouterr().out
