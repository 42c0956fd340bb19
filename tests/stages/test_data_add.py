"""Images of one's own: all or none, each problem named, and what has judged goes on judging."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages import own
from stages.data_add import data_add
from stages.data_add import main as data_add_main
from stages.data_delete import data_delete
from stages.data_load import data_load
from stages.data_split import data_split
from stages.errors import StageError
from stages.own import read_own, start_anew
from stages.params import DataLoadParams, DataSplitParams, SyntheticParams
from stages.pins import SIDES, Pin, deleted_images, pinned_sides, present_split, read_pins, settle, write_pins
from stages.synthetic import draw_surface
from stages.tiles import Tile, read_tiles

ROOT = Path(__file__).parents[2]
SIZE = SyntheticParams(tiles_per_class=4, good_tiles=4, exposures=2, height=48, width=48, seed=1)
SPLIT = DataSplitParams(strategy="grouped", test_fraction=0.25, val_fraction=0.25, lookalike=0.85, seed=1)


def surface(seed: int, light: float = 0) -> np.ndarray:
    """A picture of one piece for each seed, (50, 60) uint8."""
    plane = 128 + light + draw_surface(50, 60, np.random.default_rng(seed))
    return np.clip(plane, 0, 255).astype(np.uint8)


def write(folder: Path, name: str, picture: np.ndarray, mask: np.ndarray | None = None) -> None:
    """An image and its mask, which has one square of defect unless it is given; none for Free."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, quality=95)
    if mask is None and not name.startswith("Free"):
        mask = np.zeros(picture.shape, np.uint8)
        mask[5:9, 5:9] = 255
    if mask is not None:
        Image.fromarray(mask).save(path.with_suffix(".png"))


def snapshot(path: Path) -> dict[str, bytes]:
    return {one.relative_to(path).as_posix(): one.read_bytes() for one in path.rglob("*") if one.is_file()}


