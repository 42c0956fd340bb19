"""A git repository with a copy of the project, for tests that run its commands as a user does."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from ruamel.yaml import YAML

from stages.own import start_anew

ROOT = Path(__file__).parents[1]
SMALL: dict[str, Any] = {
    "data_load": {
        "source": "synthetic",
        "synthetic": {
            "tiles_per_class": 3,
            "good_tiles": 3,
            "exposures": 1,
            "height": 40,
            "width": 40,
            "seed": 1,
        },
    },
    "data_split": {"test_fraction": 0.3, "val_fraction": 0.3},
    "pretrain": {"steps": 0},
    "train": {
        "image_size": [32, 32],
        "backbone": "slim18",
        "backbone_weights": "none",
        "decoder_filters": [8, 8, 8, 8, 8],
        "epochs": 1,
    },
    "evaluate": {"overlays": 2},
    "export": {"warmup_batches": [1]},
}
"""A handful of small tiles, and the smallest network: the pipeline in about a minute."""


class Clone:
    """A git repository, and commands at its root.

    Attributes:
        first_run: what `dvc repro` said, where it has been run.
    """

    first_run = ""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def of_project(cls, folder: Path, settings: Mapping[str, Mapping[str, Any]] = SMALL) -> Self:
        """The tracked files, with parameters of its own, and without images that users have added."""
        clone = cls(folder)
        tracked = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
        )
        for name in filter(None, tracked.stdout.split("\0")):
            if (ROOT / name).exists():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name)
        yaml = YAML()
        params = yaml.load(folder / "params.yaml")
        for section, values in settings.items():
            params[section].update(values)
        yaml.dump(params, folder / "params.yaml")
        start_anew(folder / "data")
        clone.run("git", "init", "-q")
        clone.run("git", "add", "--all")
        clone.run("git", "commit", "-qm", "A clone with small parameters")
        return clone

    def again(self, folder: Path) -> Clone:
        """A fresh clone of this one: what git keeps, and nothing else."""
        self.run("git", "clone", "-q", ".", str(folder))
        return Clone(folder)

    def copy(self, folder: Path) -> Self:
        """The same in another folder, with all that has been computed."""
        shutil.copytree(self.folder, folder)
        other = copy.copy(self)
        other.folder = folder
        return other

    def run(self, *command: str, fails: bool = False, **extra: str) -> str:
        """Runs a command at the root of the repository, with extra variables; returns both its outputs."""
        with self.start(*command, **extra) as process:
            output, _ = process.communicate()
        assert (process.returncode != 0) == fails, output[-5000:]
        return output

    def start(self, *command: str, alone: bool = False, **extra: str) -> subprocess.Popen[str]:
        """Starts a command, `alone` in a process group of its own that can be killed as a whole."""
        person = {"NAME": "A tester", "EMAIL": "tester@example.org"}
        environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "CUDA_VISIBLE_DEVICES": "-1",
            "DVC_NO_ANALYTICS": "1",
            **{
                f"GIT_{role}_{key}": value
                for role in ("AUTHOR", "COMMITTER")
                for key, value in person.items()
            },
        }
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=environment | extra,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=alone,
        )

    def read(self, path: str) -> Any:
        return json.loads((self.folder / path).read_text())
