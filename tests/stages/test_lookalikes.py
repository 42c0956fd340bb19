"""What is one piece by its look: not by light, not by name, and through others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages import lookalikes
from stages.lookalikes import find_lookalikes, merge_lookalikes, structure
from stages.synthetic import draw_surface
from stages.tiles import Tile


def surface(seed: int, height: int = 120, width: int = 100) -> np.ndarray:
    return 128 + draw_surface(height, width, np.random.default_rng(seed))


def stored(folder: Path, pictures: Sequence[tuple[str, np.ndarray]]) -> list[Tile]:
    """A row for each picture, of a tile of the name beside it."""
    tiles = []
    for index, (name, picture) in enumerate(pictures):
        path = f"{index}.png"
        Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).save(folder / path)
        height, width = picture.shape
        tiles.append(Tile(path, path, "Free", 1, index, name, width, height, 0, path, path))
    return tiles


def test_structure_is_the_same_under_other_light() -> None:
    picture = surface(1)
    shadow = np.linspace(0, 60, picture.shape[1])
    one, other = (structure(p.astype(np.uint8)) for p in (picture, 0.7 * picture + shadow))
    assert one.shape == (84, 84)
    assert np.linalg.norm(one) == pytest.approx(1, abs=1e-4)
    assert (one * other).sum() > 0.9
    assert abs((one * structure(surface(2).astype(np.uint8))).sum()) < 0.5


def test_a_picture_without_structure_is_like_none(tmp_path: Path) -> None:
    flat = np.full((120, 100), 90.0)
    assert not structure(flat.astype(np.uint8)).any()
    assert find_lookalikes(tmp_path, stored(tmp_path, [("a", flat), ("b", flat)]), 0.5) == []


@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.9])
def test_no_pair_is_lost_to_the_sketches_that_are_compared_first(tmp_path: Path, threshold: float) -> None:
    rng = np.random.default_rng(0)
    pieces = [surface(seed) for seed in range(4)]
    # Of each piece some pictures with more and more noise, whose likeness goes down to nothing.
    pictures = [
        piece + rng.normal(0, noise, piece.shape) for piece in pieces for noise in (0, 2, 5, 10, 20, 40)
    ]
    tiles = stored(tmp_path, [(str(index), picture) for index, picture in enumerate(pictures)])
    fine = np.stack([structure(np.clip(picture, 0, 255).astype(np.uint8)).ravel() for picture in pictures])
    alike = fine @ fine.T
    expected = [(int(i), int(j)) for i, j in np.argwhere(alike >= threshold) if i < j]
    assert expected
    found = find_lookalikes(tmp_path, tiles, threshold)
    assert [pair[:2] for pair in found] == expected
    assert [pair[2] for pair in found] == pytest.approx([alike[pair] for pair in expected], abs=1e-5)


def test_pairs_are_those_of_two_names_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = stored(
        tmp_path,
        [("a", surface(1)), ("a", surface(1)), ("b", surface(2)), ("c", surface(1) * 0.8), ("d", surface(3))],
    )
    whole = find_lookalikes(tmp_path, tiles, 0.85)
    assert [(one, other) for one, other, _ in whole] == [(0, 3), (1, 3)]
    assert all(0.85 <= alike <= 1.001 for *_, alike in whole)
    monkeypatch.setattr(lookalikes, "BLOCK", 2)
    in_blocks = find_lookalikes(tmp_path, tiles, 0.85)
    assert [pair[:2] for pair in in_blocks] == [(0, 3), (1, 3)]


def test_pieces_of_another_shape_are_others(tmp_path: Path) -> None:
    tall = np.repeat(surface(1), 2, axis=0)
    assert find_lookalikes(tmp_path, stored(tmp_path, [("a", surface(1)), ("b", tall)]), 0.85) == []


@pytest.mark.parametrize("block", [1, 3, 100])
def test_sizes_and_blocks_leave_no_pair_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    heights = np.random.default_rng(0).permutation([100, 104, 108, 112, 116, 120, 200, 205, 210, 90])
    resized = []
    for index, height in enumerate(heights):
        piece = Image.fromarray(surface(index % 2).astype(np.float32))
        resized.append(np.asarray(piece.resize((100 + index, int(height)))))
    tiles = stored(tmp_path, [(str(index), picture) for index, picture in enumerate(resized)])
    fine = [structure(np.asarray(Image.open(tmp_path / tile.image))) for tile in tiles]
    shapes = np.log([(tile.height, tile.width) for tile in tiles])
    expected = [
        (i, j)
        for i in range(10)
        for j in range(i + 1, 10)
        if (fine[i] * fine[j]).sum() >= 0.5 and np.abs(shapes[i] - shapes[j]).max() < 0.12
    ]
    monkeypatch.setattr(lookalikes, "BLOCK", block)
    assert [(i, j) for i, j, _ in find_lookalikes(tmp_path, tiles, 0.5)] == expected
    assert len(expected) == 5


def test_what_hangs_together_through_others_is_one_piece(tmp_path: Path) -> None:
    tiles = stored(tmp_path, [(name, surface(i)) for i, name in enumerate("dcbae")])
    pieces = merge_lookalikes(tiles, [(0, 1, 0.9), (1, 2, 0.9)])
    assert pieces == {"a": "a", "b": "b", "c": "b", "d": "b", "e": "e"}
    assert merge_lookalikes(tiles, []) == {name: name for name in "abcde"}
