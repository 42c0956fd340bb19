"""Loading: all or nothing, even when it is killed; the manifest holds; all problems are named at once."""

from __future__ import annotations

import hashlib
import io
import logging
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages import data_load as module
from stages.data_load import data_load
from stages.errors import StageError
from stages.own import start_anew
from stages.params import DataLoadParams, SyntheticParams
from stages.tiles import Tile, read_tiles

SYNTHETIC = SyntheticParams(tiles_per_class=1, good_tiles=1, exposures=1, height=40, width=40, seed=1)
PINNED = "Magnetic-tile-defect-datasets.-cc4eb530b57b9cb7225bf76023873043ffd50655"
ROOT = Path(__file__).parents[2]


def load(source: object, out: Path, mask_threshold: int = 0) -> list[Tile]:
    params = DataLoadParams(source=str(source), mask_threshold=mask_threshold, synthetic=SYNTHETIC)
    return data_load(params, out, out.parent / "cache")


def problems(source: object, out: Path) -> str:
    with pytest.raises(StageError) as caught:
        load(source, out)
    assert not out.exists()
    return str(caught.value)


def encoded(pixels: np.ndarray, image_format: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format)
    return buffer.getvalue()


def picture(height: int = 20, width: int = 24, seed: int = 0) -> bytes:
    return encoded(np.random.default_rng(seed).integers(0, 255, (height, width), np.uint8), "JPEG")


def mask(*levels: int, height: int = 20, width: int = 24) -> bytes:
    """A mask with a pixel of each of the given levels."""
    pixels = np.zeros((height, width), np.uint8)
    pixels[0, : len(levels)] = levels
    return encoded(pixels, "PNG")


def folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def snapshot(path: Path) -> dict[str, bytes]:
    return {one.relative_to(path).as_posix(): one.read_bytes() for one in path.rglob("*") if one.is_file()}


def test_images_masks_and_index_are_written(tmp_path: Path) -> None:
    files = {
        "MT_Crack/Imgs/exp2_num_7777.jpg": picture(),
        "MT_Crack/Imgs/exp2_num_7777.png": mask(1, 128, 255),
        "MT_Free/Imgs/exp1_num_5.jpg": picture(30, 40, seed=1),
        "MT_Free/Imgs/exp1_num_5.png": mask(height=30, width=40),
        "README.md": b"text",
    }
    crack, free = load(folder(tmp_path / "source", files), tmp_path / "out")
    assert (crack.class_, crack.exposure, crack.number, crack.tile) == ("Crack", 2, 7777, "tile007777")
    assert (crack.width, crack.height, crack.defect_pixels) == (24, 20, 3)
    assert (free.width, free.height, free.defect_pixels) == (40, 30, 0)
    assert read_tiles(tmp_path / "out" / "tiles.csv") == [crack, free]
    image, written = tmp_path / "out" / crack.image, tmp_path / "out" / crack.mask
    assert image.read_bytes() == files["MT_Crack/Imgs/exp2_num_7777.jpg"]
    assert hashlib.sha256(image.read_bytes()).hexdigest() == crack.image_sha256
    assert hashlib.sha256(written.read_bytes()).hexdigest() == crack.mask_sha256
    assert np.unique(np.asarray(Image.open(written))).tolist() == [0, 255]


@pytest.mark.parametrize(("threshold", "pixels"), [(0, 3), (1, 2), (127, 2), (128, 1), (254, 1)])
def test_a_mask_pixel_is_a_defect_above_the_threshold(tmp_path: Path, threshold: int, pixels: int) -> None:
    source = folder(tmp_path / "source", {"Crack/a.jpg": picture(), "Crack/a.png": mask(1, 128, 255)})
    (tile,) = load(source, tmp_path / "out", threshold)
    assert tile.defect_pixels == pixels


