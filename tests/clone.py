"""A git repository with a copy of the project, for tests that run its commands as a user does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from stages.own import start_anew

ROOT = Path(__file__).parents[1]


class Clone:
    """A git repository, and commands at its root."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def of_project(cls, folder: Path, settings: Mapping[str, Mapping[str, Any]]) -> Clone:
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

    def run(self, *command: str, fails: bool = False) -> str:
        """Runs a command at the root of the repository; returns both its outputs."""
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
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        assert (done.returncode != 0) == fails, done.stdout[-5000:]
        return done.stdout

    def read(self, path: str) -> Any:
        return json.loads((self.folder / path).read_text())
