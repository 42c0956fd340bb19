"""oneDNN for TensorFlow on every x86 CPU: stages, servers and batch workers have the same setting.

By itself, TensorFlow uses it only on CPUs with AVX-512 for networks or AMX; with AVX2 it is faster, too
(docs/performance.md).
"""

from __future__ import annotations

import os
import platform

__all__ = ["SETTING", "use_onednn"]

SETTING = {"TF_ENABLE_ONEDNN_OPTS": "1"} if platform.machine() == "x86_64" else {}
"""Variables of the environment, which TensorFlow reads when it is imported."""


def use_onednn() -> None:
    """Sets it for this process, unless the environment has it already."""
    for name, value in SETTING.items():
        os.environ.setdefault(name, value)