def test_a_good_tile_of_ones_own_needs_no_mask(tmp_path: Path) -> None:
    (tile,) = load(folder(tmp_path / "source", {"Free/a.jpg": picture()}), tmp_path / "out")
    assert tile.defect_pixels == 0
    assert not np.asarray(Image.open(tmp_path / "out" / tile.mask)).any()


def test_all_problems_are_named_at_once(tmp_path: Path) -> None:
    source = folder(
        tmp_path / "source",
        {
            "Crack/lonely.jpg": picture(),
            "Crack/orphan.png": mask(255),
            "Crack/small.jpg": picture(),
            "Crack/small.png": mask(255, height=10),
            "Crack/twice.jpg": picture(),
            "Crack/twice.bmp": picture(),
            "Crack/twice.png": mask(255),
            "Fray/cut.jpg": picture()[:-200],
            "Fray/cut.png": mask(255),
            "Fray/empty.jpg": picture(),
            "Fray/empty.png": b"",
            "Free/text.jpg": b"no image",
        },
    )
    text = problems(source, tmp_path / "out")
    assert text.startswith("7 problem(s)")
    for line in (
        "Crack/lonely.jpg: no mask lonely.png beside it",
        "Crack/orphan.png: mask without an image",
        "Crack/small.png: 24 x 10 pixels, its image has 24 x 20",
        "Crack/twice.bmp, Crack/twice.jpg: same name twice",
        "Fray/cut.jpg: image is truncated",
        "Fray/empty.png: file is empty",
        "Free/text.jpg: not an image",
    ):
        assert line in text


def test_a_source_without_images_says_what_is_expected(tmp_path: Path) -> None:
    text = problems(folder(tmp_path / "source", {"Crak/a.jpg": picture()}), tmp_path / "out")
    assert "MT_<Class>/Imgs/*.jpg" in text


def test_a_damaged_member_of_a_zip_is_named_with_the_other_problems(tmp_path: Path) -> None:
    data = picture()
    path = zipped(tmp_path / "tiles.zip", {"Free/bad.jpg": data, "Free/text.jpg": b"no image"})
    whole = path.read_bytes()
    path.write_bytes(whole.replace(data, data[:-50] + bytes(50)))
    text = problems(path, tmp_path / "out")
    assert "damaged at Free/bad.jpg" in text
    assert "Free/text.jpg: not an image" in text


# The manifest of the pinned commit


@pytest.fixture
def manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """A pinned set of two tiles, and its manifest in the place of the real one."""
    files = {
        "MT_Crack/Imgs/exp1_num_10.jpg": picture(seed=1),
        "MT_Crack/Imgs/exp1_num_10.png": mask(255),
        "MT_Free/Imgs/exp1_num_2000.jpg": picture(seed=2),
        "MT_Free/Imgs/exp1_num_2000.png": mask(),
    }
    path = tmp_path / "manifest.sha256"
    path.write_text("".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items()))
    monkeypatch.setattr(module, "MANIFEST", path)
    return files


def pinned(files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{PINNED}/": b"", f"{PINNED}/README.md": b"text"} | {
        f"{PINNED}/{name}": data for name, data in files.items()
    }


def test_the_pinned_archive_passes_its_manifest(tmp_path: Path, manifest: dict[str, bytes]) -> None:
    assert len(load(zipped(tmp_path / "tiles.zip", pinned(manifest)), tmp_path / "out")) == 2


@pytest.mark.parametrize("kind", ["zip", "folder"])
def test_differences_from_the_manifest_are_named_whatever_the_source_is_called(
    tmp_path: Path, manifest: dict[str, bytes], kind: str
) -> None:
    files = dict(manifest)
    files["MT_Crack/Imgs/exp1_num_10.jpg"] = picture(seed=9)
    files["MT_Free/Imgs/extra.jpg"] = picture()
    del files["MT_Free/Imgs/exp1_num_2000.png"]
    source = (
        zipped(tmp_path / "renamed.zip", pinned(files))
        if kind == "zip"
        else folder(tmp_path / "renamed" / PINNED, files)
    )
    text = problems(source, tmp_path / "out")
    assert "MT_Crack/Imgs/exp1_num_10.jpg: content differs from the manifest" in text
    assert "MT_Free/Imgs/extra.jpg: not in the manifest" in text
    assert "MT_Free/Imgs/exp1_num_2000.png: missing, the manifest has it" in text


