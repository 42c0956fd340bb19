"""The page in a real Chromium, against the real embedded server."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image

from scripts import page_screenshot
from serving.client import TileClient
from serving.postprocessing import find_defects, mask_at, threshold_level
from serving.up import free_port, running_server
from tests.conftest import MODEL_NAME
from tests.serving.tiles import encoded, tile, turned

sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
if page_screenshot.chromium_path() is None:
    pytest.skip("needs Chromium or Chrome on the PATH", allow_module_level=True)

Page = Any
PAGE = Path(str(files("serving") / "page" / "index.html"))
WAIT_MS = 20_000
TIMES = "\N{MULTIPLICATION SIGN}"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(**page_screenshot.launch_options())
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Page]]:
    """Opens pages; at the end, none may have complained of anything that the test did not expect."""
    contexts: list[Any] = []
    complaints: list[str] = []

    def open_page(url: str, *, may_complain: bool = False, **options: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1300, "height": 800}, **options})
        context.set_default_timeout(WAIT_MS)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        if not may_complain:
            page.on(
                "console", lambda said: said.type in ("error", "warning") and complaints.append(said.text)
            )
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def page(open_page: Callable[..., Page], server_url: str) -> Page:
    page = open_page(server_url)
    page.locator("#connection[data-state=ready]").wait_for()
    return page


@pytest.fixture(scope="module")
def client(server_url: str) -> Iterator[TileClient]:
    with TileClient(server_url) as client:
        yield client


@pytest.fixture
def tiles(tmp_path: Path) -> list[Path]:
    """Three tiles: two defects, none, and one that touches a corner."""
    corner = np.full((90, 140), 210, np.uint8)
    corner[:25, :31] = 20
    return [
        written(tmp_path / "a.png", encoded(tile())),
        written(tmp_path / "b.jpg", encoded(np.full((100, 80), 190, np.uint8), "JPEG")),
        written(tmp_path / "c.png", encoded(corner)),
    ]


def written(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def drop(page: Page, *paths: Path) -> None:
    """Drops files and folders as a user does, not as a script of the page could."""
    session = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, "x": 150, "y": 300, "data": data})
    session.detach()


def wait_until_done(page: Page, count: int) -> None:
    """Waits until each image has its answer, or can't have one."""
    is_done = "count => items.length === count && items.every(one => ['done', 'failed'].includes(one.state))"
    page.wait_for_function(is_done, arg=count)
    page.locator("#progress-row").wait_for(state="hidden")


def drop_and_wait(page: Page, *paths: Path) -> None:
    drop(page, *paths)
    wait_until_done(page, len(paths))
    # The answer is there before the photograph is decoded.
    page.wait_for_function("() => shown !== null || items[current].state === 'failed'")


def entries(page: Page) -> list[tuple[str, str]]:
    """Name and verdict of each listed image."""
    rows = page.locator("#list li:visible").all()
    return [(row.locator(".name").inner_text(), row.locator(".verdict").inner_text()) for row in rows]


def table(page: Page) -> list[list[str]]:
    return [row.locator("th, td").all_inner_texts() for row in page.locator("#rows tr").all()]


def expected_table(client: TileClient, path: Path) -> list[list[str]]:
    return [
        [
            str(number),
            f"{defect.box[0]}, {defect.box[1]}",
            f"{defect.box[2]} {TIMES} {defect.box[3]}",
            str(defect.area),
            f"{defect.area_percent:.2f}",
            f"{defect.centroid[0]:.1f}, {defect.centroid[1]:.1f}",
            f"{defect.peak_probability:.2f}",
        ]
        for number, defect in enumerate(client.predict(path).defects, start=1)
    ]


def download(page: Page, button: str) -> tuple[str, bytes]:
    with page.expect_download() as started:
        page.get_by_role("button", name=button).click()
    return started.value.suggested_filename, Path(started.value.path()).read_bytes()


def pixels(png: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(png))
    assert image.mode == "L"
    return np.asarray(image)


def set_threshold(page: Page, value: float) -> None:
    page.locator("#threshold-value").fill(str(value))
    page.wait_for_function("() => !thresholdPending")


