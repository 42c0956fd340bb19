"""Values on a command line, as types for argparse: each refuses with a rule what it can't be."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from serving.naming import CHARACTERS, is_label

__all__ = ["counting", "label", "millimetres", "natural", "seconds", "threshold"]


def natural(text: str) -> int:
    """A whole number, 0 or more."""
    return int(_number(text, 0, "a whole number, 0 or more"))


def counting(text: str) -> int:
    """A whole number, 1 or more."""
    return int(_number(text, 1, "a whole number, 1 or more"))


def label(text: str) -> str:
    """A label as `python -m serving.labels` sets them."""
    if not is_label(text):
        raise argparse.ArgumentTypeError(f"must be {CHARACTERS}. Received: {text!r}")
    return text


def seconds(text: str) -> float:
    """A number of seconds above 0."""
    return float(_number(text, 1e-3, "a number of seconds above 0", float))


def millimetres(text: str) -> float:
    """A number of millimetres above 0."""
    return float(_number(text, sys.float_info.min, "a number of millimetres above 0", float))


def threshold(text: str) -> float:
    """A probability above 0 and at most 1."""
    value = float(_number(text, sys.float_info.min, "a number above 0 and at most 1", float))
    if value > 1:
        raise argparse.ArgumentTypeError(f"must be a number above 0 and at most 1. Received: {text}")
    return value


def _number(text: str, lowest: float, rule: str, kind: type[int] | type[float] = int) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = lowest - 1
    if not lowest <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be {rule}. Received: {text}")
    return value
