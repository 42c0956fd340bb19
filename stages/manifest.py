"""Lists of files with their SHA-256, one a line, as `sha256sum --check` reads them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm

from stages.errors import StageError
from stages.sources import Source

__all__ = ["differences", "read_manifest", "write_manifest"]


def read_manifest(path: Path) -> dict[str, str]:
    """Reads the digest of each path; lines that begin with # are comments.

    Raises:
        StageError: if the file is missing, or a line is none of a manifest.
    """
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError as error:
        raise StageError(f"no {path}; `git checkout -- {path}` brings it back") from error
    entries = [line.partition("  ") for line in lines if line and not line.startswith("#")]
    if wrong := [digest for digest, gap, name in entries if len(digest) != 64 or not gap or not name]:
        raise StageError(f"{path}: not a line of `<SHA-256>  <path>`: {wrong[0]}")
    return {name: digest for digest, _, name in entries}


def write_manifest(path: Path, digests: Mapping[str, str], title: str) -> None:
    """Writes a manifest, sorted by path, with a title as comment."""
    lines = [f"# {title}", *(f"{digests[name]}  {name}" for name in sorted(digests))]
    path.write_text("\n".join(lines) + "\n")


def differences(files: Source, found: Mapping[str, str], expected: Mapping[str, str]) -> list[str]:
    """How files differ from a manifest, a line on each.

    Args:
        files: the source.
        found: path within the source by path in the manifest.
        expected: digest by path.
    """
    problems = [f"{path}: missing, the manifest has it" for path in expected.keys() - found.keys()]
    problems += [f"{path}: not in the manifest" for path in found.keys() - expected.keys()]
    shared = sorted(expected.keys() & found.keys())
    for path in tqdm(shared, desc="verifying manifest", unit="file") if shared else []:
        try:
            if hashlib.sha256(files.read(found[path])).hexdigest() != expected[path]:
                problems.append(f"{path}: content differs from the manifest")
        except StageError as error:
            problems.append(str(error))
    return problems
