"""The version to be promoted, fetched from the working tree or from a git revision, wherever DVC keeps it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.errors import ConfigError
from serving.fingerprint import fingerprint

__all__ = ["Candidate", "fetch", "read_info", "revision_of_stage"]

VALIDATED = "results/validated.json"


@dataclass(frozen=True)
class Candidate:
    """A version that may be promoted.

    Attributes:
        folder: a copy of it.
        number: of the version.
        sha256: its fingerprint.
        info: what it says of itself, `assets.extra/model_info.json`.
        source: where it came from: a commit, or the working tree.
        validated: what stage `validate` wrote there; None if it did not.
    """

    folder: Path
    number: int
    sha256: str
    info: dict[str, Any]
    source: str
    validated: dict[str, Any] | None


def fetch(root: Path, name: str, rev: str | None, scratch: Path) -> Candidate:
    """Copies the newest version of `models/<name>` of a state of the project.

    Args:
        root: of the project.
        name: of the model.
        rev: commit, branch, tag or DVC experiment; None for the working tree.
        scratch: folder to copy it to.

    Raises:
        ConfigError: no such revision, or no version there, or it can't be fetched.
    """
    # Here, because a rollback needs no DVC.
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from dvc.scm import SCMError, resolve_rev
    from dvc_data.index import DataIndexDirError

    place = rev or "the working tree"
    try:
        files = DVCFileSystem(str(root), rev=rev)
        source = resolve_rev(files.repo.scm, rev) if rev else "working tree"
        names = [Path(path).name for path in files.ls(f"models/{name}", detail=False)]
        number = max((int(one) for one in names if one.isdecimal()), default=None)
        if number is None:
            raise ConfigError(f"no version in models/{name} of {place}; run `dvc repro export`")
        folder = scratch / str(number)
        files.get(f"models/{name}/{number}", str(folder), recursive=True)
        validated = json.loads(files.read_text(VALIDATED)) if files.exists(VALIDATED) else None
    except SCMError as error:
        raise ConfigError(f"{error}; `git fetch` it") from error
    except (OSError, DvcException, DataIndexDirError) as error:
        raise ConfigError(
            f"can't get models/{name} of {place}: {error}; `dvc push` it where it was made, or `dvc repro`"
        ) from error
    return Candidate(folder, number, fingerprint(folder), read_info(folder), source, validated)


def revision_of_stage(root: Path, name: str, stage: str) -> str:
    """The commit that `gto assign` has put into a stage.

    Raises:
        ConfigError: no version is in that stage.
    """
    from dvc.api import artifacts_show
    from dvc.exceptions import DvcException

    try:
        return str(artifacts_show(name, stage=stage, repo=str(root))["rev"])
    except DvcException as error:
        raise ConfigError(
            f"no version of {name} is in stage {stage!r}; `gto assign {name} --stage {stage}`, "
            "or `git fetch --tags`"
        ) from error


def read_info(version: Path) -> dict[str, Any]:
    """What a version says of itself.

    Raises:
        ConfigError: it says nothing that can be read.
    """
    path = version / "assets.extra" / "model_info.json"
    try:
        info: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"can't read {path}: {error}; was this version made by `dvc repro export`?"
        ) from error
    return info
