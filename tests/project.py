"""A project as its pipeline leaves it, within seconds: a detector of dark places stands for the network.

All but training goes through the project's own stages and real DVC, so that revisions can be compared
and versions promoted.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from ruamel.yaml import YAML

from stages.check_packages import main as check_packages_main
from stages.data_load import main as data_load_main
from stages.data_own import main as data_own_main
from stages.data_split import main as data_split_main
from stages.evaluate import main as evaluate_main
from stages.export import latest_version
from stages.export import main as export_main
from stages.validate import main as validate_main
from tests.clone import SMALL, Clone

SIDE = 64
TILES = {"tiles_per_class": 4, "good_tiles": 6, "exposures": 2, "height": SIDE, "width": SIDE, "seed": 1}
SETTINGS = {**SMALL, "data_load": {"source": "synthetic", "synthetic": TILES}, "evaluate": {"overlays": 12}}


class Project(Clone):
    """A clone with data; its methods give it models and results, ready to be committed."""

    @classmethod
    def with_data(cls, folder: Path) -> Project:
        """Makes one."""
        project = cls.of_project(folder, SETTINGS)
        with project.entered():
            for stage in (data_own_main, data_load_main, data_split_main, check_packages_main):
                stage()
        return project

    def set_params(self, changes: dict[str, dict[str, Any]]) -> None:
        yaml = YAML()
        params = yaml.load(self.folder / "params.yaml")
        for section, values in changes.items():
            params[section].update(values)
        yaml.dump(params, self.folder / "params.yaml")

    @contextmanager
    def entered(self) -> Iterator[None]:
        """The project as the current folder, as a stage finds it."""
        before = Path.cwd()
        os.chdir(self.folder)
        try:
            yield
        finally:
            os.chdir(before)

    def train_and_evaluate(self, darkness: float) -> dict[str, Any]:
        """Leaves what pretrain and train would, evaluates, and returns the metrics.

        Args:
            darkness: grey levels below the surroundings from which a pixel is a defect.
        """
        folder = self.folder
        shutil.rmtree(folder / "results", ignore_errors=True)
        _save_detector(darkness, folder / "models" / "unet.keras")
        (folder / "models" / "pretrained.weights.h5").write_bytes(b"none")
        for side, shift in (("train", 0.05), ("eval", 0.0)):
            for name, values in {"dice": (0.2, 0.4, 0.5), "loss": (0.9, 0.6, 0.5)}.items():
                path = folder / "results/train/plots/metrics" / side / f"{name}.tsv"
                path.parent.mkdir(parents=True, exist_ok=True)
                rows = [f"{step}\t{value + shift}" for step, value in enumerate(values)]
                path.write_text("\n".join([f"step\t{name}", *rows]) + "\n")
        (folder / "results/train/metrics.json").write_text('{"step": 3}\n')
        (folder / "results/train/params.yaml").write_text("epochs: 3\n")
        (folder / "results/train/plots/images").mkdir()
        Image.new("L", (8, 8)).save(folder / "results/train/plots/images/samples.png")
        (folder / "results/pretrain.json").write_text('{"steps": 0}\n')
        with self.entered():
            evaluate_main()
        metrics: dict[str, Any] = self.read("results/evaluate/metrics.json")
        return metrics

    def export_and_validate(self) -> Path:
        """Runs these stages; returns the folder of the new version."""
        with self.entered():
            export_main()
            validate_main()
        return latest_version(self.folder / "models" / "magnetic-tiles")

    def commit(self, message: str, *stages: str) -> str:
        """Lets DVC and git keep the outputs of stages; returns the commit."""
        self.run("dvc", "commit", "--force", "--quiet", *stages)
        self.run("git", "add", "--all")
        self.run("git", "commit", "-qm", message)
        return self.run("git", "rev-parse", "HEAD").strip()


def _save_detector(darkness: float, path: Path) -> None:
    """A model that finds what is darker than its surroundings."""
    import keras

    path.parent.mkdir(parents=True, exist_ok=True)
    images = keras.Input((SIDE, SIDE, 1))
    smooth = keras.layers.AveragePooling2D(3, strides=1, padding="same")(images)
    around = keras.layers.AveragePooling2D(31, strides=1, padding="same")(images)
    darker = keras.layers.Subtract()([around, smooth])
    scaled = keras.layers.Rescaling(1 / 4, offset=-darkness / 4)(darker)
    keras.Model(images, keras.layers.Activation("sigmoid")(scaled)).save(path)