def test_a_damaged_member_of_the_pinned_archive_is_one_problem_among_all(
    tmp_path: Path, manifest: dict[str, bytes]
) -> None:
    path = zipped(tmp_path / "tiles.zip", pinned(manifest | {"MT_Free/Imgs/extra.jpg": picture()}))
    data = manifest["MT_Crack/Imgs/exp1_num_10.jpg"]
    path.write_bytes(path.read_bytes().replace(data, data[:-50] + bytes(50)))
    text = problems(path, tmp_path / "out")
    assert text.startswith("2 problem(s)")
    assert "damaged at" in text
    assert "MT_Free/Imgs/extra.jpg: not in the manifest" in text


def test_tiles_of_ones_own_need_no_manifest(tmp_path: Path, manifest: dict[str, bytes]) -> None:
    del manifest["MT_Free/Imgs/exp1_num_2000.jpg"], manifest["MT_Free/Imgs/exp1_num_2000.png"]
    assert len(load(zipped(tmp_path / "own.zip", manifest), tmp_path / "out")) == 1


def test_the_committed_manifest_lists_an_image_and_a_mask_for_each_of_1344_tiles() -> None:
    paths = [line.split("  ", 1)[1] for line in module.MANIFEST.read_text().splitlines()]
    assert len(set(paths)) == len(paths) == 2 * 1344
    assert {path[:-4] for path in paths if path.endswith(".jpg")} == {
        path[:-4] for path in paths if path.endswith(".png")
    }


# All or nothing


def test_pictures_of_a_class_that_would_be_passed_over_are_named_and_others_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = {
        "Free/a.jpg": picture(),
        "overview.jpg": picture(seed=1),
        "Crack/notes.txt": b"x",
        ".x/b.jpg": b"",
    }
    bad = {"crack/b.jpg": picture(seed=2), "Crack/line 2/c.png": mask(1), "Free/d.webp": b"x"}
    source = folder(tmp_path / "source", good | bad)
    assert problems(source, tmp_path / "out").splitlines()[1:] == [
        "  Crack/line 2/c.png: the images of class Crack belong right into a folder named Crack",
        "  Free/d.webp: .webp is not taken; save it as PNG, TIFF, BMP or JPEG",
        "  crack/b.jpg: the images of class Crack belong right into a folder named Crack",
    ]
    for name in bad:
        (source / name).unlink()
    caplog.clear()
    assert [tile.key for tile in load(source, tmp_path / "out")] == ["Free/a"]
    assert caplog.messages == ["1 pictures are in no folder of a class and left out, as overview.jpg"]


def test_a_linked_class_folder_is_read_once_and_a_link_back_does_not_go_on_for_ever(tmp_path: Path) -> None:
    elsewhere = folder(tmp_path / "share", {"a.jpg": picture(), "a.png": mask(1)})
    source = folder(tmp_path / "source", {"Free/b.jpg": picture(seed=1)})
    (source / "Crack").symlink_to(elsewhere)
    (source / "Free" / "back").symlink_to(source)
    assert [tile.key for tile in load(source, tmp_path / "out")] == ["Crack/a", "Free/b"]


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_the_levels_of_ten_or_twelve_bits_in_sixteen_are_refused(tmp_path: Path, image_format: str) -> None:
    levels = np.linspace(200, 4000, 20 * 24).reshape(20, 24).astype(np.uint16)
    name = f"Free/a.{image_format.lower()}"
    source = folder(tmp_path / "source", {name: encoded(levels, image_format)})
    assert "its grey levels end at 4000 of 65,535" in problems(source, tmp_path / "out")
    folder(source, {name: encoded(levels * 16, image_format)})
    assert len(load(source, tmp_path / "out")) == 1


