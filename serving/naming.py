"""What a label of a version may be called: in models.config, in URLs and on the command line."""

from __future__ import annotations

import re

__all__ = ["CHARACTERS", "is_label"]

CHARACTERS = "letters, digits, - and _"


def is_label(text: str) -> bool:
    """Whether all of it is `CHARACTERS`, at least one: what proxies let through, and no part of a path."""
    return re.fullmatch(r"[\w-]+", text, re.ASCII) is not None
