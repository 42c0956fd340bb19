"""Commands of people: what they say of themselves, and sheets of pictures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts import check_grouping, demo
from scripts.montage import main as montage_main
from scripts.montage import montage
from stages.errors import StageError
from stages.tiles import Tile, write_tiles

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("module", "says"),
    [
        ("scripts.demo", "The main job on synthetic tiles"),
        ("scripts.fuzz", "Sends wrong and strange requests and image files to a server"),
        ("scripts.load", "Asks more of a server than it can do"),
        ("scripts.montage", "Puts pictures side by side"),
        ("scripts.check_grouping", "Checks the rule that groups the images of one tile"),
        ("scripts.report_screenshot", "Takes the picture of a report"),
        ("serving.promote", "Puts a model into the serving folder if it may be served"),
        ("stages.report", "Writes what a person wants to know of a run"),
        ("stages.data_load", "Stage `data_load`"),
        ("stages.data_split", "Stage `data_split`"),
        ("stages.data_own", "Stage `data_own`"),
        ("stages.data_add", "Adds images of your own"),
        ("stages.data_delete", "Deletes images"),
        ("stages.pins", "what is settled of an image"),
    ],
)
def test_help_tells_what_a_command_does_and_runs_nothing(module: str, says: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: python -m {module}")
    assert says in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_demo_of_what_is_no_clone_says_so_after_the_reason_of_git(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(SystemExit, match="the demo needs a git clone"):
        demo._make_workspace()
    assert "not a git repository" in capfd.readouterr().err


def tiles_of(folder: Path, names: list[tuple[str, int, int]]) -> list[str]:
    """Tiles of a name, exposure and number each, and the arguments that name them."""
    rng = np.random.default_rng(1)
    rows = []
    for tile, exposure, number in names:
        path = f"exp{exposure}_num_{number}.png"
        Image.fromarray(rng.integers(0, 256, (40, 40), np.uint8)).save(folder / path)
        rows.append(Tile(path, path, "Free", exposure, number, tile, 40, 40, 0, "", ""))
    write_tiles(folder / "tiles.csv", rows)
    return ["check_grouping", "--data", str(folder)]


def test_tiles_of_one_exposure_each_have_a_table_of_two_tiles_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", tiles_of(tmp_path, [("a", 1, 3), ("b", 1, 6), ("c", 1, 9)]))
    check_grouping.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["said", "to", "be", "one", "tile", "0"]
    assert lines[2].startswith("said to be two tiles         2 ")


def test_without_numbers_there_is_no_rule_to_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", tiles_of(tmp_path, [("a", 1, 3)]))
    with pytest.raises(StageError, match="no two images with numbers"):
        check_grouping.main()


def test_a_montage_names_the_picture_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["montage", "nowhere.png", "--out", str(tmp_path / "sheet.png")])
    with pytest.raises(SystemExit, match="2"):
        montage_main()
    assert "nowhere.png" in capsys.readouterr().err


def test_an_argument_that_a_stage_does_not_know_is_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stages.data_split", "--seed", "3"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert "unrecognized arguments: --seed 3" in done.stderr


def test_a_montage_shows_each_picture_whole_in_its_cell() -> None:
    pictures = [Image.new("L", (20, 10), 0), Image.new("RGB", (10, 20), (255, 0, 0))]
    sheet = montage(pictures, cell=40, columns=2)
    assert sheet.size == (2 * 46 + 6, 46 + 6)
    assert sheet.getpixel((26, 26)) == (0, 0, 0)
    assert sheet.getpixel((26, 12)) == (255, 255, 255)  # above a picture that is wider than high
    assert sheet.getpixel((72, 12)) == (255, 0, 0)
    assert montage(pictures * 3, cell=40).size == (3 * 46 + 6, 2 * 46 + 6)
