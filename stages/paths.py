"""Where the files are that a parameter names."""

from __future__ import annotations

from pathlib import Path

__all__ = ["named_file"]


def named_file(name: str) -> Path:
    """The path that a parameter names, relative to the project, with `~` for the home folder.

    `dvc exp run --queue` and `--temp` run in `<project>/.dvc/tmp/exps/<name>/`, which has what git
    tracks; what is not there is the project's own.
    """
    path = Path(name).expanduser()
    for parent in () if path.exists() else Path.cwd().parents:
        if parent.match(".dvc/tmp/exps") and (found := parent.parents[2] / path).exists():
            return found
    return path
