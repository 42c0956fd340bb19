"""Errors of the stages, and how a stage ends on the command line."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

__all__ = ["StageError", "run_stage"]


class StageError(Exception):
    """What a user can mend: wrong parameters, missing or broken files.

    Its text says what is wrong, where, and what to do.
    """


def run_stage(stage: Callable[[], None]) -> None:
    """Runs a stage as a program: exit code 0, 1 after a `StageError`, 130 after ^C.

    A `StageError` is printed as a message, without a traceback.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        stage()
    except StageError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
