"""Deletes images from the data: `python -m stages.data_delete Crack/exp1_num_58003 ...`.

An image is named as in data/tiles, with or without folder and suffix. The same picture under another
name goes, too. One that was added goes from data/own; one of the source is left out from now on, as
data/pins.csv says. Earlier versions keep it. `stages.data_add` brings it back, to the side of the
split that it was on.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from stages.errors import run_command
from stages.own import SCRATCH, change_own, known_images, own_files, read_own
from stages.pairs import plain_name, problems_error
from stages.pins import Pin, present_split, read_pins, settle, write_pins

__all__ = ["data_delete"]

log = logging.getLogger(__name__)


def data_delete(names: Sequence[str], data: Path) -> list[str]:
    """Takes images out of the data, all or none, and pins the split of the others.

    Args:
        names: `<Class>/<name>` of each image, also with suffix and folders before.
        data: folder that has `own`, `own.sha256`, `pins.csv`, and what the stages made.

    Returns:
        `<Class>/<name>` of what was deleted; the same picture under another name, too.

    Raises:
        StageError: names all images that are not there; nothing has changed then.
    """
    listed = read_own(data)
    known, own = known_images(data, listed), own_files(listed)
    keys = [_key(name, known) for name in names]
    if unknown := {name for name, key in zip(names, keys, strict=True) if key not in known}:
        raise problems_error(f"{name}: no such image" for name in unknown)
    pins = settle(read_pins(data / "pins.csv"), present_split(data))
    digests = {known[key] for key in keys}
    keys = [key for key, digest in known.items() if digest in digests]
    gone = {known[key]: pins.get(known[key], Pin(key, known[key])) for key in keys}
    write_pins(data / "pins.csv", pins | {key: replace(pin, deleted="yes") for key, pin in gone.items()})
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=data) as nothing:
        change_own(data, listed, {path for key in keys for path in own.get(key, [])}, Path(nothing))
    return keys


def _key(name: str, known: dict[str, str]) -> str:
    key = plain_name("/".join(PurePosixPath(name).parts[-2:]))
    return key if key in known else key.removesuffix(PurePosixPath(key).suffix)


def main() -> None:
    """Deletes images, and says what to do next."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.data_delete",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="+", metavar="IMAGE", help="<Class>/<name>, or a path that ends so")
    options = parser.parse_args()
    run_command(lambda: _delete(options.names))


def _delete(names: Sequence[str]) -> None:
    log.info("deleted %s", ", ".join(data_delete(names, Path("data"))))
    log.info("next: dvc repro data_split && git add data/own.sha256 data/pins.csv dvc.lock")


if __name__ == "__main__":
    main()
