"""How a command ends: its exit codes, and what it does after ^C, SIGTERM, or when nobody reads its output."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

__all__ = ["ERROR", "INTERRUPTED", "PIPE_CLOSED", "run_program"]

ERROR, INTERRUPTED, PIPE_CLOSED = 1, 130, 141


def run_program(main: Callable[[], int], interrupted: str) -> NoReturn:
    """Exits with what `main` returns; ends at once, waiting for nothing in flight, when it is cut off.

    Args:
        main: returns the exit code.
        interrupted: what to say after ^C or SIGTERM.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        code = main()
    except KeyboardInterrupt:
        sys.stderr.write(f"\ninterrupted; {interrupted}\n")
        sys.stderr.flush()
        os._exit(INTERRUPTED)
    except BrokenPipeError:
        os._exit(PIPE_CLOSED)
    sys.exit(code)
