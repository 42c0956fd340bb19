"""A version of the exported model as bytes, so that workers on other machines need no shared folder."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from serving.batch.storage import Folder
from serving.errors import ServingError
from serving.fingerprint import fingerprint
from serving.postprocessing import threshold_level

__all__ = ["ExportedModel", "unpack"]

INFO = "assets.extra/model_info.json"


@dataclass(frozen=True)
class ExportedModel:
    """A version that `stages.export` has written.

    Attributes:
        name: of the servable.
        version: its number.
        fingerprint: SHA-256 of its files; see `serving.fingerprint`.
        threshold: its own.
        files: contents by relative path.
    """

    name: str
    version: int
    fingerprint: str
    threshold: float
    files: Mapping[str, bytes]

    @classmethod
    def load(cls, base: Folder, version: int | None = None) -> ExportedModel:
        """Reads a version.

        Args:
            base: folder of the versions.
            version: its number, None for the newest.

        Raises:
            ServingError: there is no such version, or it is not of this project's export.
        """
        parts = [name.split("/") for name in base.files()]
        there = {int(part[0]) for part in parts if part[0].isdecimal() and part[1:] == ["saved_model.pb"]}
        number = max(there, default=None) if version is None else version
        if number is None or number not in there:
            wanted = "version" if version is None else f"version {version}"
            found = ", ".join(map(str, sorted(there))) or "none; export one (`dvc repro export`)"
            raise ServingError(f"no {wanted} of a model in {base.url}; it has: {found}")
        folder = Folder(f"{base.url}/{number}")
        files = {"/".join(part[1:]): b"" for part in parts if part[0] == str(number)}
        files = {name: folder.read(name) for name in files}
        try:
            info = json.loads(files[INFO])
            name, threshold = str(info["name"]), float(info["threshold"])
            threshold_level(threshold)
        except (KeyError, ValueError, TypeError) as error:
            raise ServingError(
                f"{folder.url} has no {INFO} with name and threshold; is it of this project's export?"
            ) from error
        with tempfile.TemporaryDirectory() as scratch:
            unpack(files, Path(scratch))
            return cls(name, number, fingerprint(Path(scratch)), threshold, files)


def unpack(files: Mapping[str, bytes], folder: Path) -> None:
    """Writes the files of a version into a folder."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
