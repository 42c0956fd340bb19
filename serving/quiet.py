"""Keras and TensorFlow, imported without the notices of their C++ code and what nothing here needs."""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib.abc
import importlib.util
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from serving.onednn import use_onednn

__all__ = ["hushed", "import_tensorflow", "quiet_imports"]

LEVEL = "TF_CPP_MIN_LOG_LEVEL"
GPU = Path("/dev/nvidia0")

_importing = threading.Lock()  # versions of several models are loaded at the same time


@contextlib.contextmanager
def hushed(unless: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Withholds what C++ code writes to stderr, unless an exception comes out.

    Args:
        unless: asked after the block; if it is true, all is written after all.
    """
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), 2)
        wanted = True
        try:
            yield
            wanted = unless()
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            if wanted:
                sink.seek(0)
                os.write(2, sink.read())


@contextlib.contextmanager
def _light(*unwanted: str) -> Iterator[None]:
    """Lets packages be imported without those that they would import only because they are installed.

    Nothing here needs scikit-learn or matplotlib from Keras, but they take time at the start and 190 MB.
    And of the objects that an import makes none is garbage.
    """
    hidden = [name for name in ("sklearn", "matplotlib", *unwanted) if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    threshold = gc.get_threshold()
    gc.set_threshold(50_000, 20, 20)
    try:
        yield
    finally:
        gc.set_threshold(*threshold)
        for name in hidden:
            del sys.modules[name]


def import_tensorflow() -> Any:
    """Imports TensorFlow without its notices on CPU features and missing GPUs.

    TF_CPP_MIN_LOG_LEVEL=0 in the environment brings them back.
    """
    with _importing:
        return _import_tensorflow()


@functools.cache
def _import_tensorflow() -> Any:
    level = os.environ.setdefault(LEVEL, "2")
    use_onednn()
    jax = ["jax"] * (os.environ.get("KERAS_BACKEND") != "jax")
    # Some notices come before TensorFlow has read its level.
    with contextlib.nullcontext() if level == "0" else hushed(), _light(*jax):
        import tensorflow as tf

        tf.config.list_physical_devices()
    # Sessions run a SavedModel just as TensorFlow Serving does; the deprecation is not ours to heed.
    tf.get_logger().setLevel(logging.ERROR)
    return tf


def quiet_imports() -> None:
    """Has the first import of Keras or TensorFlow in this process be without notices, whoever asks for it.

    They are shown where TensorFlow finds no GPU on a machine that has one: they say why. And
    TF_CPP_MIN_LOG_LEVEL=0 in the environment brings them back.
    """
    if os.environ.setdefault(LEVEL, "1") == "0":
        return
    sys.meta_path.insert(0, _Finder())
    logging.getLogger("tensorflow").setLevel(logging.WARNING)  # it names files that get their names later


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:
        if fullname not in ("keras", "tensorflow"):
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec and spec.loader:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        with hushed(unless=_misses_a_gpu), _light("pandas"):
            self.loader.exec_module(module)
            _gpus()


def _gpus() -> list[Any]:
    """Those that TensorFlow sees, if Keras runs on it; looking for them has the last of its notices come."""
    tf: Any = sys.modules.get("tensorflow")
    return list(tf.config.list_physical_devices("GPU")) if tf else []


def _misses_a_gpu() -> bool:
    return "tensorflow" in sys.modules and GPU.exists() and not _gpus()
