"""`data/own`: images that people added, as they gave them, `<Class>/<name>.jpg` and `.png`.

DVC keeps the files, as the output of stage `data_own`; git keeps their list, `data/own.sha256`.
Where the two differ nothing goes on: an image neither comes nor goes unseen. The list is the
point of no return of a change: until it is replaced, what was there before comes back.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path

from stages.errors import StageError
from stages.manifest import differences, read_manifest, write_manifest
from stages.pairs import find_pairs
from stages.pins import was_made, write_pins
from stages.sources import FolderSource
from stages.tiles import read_tiles

__all__ = ["SCRATCH", "change_own", "known_images", "own_files", "read_own", "start_anew"]

TITLE = "Images that stages.data_add has put into data/own, and their masks."
README = "README.md"  # it also keeps the folder from being empty, which DVC warns of
README_TEXT = """\
Images that `python -m stages.data_add` has added. It and `python -m stages.data_delete` change
this folder; what you put here by hand is refused. docs/data.md has the details.
"""
SCRATCH = ".own-new-"
BEFORE = ".own-before"
"""The folder as it was, while a change is under way."""
SHOWN = 20


def read_own(data: Path) -> dict[str, str]:
    """Checks `data/own` against `data/own.sha256`; ends a change that was killed.

    Returns:
        Digest of each file, by path.

    Raises:
        StageError: names what is missing, changed, or not listed.
    """
    own, listed = data / "own", read_manifest(data / "own.sha256")
    for scratch in data.glob(f"{SCRATCH}*"):  # of a run that was killed
        shutil.rmtree(scratch)
    if (data / BEFORE).exists():
        if _differences(own, listed):  # it was killed before the list was replaced
            shutil.rmtree(own, ignore_errors=True)
            os.replace(data / BEFORE, own)
        else:
            shutil.rmtree(data / BEFORE)
    own.mkdir(parents=True, exist_ok=True)
    if not (own / README).exists():
        (own / README).write_text(README_TEXT)
    if problems := _differences(own, listed):
        shown = [*problems[:SHOWN], *([f"and {len(problems) - SHOWN} more"] if problems[SHOWN:] else [])]
        raise StageError(
            "\n  ".join([f"{own} differs from the manifest {own}.sha256, which git has:", *shown])
            + "\n`dvc pull data_own` gets what is missing; `dvc checkout --force data_own` drops what was "
            "changed by hand. Images are added by `python -m stages.data_add`, then `dvc repro data_own`"
        )
    return listed


def own_files(listed: Mapping[str, str]) -> dict[str, list[str]]:
    """Paths in `data/own` of each `<Class>/<name>`, the image first."""
    return {pair.key: list(pair.files.values()) for pair in find_pairs(listed)[0]}


def known_images(data: Path, listed: Mapping[str, str]) -> dict[str, str]:
    """SHA-256 of each image of `data/tiles` and `data/own`, by `<Class>/<name>`.

    Args:
        data: folder of both.
        listed: what `read_own` has answered.

    Raises:
        StageError: if `data/tiles` was made once, but is not here.
    """
    own = {key: listed[paths[0]] for key, paths in own_files(listed).items()}
    # What was relabelled since the stage ran is in data/own under its new name.
    renamed, index = set(own.values()), data / "tiles" / "tiles.csv"
    tiles = read_tiles(index) if was_made(index, "data_load") else []
    return {tile.key: tile.image_sha256 for tile in tiles if tile.image_sha256 not in renamed} | own


def change_own(data: Path, listed: Mapping[str, str], drop: Collection[str], new: Path) -> None:
    """Takes files out of `data/own` and puts others in, all or nothing.

    Args:
        data: folder that has `own` and `own.sha256`.
        listed: what `read_own` has answered.
        drop: paths to take out.
        new: folder of the files to put in, on the same file system; they are moved.
    """
    own, source = data / "own", FolderSource(new)
    added = {name: hashlib.sha256(source.read(name)).hexdigest() for name in source.names()}
    kept = {name: digest for name, digest in listed.items() if name not in drop and name not in added}
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=data) as scratch:
        fresh, manifest = Path(scratch) / "own", Path(scratch) / "own.sha256"
        for name in (README, *kept):
            (fresh / name).parent.mkdir(parents=True, exist_ok=True)
            _link(own / name, fresh / name)
        for name in added:
            (fresh / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(new / name, fresh / name)
        write_manifest(manifest, kept | added, TITLE)
        os.replace(own, data / BEFORE)
        os.replace(fresh, own)
        os.replace(manifest, data / "own.sha256")
    shutil.rmtree(data / BEFORE)


def start_anew(data: Path) -> None:
    """Writes the lists that git keeps as they are in a project without images of its own."""
    data.mkdir(exist_ok=True)
    write_manifest(data / "own.sha256", {}, TITLE)
    write_pins(data / "pins.csv", {})


def _differences(own: Path, listed: Mapping[str, str]) -> list[str]:
    files = FolderSource(own)
    return sorted(differences(files, {name: name for name in files.names() if name != README}, listed))


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)