@dataclass
class Project:
    """The data of a project, and the data stages on it.

    Attributes:
        data: its folder.
        source: folder of the images that are no one's own.
        params: of the split.
    """

    data: Path
    source: Path | str = "synthetic"
    params: DataSplitParams = SPLIT

    def repro(self) -> dict[str, str]:
        """Runs `data_own`, `data_load` and `data_split`; answers the side of each image."""
        read_own(self.data)
        pins = read_pins(self.data / "pins.csv")
        params = DataLoadParams(source=str(self.source), mask_threshold=0, synthetic=SIZE)
        deleted = deleted_images(pins)
        tiles = data_load(params, self.data / "tiles", own=self.data / "own", deleted=deleted)
        data_split(self.params, self.data / "tiles", tiles, self.data / "split", pinned_sides(pins))
        return self.sides()

    def sides(self) -> dict[str, str]:
        """Side of each `<Class>/<name>`."""
        return {tile.key: side for side, tiles in present_split(self.data).items() for tile in tiles}

    def summary(self) -> dict:
        return json.loads((self.data / "split" / "summary.json").read_text())

    def tile(self, key: str) -> Tile:
        return next(tile for tile in read_tiles(self.data / "tiles" / "tiles.csv") if tile.key == key)

    def add(self, folder: Path, *, relabel: bool = False) -> list[Tile]:
        return data_add(str(folder), self.data, 0, relabel=relabel)

    def refused(self, action: Callable[[], object]) -> str:
        """The message of an action that must fail, and leave all as it was."""
        before = snapshot(self.data)
        with pytest.raises(StageError) as caught:
            action()
        assert snapshot(self.data) == before
        return str(caught.value)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of synthetic tiles, loaded and split."""
    data = tmp_path_factory.mktemp("base") / "data"
    start_anew(data)
    Project(data).repro()
    return data


@pytest.fixture
def project(tmp_path: Path, base: Path) -> Project:
    """Synthetic tiles, loaded and split."""
    shutil.copytree(base, tmp_path / "data")
    return Project(tmp_path / "data")


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """A folder of a defect tile under two exposures, and a good one."""
    folder = tmp_path / "new"
    write(folder, "Crack/line3-7_exp1.jpg", surface(1))
    write(folder, "Crack/line3-7_exp2.jpg", surface(1, 40))
    write(folder, "Free/line3-8.jpg", surface(2))
    return folder


def of(sides: dict[str, str], side: str) -> str:
    """Some Crack image of a side."""
    return next(key for key, one in sides.items() if one == side and key.startswith("Crack/exp1"))


# Adding


def test_added_images_are_kept_as_they_came_and_join_those_of_the_source(project: Project, new: Path) -> None:
    tiles = project.add(new)
    assert [(tile.key, tile.tile) for tile in tiles] == [
        ("Crack/line3-7_exp1", "line3-7"),
        ("Crack/line3-7_exp2", "line3-7"),
        ("Free/line3-8", "Free/line3-8"),
    ]
    kept = snapshot(project.data / "own")
    assert "data_add" in kept.pop("README.md").decode()
    assert kept == snapshot(new)
    check = ["sha256sum", "--check", "--strict", "../own.sha256"]
    assert subprocess.run(check, cwd=project.data / "own", capture_output=True).returncode == 0
    sides = project.repro()
    assert len(sides) == 24 * 2 + 3
    assert sides["Crack/line3-7_exp1"] == sides["Crack/line3-7_exp2"]
    assert project.tile("Crack/line3-7_exp1").defect_pixels == 16
    assert project.repro() == sides


def test_without_another_source_ones_own_images_are_the_data(tmp_path: Path, new: Path) -> None:
    project = Project(tmp_path / "data", source="none")
    start_anew(project.data)
    read_own(project.data)
    assert "the source has no images" in project.refused(project.repro)
    for number in range(4):
        write(new, f"Crack/more-{number}.jpg", surface(10 + number))
        write(new, f"Free/more-{number}.jpg", surface(20 + number))
    project.add(new)
    assert len(project.repro()) == 3 + 2 * 4


def test_all_problems_are_named_at_once_and_nothing_changes(project: Project, new: Path) -> None:
    old = project.data / "tiles" / "images" / "Crack" / "exp1_num_9003.jpg"
    write(new, "Fray/again.jpg", surface(7))
    (new / "Fray" / "again.jpg").write_bytes(old.read_bytes())
    write(new, "Crack/exp1_num_9003.jpg", surface(8))
    (new / "Free" / "twin.jpg").write_bytes((new / "Free" / "line3-8.jpg").read_bytes())
    write(new, "Break/lonely.jpg", surface(9))
    (new / "Break" / "lonely.png").unlink()
    write(new, "Fray/small.jpg", surface(10), np.zeros((10, 10), np.uint8))
    (new / "Uneven").mkdir()
    (new / "Uneven" / "text.jpg").write_text("no image")
    (new / "Uneven" / "text.png").write_text("no image")
    write(new, "crack/small-letters.jpg", surface(11))
    text = project.refused(lambda: project.add(new))
    height, width = Image.open(old).size[::-1]
    assert (height, width) != (50, 60)
    for line in (
        "Fray/again.png: 60 x 50 pixels, its image has",
        "Crack/exp1_num_9003: another picture has this name",
        "Free/twin: the same picture as Free/line3-8",
        "Break/lonely.jpg: no mask lonely.png beside it",
        "Fray/small.png: 10 x 10 pixels, its image has 60 x 50",
        "Uneven/text.jpg: not an image",
        "crack/small-letters.jpg: the images of class Crack belong right into a folder named Crack",
    ):
        assert line in text


def test_a_picture_that_is_there_is_refused_before_and_after_it_went_through_the_stages(
    project: Project, new: Path, tmp_path: Path
) -> None:
    project.add(new)
    assert "Free/line3-8: this picture is there already" in project.refused(lambda: project.add(new))
    project.repro()
    moved = tmp_path / "moved"
    (moved / "Uneven").mkdir(parents=True)
    for suffix in (".jpg", ".png"):
        name = f"line3-7_exp1{suffix}"
        (moved / "Uneven" / name).write_bytes((new / "Crack" / name).read_bytes())
    text = project.refused(lambda: project.add(moved))
    assert "Uneven/line3-7_exp1: this picture is there already, as Crack/line3-7_exp1; --relabel" in text


def test_a_source_without_images_is_refused(project: Project, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "has no images" in project.refused(lambda: project.add(tmp_path / "empty"))
    assert "FOLDER: no such file or folder" in project.refused(lambda: project.add(tmp_path / "nowhere"))


def test_numbers_that_would_break_up_a_tile_are_refused_and_later_ones_are_not(
    project: Project, tmp_path: Path
) -> None:
    write(tmp_path / "between", "Crack/exp1_num_9004.jpg", surface(1))  # of exp1_num_9003, exp2_num_9006
    text = project.refused(lambda: project.add(tmp_path / "between"))
    assert "fall into those of tile009003" in text
    write(tmp_path / "after", "Crack/exp3_num_9009.jpg", surface(1))
    (tile,) = project.add(tmp_path / "after")
    assert tile.tile == "tile009003"
    sides = project.repro()
    assert sides["Crack/exp3_num_9009"] == sides["Crack/exp1_num_9003"]


def test_a_png_image_has_its_mask_beside_it(project: Project, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "Crack"
    folder.mkdir(parents=True)
    Image.fromarray(surface(1)).save(folder / "a.png")
    Image.fromarray(np.full((50, 60), 255, np.uint8)).save(folder / "a_mask.png")
    project.add(folder.parent)
    project.repro()
    assert project.tile("Crack/a").defect_pixels == 50 * 60
    assert project.tile("Crack/a").image == "images/Crack/a.png"
    Image.fromarray(surface(2)).save(folder / "b.png")
    assert "b.png: mask without an image" in project.refused(lambda: project.add(folder.parent))


def test_masks_that_are_not_as_one_expects_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    start_anew(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    full = np.full((50, 60), 255, np.uint8)
    write(tmp_path / "new", "Crack/inverted.jpg", surface(1), full)
    write(tmp_path / "new", "Crack/empty.jpg", surface(2), full * 0)
    write(tmp_path / "new", "Crack/usual.jpg", surface(3))
    write(tmp_path / "new", "Free/marked.jpg", surface(4), full // 255)
    monkeypatch.setattr("sys.argv", ["data_add", "new"])
    data_add_main()
    assert [text for text in caplog.messages if text.startswith("look at")] == [
        "look at Crack/empty: 0 defect pixels",
        "look at Crack/inverted: 100% of it are defect pixels; an inverted mask, or a copy of the image?",
        "look at Free/marked: 3000 defect pixels",
    ]


def test_a_picture_that_a_camera_turned_counts_upright(project: Project, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "Crack"
    folder.mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(surface(1)).save(folder / "turned.jpg", exif=exif)
    Image.fromarray(np.full((60, 50), 255, np.uint8)).save(folder / "turned.png")
    (tile,) = project.add(folder.parent)
    assert (tile.height, tile.width) == (60, 50)


def test_a_mask_that_is_to_be_turned_like_its_picture_is(project: Project, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "Crack"
    folder.mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down, which no size gives away
    mask = np.zeros((50, 60), np.uint8)
    mask[:9, :9] = 255
    Image.fromarray(surface(1)).save(folder / "turned.jpg", exif=exif)
    Image.fromarray(mask).save(folder / "turned.png", exif=exif)
    project.add(folder.parent)
    project.repro()
    kept = Image.open(project.data / "tiles" / project.tile("Crack/turned").mask)
    np.testing.assert_array_equal(np.asarray(kept), mask[::-1, ::-1])


def test_an_umlaut_is_the_same_however_a_file_system_writes_it(project: Project, tmp_path: Path) -> None:
    one, two = "Tür", unicodedata.normalize("NFD", "Tür")
    write(tmp_path / "new", f"Crack/{one}_exp1.jpg", surface(1))
    write(tmp_path / "new", f"Crack/{two}_exp2.jpg", surface(1, 40))
    masks = tmp_path / "new" / "Crack"
    (masks / f"{two}_exp2.png").rename(masks / f"{one}_exp2.png")
    assert [(tile.key, tile.tile) for tile in project.add(tmp_path / "new")] == [
        (f"Crack/{one}_exp1", one),
        (f"Crack/{one}_exp2", one),
    ]
    assert data_delete([f"Crack/{two}_exp2"], project.data) == [f"Crack/{one}_exp2"]


# The split


@pytest.mark.parametrize("seed", range(4))
def test_old_images_stay_on_their_sides_whatever_comes(project: Project, tmp_path: Path, seed: int) -> None:
    old = project.sides()
    rng = np.random.default_rng(seed)
    for batch in range(2):
        for number in range(rng.integers(1, 12)):
            name = f"{rng.choice(['Crack', 'Fray', 'Free'])}/{batch}-{number}.jpg"
            write(tmp_path / str(batch), name, surface(100 * batch + number))
        project.add(tmp_path / str(batch))
        sides = project.repro()
        assert {key: side for key, side in sides.items() if key in old} == old
        assert project.summary()["moved"] == {}
        old = sides
    shares = {side: list(old.values()).count(side) / len(old) for side in SIDES}
    assert shares["test"] == pytest.approx(0.25, abs=0.06)
    assert shares["val"] == pytest.approx(0.25, abs=0.06)


def test_a_split_without_pins_would_move_old_images(project: Project, new: Path) -> None:
    old = project.sides()
    project.add(new)
    write_pins(project.data / "pins.csv", {})
    sides = project.repro()
    assert any(sides[key] != side for key, side in old.items())


@pytest.mark.parametrize("side", SIDES)
def test_a_new_photograph_of_an_old_piece_goes_to_its_side(
    project: Project, tmp_path: Path, side: str
) -> None:
    old = of(project.sides(), side)
    picture = np.asarray(Image.open(project.data / "tiles" / "images" / f"{old}.jpg"), np.float32)
    write(tmp_path / "new", "Crack/again.jpg", np.clip(20 + 0.8 * picture, 0, 255).astype(np.uint8))
    write(tmp_path / "new", "Crack/again2.jpg", np.clip(35 + 0.7 * picture, 0, 255).astype(np.uint8))
    project.add(tmp_path / "new")
    sides = project.repro()
    assert sides["Crack/again"] == sides["Crack/again2"] == side
    joined = project.summary()["joined"]
    assert joined["Crack/again"] == {"side": side, "shows": [project.tile(old).tile]}


def test_what_joins_train_and_test_takes_all_of_it_to_test_and_says_so(
    project: Project, tmp_path: Path
) -> None:
    old = project.sides()
    train, test = of(old, "train"), of(old, "test")
    exposures = {key for key in old if project.tile(key).tile == project.tile(train).tile}
    # By name, as another exposure of either, and by look, as the two are one picture.
    for exposure, key in enumerate((train, test), start=5):
        name = f"Crack/exp{exposure}_num_{project.tile(key).number + 9}.jpg"
        write(tmp_path / "new", name, surface(1, 20 * exposure - 100))
    project.add(tmp_path / "new")
    sides = project.repro()
    assert {key for key in old if sides[key] != old[key]} == exposures
    assert project.summary()["moved"] == {f"images/{key}.jpg": "train -> test" for key in exposures}
    assert sides[train] == sides[test] == "test"
    assert not any(project.summary()["leaks"].values())
    # It stays there when what joined them has gone.
    data_delete([key for key in sides if key not in old], project.data)
    assert project.repro()[train] == "test"


def test_a_random_split_is_not_pinned(project: Project, new: Path) -> None:
    project.params = SPLIT.model_copy(update={"strategy": "random"})
    with pytest.raises(StageError, match="strategy=random"):
        project.repro()
    assert "strategy=random and leaks" in project.refused(lambda: project.add(new))


@pytest.mark.parametrize("lost", ["tiles", "split"])
def test_a_version_that_is_not_here_is_asked_for(project: Project, new: Path, lost: str) -> None:
    (project.data / lost).rename(project.data.parent / "elsewhere")
    (project.data.parent / "dvc.lock").write_text("stages: {data_load: {}, data_split: {}}")
    text = project.refused(lambda: project.add(new))
    assert f"no {project.data / lost}" in text
    assert "`dvc pull --with-deps data_split` first" in text
    (project.data.parent / "dvc.lock").unlink()
    project.add(new)  # where no stage has run, there is nothing to keep


# Relabelling and deleting


@pytest.mark.parametrize("key", ["Crack/exp1_num_9003", "Crack/line3-7_exp1"])
def test_another_class_and_mask_and_the_same_tile_and_side(
    project: Project, new: Path, tmp_path: Path, key: str
) -> None:
    project.add(new)
    old = project.repro()
    before = project.tile(key)
    picture = project.data / "tiles" / before.image
    folder = tmp_path / "better" / "Uneven"
    folder.mkdir(parents=True)
    (folder / picture.name).write_bytes(picture.read_bytes())
    mask = np.zeros((before.height, before.width), np.uint8)
    mask[:3, :5] = 255
    Image.fromarray(mask).save(folder / f"{picture.stem}.png")
    (tile,) = project.add(folder.parent, relabel=True)
    sides = project.repro()
    now = key.replace("Crack", "Uneven")
    assert project.tile(now) == tile
    assert (tile.defect_pixels, tile.class_, tile.tile) == (15, "Uneven", before.tile)
    assert sides == {now if one == key else one: side for one, side in old.items()}
    # And once more, the mask alone.
    Image.fromarray(np.zeros_like(mask)).save(folder / f"{picture.stem}.png")
    project.add(folder.parent, relabel=True)
    assert project.repro() == sides
    assert project.tile(now).defect_pixels == 0
    assert len([path for path in snapshot(project.data / "own") if picture.stem in path]) == 2


def test_relabelling_is_for_pictures_that_are_there_by_their_name(
    project: Project, new: Path, tmp_path: Path
) -> None:
    assert "Crack/line3-7_exp1: this picture is not there yet" in project.refused(
        lambda: project.add(new, relabel=True)
    )
    project.add(new)
    (new / "Free" / "line3-8.jpg").rename(new / "Free" / "other.jpg")
    assert "Free/other: this picture is there as Free/line3-8; it keeps its name" in project.refused(
        lambda: project.add(new, relabel=True)
    )


def test_deleted_images_are_gone_and_come_back_to_their_side(
    project: Project, new: Path, tmp_path: Path
) -> None:
    project.add(new)
    old = project.repro()
    gone = {of(old, "test"), "Crack/line3-7_exp1"}
    kept = {key: project.tile(key) for key in gone}
    tiles = {key: project.tile(key).tile for key in old if key not in gone}
    write_back = tmp_path / "back"
    for tile in kept.values():
        for path, target in ((tile.image, f"{tile.key}.jpg"), (tile.mask, f"{tile.key}.png")):
            (write_back / target).parent.mkdir(parents=True, exist_ok=True)
            (write_back / target).write_bytes((project.data / "tiles" / path).read_bytes())
    names = [f"data/tiles/images/{of(old, 'test')}.jpg", "Crack/line3-7_exp1"]
    assert set(data_delete(names, project.data)) == gone
    sides = project.repro()
    assert sides == {key: side for key, side in old.items() if key not in gone}
    assert tiles == {key: project.tile(key).tile for key in sides}  # also without the first of its images
    assert not [path for path in snapshot(project.data / "own") if "line3-7_exp1" in path]
    project.add(write_back)
    assert project.repro() == old


def test_the_same_picture_under_another_name_is_deleted_with_it_and_named(project: Project) -> None:
    source = project.data.parent / "twice"
    for name in ("Crack/a.jpg", "Crack/b.jpg", "Crack/c.jpg", *(f"Free/{i}.jpg" for i in range(9))):
        write(
            source, name, surface(1 if name[6] in "ab" else int.from_bytes(name.encode()[:8], "big") % 2**31)
        )
    project.source = str(source)
    project.params = SPLIT.model_copy(update={"lookalike": 1})
    tiles = data_load(
        DataLoadParams(source=str(source), mask_threshold=0, synthetic=SIZE), project.data / "tiles"
    )
    assert len(tiles) == 12
    assert data_delete(["Crack/b"], project.data) == ["Crack/a", "Crack/b"]


def test_a_relabelled_image_of_the_source_that_is_deleted_does_not_come_back(
    project: Project, tmp_path: Path
) -> None:
    key = "Crack/exp1_num_9003"
    for path, name in (("images", f"{key}.jpg"), ("masks", f"{key}.png")):
        target = tmp_path / "moved" / name.replace("Crack", "Fray")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((project.data / "tiles" / path / name).read_bytes())
    project.add(tmp_path / "moved", relabel=True)
    data_delete(["Fray/exp1_num_9003"], project.data)
    assert not {key, "Fray/exp1_num_9003"} & project.repro().keys()


def test_images_that_are_not_there_are_named_and_none_is_deleted(project: Project) -> None:
    names = ["Crack/exp1_num_9003", "Crack/none.jpg", "Fray/exp1_num_9003"]
    text = project.refused(lambda: data_delete(names, project.data))
    assert "Crack/none.jpg: no such image" in text
    assert "Fray/exp1_num_9003: no such image" in text


# All or nothing


@pytest.mark.parametrize("step", range(5))
def test_a_change_that_is_stopped_before_the_list_is_replaced_leaves_the_old_state(
    project: Project, new: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    write(tmp_path / "first", "Free/first.jpg", surface(30))
    project.add(tmp_path / "first")
    project.repro()
    old = snapshot(project.data / "own")
    steps = iter(range(100))
    rename = os.replace

    def replace(source: Path, target: Path) -> None:
        if Path(target).parent == project.data and next(steps) == step:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        project.add(new)
    monkeypatch.undo()
    listed = read_own(project.data)
    now = snapshot(project.data / "own")
    assert now == (old if step < 4 else old | snapshot(new))
    assert listed.keys() == now.keys() - {"README.md"}
    assert not [path.name for path in project.data.iterdir() if path.name.startswith(".own")]
    project.repro()
    if now == old:
        project.add(new)
    assert {"Free/first", "Free/line3-8"} <= project.repro().keys()


KILLED = """
import sys
from pathlib import Path
from stages.data_add import data_add
from stages.data_add import main as data_add_main