@contextmanager
def other_origin(folder: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/{PAGE.name}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_the_server_has_the_page_at_its_root(server_url: str) -> None:
    answer = requests.get(server_url + "/", timeout=30)
    assert answer.content == PAGE.read_bytes()
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"] == "frame-ancestors 'none'"
    assert requests.head(server_url, timeout=30).status_code == 200
    assert requests.post(server_url + "/", data="{}", timeout=30).status_code == 404


def test_the_page_loads_nothing_from_elsewhere() -> None:
    text = PAGE.read_text()
    assert "src=" not in text.replace("src: ", "")
    assert "default-src 'none'" in text
    assert "innerHTML" not in text


def test_it_says_what_it_is_connected_to(page: Page, client: TileClient) -> None:
    info = client.model_info()
    assert page.locator("#connection").inner_text() == f"{MODEL_NAME}, version {info.version}"
    assert float(page.locator("#threshold-value").input_value()) == info.threshold
    assert int(page.locator("#threshold").input_value()) == threshold_level(info.threshold)


def test_dropped_files_get_a_verdict_and_the_first_is_shown(
    page: Page, tiles: list[Path], client: TileClient
) -> None:
    drop_and_wait(page, *tiles)
    expected = [client.predict(path) for path in tiles]
    assert entries(page) == [
        (path.name, f"{one.label} {one.score:.2f}") for path, one in zip(tiles, expected, strict=True)
    ]
    assert page.locator("#title").inner_text() == "a.png"
    assert page.locator("#size").inner_text() == f"100 {TIMES} 120 px"
    name = "a.png, 100 by 120 pixels: defect, 2 places"
    assert page.get_by_role("img", name=name).count() == 1


def test_of_a_dropped_folder_all_images_are_taken_and_nothing_else(page: Page, tmp_path: Path) -> None:
    folder = tmp_path / "shift"
    for name in ("b.png", "deep/down/a.PNG", "a.png"):
        written(folder / name, encoded(tile()))
    for name in ("notes.txt", ".hidden.png"):
        written(folder / name, b"no image")
    drop(page, folder)
    wait_until_done(page, 3)
    assert page.locator("#list li").evaluate_all("all => all.map(one => one.title)") == [
        "shift/a.png",
        "shift/b.png",
        "shift/deep/down/a.PNG",
    ]


def test_a_folder_of_many_files_is_taken_whole_a_few_requests_at_a_time(page: Page, tmp_path: Path) -> None:
    folder, flying, most = tmp_path / "many", set(), 0

    def begin(request: Any) -> None:
        nonlocal most
        flying.add(request)
        most = max(most, len(flying))

    for number in range(130):  # a browser gives the names of a folder a hundred at a time
        written(folder / f"{number:03}.png", encoded(tile(16, 16) if number else tile()))
    page.on("request", begin)
    page.on("requestfinished", lambda request: flying.discard(request))
    drop(page, folder)
    wait_until_done(page, 130)
    assert page.locator("[data-count=good]").inner_text() == "129"
    assert 1 < most <= 5  # four tiles, and the question which version it is


def test_files_and_folders_can_be_chosen(page: Page, tiles: list[Path], tmp_path: Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Add images").click()
    chooser.value.set_files(tiles[:2])
    wait_until_done(page, 2)
    written(tmp_path / "more" / "in" / "d.png", encoded(tile()))
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Add folder").click()
    chooser.value.set_files(tmp_path / "more")
    wait_until_done(page, 3)
    assert page.locator("#list li").last.get_attribute("title") == "more/in/d.png"


def test_the_table_is_that_of_the_python_client(page: Page, tiles: list[Path], client: TileClient) -> None:
    drop_and_wait(page, *tiles)
    for path in tiles:
        page.locator("#list li", has_text=path.name).click()
        page.wait_for_function("name => shown?.item.path === name", arg=path.name)
        assert table(page) == expected_table(client, path)
    assert len(expected_table(client, tiles[0])) == 2


def test_components_are_those_of_the_python_client(page: Page) -> None:
    rng = np.random.default_rng(3)
    for height, width, level in [(1, 9, 128), (9, 1, 1), (40, 61, 150), (64, 50, 200), (33, 33, 250)]:
        levels = rng.integers(0, 256, (height, width)).astype(np.uint8)
        ours = find_defects(np.where(levels >= level, np.uint8(255), np.uint8(0)), levels)
        theirs = page.evaluate(
            "([levels, w, h, level]) => findDefects(Uint8Array.from(levels), w, h, level)",
            [levels.ravel().tolist(), width, height, level],
        )
        assert theirs == [
            {
                "box": list(one.box),
                "area": one.area,
                "areaPercent": one.area_percent,
                "centroid": list(one.centroid),
                "peak": one.peak_probability,
            }
            for one in ours
        ]


def test_masks_are_those_of_the_python_client(page: Page) -> None:
    rng = np.random.default_rng(1)
    for peak in (20, 140, 250):
        levels = rng.integers(0, peak + 1, 300).astype(np.uint8)
        for threshold in (0.05, 0.5, 0.52, 0.9):
            theirs = page.evaluate(
                "([levels, at]) => Array.from(maskAt(Uint8Array.from(levels), "
                "maskLevel(Uint8Array.from(levels), thresholdLevel(at))))",
                [levels.tolist(), threshold],
            )
            assert theirs == mask_at(levels, threshold).tolist()


def test_thresholds_have_the_levels_of_the_python_client(page: Page) -> None:
    thresholds = [k / 255 for k in range(1, 256)] + [0.001, 0.5, 0.30000000000000004, 0.999, 1.0]
    levels = page.evaluate("all => all.map(thresholdLevel)", thresholds)
    assert levels == [threshold_level(one) for one in thresholds]
    assert page.evaluate("() => Array.from({length: 255}, (_, k) => thresholdLevel(ofLevel(k + 1)))") == list(
        range(1, 256)
    )


def test_moving_the_threshold_asks_nobody_and_gives_the_python_clients_answer(
    page: Page, tiles: list[Path], server_url: str
) -> None:
    drop_and_wait(page, *tiles)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for threshold in (0.9, 0.05, 1.0, 0.004):
        set_threshold(page, threshold)
        with TileClient(server_url, threshold=threshold) as client:
            assert table(page) == expected_table(client, tiles[0])
            labels = [client.predict(path).label for path in tiles]
        assert [verdict.split()[0] for _, verdict in entries(page)] == labels
    page.locator("#threshold").focus()
    page.keyboard.press("End")
    assert float(page.locator("#threshold-value").input_value()) == 1.0
    page.keyboard.press("ArrowLeft")
    assert float(page.locator("#threshold-value").input_value()) == pytest.approx(254 / 255, abs=0.001)
    page.get_by_role("button", name="Model's own").click()
    assert float(page.locator("#threshold-value").input_value()) == 0.5
    assert asked == []


def test_a_threshold_that_is_none_changes_nothing(page: Page, tiles: list[Path]) -> None:
    drop_and_wait(page, tiles[0])
    before = table(page)
    for value in ("0", "1.5", "-1", ""):
        page.locator("#threshold-value").fill(value)
        assert page.locator("#threshold-value").get_attribute("aria-invalid") == "true"
    assert table(page) == before


def test_opacity_and_toggles_change_the_picture(page: Page, tiles: list[Path]) -> None:
    drop_and_wait(page, tiles[0])

    def picture() -> str:
        page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return str(page.evaluate("() => document.getElementById('canvas').toDataURL()"))

    seen = [picture()]
    page.locator("#opacity").fill("90")
    assert page.locator("#opacity-value").inner_text() == "90 %"
    seen.append(picture())
    for label in ("Boxes", "Contour", "Overlay"):
        page.get_by_label(label, exact=True).uncheck()
        seen.append(picture())
    assert len(set(seen)) == len(seen)
    page.get_by_label("Overlay", exact=True).check()
    assert picture() == seen[3]


def test_the_overlay_lies_on_the_defect(page: Page, tmp_path: Path) -> None:
    gray = np.full((64, 64), 255, np.uint8)
    gray[16:48, 8:24] = 0
    drop_and_wait(page, written(tmp_path / "one.png", encoded(gray)))
    page.locator("#opacity").fill("100")
    for label in ("Boxes", "Contour"):
        page.get_by_label(label, exact=True).uncheck()
    colours = page.evaluate(
        """() => {
            draw();
            const {data, width} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            return [[16, 32], [9, 17], [22, 46], [6, 32], [26, 32], [16, 14], [16, 50]].map(([x, y]) => {
                const [row, column] = [view.y + (y + .5) * view.scale, view.x + (x + .5) * view.scale];
                const at = 4 * (Math.floor(row) * width + Math.floor(column));
                return [...data.slice(at, at + 3)];
            });
        }"""
    )
    assert colours == [[230, 159, 0]] * 3 + [[255, 255, 255]] * 4


def test_a_click_on_a_row_or_on_a_defect_highlights_it(page: Page, tiles: list[Path]) -> None:
    drop_and_wait(page, tiles[0])
    first, second = page.locator("#rows button").all()
    page.locator("#rows tr").nth(1).locator("td").first.click()
    _, place, _, area, *_ = table(page)[1]
    assert [first.get_attribute("aria-pressed"), second.get_attribute("aria-pressed")] == ["false", "true"]
    assert page.locator("#live").inner_text() == f"defect 2: {area} pixels at {place}"
    point = page.evaluate("() => ({x: view.x + 40 * view.scale, y: view.y + 40 * view.scale})")
    page.locator("#canvas").click(position=point)
    assert [first.get_attribute("aria-pressed"), second.get_attribute("aria-pressed")] == ["true", "false"]
    first.press("Enter")
    assert first.get_attribute("aria-pressed") == "false"


def test_all_of_it_works_with_the_keyboard_alone(page: Page, tiles: list[Path], tmp_path: Path) -> None:
    last = written(tmp_path / "d.png", encoded(np.full((50, 50), 200, np.uint8)))
    drop_and_wait(page, *tiles, last)

    def shown_after(*keys: str) -> str:
        for key in keys:
            page.keyboard.press(key)
        return str(page.locator("#title").inner_text())

    assert shown_after("ArrowRight") == "b.jpg"
    assert shown_after("ArrowLeft", "ArrowLeft") == "a.png"
    assert shown_after("End") == "d.png"
    assert shown_after("Home") == "a.png"
    assert shown_after("n") == "c.png"
    assert shown_after("Shift+N") == "a.png"
    page.wait_for_function("() => shown?.item.path === 'a.png'")
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert page.locator("#rows button[aria-pressed=true]").inner_text() == "2"
    page.keyboard.press("Escape")
    assert page.locator("#rows button[aria-pressed=true]").count() == 0
    page.keyboard.press("]")
    assert int(page.locator("#threshold").input_value()) == 130
    page.keyboard.press("\\")
    assert int(page.locator("#threshold").input_value()) == 128
    page.keyboard.press("o")
    assert not page.locator("#overlay").is_checked()
    page.keyboard.press(".")
    assert page.locator("#opacity").input_value() == "40"
    before = page.evaluate("() => view.scale")
    page.keyboard.press("+")
    assert page.evaluate("() => view.scale") > before
    page.keyboard.press("0")
    assert page.evaluate("() => view.scale") == before
    page.keyboard.press("?")
    assert page.get_by_role("dialog").is_visible()
    page.keyboard.press("Escape")
    assert not page.get_by_role("dialog").is_visible()
    with page.expect_download() as started:
        page.keyboard.press("m")
    assert started.value.suggested_filename == "a_mask.png"


def test_keys_belong_to_the_field_that_has_the_focus(page: Page, tiles: list[Path]) -> None:
    drop_and_wait(page, *tiles)
    page.locator("#model").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.type("n")
    page.locator("#opacity").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#title").inner_text() == "a.png"
    assert page.locator("#opacity").input_value() == "36"


def test_keys_can_be_turned_off_and_the_list_keeps_its_arrows(page: Page, tiles: list[Path]) -> None:
    drop_and_wait(page, *tiles)
    page.keyboard.press("?")
    page.get_by_label("Use these keys").uncheck()
    page.get_by_role("button", name="Close").click()
    page.locator("#show-keys").blur()
    page.keyboard.press("n")
    page.keyboard.press("ArrowRight")
    assert page.locator("#title").inner_text() == "a.png"
    page.get_by_role("listbox").focus()
    page.keyboard.press("ArrowDown")
    assert page.locator("#title").inner_text() == "b.jpg"


def test_the_filter_lists_what_it_names_and_follows_the_threshold(page: Page, tiles: list[Path]) -> None:
    drop_and_wait(page, *tiles)
    page.get_by_label("Defect", exact=False).first.check()
    assert [name for name, _ in entries(page)] == ["a.png", "c.png"]
    page.locator("#list").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#title").inner_text() == "c.png"
    page.get_by_label("Good").check()
    assert [name for name, _ in entries(page)] == ["b.jpg"]
    assert page.locator("#title").inner_text() == "b.jpg"


def test_masks_that_are_downloaded_are_those_of_the_python_client(
    page: Page, tiles: list[Path], client: TileClient, server_url: str
) -> None:
    drop_and_wait(page, *tiles)
    name, data = download(page, "Mask of this image")
    assert name == "a_mask.png"
    assert np.array_equal(pixels(data), client.predict(tiles[0]).mask)
    name, data = download(page, "All masks")
    assert name == "masks.zip"
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["a_mask.png", "b_mask.png", "c_mask.png"]
        for path in tiles:
            assert np.array_equal(pixels(archive.read(f"{path.stem}_mask.png")), client.predict(path).mask)
    set_threshold(page, 0.05)
    with TileClient(server_url, threshold=0.05) as lower:
        mask = lower.predict(tiles[0]).mask
    assert np.array_equal(pixels(download(page, "Mask of this image")[1]), mask)
    assert not np.array_equal(mask, client.predict(tiles[0]).mask)


def test_names_that_differ_in_their_suffix_or_case_alone_keep_masks_of_their_own(
    page: Page, tmp_path: Path
) -> None:
    paths = [tmp_path / "x" / "a.png", tmp_path / "x" / "a.jpg", tmp_path / "y" / "A.png"]
    for path in paths:
        written(path, encoded(tile(), "JPEG" if path.suffix == ".jpg" else "PNG"))
    drop_and_wait(page, *paths)
    with zipfile.ZipFile(io.BytesIO(download(page, "All masks")[1])) as archive:
        assert archive.namelist() == ["a_mask.png", "a.jpg_mask.png", "A.png_mask.png"]


def test_the_csv_has_a_row_per_defect_of_all_images(
    page: Page, tiles: list[Path], client: TileClient
) -> None:
    drop_and_wait(page, *tiles)
    page.locator("#mm").fill("0,05")
    _, data = download(page, "Defects (CSV)")
    version = str(client.model_info().version)
    expected = [
        [
            *(path.name, version, "0.5", str(number)),
            *map(str, [*one.box, one.area]),
            *(f"{one.area_percent:.4f}", *(f"{value:.2f}" for value in one.centroid)),
            f"{one.peak_probability:.4f}",
            *(f"{value * 0.05:.6g}" for value in one.box),
            *(f"{one.area * 0.05**2:.6g}", *(f"{value * 0.05:.6g}" for value in one.centroid)),
        ]
        for path in tiles
        for number, one in enumerate(client.predict(path).defects, start=1)
    ]
    head, *rows = csv.reader(io.StringIO(data.decode(), newline=""))
    assert rows == expected
    assert ",".join(head) == (
        "image,version,threshold,defect,left,top,width,height,area,area_percent,centroid_x,centroid_y,"
        "peak_probability,left_mm,top_mm,width_mm,height_mm,area_mm2,centroid_x_mm,centroid_y_mm"
    )


def test_the_csv_of_images_has_a_row_for_each_even_if_it_failed(
    page: Page, tiles: list[Path], tmp_path: Path, client: TileClient
) -> None:
    drop_and_wait(page, *tiles, written(tmp_path / '=1+"2", x.png', b"no image"))
    rows = list(csv.DictReader(io.StringIO(download(page, "Images (CSV)")[1].decode(), newline="")))
    assert [(row["image"], row["label"], row["score"]) for row in rows] == [
        *((path.name, client.predict(path).label, f"{client.predict(path).score:.4f}") for path in tiles),
        # The quote keeps spreadsheets from computing it.
        ('\'=1+"2", x.png', "failed", ""),
    ]
    assert "not an image" in rows[3]["problem"]


def test_sizes_in_mm_are_shown_where_the_pixel_size_is_known(page: Page, tiles: list[Path]) -> None:
    drop_and_wait(page, tiles[2])
    page.locator("#mm").fill("0.1")
    area = int(table(page)[0][3])
    assert page.locator("#head th").all_inner_texts()[2].split() == ["Size", "mm"]
    assert float(table(page)[0][4]) == pytest.approx(area * 0.01, rel=0.01)
    page.locator("#mm").fill("-1")
    assert page.locator("#mm").get_attribute("aria-invalid") == "true"
    assert "mm" not in " ".join(page.locator("#head th").all_inner_texts())


def colour() -> np.ndarray:
    """A coloured picture with a dark place."""
    rng = np.random.default_rng(1)
    picture = rng.integers(120, 255, (60, 80, 3), np.uint8)
    picture[10:30, 20:50] //= 6
    return picture


def sixteen_bits() -> np.ndarray:
    return (tile().astype(np.uint16) << 8) + 77


FORMATS = {
    "rgb.png": lambda: encoded(colour()),
    "palette.png": lambda: encoded(Image.fromarray(colour()).quantize(40)),
    "bits.png": lambda: encoded(Image.fromarray(tile()).convert("1")),
    "16 bits.png": lambda: encoded(sixteen_bits()),
    "alpha.png": lambda: encoded(Image.fromarray(np.dstack([colour(), np.full((60, 80), 90, np.uint8)]))),
    "gray alpha.png": lambda: encoded(Image.fromarray(tile()).convert("LA")),
    "gray.jpg": lambda: encoded(tile(), "JPEG", quality=80),
    "rgb.jpg": lambda: encoded(colour(), "JPEG", quality=80),
    "progressive.jpg": lambda: encoded(colour(), "JPEG", progressive=True),
    "gray.bmp": lambda: encoded(tile(), "BMP"),
    "rgb.bmp": lambda: encoded(colour(), "BMP"),
    "gray.gif": lambda: encoded(tile(), "GIF"),
    "rgb.webp": lambda: encoded(colour(), "WEBP", lossless=True),
    "gray.tif": lambda: encoded(tile(), "TIFF"),
    "16 bits.tif": lambda: encoded(sixteen_bits(), "TIFF"),
    "rgb.tif": lambda: encoded(colour(), "TIFF"),
    "inverted.tif": lambda: encoded(tile(), "TIFF", tiffinfo={262: 0}),
    **{f"turned {n}.png": partial(turned, Image.fromarray(colour()), n) for n in range(1, 9)},
    "turned.webp": lambda: encoded(colour(), "WEBP", lossless=True, exif=exif(6)),
}


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[0x0112] = orientation
    return made


def test_every_format_gets_the_python_clients_mask(page: Page, tmp_path: Path, client: TileClient) -> None:
    paths = [written(tmp_path / name, make()) for name, make in FORMATS.items()]
    drop_and_wait(page, *paths)
    assert [verdict for _, verdict in entries(page) if "used" in verdict] == []
    for item in page.evaluate("() => items.map(({path, name}) => ({path, name}))"):
        expected = client.predict(tmp_path / item["path"])
        levels = page.evaluate(
            """async path => {
                const item = items.find(one => one.path === path);
                const {levels, width, height} = await decodePng(item.answer.png);
                return [[height, width], [...levels]];
            }""",
            item["path"],
        )
        assert (item["path"], levels[0]) == (item["path"], list(expected.mask.shape))
        assert np.array_equal(np.reshape(levels[1], levels[0]), expected.levels), item["path"]


def test_a_photograph_that_lies_on_its_side_is_turned_as_the_python_client_does(
    page: Page, tmp_path: Path, client: TileClient
) -> None:
    path = written(tmp_path / "side.jpg", encoded(tile(), "JPEG", quality=95, exif=exif(6)))
    drop_and_wait(page, path)
    expected = client.predict(path)
    assert page.locator("#size").inner_text() == f"120 {TIMES} 100 px"
    mask = pixels(download(page, "Mask of this image")[1])
    # The decoders of browser and Pillow may differ by a grey level.
    assert mask.shape == expected.mask.shape
    assert np.mean(mask != expected.mask) < 0.005
    shown = page.evaluate(
        """() => {
            const canvas = newCanvas(shown.width, shown.height), context = canvas.getContext("2d");
            context.drawImage(shown.picture, 0, 0);
            const {data} = context.getImageData(0, 0, shown.width, shown.height);
            return [...data].filter((_, i) => i % 4 === 0);
        }"""
    )
    assert np.abs(np.reshape(shown, mask.shape) - np.rot90(tile(), -1).astype(int)).max() < 30


@pytest.mark.parametrize(("name", "note"), [("16 bits.png", "upper 8"), ("gray.tif", "decoded by this page")])
def test_a_photograph_that_is_not_shown_as_it_is_says_so(
    page: Page, tmp_path: Path, name: str, note: str
) -> None:
    drop_and_wait(page, written(tmp_path / name, FORMATS[name]()))
    assert note in page.locator("#note").inner_text()


def test_an_answer_is_shown_even_where_the_browser_cant_show_the_photograph(
    page: Page, tiles: list[Path], client: TileClient
) -> None:
    page.evaluate("() => { window.createImageBitmap = () => Promise.reject(new Error('no such format')); }")
    drop_and_wait(page, tiles[0])
    assert "can't show this PNG" in page.locator("#note").inner_text()
    assert table(page) == expected_table(client, tiles[0])


def test_files_that_are_no_tiles_say_why_and_the_others_go_on(
    open_page: Callable[..., Page], server_url: str, tmp_path: Path
) -> None:
    page = open_page(server_url, may_complain=True)  # browsers log each refusal of a server
    bad = {
        "empty.png": (b"", "file is empty"),
        "text.png": (b"hello, I am no image", "not an image"),
        "small.png": (encoded(np.zeros((5, 50), np.uint8)), "50 x 5 pixels is too small"),
        "cut.png": (encoded(tile())[:90], "refused it (400"),
        "cut.tif": (encoded(tile(), "TIFF")[:900], "truncated or damaged"),
        "packed.tif": (encoded(tile(), "TIFF", compression="tiff_lzw"), "save it as PNG or JPEG"),
        "cut.webp": (encoded(colour(), "WEBP")[:60], "WebP that this browser can't decode"),
    }
    paths = [written(tmp_path / name, data) for name, (data, _) in bad.items()]
    drop_and_wait(page, *paths, written(tmp_path / "good.png", encoded(tile())))
    assert [verdict for _, verdict in entries(page)] == ["can't be used"] * len(bad) + ["defect 1.00"]
    for name, (_, reason) in bad.items():
        page.locator("#list li", has_text=name).click()
        page.wait_for_function("name => document.getElementById('title').textContent === name", arg=name)
        assert reason in page.locator("#message-text").inner_text()
    assert page.locator("[data-count=failed]").inner_text() == str(len(bad))


def test_a_failed_image_can_be_asked_for_again(page: Page, tmp_path: Path) -> None:
    path = written(tmp_path / "late.png", b"")
    drop_and_wait(page, path)
    assert "empty" in page.locator("#message-text").inner_text()
    page.evaluate(
        "data => { items[0].file = new File([Uint8Array.from(data)], 'late.png'); }", list(encoded(tile()))
    )
    page.get_by_role("button", name="Ask again", exact=True).click()
    page.locator("#rows tr").first.wait_for()
    assert [verdict for _, verdict in entries(page)] == ["defect 1.00"]


def test_names_of_files_are_text(page: Page, tmp_path: Path) -> None:
    name = "<img src=x onerror='document.title=1'>&amp;<b>.png"
    drop_and_wait(page, written(tmp_path / name, encoded(tile())))
    assert page.locator("#title").inner_text() == name
    assert entries(page)[0][0] == name
    assert page.locator("main img, main b").count() == 0
    assert page.title() == "Tile inspection"


def test_nothing_is_lost_while_the_server_is_away(
    open_page: Callable[..., Page], server_url: str, tiles: list[Path]
) -> None:
    page = open_page(server_url, may_complain=True)
    page.locator("#connection[data-state=ready]").wait_for()
    drop_and_wait(page, tiles[0])
    page.context.set_offline(True)
    drop(page, *tiles[1:])
    alert = page.get_by_role("alert")
    alert.wait_for()
    assert alert.inner_text() == (
        f"no model server at {server_url}; start one with `python -m serving.up`, or name another above. "
        "2 images wait."
    )
    assert [verdict.split()[0] for _, verdict in entries(page)] == ["defect", "waiting", "waiting"]
    page.context.set_offline(False)
    page.get_by_role("button", name="Try again").click()
    wait_until_done(page, 3)
    assert [verdict.split()[0] for _, verdict in entries(page)] == ["defect", "good", "defect"]
    assert not alert.is_visible()


def test_each_image_has_the_version_that_answered_when_another_takes_over(
    open_page: Callable[..., Page], server_url: str, client: TileClient, tmp_path: Path
) -> None:
    info = client.model_info()
    old, new = str(info.version), str(info.version + 1)
    asked: list[str] = []

    def answer_status(route: Any) -> None:
        newest = new if asked else old
        route.fulfill(json={"model_version_status": [{"version": newest, "state": "AVAILABLE"}]})

    def answer_predict(route: Any) -> None:
        version = route.request.url.split("/")[-1].removesuffix(":predict")
        if version == old and asked:  # the old one answers one image
            route.fulfill(status=404, json={"error": "Servable not found"})
        elif "model_info" in route.request.post_data:
            said = json.dumps({"version": 0, "threshold": 0.75 if version == new else info.threshold})
            route.fulfill(json={"predictions": [said]})
        else:
            asked.append(version)
            route.continue_(url=route.request.url.replace(version, old))

    page = open_page("about:blank", may_complain=True)
    page.route(f"**/models/{MODEL_NAME}", answer_status)
    page.route("**/versions/*:predict", answer_predict)
    page.goto(server_url)
    page.locator("#connection[data-state=ready]").wait_for()
    drop_and_wait(page, *(written(tmp_path / f"{name}.png", encoded(tile())) for name in "abcdefg"))
    assert sorted(page.evaluate("() => items.map(one => one.version)")) == [old] + 6 * [new]
    assert asked == [old] + 6 * [new]
    assert page.locator("#connection").inner_text() == f"{MODEL_NAME}, version {new}"
    assert float(page.locator("#threshold-value").input_value()) == 0.75


def test_a_version_is_asked_by_its_number_or_by_its_label_while_a_newer_one_is_there(
    open_page: Callable[..., Page], server_url: str, client: TileClient, tiles: list[Path]
) -> None:
    stable = str(client.model_info().version)
    status = [{"version": str(int(stable) + one), "state": "AVAILABLE"} for one in (0, 1)]
    page = open_page("about:blank", may_complain=True)
    page.route(f"**/models/{MODEL_NAME}", lambda route: route.fulfill(json={"model_version_status": status}))
    metadata = f"{server_url}/v1/models/{MODEL_NAME}/metadata"
    page.route("**/labels/stable/metadata", lambda route: route.continue_(url=metadata))
    page.goto(f"{server_url}/?version=stable")
    page.locator("#connection[data-state=ready]").wait_for()
    assert page.locator("#connection").inner_text() == f"{MODEL_NAME}, version {stable} (stable)"
    drop_and_wait(page, *tiles)
    assert page.evaluate("() => items.map(one => one.version)") == 3 * [stable]

    page.get_by_label("Version").fill(stable)
    page.get_by_role("button", name="Connect").click()
    page.get_by_text(f"{MODEL_NAME}, version {stable}", exact=True).wait_for()
    assert f"version={stable}" in page.url
    nowhere = "has no such version ready"
    for unknown, said in [("prod", 'has no version labelled "prod" (400'), ("7", nowhere), ("", nowhere)]:
        page.get_by_label("Version").fill(unknown)
        page.get_by_role("button", name="Connect").click()
        page.locator("#banner", has_text=said).wait_for()
    page.wait_for_url(lambda url: "version=" not in url)


def test_a_version_that_is_ready_but_not_found_is_not_asked_for_without_end(
    open_page: Callable[..., Page], server_url: str, tiles: list[Path]
) -> None:
    def answer(route: Any) -> None:
        if "model_info" in route.request.post_data:
            route.continue_()
        else:
            route.fulfill(status=404, json={"error": "Servable not found"})

    page = open_page(server_url, may_complain=True)
    page.locator("#connection[data-state=ready]").wait_for()
    page.route("**/versions/*:predict", answer)
    drop(page, *tiles)
    page.locator("#banner", has_text="has no such version ready").wait_for()
    assert [verdict for _, verdict in entries(page)] == 3 * ["waiting"]
    page.unroute("**/versions/*:predict")
    page.get_by_role("button", name="Try again").click()
    wait_until_done(page, 3)


def test_a_wrong_server_or_model_is_named_and_can_be_mended(
    open_page: Callable[..., Page], server_url: str, tiles: list[Path]
) -> None:
    page = open_page(f"{server_url}/?model=other&server=http://127.0.0.1:{free_port()}", may_complain=True)
    alert = page.get_by_role("alert")
    alert.wait_for()
    assert "no model server at" in alert.inner_text()
    drop(page, tiles[0])
    page.get_by_label("Server").fill(server_url)
    page.get_by_role("button", name="Connect").click()
    page.locator("#banner", has_text='no model "other" at').wait_for()
    page.get_by_label("Server").fill("ftp://elsewhere")
    page.get_by_role("button", name="Connect").click()
    page.locator("#banner", has_text="is no address of a server").wait_for()
    page.get_by_label("Server").fill(server_url.removeprefix("http://"))
    page.get_by_label("Model").fill(MODEL_NAME)
    page.get_by_role("button", name="Connect").click()
    wait_until_done(page, 1)
    assert [verdict for _, verdict in entries(page)] == ["defect 1.00"]
    assert f"model={MODEL_NAME}" in page.url


def test_a_page_of_another_origin_is_told_of_cors(open_page: Callable[..., Page], server_url: str) -> None:
    with other_origin(PAGE.parent) as origin:
        page = open_page(f"{origin}?server={server_url}", may_complain=True)
        page.get_by_role("alert").wait_for()
        assert "--rest_api_enable_cors_support=true" in page.get_by_role("alert").inner_text()


def test_it_works_from_another_origin_and_from_disk_with_cors(
    open_page: Callable[..., Page], servable_path: Path, tiles: list[Path], client: TileClient
) -> None:
    flags = ["--rest_api_enable_cors_support=true"]
    with running_server(servable_path, MODEL_NAME, flags=flags) as url, other_origin(PAGE.parent) as origin:
        for start in (origin, PAGE.as_uri()):
            page = open_page(f"{start}?server={url}&model={MODEL_NAME}")
            page.locator("#connection[data-state=ready]").wait_for()
            drop_and_wait(page, *tiles)
            assert table(page) == expected_table(client, tiles[0])
            mask = pixels(download(page, "Mask of this image")[1])
            assert np.array_equal(mask, client.predict(tiles[0]).mask)


def test_a_batch_can_be_paused(page: Page, tiles: list[Path]) -> None:
    page.evaluate("() => document.getElementById('pause').click()")
    drop(page, *tiles)
    page.locator("#progress-text", has_text="0 of 3, paused").wait_for()
    page.get_by_role("button", name="Go on").click()
    wait_until_done(page, 3)
    assert "2 with defects, 1 good" in page.locator("#batch").inner_text()


def test_all_images_can_be_cleared_away(page: Page, tiles: list[Path]) -> None:
    drop_and_wait(page, *tiles)
    page.get_by_role("button", name="Clear all").click()
    assert entries(page) == []
    assert page.locator("#welcome").is_visible()
    assert page.get_by_role("button", name="Mask of this image").is_disabled()
    drop_and_wait(page, tiles[2])
    assert page.locator("#title").inner_text() == "c.png"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_breaks_no_rule_of_accessibility(
    open_page: Callable[..., Page], server_url: str, tiles: list[Path], tmp_path: Path, scheme: str
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    page = open_page(server_url, color_scheme=scheme, reduced_motion="reduce")
    page.locator("#connection[data-state=ready]").wait_for()

    def problems() -> list[str]:
        found = axe.Axe().run(page).response["violations"]
        return [f"{one['id']}: {json.dumps([node['target'] for node in one['nodes']])}" for one in found]

    assert problems() == []
    drop_and_wait(page, *tiles, written(tmp_path / "bad.png", b"no image"))
    page.locator("#rows button").first.click()
    assert problems() == []
    page.locator("#list li").last.click()
    page.evaluate("() => setTrouble('no model server')")
    assert problems() == []
    page.keyboard.press("?")
    assert problems() == []


def test_every_control_is_reached_by_tab_and_has_a_name(page: Page, tiles: list[Path]) -> None:
    drop_and_wait(page, *tiles)
    page.evaluate("() => document.activeElement.blur()")
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("() => document.activeElement.id || document.activeElement.ariaLabel"))
    assert {
        *(
            "server",
            "model",
            "version",
            "add-files",
            "add-folder",
            "list",
            "clear",
            "next",
            "zoom-in",
            "threshold",
        ),
        *("threshold-value", "opacity", "overlay", "contour", "boxes", "mm", "save-mask", "save-masks"),
        *("save-defects", "save-images", "show-keys", "Defect 1: highlight", "Defect 2: highlight"),
    } <= reached


@pytest.mark.parametrize("width", [320, 700, 1000])
def test_it_fits_narrow_windows(
    open_page: Callable[..., Page], server_url: str, tiles: list[Path], width: int
) -> None:
    page = open_page(server_url, viewport={"width": width, "height": 700})
    page.locator("#connection[data-state=ready]").wait_for()
    drop_and_wait(page, *tiles)
    page.locator("#mm").fill("0.05")
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    assert page.locator("#canvas").bounding_box()["height"] > 250


def test_the_picture_of_the_page_can_be_taken(server_url: str, tmp_path: Path) -> None:
    out = tmp_path / "page.png"
    command = [sys.executable, "-m", "scripts.page_screenshot", "--url", server_url, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    with Image.open(out) as picture:
        assert picture.size == page_screenshot.SIZE
        assert len(set(picture.convert("L").resize((40, 40)).getdata())) > 20
