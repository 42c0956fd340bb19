"""A folder that another user has closed, also for root, who runs the tests in a container."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def closed(folder: Path) -> Iterator[None]:
    """For the length of the block it can't be listed, nor can what lies in it be looked at."""

    def refusing(name: str) -> Any:
        ask = getattr(os, name)

        def answer(path: Any = ".", *arguments: Any, **options: Any) -> Any:
            where = None if isinstance(path, int) else Path(os.fsdecode(path))
            if where and (folder in where.parents or (where == folder and name == "scandir")):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(where))
            return ask(path, *arguments, **options)

        return answer

    with pytest.MonkeyPatch.context() as patch:
        for name in ("lstat", "scandir", "stat"):
            patch.setattr(os, name, refusing(name))
        yield
