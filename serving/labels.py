"""Labels of a model's versions, such as `stable` and `canary`: reads and sets them in models.config.

    python -m serving.labels                                                  prints them
    python -m serving.labels stable=20261124080000 canary=20261125080000      sets them
    python -m serving.labels canary=                                          removes one

The server reads the file again every few seconds. The file is replaced in one step: a server never
sees half of it.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import re
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from serving.errors import ConfigError
from serving.naming import CHARACTERS, is_label

__all__ = ["main", "read_labels", "set_labels"]

CONFIG = Path("serving/config/models.config")
MODEL = "magnetic-tiles"
BASE_PATH = Path("models/magnetic-tiles")


def read_labels(config: Path, model: str = MODEL) -> dict[str, int]:
    """Reads the labels of a model: version by label.

    Args:
        config: text form of a `ModelServerConfig`.
        model: its name there.

    Raises:
        ConfigError: the file can't be read, or lacks the model.
    """
    _, message = _read(config)
    return dict(sorted(_find(config, message, model).version_labels.items()))


def set_labels(
    config: Path, changes: Mapping[str, int | None], base_path: Path, model: str = MODEL
) -> dict[str, int]:
    """Sets and removes labels of a model; all else in the file stays, comments at its head included.

    Args:
        config: text form of a `ModelServerConfig`.
        changes: version by label; None removes a label.
        base_path: folder of the versions, as seen from here.
        model: its name in the file.

    Returns:
        All labels that the model has now.

    Raises:
        ConfigError: the file can't be read or written, lacks the model, or a version isn't there.
    """
    with _locked(config):
        head, message = _read(config)
        labels = _find(config, message, model).version_labels
        for label, version in changes.items():
            if not is_label(label):
                raise ConfigError(f"{label!r} can't be a label; use {CHARACTERS}")
            if version is None:
                labels.pop(label, None)
            else:
                _check_version(base_path, version)
                labels[label] = version
        from google.protobuf import text_format  # type: ignore[import-untyped]

        _replace(config, head + text_format.MessageToString(message))
    return dict(sorted(labels.items()))


@contextlib.contextmanager
def _locked(config: Path) -> Iterator[None]:
    """Who else changes the file waits: what is written between reading and writing would be lost."""
    try:
        folder = os.open(config.resolve().parent, os.O_RDONLY)  # the file itself is replaced
    except OSError as error:
        raise ConfigError(f"can't read {config}: {error.strerror}") from error
    try:
        with contextlib.suppress(OSError):  # some file systems, NFS among them, lock no folders
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _check_version(base_path: Path, version: int) -> None:
    there = sorted(
        int(path.parent.name) for path in base_path.glob("*/saved_model.pb") if path.parent.name.isdecimal()
    )
    if version not in there:
        raise ConfigError(
            f"no version {version} in {base_path}; there: {', '.join(map(str, there)) or 'none'}; "
            "a server refuses a label that points nowhere"
        )


def _read(config: Path) -> tuple[str, Any]:
    """The comments at the head of the file, and its message."""
    try:
        from google.protobuf import text_format
        from tensorflow_serving.config import model_server_config_pb2
    except ImportError as error:
        raise ConfigError(f"{error}; pip install '.[grpc]'") from error
    try:
        text = config.read_text(encoding="utf-8")
        message = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    except OSError as error:
        raise ConfigError(f"can't read {config}: {error.strerror}") from error
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise ConfigError(f"{config} is no ModelServerConfig: {error}") from error
    head = re.match(r"(?:#.*\n|\s*\n)*", text)
    return head.group() if head else "", message


def _find(config: Path, message: Any, model: str) -> Any:
    models = {one.name: one for one in message.model_config_list.config}
    if model not in models:
        raise ConfigError(f"no model {model!r} in {config}; there: {', '.join(models) or 'none'}")
    return models[model]


def _replace(config: Path, text: str) -> None:
    """Writes beside the file and renames: who reads has the old text or the new one."""
    target = config.resolve()
    try:
        descriptor, draft = tempfile.mkstemp(prefix=f".{target.name}-", dir=target.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            status = target.stat()  # the server runs as another user, of the file's group perhaps
            for owner in (-1, status.st_uid):  # the second is for root alone
                with contextlib.suppress(OSError):
                    os.chown(draft, owner, status.st_gid)
            os.chmod(draft, stat.S_IMODE(status.st_mode))
            os.replace(draft, target)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(draft)
            raise
    except OSError as error:
        raise ConfigError(f"can't write {config}: {error.strerror}") from error


def main(argv: list[str] | None = None) -> int:
    """Prints or sets labels; returns the exit code: 0, 1 for what can't be done, 2 for wrong arguments."""
    args = _parse(argv)
    try:
        labels = (
            set_labels(args.config, dict(args.changes), args.model_base_path, args.model_name)
            if args.changes
            else read_labels(args.config, args.model_name)
        )
    except (ConfigError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write("".join(f"{label} {version}\n" for label, version in labels.items()))
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m serving.labels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("changes", nargs="*", type=_change, metavar="LABEL=VERSION", help="none: print the labels")
    add("--config", type=Path, default=CONFIG, metavar="FILE", help=f"default: {CONFIG}")
    add("--model_name", default=MODEL, metavar="NAME", help=f"default: {MODEL}")
    add(
        "--model_base_path",
        type=Path,
        default=BASE_PATH,
        metavar="DIR",
        help=f"where the versions are to be looked for (default: {BASE_PATH})",
    )
    return parser.parse_args(argv)


def _change(text: str) -> tuple[str, int | None]:
    label, separator, version = text.partition("=")
    if not separator or not (version == "" or version.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not LABEL=VERSION, nor LABEL= to remove it")
    return label, int(version) if version else None


if __name__ == "__main__":
    sys.exit(main())
