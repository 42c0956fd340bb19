"""Stage `data_own`: checks that `data/own`, the images that people added, is what git lists.

The folder is the stage's output, so that DVC versions it; nothing but `stages.data_add` and
`stages.data_delete` changes it.
"""

from __future__ import annotations

import logging
from pathlib import Path

from stages.errors import run_stage
from stages.own import read_own

log = logging.getLogger(__name__)


def main() -> None:
    """Runs the stage."""
    log.info("%d files in data/own, as data/own.sha256 lists them", len(read_own(Path("data"))))


if __name__ == "__main__":
    run_stage(main)
