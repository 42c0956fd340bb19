"""From the files, folders and globs of a command line to the images to read."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["IMAGE_SUFFIXES", "Input", "Names", "collect", "images_below", "is_image"]

IMAGE_SUFFIXES = frozenset(
    (".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff")
) | {".webp"}
"""What is taken out of a folder; a file that is named itself may have any suffix."""


LONGEST_STEM = 200
"""Bytes of a file's name, without its suffix, that the names of its results keep; file systems have 255."""


@dataclass(frozen=True)
class Input:
    """An image to read, or what keeps an argument from naming one.

    Attributes:
        path: of the file, as the user would write it.
        name: relative path for its results, without a suffix, unlike that of any other input.
        problem: empty if there is a file.
    """

    path: Path
    name: str
    problem: str = ""


class Names:
    """Names for the results of images, each unlike all others, even where case is ignored, as on macOS.

    Args:
        given: names that images have already, by absolute path.
    """

    def __init__(self, given: Mapping[str, str] | None = None) -> None:
        self._given = dict(given or {})
        self._taken = {name.lower() for name in self._given.values()}

    def of(self, path: Path, relative: Path) -> str:
        """The name of an image, the same each time, made of a relative path when it is first asked for."""
        key = os.path.abspath(path)
        if key not in self._given:
            self._given[key] = name = self._free(relative)
            self._taken.add(name.lower())
        return self._given[key]

    def _free(self, relative: Path) -> str:
        full = _shortened(Path(*(part for part in relative.parts if part not in ("..", relative.anchor))))
        stem = str(full.with_suffix(""))
        name = next((name for name in (stem, str(full)) if name.lower() not in self._taken), stem)
        count = 1
        while name.lower() in self._taken:
            count += 1
            name = f"{stem}-{count}"
        return name


def _shortened(path: Path) -> Path:
    """A path with a file name to which something can be added; a hash stands for what was cut off."""
    stem = os.fsencode(path.stem)
    if len(stem) <= LONGEST_STEM:
        return path
    kept = stem[:LONGEST_STEM].decode("utf-8", "ignore")
    return path.with_name(f"{kept}-{hashlib.sha256(stem).hexdigest()[:8]}{path.suffix}")


def collect(arguments: Iterable[str], without: Path | None = None, names: Names | None = None) -> list[Input]:
    """Lists the images that arguments name, each once, in the order of the arguments.

    Folders are searched to the bottom and sorted; hidden files are left out.

    Args:
        arguments: files, folders, and globs (`**` for any depth).
        without: a folder whose files are left out where they were not named, for results.
        names: that images have already.
    """
    names = names or Names()
    inputs: dict[str, Input] = {}
    for path, relative, problem in _expand(arguments, without):
        key = os.path.abspath(path)
        if key not in inputs:
            inputs[key] = Input(path, "" if problem else names.of(path, relative), problem)
    return list(inputs.values())


def images_below(folder: Path, without: Path | None, on_error: Callable[[OSError], object]) -> Iterator[Path]:
    """Images in a folder and all folders below it, sorted, but no hidden ones.

    Args:
        folder: to search.
        without: a folder that is left out.
        on_error: told of each folder that can't be listed, so that its images aren't missed without a word.
    """
    skipped = None if without is None else os.path.realpath(without)
    if os.path.realpath(folder) == skipped:
        return
    for parent, folders, files in os.walk(folder, onerror=on_error):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and os.path.realpath(os.path.join(parent, name)) != skipped
        )
        for name in sorted(files):
            path = Path(parent, name)
            if is_image(path):
                yield path


def is_image(path: Path) -> bool:
    """Whether a folder's file of this name is taken for an image."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def _expand(arguments: Iterable[str], without: Path | None) -> Iterator[tuple[Path, Path, str]]:
    """Yields path, path relative to what was named, and problem."""
    for argument in arguments:
        path = Path(argument)
        if not os.path.lexists(path) and glob.has_magic(argument):
            matches = sorted(glob.glob(argument, recursive=True))
            if not matches:
                yield path, path, "no file matches"
            for match in map(Path, matches):
                # Folders that ** matches bring nothing that it does not match itself.
                if not os.path.isdir(match):
                    yield match, _below(match, argument), ""
                elif "**" not in argument and not (without and match.resolve() == without.resolve()):
                    yield from _folder(match, without)
        elif os.path.isdir(path):  # unlike Path's, no error where it may not be looked at
            yield from _folder(path, without)
        else:
            yield path, Path(path.name), ""


def _folder(folder: Path, without: Path | None) -> Iterator[tuple[Path, Path, str]]:
    empty = True
    errors: list[OSError] = []
    for path in images_below(folder, without, errors.append):
        empty = False
        yield path, path.relative_to(folder), ""
    for error in errors:
        path = Path(error.filename)
        yield path, path, f"can't be listed: {error.strerror}"
    if empty and not errors:
        yield folder, folder, "no images in this folder"


def _below(match: Path, pattern: str) -> Path:
    """The part of a match below the last folder that the pattern spells out."""
    fixed: list[str] = []
    for part in Path(pattern).parts[:-1]:
        if glob.has_magic(part):
            break
        fixed.append(part)
    return match.relative_to(Path(*fixed)) if fixed else match
