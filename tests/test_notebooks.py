"""The notebooks run from a fresh clone, on few and small tiles, and leave it as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import nbformat
import numpy as np
import pytest
from PIL import Image

from stages.synthetic import draw_defect, draw_surface
from tests.clone import ROOT, Clone

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SMALL: dict[str, dict[str, int]] = {
    "1_ProcessData": {"TILES": 3, "EXPOSURES": 2, "SIDE": 48},
    "2_TrainSegmentationModel": {"SIDE": 32, "EPOCHS": 1},
    "3_Evaluate": {},
}


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def inject(path: Path, values: dict[str, int]) -> None:
    """Puts a cell with other values behind the one tagged `parameters`, as papermill does."""
    notebook = read(path)
    (place,) = [
        number for number, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])
    ]
    unknown = [name for name in values if f"{name} = " not in notebook.cells[place].source]
    assert not unknown
    cell = nbformat.v4.new_code_cell("\n".join(f"{name} = {value}" for name, value in values.items()))
    notebook.cells.insert(place + 1, cell)
    nbformat.write(notebook, path)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone in which all notebooks have been run, one after the other, with their outputs kept."""
    clone = Clone.of_project(tmp_path_factory.mktemp("notebooks") / "clone", settings={})
    for name, values in SMALL.items():
        inject(clone.folder / f"notebooks/{name}.ipynb", values)
    output = clone.run(
        "python", "-m", "pytest", "-p", "no:cacheprovider", "--nbmake", "--overwrite", "notebooks"
    )
    assert f"{len(NOTEBOOKS)} passed" in output
    return clone


def test_each_notebook_is_run() -> None:
    assert [path.stem for path in NOTEBOOKS] == [*SMALL]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stripped(path: Path) -> None:
    cells = [cell for cell in read(path).cells if cell.cell_type == "code"]
    assert not [cell.source for cell in cells if cell.outputs or cell.execution_count]


@pytest.mark.parametrize("name", SMALL)
def test_pictures_are_drawn_and_nothing_is_complained_of(clone: Clone, name: str) -> None:
    outputs = [
        output
        for cell in read(clone.folder / f"notebooks/{name}.ipynb").cells
        if cell.cell_type == "code"
        for output in cell.outputs
    ]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) >= 6
    assert not [output.text for output in outputs if output.get("name") == "stderr"]


def test_nothing_is_written_outside_of_the_folder_that_git_ignores(clone: Clone) -> None:
    status = clone.run("git", "status", "--porcelain", "--ignored")
    changed = {line[3:] for line in status.splitlines() if "__pycache__" not in line}
    # DVC's scratch space is nobody's data.
    assert changed - {".dvc/tmp/"} == {"notebooks/work/", *(f"notebooks/{name}.ipynb" for name in SMALL)}


def test_the_network_of_the_notebook_can_be_evaluated_by_the_pipeline(clone: Clone) -> None:
    work = clone.folder / "notebooks/work"
    assert (work / "unet.keras").exists()
    assert {path.name for path in (work / "split").iterdir()} >= {"train.csv", "val.csv", "test.csv"}
    assert (work / "evaluate/metrics.json").exists()


def test_tiles_of_ones_own_need_neither_all_classes_nor_exposures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(1)
    for number, name in enumerate(["Blowhole"] * 4 + ["Free"] * 4):
        folder = tmp_path / "own" / name
        folder.mkdir(parents=True, exist_ok=True)
        picture, mask = (150 + draw_surface(48, 48, rng)).astype(np.uint8), None
        if name != "Free":
            picture, mask = draw_defect(picture, name, rng)
            Image.fromarray(mask).save(folder / f"part{number}.png")
        Image.fromarray(picture).save(folder / f"part{number}.jpg")
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TQDM_DISABLE", "")
    matplotlib.use("Agg")
    names: dict[str, Any] = {}
    for cell in read(ROOT / "notebooks/1_ProcessData.ipynb").cells:
        if cell.cell_type == "code":
            exec(cell.source.replace('SOURCE = "synthetic"', 'SOURCE = "own"'), names)
    names["plt"].close("all")
    assert "no tile with a defect was photographed twice" in capsys.readouterr().out
