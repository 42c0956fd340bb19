"""What tells one version of a model from another, whatever folder it lies in."""

from __future__ import annotations

import hashlib
from pathlib import Path

__all__ = ["BLESSING", "fingerprint"]

BLESSING = "assets.extra/blessing.json"
"""Within the folder of a version: why it is served. TensorFlow Serving does not look there."""


def fingerprint(version: Path) -> str:
    """SHA-256 of the names and contents of all files in the folder of a version but its blessing."""
    digest = hashlib.sha256()
    for path in sorted(one for one in version.rglob("*") if one.is_file()):
        name = path.relative_to(version).as_posix()
        if name != BLESSING:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{content}  {name}\n".encode())
    return digest.hexdigest()