def test_a_good_png_needs_no_mask_and_a_mask_without_its_image_is_none(tmp_path: Path) -> None:
    levels = np.random.default_rng(0).integers(0, 255, (20, 24), np.uint8)
    source = folder(tmp_path / "source", {"Free/a.png": encoded(levels, "PNG")})
    assert [(tile.image, tile.defect_pixels) for tile in load(source, tmp_path / "out")] == [
        ("images/Free/a.png", 0)
    ]
    folder(source, {"Free/b.png": mask(0)})
    assert "Free/b.png: all of one grey level, as a mask whose image is missing" in problems(
        source, tmp_path / "other"
    )


def colours(*levels: int, mode: str = "RGB") -> bytes:
    """A mask of 20 x 24 pixels in colour whose first 30 pixels have the channels of `levels`."""
    pixels = np.zeros((20, 24, len(levels)), np.uint8)
    pixels.reshape(-1, len(levels))[:30] = levels
    buffer = io.BytesIO()
    Image.fromarray(pixels, mode).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("levels", [(0, 0, 4), (128, 0, 0), (1, 1, 1)], ids=str)
def test_any_colour_in_a_mask_is_a_defect_however_dark(tmp_path: Path, levels: tuple[int, ...]) -> None:
    source = folder(tmp_path / "source", {"Crack/a.jpg": picture(), "Crack/a.png": colours(*levels)})
    assert [tile.defect_pixels for tile in load(source, tmp_path / "out")] == [30]


@pytest.mark.parametrize("levels", [(0, 0, 0, 255), (255, 255, 255, 255)], ids=str)
def test_a_mask_that_transparency_draws_is_refused(tmp_path: Path, levels: tuple[int, ...]) -> None:
    source = folder(
        tmp_path / "source", {"Crack/a.jpg": picture(), "Crack/a.png": colours(*levels, mode="RGBA")}
    )
    assert "Crack/a.png: a mask with transparency can be read in two ways" in problems(
        source, tmp_path / "out"
    )


def test_one_picture_with_two_answers_is_named_and_with_one_is_not(tmp_path: Path) -> None:
    files = {"Crack/a.jpg": picture(), "Crack/a.png": mask(1), "Free/copy.jpg": picture()}
    source = folder(tmp_path / "source", files)
    says = "Free/copy: the same picture as Crack/a, with another class or mask"
    assert says in problems(source, tmp_path / "out")
    (source / "Free" / "copy.jpg").unlink()
    folder(source, {"Crack/b.jpg": picture(), "Crack/b.png": mask(1)})
    assert len(load(source, tmp_path / "out")) == 2


