"""Takes the picture of the page for the README: `python -m scripts.page_screenshot`.

Synthetic tiles are dropped into the page in a headless Chromium, and a server answers them: one
that is named, or the embedded one with a plain detector of dark places.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["chromium_path", "launch_options", "take", "write_tiles"]

SIZE = (1440, 860)
MAX_BYTES = 300_000
TILE = (240, 240)  # height, width, in pixels
DEFECTS = ("Blowhole", "Free", "Crack", "Free", "Break", "Fray", "Free", "Blowhole", "Free", "Crack")


def chromium_path() -> str | None:
    """Path of an installed Chromium or Chrome."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def launch_options() -> dict[str, Any]:
    """Options of Playwright's `chromium.launch` for that browser; as root it runs without its sandbox."""
    return {
        "executable_path": chromium_path(),
        "args": ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else [],
    }


def write_tiles(folder: Path, seed: int = 5) -> list[Path]:
    """Writes synthetic tiles as JPEG, some of them good, and returns their paths."""
    from stages.synthetic import draw_defect, draw_surface

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, kind in enumerate(DEFECTS):
        rng = np.random.default_rng((seed, number))
        light = 150 + rng.uniform(-25, 25)
        gray = np.clip(light + draw_surface(*TILE, rng), 0, 255).astype(np.uint8)
        if kind != "Free":
            gray, _ = draw_defect(gray, kind, rng)
        paths.append(folder / f"exp{1 + number % 6}_num_{1000 + 317 * number}.jpg")
        Image.fromarray(gray).save(paths[-1], quality=92)
    return paths


def take(url: str, model: str, paths: list[Path], out: Path, *, scheme: str = "light") -> None:
    """Writes a PNG of the page with the answers to some tiles.

    Args:
        url: of a server that has the page at `/`.
        model: its name on the server.
        paths: image files.
        out: path of the PNG.
        scheme: light or dark.
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(**launch_options())
        page = browser.new_page(
            viewport={"width": SIZE[0], "height": SIZE[1]},
            color_scheme="dark" if scheme == "dark" else "light",
        )
        page.goto(f"{url}/?model={model}")
        page.set_input_files("#files", paths)
        page.locator("#progress-row").wait_for(state="hidden")
        page.locator("tbody tr button").first.click()
        page.mouse.move(0, 0)
        page.evaluate("() => document.activeElement.blur()")
        page.wait_for_timeout(200)
        shot = Image.open(io.BytesIO(page.screenshot()))
        browser.close()
    # 256 colours are enough for a grey photograph and a few hues, and a quarter of the size.
    out.parent.mkdir(parents=True, exist_ok=True)
    shot.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(out, optimize=True)


@contextlib.contextmanager
def _detector_server(folder: Path) -> Iterator[tuple[str, str]]:
    """The embedded server with a model that finds what is darker than its surroundings."""
    import keras

    from serving.up import running_server
    from stages.export import export_saved_model

    images = keras.Input((*TILE, 1))
    smooth = keras.layers.AveragePooling2D(3, strides=1, padding="same")(images)
    around = keras.layers.AveragePooling2D(61, strides=1, padding="same")(images)
    darker = keras.layers.Subtract()([around, smooth])
    output = keras.layers.Activation("sigmoid")(keras.layers.Rescaling(1 / 4, offset=-24 / 4)(darker))
    name = "magnetic-tiles"
    export_saved_model(keras.Model(images, output), {"name": name, "threshold": 0.5}, folder / name)
    with running_server(folder / name, name) as url:
        yield url, name


def main(argv: list[str] | None = None) -> int:
    """Takes the picture; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m scripts.page_screenshot", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/page.png"), metavar="FILE")
    parser.add_argument("--scheme", choices=("light", "dark"), default="light")
    parser.add_argument("--url", help="a server with the page at / (default: one with a plain detector)")
    parser.add_argument("--model", default="magnetic-tiles", help="its name on that server")
    args = parser.parse_args(argv)
    if chromium_path() is None:
        print("no Chromium on the PATH; install it (Debian: apt install chromium)", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as scratch:
        paths = write_tiles(Path(scratch, "tiles"))
        if args.url:
            take(args.url, args.model, paths, args.out, scheme=args.scheme)
        else:
            with _detector_server(Path(scratch)) as (url, model):
                take(url, model, paths, args.out, scheme=args.scheme)
    size = args.out.stat().st_size
    print(f"{args.out}: {size / 1000:.0f} kB")
    if size > MAX_BYTES:
        print(f"over {MAX_BYTES // 1000} kB; make SIZE smaller", file=sys.stderr)
    return int(size > MAX_BYTES)


if __name__ == "__main__":
    sys.exit(main())
