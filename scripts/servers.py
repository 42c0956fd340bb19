"""What the commands that look for faults of a server take alike."""

from __future__ import annotations

import argparse

from benchmarks.models import NAME, model_folder

__all__ = ["fault_parser"]


def fault_parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """A parser of the model to serve and of the memory that its server may take.

    Args:
        module: that is run.
        description: of it, as its help shows it.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = f"models/{NAME}"
    parser.add_argument(
        "--model_base_path", type=model_folder, default=default, metavar="DIR", help=f"default: {default}"
    )
    parser.add_argument(
        "--max_growth", type=float, default=64.0, metavar="MB", help="of memory (default: 64)"
    )
    return parser