data_add(sys.argv[1], Path(sys.argv[2]), 0)
"""


def test_a_killed_run_leaves_the_old_state(project: Project, tmp_path: Path) -> None:
    for number in range(300):
        write(tmp_path / "many", f"Free/{number}.jpg", np.full((600, 600), number % 251, np.uint8))
    before = snapshot(project.data)
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "many"), str(project.data)],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not list(project.data.glob(".own-new-*/Free/2.jpg")) and time.monotonic() < deadline:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    read_own(project.data)
    assert snapshot(project.data) == before


def test_what_was_changed_by_hand_is_refused(project: Project, new: Path) -> None:
    project.add(new)
    folder = project.data / "own" / "Crack"
    (folder / "by-hand.jpg").write_bytes(b"x")
    (folder / "line3-7_exp1.png").write_bytes(b"x")
    (folder / "line3-7_exp2.jpg").unlink()
    text = project.refused(project.repro)
    for line in (
        "Crack/by-hand.jpg: not in the manifest",
        "Crack/line3-7_exp1.png: content differs from the manifest",
        "Crack/line3-7_exp2.jpg: missing",
        "`dvc pull data_own`",
        "`python -m stages.data_add`",
    ):
        assert line in text


def test_many_differences_are_counted(project: Project) -> None:
    for number in range(own.SHOWN + 5):
        (project.data / "own" / f"{number}.jpg").write_bytes(b"x")
    assert "and 5 more" in project.refused(lambda: read_own(project.data))


# The files that git keeps


def test_pins_are_written_sorted_and_read_back(tmp_path: Path) -> None:
    pins = {
        digest * 64: Pin(f"images/Crack/{digest},x.jpg", digest * 64, side, deleted)
        for digest, side, deleted in (("b", "test", ""), ("a", "", "yes"))
    }
    write_pins(tmp_path / "pins.csv", pins)
    assert read_pins(tmp_path / "pins.csv") == pins
    assert (tmp_path / "pins.csv").read_text().splitlines()[1] == f'"images/Crack/a,x.jpg",{"a" * 64},,yes'
    assert pinned_sides(pins) == {"b" * 64: "test"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("image,side\n", "has columns"),
        (f"image,image_sha256,side,deleted\na,{'a' * 64},tset,\n", "line 2"),
        (f"image,image_sha256,side,deleted\na,{'a' * 64},test,maybe\n", "line 2"),
        (f"image,image_sha256,side,deleted\na,{'a' * 64}\n", None),
    ],
)
def test_a_mistake_in_the_pins_is_named(tmp_path: Path, text: str, says: str | None) -> None:
    path = tmp_path / "pins.csv"
    path.write_text(text)
    if says is None:
        assert read_pins(path) == {"a" * 64: Pin("a", "a" * 64)}
        return
    with pytest.raises(StageError, match=says):
        read_pins(path)


def test_lists_that_are_not_there_or_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="git checkout"):
        read_pins(tmp_path / "pins.csv")
    with pytest.raises(StageError, match="git checkout"):
        read_own(tmp_path)
    (tmp_path / "own.sha256").write_text("<<<<<<< HEAD\n")
    with pytest.raises(StageError, match="not a line"):
        read_own(tmp_path)


def test_the_present_split_is_pinned_by_a_command(project: Project) -> None:
    command = [sys.executable, "-m", "stages.pins"]
    done = subprocess.run(
        command, cwd=project.data.parent, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.stderr == "data/pins.csv holds 48 images on their sides\n"
    pins = read_pins(project.data / "pins.csv")
    assert {pin.image: pin.side for pin in pins.values()} == project.sides()
    # Another seed is another split, but not of what is pinned.
    project.params = SPLIT.model_copy(update={"seed": 2})
    assert project.repro() == {pin.image: pin.side for pin in pins.values()}


def test_the_stricter_side_holds_when_a_split_is_pinned() -> None:
    def tile(name: str) -> Tile:
        return Tile(f"images/{name}", "", "Free", 0, 0, name, 9, 9, 0, name, "")

    old = {name: Pin("old", name, side) for name, side in (("a", "test"), ("b", "train"), ("gone", "val"))}
    settled = settle(old, {"train": [tile("a"), tile("new")], "val": [], "test": [tile("b")]})
    assert {name: pin.side for name, pin in settled.items()} == {
        "a": "test",
        "b": "test",
        "gone": "val",
        "new": "train",
    }
