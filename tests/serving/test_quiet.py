"""How Keras and TensorFlow are imported: without notices, unless these say why something does not work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

LEVEL = "TF_CPP_MIN_LOG_LEVEL"
ROOT = Path(__file__).parents[2]
STAND_IN = """
import os
from types import SimpleNamespace
os.write(2, b"a notice of the import\\n")
def list_physical_devices(kind=None):
    os.write(2, b"a notice of the devices\\n")
    return []
config = SimpleNamespace(list_physical_devices=list_physical_devices)
"""
QUIETLY = "import sys; from serving import quiet; quiet.quiet_imports(); "


def stderr_of(code: str, level: str | None = None, folder: Path | None = None) -> str:
    environment = {name: value for name, value in os.environ.items() if name != LEVEL}
    environment |= {LEVEL: level} if level else {}
    environment |= {"PYTHONPATH": str(folder)} if folder else {}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    ).stderr


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    (tmp_path / "tensorflow.py").write_text(STAND_IN)
    return tmp_path


def test_a_stage_starts_without_a_word_of_tensorflow_and_without_packages_that_it_does_not_need() -> None:
    code = (
        "import sys\n"
        "sys.argv = ['-m']\n"  # as Python has it while it looks for the module to run
        "import stages, keras, importlib, importlib.util\n"
        "keras.ops.ones(2)\n"  # on a device
        "import logging, tensorflow as tf; logging.basicConfig(level=logging.INFO)\n"
        "tf.get_logger().info('Assets written to: models/.partial')\n"
        "names = ['sklearn', 'matplotlib']\n"
        "assert not set(names) & set(sys.modules)\n"
        "for name in filter(importlib.util.find_spec, names): importlib.import_module(name)\n"
    )
    assert stderr_of(code) == ""


@pytest.mark.parametrize("level", [None, "2", "0"])
def test_notices_are_withheld_unless_the_environment_asks_for_them(level: str | None, stand_in: Path) -> None:
    text = stderr_of(f"{QUIETLY}import tensorflow", level, stand_in)
    assert text == ("a notice of the import\n" if level == "0" else "")


def test_notices_are_shown_where_tensorflow_does_not_see_the_gpu_of_the_machine(stand_in: Path) -> None:
    code = f"{QUIETLY}from pathlib import Path; quiet.GPU = Path.cwd(); import tensorflow"
    text = stderr_of(code, folder=stand_in)
    assert text.startswith("a notice of the import\na notice of the devices\n")


def test_an_import_that_fails_says_all_that_it_has_to_say(stand_in: Path) -> None:
    with (stand_in / "tensorflow.py").open("a") as file:
        file.write("raise ImportError('broken')")
    text = stderr_of(f"{QUIETLY}import tensorflow", folder=stand_in)
    assert text.startswith("a notice of the import\n")
    assert text.endswith("ImportError: broken\n")


def test_a_package_that_is_not_there_is_missing_as_ever(stand_in: Path) -> None:
    code = f"{QUIETLY}sys.path[:] = [{str(stand_in)!r}]; import keras"
    assert stderr_of(code).endswith("ModuleNotFoundError: No module named 'keras'\n")


def test_who_imports_stages_gets_keras_as_ever(stand_in: Path) -> None:
    assert stderr_of("import stages, tensorflow", folder=stand_in) == "a notice of the import\n"


def test_the_server_imports_nothing_only_because_it_is_installed_and_others_still_can() -> None:
    code = (
        "import gc, importlib, importlib.util, sys\n"
        "from serving.quiet import import_tensorflow as start\n"
        "before = gc.get_threshold(); start(); names = ['sklearn', 'matplotlib', 'jax']\n"
        "assert not set(names) & set(sys.modules) and gc.get_threshold() == before\n"
        "for name in filter(importlib.util.find_spec, names): importlib.import_module(name)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"KERAS_BACKEND": ""}, check=True)
