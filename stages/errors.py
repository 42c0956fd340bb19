"""Errors of the stages, and how a stage ends on the command line."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["StageError", "run_command", "run_stage", "writing"]


DISK_REFUSES = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG)
"""Full, over quota, read-only, not ours, file too large."""


class StageError(Exception):
    """What a user can mend: wrong parameters, missing or broken files.

    Its text says what is wrong, where, and what to do.
    """


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A block in which HDF5 writes a file; where the disk refuses, it fails as Python's own files do.

    Raises:
        OSError: names the file and the reason.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:  # RuntimeError: when it closes the file
        for code in DISK_REFUSES:
            if getattr(error, "errno", None) == code or f"errno = {code}," in str(error):
                raise OSError(code, os.strerror(code), str(path)) from error
        raise


def run_stage(stage: Callable[..., None], **options: str) -> None:
    """Runs a stage as a program: `run_command`, and 2 for arguments that are none of its options.

    `--help` prints the text of the stage's module, and runs nothing.

    Args:
        stage: to run, with the options by keyword; those that were not given are None.
        options: help of each option that the command line has, by name.
    """
    module = sys.modules[stage.__module__]
    parser = argparse.ArgumentParser(
        prog=f"python -m {module.__spec__.name}" if module.__spec__ else None,
        description=module.__doc__,
        epilog="Parameters are in params.yaml; change one with `dvc exp run -S section.name=value`. "
        "`dvc repro` runs this stage where something it depends on has changed.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, text in options.items():
        parser.add_argument(f"--{name}", help=text)
    given = vars(parser.parse_args())
    run_command(lambda: stage(**given))


def run_command(command: Callable[[], None]) -> None:
    """Runs a program: exit code 0, 1 after a `StageError` or where the disk refuses, 130 after ^C.

    Both are printed as a message, without a traceback.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        command()
    except StageError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.errno not in DISK_REFUSES:
            raise
        where = f" {error.filename}" if error.filename else ""
        sys.exit(f"error: can't write{where}: {error.strerror}; mend that and run it again")
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
