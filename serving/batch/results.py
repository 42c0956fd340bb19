"""The folder of results, in which every image has one row, however often a run was killed.

`manifest.json` is the truth. It names the model and settings of all results, and the parts that count:
`tiles/<part>.parquet` and `defects/<part>.parquet`. A part counts once both are written and the manifest,
replaced in one step, names it; what it does not name is removed when a run begins.
"""

from __future__ import annotations

import io
import json
import re
import secrets
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from serving.batch.storage import IMAGES, Folder
from serving.errors import ServingError

__all__ = ["MANIFEST", "Results"]

MANIFEST = "manifest.json"
TILES, DEFECTS = "tiles", "defects"
PART = re.compile(r"[0-9a-f]{16}\.parquet")
CONSTANT = {"version": pa.int64(), "threshold": pa.float64()}
KNOWN = pa.schema([*IMAGES, ("label", pa.string()), ("error", pa.string()), ("part", pa.string())])


class Results:
    """Results in a folder, for one run at a time: a later one takes over, the earlier ends at its next part.

    Args:
        folder: made if it is missing.
        run: what all results of a folder have in common: `source`, `model`, `version`, `fingerprint`,
            `threshold`.

    Raises:
        ServingError: the folder can't be read, or has results of another run.
    """

    def __init__(self, folder: Folder, run: Mapping[str, Any]) -> None:
        self.folder = folder
        self._run = dict(run)
        self._owner = secrets.token_hex(4)
        self._parts: list[str] = []
        self._rows = KNOWN.empty_table()
        self._load()

    def counts(self, images: pa.Table) -> dict[str, int]:
        """How many of the images, rows of `IMAGES`, are `defect`, `good` or `error`."""
        rows = self._rows.filter(pc.is_in(self._rows["image"], images["image"].combine_chunks()))
        labels = pc.fill_null(rows["label"], "error")
        found = {row["values"]: row["counts"] for row in pc.value_counts(labels).to_pylist()}
        return {name: found.get(name, 0) for name in ("defect", "good", "error")}

    def left_to_do(self, images: pa.Table) -> pa.Table:
        """The images that have no result, an error, or have changed since; sorted, rows of `IMAGES`."""
        done = self._rows.filter(pc.is_null(self._rows["error"]))
        return images.join(done, keys=images.column_names, join_type="left anti").sort_by("image")

    def begin(self, again: pa.Table) -> None:
        """Takes the folder over, and takes out what is no result of it, or is to be done again.

        Args:
            again: images that are to have no result; rows of `IMAGES`.

        Raises:
            ServingError: the folder can't be written, or has results of another run by now.
        """
        self._load()  # another run may have replaced parts since
        self._write_manifest(self._parts)
        for kind in (TILES, DEFECTS):
            folder = Folder(f"{self.folder.url}/{kind}")
            for name in folder.files():
                if PART.fullmatch(name) and name.removesuffix(".parquet") not in self._parts:
                    folder.remove(name)
        names = again["image"].combine_chunks()
        for part in pc.unique(self._rows.filter(pc.is_in(self._rows["image"], names))["part"]).to_pylist():
            tiles, defects = (self._read_part(kind, part) for kind in (TILES, DEFECTS))
            kept = (one.filter(pc.invert(pc.is_in(one["image"], names))) for one in (tiles, defects))
            self._replace(part, *kept)

    def add(self, rows: pa.Table) -> None:
        """Adds the results of images that have none; they are kept from here on, whatever happens.

        Args:
            rows: of `serving.batch.scorer.ROWS`.

        Raises:
            ServingError: they can't be written, or another run has taken the folder over.
        """
        lists = rows["defects"].combine_chunks()
        index = rows.column_names.index("defects")
        tiles = rows.set_column(index, "defects", pc.list_value_length(lists))
        defects = pa.Table.from_struct_array(pc.list_flatten(lists))
        defects = defects.add_column(0, "image", rows["image"].take(pc.list_parent_indices(lists)))
        self._replace(None, self._with_constants(tiles), self._with_constants(defects))

    def _load(self) -> None:
        """Reads what the folder has, where it isn't what was read before."""
        manifest = self._read_manifest()
        if manifest:
            self._refuse_others(manifest)
        parts = manifest.get("parts", [])
        if parts != self._parts:
            self._parts = parts
            self._rows = pa.concat_tables([KNOWN.empty_table(), *map(self._read_known, parts)])

    def _replace(self, old: str | None, tiles: pa.Table, defects: pa.Table) -> None:
        """Puts a new part, or none where it would be empty, into the place of an old one, or at the end."""
        part = secrets.token_hex(8)
        new = [part] if len(tiles) else []
        for kind, table in ((DEFECTS, defects), (TILES, tiles)) if new else ():
            buffer = io.BytesIO()
            pq.write_table(table, buffer)
            self.folder.write(f"{kind}/{part}.parquet", buffer.getvalue())
        if self._read_manifest().get("owner") != self._owner:
            self._remove(part)  # if it was written
            raise ServingError(f"another run has taken {self.folder.url} over; let it end")
        self._write_manifest([*(one for one in self._parts if one != old), *new])
        known = tiles.select(KNOWN.names[:-1]).append_column(
            "part", pa.array([part] * len(tiles), pa.string())
        )
        if old:
            self._remove(old)
            self._rows = self._rows.filter(pc.not_equal(self._rows["part"], old))
        self._rows = pa.concat_tables([self._rows, known])

    def _remove(self, part: str) -> None:
        for kind in (TILES, DEFECTS):
            self.folder.remove(f"{kind}/{part}.parquet")

    def _with_constants(self, table: pa.Table) -> pa.Table:
        for name, kind in CONSTANT.items():
            table = table.append_column(name, pa.repeat(pa.scalar(self._run[name], kind), len(table)))
        return table

    def _read_part(self, kind: str, part: str, columns: Iterable[str] | None = None) -> pa.Table:
        name = f"{kind}/{part}.parquet"
        try:
            file = pa.BufferReader(self.folder.read(name))
            return pq.read_table(file, columns=None if columns is None else list(columns))
        except (FileNotFoundError, pa.ArrowException) as error:
            raise ServingError(
                f"{self.folder.url}/{name}, which {MANIFEST} names, is missing or damaged; put it back, or "
                "name another --out"
            ) from error

    def _read_known(self, part: str) -> pa.Table:
        known = self._read_part(TILES, part, KNOWN.names[:-1])
        return known.append_column("part", pa.array([part] * len(known), pa.string()))

    def _refuse_others(self, manifest: Mapping[str, Any]) -> None:
        then = manifest["run"]
        differences = [
            f"{name} {then.get(name)}, not {value}"
            for name, value in self._run.items()
            if then.get(name) != value
        ]
        if differences:
            raise ServingError(
                f"{self.folder.url} has results of {'; '.join(differences)}. Name another --out, or go on as "
                "it began"
            )

    def _read_manifest(self) -> dict[str, Any]:
        try:
            manifest: dict[str, Any] = json.loads(self.folder.read(MANIFEST))
            manifest["run"].items(), list(manifest["parts"])
            return manifest
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ServingError(
                f"{self.folder.url}/{MANIFEST} is none of this program's; name another --out"
            ) from error

    def _write_manifest(self, parts: list[str]) -> None:
        document = {"run": self._run, "owner": self._owner, "parts": parts}
        self.folder.write(MANIFEST, json.dumps(document, indent=1).encode() + b"\n")
        self._parts = parts
