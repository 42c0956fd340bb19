"""Takes the picture of a report for the docs: `python -m scripts.report_screenshot demo/report/report.html`.

At the left is the top of the page, at the right its worst images.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

from PIL import Image

from scripts.page_screenshot import chromium_path, launch_options

__all__ = ["take"]

WIDTH, HEIGHT = 1150, 1290
GAP = 24
MAX_BYTES = 500_000


def take(report: Path, out: Path, *, scheme: str = "light") -> None:
    """Writes a PNG of a report.

    Args:
        report: the HTML page.
        out: path of the PNG.
        scheme: light or dark.
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(**launch_options())
        page = browser.new_page(
            viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="dark" if scheme == "dark" else "light"
        )
        page.goto(report.resolve().as_uri())
        page.evaluate("() => Promise.all([...document.images].map(one => one.decode()))")
        views = []
        for place in ("header", "#worst"):
            page.locator(place).evaluate("one => scrollTo(0, one.offsetTop - 12)")
            views.append(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
        browser.close()
    picture = Image.new("RGB", (2 * WIDTH + GAP, HEIGHT), views[0].getpixel((0, HEIGHT - 1)))
    for index, view in enumerate(views):
        picture.paste(view, (index * (WIDTH + GAP), 0))
    picture = picture.resize((picture.width * 3 // 4, picture.height * 3 // 4), Image.Resampling.LANCZOS)
    # 256 colours are enough for grey photographs and a few hues, once k-means has found these.
    out.parent.mkdir(parents=True, exist_ok=True)
    picture.quantize(256, kmeans=3, dither=Image.Dither.NONE).save(out, optimize=True)


def main(argv: list[str] | None = None) -> int:
    """Takes the picture; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m scripts.report_screenshot", description=__doc__)
    parser.add_argument("report", type=Path, help="report.html")
    parser.add_argument("--out", type=Path, default=Path("docs/report.png"), metavar="FILE")
    parser.add_argument("--scheme", choices=("light", "dark"), default="light")
    args = parser.parse_args(argv)
    if chromium_path() is None:
        print("no Chromium on the PATH; install it (Debian: apt install chromium)", file=sys.stderr)
        return 1
    if not args.report.is_file():
        print(f"no {args.report}; `python -m stages.report` writes one", file=sys.stderr)
        return 1
    take(args.report, args.out, scheme=args.scheme)
    size = args.out.stat().st_size
    print(f"{args.out}: {size / 1000:.0f} kB")
    if size > MAX_BYTES:
        print(f"over {MAX_BYTES // 1000} kB; make WIDTH or HEIGHT smaller", file=sys.stderr)
    return int(size > MAX_BYTES)


if __name__ == "__main__":
    sys.exit(main())
