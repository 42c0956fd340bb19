"""What there is to report of the working tree or of a git revision, wherever git and DVC keep it."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from dvc.api import DVCFileSystem
from dvc.exceptions import DvcException
from dvc.scm import RevError, resolve_rev
from dvc_data.index import DataIndexDirError
from numpy.typing import NDArray
from PIL import Image
from ruamel.yaml import YAML

from stages.errors import StageError
from stages.verdicts import ImageRow, read_image_rows

__all__ = ["NoResults", "Snapshot", "last_other_results", "take_snapshot"]

METRICS = "results/evaluate/metrics.json"


class NoResults(StageError):
    """A revision in which nothing has been evaluated, or its metrics were not committed."""


@dataclass(frozen=True)
class Snapshot:
    """The results of one state of the project.

    Attributes:
        name: as the user calls it.
        title: the name with hash and subject of its commit.
        metrics: of the test side, as `evaluate` wrote them.
        params: value by dotted name.
        packages: version by name.
        data_version: SHA-256 of `tiles.csv`, as the exported model names it; empty if that is missing.
        tiles: rows of `tiles.csv` by path of the image.
        images: rows of `images.csv` by path of the image.
        thresholds: points of the sweep, each with threshold, precision, recall and dice.
        training: values of each epoch by side (`train`, `eval`) and name (`loss`, `dice`).
        missing: paths that neither git nor DVC, its remote included, has of this state.
        newer: paths, as data or model, that this state has otherwise than its results were measured with.
    """

    name: str
    title: str
    metrics: dict[str, Any]
    params: dict[str, Any]
    packages: dict[str, str]
    data_version: str
    tiles: dict[str, dict[str, str]]
    images: dict[str, ImageRow]
    thresholds: list[dict[str, float]]
    training: dict[tuple[str, str], list[float]]
    missing: list[str]
    newer: list[str]
    _files: _Files = field(repr=False)

    def picture(self, path: str) -> NDArray[np.uint8] | None:
        """An image file of this state as (H, W) uint8; None if it has none."""
        data = self._files.read(path)
        if data is None:
            return None
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("L"), np.uint8)


class _Files:
    """Files of the working tree or of a revision."""

    def __init__(self, root: Path, rev: str | None) -> None:
        self._dvc = DVCFileSystem(str(root), rev=rev)
        self.commit = resolve_rev(self._dvc.repo.scm, rev or "HEAD")
        self.missing: list[str] = []

    def read(self, path: str) -> bytes | None:
        """Contents of a file; None if neither git nor DVC has it."""
        try:
            data: bytes = self._dvc.read_bytes(path)
        except (OSError, DvcException, DataIndexDirError):  # not committed, or in neither cache nor remote
            return None
        return data

    def text(self, path: str) -> str:
        """The same as text, empty if there is none, which is noted."""
        data = self.read(path)
        if data is None:
            self.missing.append(path)
        return (data or b"").decode()


def take_snapshot(root: Path, rev: str | None = None) -> Snapshot:
    """Reads the results of a state.

    Args:
        root: of the project.
        rev: what git knows, or the name of a DVC experiment; None for the working tree.

    Raises:
        NoResults: it has no metrics.
        StageError: there is no such revision, or no DVC project.
    """
    try:
        files = _Files(root, rev)
    except RevError as error:
        raise StageError(
            f"{error}; `git fetch` it (CI often clones the newest commit alone: fetch-depth: 0)"
        ) from error
    except DvcException as error:
        raise StageError(f"{root} is no DVC project: {error}") from error
    metrics = files.text(METRICS)
    if not metrics:
        raise NoResults(f"{rev or 'the working tree'} has no {METRICS}; run `dvc repro` there and commit it")
    commit = _git(root, "log", "-1", "--format=%h %s", files.commit).decode().strip()
    title = f"working tree on {commit}"
    if rev:
        title = commit if commit.startswith(rev) else f"{rev}: {commit}"
    index = files.text("data/tiles/tiles.csv")
    return Snapshot(
        name=rev or "working tree",
        title=title,
        metrics=json.loads(metrics),
        params=_flat(YAML(typ="safe").load(files.text("params.yaml")) or {}),
        packages=dict(line.split("==") for line in files.text("environment.txt").splitlines()),
        data_version=hashlib.sha256(index.encode()).hexdigest() if index else "",
        tiles={row["image"]: row for row in csv.DictReader(io.StringIO(index))},
        images={row.image: row for row in read_image_rows(files.text("results/evaluate/images.csv"))},
        thresholds=json.loads(files.text("results/evaluate/plots/thresholds.json") or "[]"),
        training={
            (side, name): _column(files.text(f"results/train/plots/metrics/{side}/{name}.tsv"), name)
            for side in ("train", "eval")
            for name in ("loss", "dice")
        },
        missing=files.missing,
        newer=_newer(_locked(files.read("dvc.lock"))),
        _files=files,
    )


def last_other_results(root: Path) -> str | None:
    """The newest commit with other results than those of the working tree; None without one.

    One that has data or a model newer than its results comes after all others: what they were measured
    with is not there.
    """
    lock = root / "dvc.lock"
    present = _results(_locked(lock.read_bytes() if lock.exists() else None))
    otherwise = None
    for commit in _git(root, "log", "--format=%h", "--", "dvc.lock").decode().split():
        deleted = not _git(root, "ls-tree", commit, "dvc.lock")
        stages = _locked(None if deleted else _git(root, "show", f"{commit}:./dvc.lock"))
        if (results := _results(stages)) and results != present:
            if not _newer(stages):
                return commit
            otherwise = otherwise or commit
    return otherwise


def _locked(lock: bytes | None) -> dict[str, Any]:
    """Stages of a dvc.lock, by name."""
    return (YAML(typ="safe").load(lock) or {}).get("stages", {}) if lock else {}


def _results(stages: Mapping[str, Any]) -> dict[str, str]:
    """Hash by path of what has been evaluated."""
    return _hashes([stages.get("evaluate", {})], "outs")


def _newer(stages: Mapping[str, Any]) -> list[str]:
    """What `evaluate` hangs on, and has changed since it ran."""
    made = _hashes(stages.values(), "outs")
    used = _hashes([stages.get("evaluate", {})], "deps")
    return [path for path, digest in used.items() if made.get(path, digest) != digest]


def _hashes(stages: Iterable[Mapping[str, Any]], kind: str) -> dict[str, str]:
    return {file["path"]: file.get("md5", "") for stage in stages for file in stage.get(kind, [])}


def _git(root: Path, *arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True).stdout


def _column(tsv: str, name: str) -> list[float]:
    return [float(row[name]) for row in csv.DictReader(io.StringIO(tsv), delimiter="\t")]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