def test_a_class_of_ones_own_needs_its_name_alone(tmp_path: Path) -> None:
    files = {"Scratch/a.jpg": picture(), "Scratch/a.png": mask(1), "Free/b.jpg": picture(seed=1)}
    folder(tmp_path / "source", files)
    for package in ("stages", "serving"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    tiles = tmp_path / "stages" / "tiles.py"
    tiles.write_text(tiles.read_text().replace('"Uneven", GOOD_CLASS', '"Uneven", "Scratch", GOOD_CLASS'))
    shutil.copy(ROOT / "params.yaml", tmp_path)
    program = """
import numpy as np
from pathlib import Path
from stages.data_load import data_load
from stages.lifelike import draw_any_defect
from stages.params import load_params
params, rng = load_params().data_load, np.random.default_rng(1)
for source in ("source", "synthetic"):
    sizes = params.synthetic.model_copy(update={"tiles_per_class": 1, "good_tiles": 1})
    chosen = params.model_copy(update={"source": source, "synthetic": sizes})
    found = data_load(chosen, Path(source + "-data"))
    print(*sorted({tile.class_ for tile in found}))
for _ in range(30):
    draw_any_defect(rng.integers(0, 255, (64, 64)).astype(np.uint8), rng)
"""
    ran = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == ["Free Scratch", "Blowhole Break Crack Fray Free Uneven"]


def test_the_stage_counts_classes_and_says_where_masks_are_not_as_one_expects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    files = {
        "Crack/a.jpg": picture(),
        "Crack/a.png": mask(0),
        "Free/b.jpg": picture(seed=1),
        "Free/b.png": mask(1),
    }
    inverted = encoded(np.full((20, 24), 255, np.uint8), "PNG")
    files |= {"Crack/d.jpg": picture(seed=3), "Crack/d.png": inverted}
    folder(tmp_path / "source", files | {"Free/c.jpg": picture(seed=2)})
    text = (ROOT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(re.sub("source: .*", "source: source", text))
    start_anew(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.INFO):
        module.main()
    assert caplog.messages == [
        "1 images of class Crack have an empty mask: they train as good ones",
        "1 images of class Free have a defect in their mask, as Free/b",
        "1 masks have more than half of the image as defect, as Crack/d: inverted, or a copy of the image?",
        "4 images of 4 tiles in data/tiles: Crack 2, Free 2",
    ]


def test_a_failed_load_keeps_what_was_there(tmp_path: Path) -> None:
    load(folder(tmp_path / "source", {"Free/a.jpg": picture()}), tmp_path / "out")
    before = snapshot(tmp_path / "out")
    with pytest.raises(StageError):
        load(folder(tmp_path / "worse", {"Free/a.jpg": b"x"}), tmp_path / "out")
    assert snapshot(tmp_path / "out") == before
    assert {path.name for path in tmp_path.iterdir()} == {"source", "worse", "out"}


def test_a_new_load_leaves_nothing_of_the_old_one(tmp_path: Path) -> None:
    load(folder(tmp_path / "first", {"Free/a.jpg": picture()}), tmp_path / "out")
    load(folder(tmp_path / "second", {"Free/b.jpg": picture()}), tmp_path / "out")
    assert set(snapshot(tmp_path / "out")) == {"images/Free/b.jpg", "masks/Free/b.png", "tiles.csv"}
    assert {path.name for path in tmp_path.iterdir()} == {"first", "second", "out"}


def test_an_interruption_while_the_old_tiles_are_removed_leaves_no_half_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(folder(tmp_path / "first", {"Free/a.jpg": picture()}), tmp_path / "out")
    old = snapshot(tmp_path / "out")
    load(folder(tmp_path / "second", {"Free/b.jpg": picture()}), tmp_path / "fresh")
    new = snapshot(tmp_path / "fresh")

    def interrupted(path: Path, *_: object, **__: object) -> None:
        next(one for one in Path(path).rglob("*") if one.is_file()).unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load(tmp_path / "second", tmp_path / "out")
    assert snapshot(tmp_path / "out") in (old, new)


KILLED = """
import sys
from pathlib import Path
from stages.data_load import data_load
from stages.params import DataLoadParams, SyntheticParams

synthetic = SyntheticParams(tiles_per_class=1, good_tiles=1, exposures=1, height=40, width=40, seed=1)
source, out = sys.argv[1:]
data_load(DataLoadParams(source=source, mask_threshold=0, synthetic=synthetic), Path(out), Path(out) / "x")
"""


def test_a_killed_load_leaves_nothing_that_counts_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    source = folder(tmp_path / "source", {f"Free/{n}.jpg": picture(600, 600, seed=n % 5) for n in range(300)})
    out = tmp_path / "data" / "tiles"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(source), str(out)], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not list(out.parent.glob(".tiles-*/tiles/images/Free/2.jpg")) and time.monotonic() < deadline:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not out.exists()
    assert list(out.parent.iterdir()), "it was killed half way"

    shutil.rmtree(source)
    tiles = load(folder(source, {"Free/a.jpg": picture()}), out)
    assert read_tiles(out / "tiles.csv") == tiles
    assert [path.name for path in out.parent.iterdir()] == ["tiles"]
