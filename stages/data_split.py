"""Stage `data_split`: which tiles train, which choose (val), which judge (test); writes indices alone.

Images that `data/pins.csv` knows stay on their side, and what shows the same piece goes there too.
"""

from __future__ import annotations

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from sklearn.model_selection import train_test_split

from stages.errors import StageError, run_stage
from stages.lookalikes import find_lookalikes, merge_lookalikes
from stages.params import DataSplitParams, load_params
from stages.pins import SIDES, pinned_sides, read_pins
from stages.tiles import CLASSES, GOOD_CLASS, Tile, read_tiles, write_tiles

__all__ = ["data_split", "leaks", "split_grouped", "split_random"]

log = logging.getLogger(__name__)

Split = dict[str, list[Tile]]


def data_split(
    params: DataSplitParams,
    data: Path,
    tiles: Sequence[Tile],
    out: Path,
    pins: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Divides the tiles and writes `train.csv`, `val.csv`, `test.csv` and `summary.json`.

    Args:
        params: strategy, fractions of the images, what is one piece, seed.
        data: folder to which the paths of the tiles are relative.
        tiles: rows of the index, in any order.
        out: folder to write.
        pins: side of images by their SHA-256, which a grouped split keeps.

    Returns:
        The summary: images by side and class, tiles by side, tiles that turned out to be one
        piece, leaks between sides; of a split with pins, how many hold, how many images are new
        on each side, which new tiles show a piece that was there, and which images had to move.

    Raises:
        StageError: if there are too few tiles, or a grouped split leaks.
    """
    if params.test_fraction + params.val_fraction >= 1:
        raise StageError("data_split: test_fraction and val_fraction together must be below 1")
    ordered = sorted(tiles, key=lambda tile: tile.image)
    pieces = merge_lookalikes(
        ordered, find_lookalikes(data, ordered, params.lookalike) if params.lookalike < 1 else []
    )
    if params.strategy == "grouped":
        sides = split_grouped(params, ordered, pieces, pins)
    else:
        sides = split_random(params, ordered)
    merged = _merged(pieces)
    if empty := [side for side in SIDES if not sides[side]]:
        alike = sum(map(len, merged))
        cause = f": {alike} tiles count as {len(merged)} piece(s) by their look; raise data_split.lookalike"
        advice = cause if alike * 2 > len(pieces) else "; add tiles or change fractions"
        raise StageError(f"data_split: no image is left for {', '.join(empty)}{advice}")
    summary = {
        "strategy": params.strategy,
        **_summary(sides),
        "merged_tiles": merged,
        "leaks": leaks(sides, pieces),
        **(_kept(sides, pieces, pins) if params.strategy == "grouped" else {}),
    }
    if params.strategy == "grouped" and any(summary["leaks"].values()):
        raise StageError(
            f"data_split: the grouped split leaks: {summary['leaks']}. Give identical images one tile name, "
            f"or take all but one out of the source: {'; '.join(_twins(ordered)) or 'there is none'}"
        )
    out.mkdir(parents=True, exist_ok=True)
    for side in SIDES:
        write_tiles(out / f"{side}.csv", sides[side])
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def split_random(params: DataSplitParams, tiles: Sequence[Tile]) -> Split:
    """Images at random, stratified by class: the usual protocol, which leaks."""
    classes = [tile.class_ for tile in tiles]
    rest, test = _divide(range(len(tiles)), classes, params.test_fraction, params.seed)
    share = params.val_fraction / (1 - params.test_fraction)
    train, val = _divide(rest, classes, share, params.seed)
    return {side: [tiles[i] for i in chosen] for side, chosen in zip(SIDES, (train, val, test), strict=True)}


def split_grouped(
    params: DataSplitParams,
    tiles: Sequence[Tile],
    pieces: Mapping[str, str],
    pins: Mapping[str, str] = MappingProxyType({}),
) -> Split:
    """All images of a piece on one side, stratified by the class of the piece.

    A piece with pinned images goes to their side; if new images join pieces of several sides into
    one, to the strictest of these: what has judged goes on judging, and nothing that judges trains.
    Of the others, within a class, pieces are shuffled, the largest first, and each goes to the side
    that is furthest from its share of that class's images. A piece that is in several class folders
    counts for its rarest class. `pieces` names the piece of each tile.
    """
    groups: dict[str, list[Tile]] = defaultdict(list)
    for tile in tiles:
        groups[pieces[tile.tile]].append(tile)
    frequency = Counter(tile.class_ for tile in tiles)
    by_class: dict[str, list[str]] = defaultdict(list)
    for name, members in groups.items():
        by_class[min((t.class_ for t in members), key=lambda c: (frequency[c], c))].append(name)
    shares = {
        "test": params.test_fraction,
        "val": params.val_fraction,
        "train": 1 - params.test_fraction - params.val_fraction,
    }
    claims = {name: [pins[t.image_sha256] for t in g if t.image_sha256 in pins] for name, g in groups.items()}
    held = {name: max(sides, key=SIDES.index) for name, sides in claims.items() if sides}
    rng = np.random.default_rng(params.seed)
    sides: Split = {side: [] for side in SIDES}
    for class_ in sorted(by_class):
        sizes = {n: sum(t.class_ == class_ for t in groups[n]) for n in by_class[class_]}
        names = [by_class[class_][i] for i in rng.permutation(len(by_class[class_]))]
        for side, chosen in _fill(names, sizes, shares, held).items():
            sides[side] += [tile for name in chosen for tile in groups[name]]
    return sides


def leaks(sides: Mapping[str, Sequence[Tile]], pieces: Mapping[str, str]) -> dict[str, int]:
    """What is on more than one side: pieces, identical images, images with a sibling in train."""
    where: dict[tuple[str, str], set[str]] = defaultdict(set)
    for side, tiles in sides.items():
        for tile in tiles:
            where["piece", pieces[tile.tile]].add(side)
            where["image", tile.image_sha256].add(side)
    trained = {pieces[tile.tile] for tile in sides["train"]}
    return {
        "pieces_on_several_sides": sum(len(s) > 1 for (kind, _), s in where.items() if kind == "piece"),
        "images_on_several_sides": sum(len(s) > 1 for (kind, _), s in where.items() if kind == "image"),
        "val_images_with_sibling_in_train": sum(pieces[tile.tile] in trained for tile in sides["val"]),
        "test_images_with_sibling_in_train": sum(pieces[tile.tile] in trained for tile in sides["test"]),
    }


def _divide(
    chosen: Sequence[int], classes: Sequence[str], fraction: float, seed: int
) -> tuple[list[int], list[int]]:
    try:
        return train_test_split(  # type: ignore[no-any-return]
            list(chosen), test_size=fraction, random_state=seed, stratify=[classes[i] for i in chosen]
        )
    except ValueError as error:
        raise StageError(f"data_split: too few images for these fractions: {error}") from error


def _fill(
    names: Sequence[str], sizes: Mapping[str, int], shares: Mapping[str, float], held: Mapping[str, str]
) -> dict[str, list[str]]:
    """Gives each piece to the side that lacks most of its share; the first ones, one to each side.

    `held` names the side of those that have one.
    """
    total = sum(sizes.values())
    sides = {side: [name for name in names if held.get(name) == side] for side in shares}
    filled = {side: sum(sizes[name] for name in chosen) for side, chosen in sides.items()}
    for name in sorted((name for name in names if name not in held), key=lambda name: -sizes[name]):
        # An empty side comes first, so that each class is on every side if it has three tiles.
        side = max(
            shares, key=lambda s: (not sides[s] and len(names) >= len(shares), shares[s] - filled[s] / total)
        )
        sides[side].append(name)
        filled[side] += sizes[name]
    return sides


def _kept(sides: Split, pieces: Mapping[str, str], pins: Mapping[str, str]) -> dict[str, Any]:
    """What has become of the pins."""
    old: dict[str, set[str]] = defaultdict(set)  # tiles with pinned images, by piece
    for tile in (tile for tiles in sides.values() for tile in tiles if tile.image_sha256 in pins):
        old[pieces[tile.tile]].add(tile.tile)
    joined: dict[str, dict[str, Any]] = {}
    for side, tiles in sides.items():
        for tile in tiles:
            if tile.image_sha256 not in pins and (before := old[pieces[tile.tile]]):
                joined[tile.tile] = {"side": side, "shows": sorted(before)}
    return {
        "pinned": sum(tile.image_sha256 in pins for tiles in sides.values() for tile in tiles),
        "new": {side: sum(tile.image_sha256 not in pins for tile in sides[side]) for side in SIDES},
        "joined": dict(sorted(joined.items())),
        "moved": {
            tile.image: f"{pins[tile.image_sha256]} -> {side}"
            for side in SIDES
            for tile in sides[side]
            if pins.get(tile.image_sha256, side) != side
        },
    }


def _summary(sides: Split) -> dict[str, Any]:
    images = {side: Counter(tile.class_ for tile in sides[side]) for side in SIDES}
    return {
        "images": {side: {name: images[side][name] for name in CLASSES} for side in SIDES},
        "tiles": {side: len({tile.tile for tile in sides[side]}) for side in SIDES},
    }


def _twins(tiles: Sequence[Tile]) -> list[str]:
    """Identical images under names of different tiles, which show too little to be alike by their look."""
    names: dict[str, dict[str, str]] = defaultdict(dict)
    for tile in tiles:
        names[tile.image_sha256].setdefault(tile.tile, tile.key)
    return [", ".join(keys.values()) for keys in names.values() if len(keys) > 1]


def _merged(pieces: Mapping[str, str]) -> list[list[str]]:
    members: dict[str, list[str]] = defaultdict(list)
    for tile, piece in pieces.items():
        members[piece].append(tile)
    return [names for names in members.values() if len(names) > 1]


def main() -> None:
    """Runs the stage on params.yaml."""
    params, data = load_params().data_split, Path("data/tiles")
    pins = pinned_sides(read_pins(Path("data/pins.csv")))
    tiles = read_tiles(data / "tiles.csv")
    summary = data_split(params, data, tiles, Path("data/split"), pins)
    for side in SIDES:
        counts = ", ".join(f"{name} {count}" for name, count in summary["images"][side].items())
        log.info("%-5s %3d tiles: %s", side, summary["tiles"][side], counts)
    for side in SIDES:
        good = summary["images"][side][GOOD_CLASS]
        if not good or good == sum(summary["images"][side].values()):
            lacks = "no image with a defect" if good else "no good image"
            log.warning("%s has %s: add tiles, or take another data_split.seed or fraction", side, lacks)
    if merged := summary["merged_tiles"]:
        log.info("tiles that are one piece by their look: %s", merged)
        if (largest := max(map(len, merged))) * 4 > len({tile.tile for tile in tiles}):
            log.warning(
                "%d tiles count as one piece by their look; if they are not, raise data_split.lookalike",
                largest,
            )
    if summary.get("pinned"):
        counts = ", ".join(f"{side} {count}" for side, count in summary["new"].items())
        log.info("%d images as data/pins.csv has them; new: %s", summary["pinned"], counts)
        for tile, found in summary["joined"].items():
            log.info("%s goes to %s: shows the piece of %s", tile, found["side"], ", ".join(found["shows"]))
        for image, move in summary["moved"].items():
            log.warning("%s: %s, as its piece is on both; older models may have seen it", image, move)
    elif pins:
        log.warning("none of the %d images of data/pins.csv is pinned in this split", len(pins))
    log.info("leaks: %s", summary["leaks"])


if __name__ == "__main__":
    run_stage(main)
