"""Precision of training: bfloat16 only where the device has instructions for it."""

from __future__ import annotations

import re
from pathlib import Path

import keras

from stages.errors import StageError

__all__ = ["emulates_bfloat16", "set_precision"]

CPU_INFO = Path("/proc/cpuinfo")

INSTRUCTIONS = re.compile(r"\b(avx512_bf16|amx_bf16|bf16)\b")
"""What Linux calls those for bfloat16: of Intel and AMD, of Intel, and of Arm."""


def emulates_bfloat16() -> bool:
    """Whether Keras is on TensorFlow and a CPU without bfloat16; False where Linux does not tell."""
    if keras.backend.backend() != "tensorflow" or not CPU_INFO.exists():
        return False
    import tensorflow as tf

    return not (INSTRUCTIONS.search(CPU_INFO.read_text()) or tf.config.list_physical_devices("GPU"))


def set_precision(mixed: bool) -> None:
    """Sets Keras' policy for all that is built from now on: mixed bfloat16, or float32.

    Raises:
        StageError: bfloat16 is asked for, and would be emulated. A step takes 2.1 to 2.4 times as long as in
            float32 where the CPU has AVX-512 and no bfloat16 (TensorFlow 2.21).
    """
    if mixed and emulates_bfloat16():
        raise StageError(
            "train.mixed_precision is true, but this CPU has no bfloat16 (avx512_bf16 or amx_bf16) and would "
            "emulate it, which takes more than twice as long as float32; set train.mixed_precision=false"
        )
    keras.mixed_precision.set_global_policy("mixed_bfloat16" if mixed else "float32")
