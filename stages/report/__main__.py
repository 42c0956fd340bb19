"""Writes what a person wants to know of a run: `report.html`, one page that needs nothing else, and
`report.md` with `worst.jpg` for a pull request.

It tells of the working tree, against the newest commit with other results or what --against names.
"""

from __future__ import annotations

import argparse
import logging
import sys
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from stages.errors import StageError
from stages.report.content import Content, gather
from stages.report.pictures import sheet
from stages.report.snapshot import NoResults, last_other_results, take_snapshot

__all__ = ["main", "write_report"]

log = logging.getLogger(__name__)

IN_COMMENT = 4
"""Worst images in the picture for a pull request."""


def write_report(root: Path, against: str | None, out: Path, pictures: int) -> Content:
    """Writes the report.

    Args:
        root: of the project.
        against: revision or experiment to compare with; None for the newest commit with other results.
        out: folder to write.
        pictures: images to draw in each section.

    Raises:
        StageError: no such revision, or nothing has been evaluated in the working tree.
    """
    now = take_snapshot(root)
    other = against or last_other_results(root)
    before, notices = None, []
    try:
        before = take_snapshot(root, other) if other else None
    except NoResults as error:
        notices.append(f"Nothing to compare with: {error}.")
    if other is None:
        notices.append("Nothing to compare with: no earlier commit has other results.")
    for notice in notices:
        log.warning("%s", notice)
    content = gather(now, before, pictures=pictures, notices=notices)
    templates = Environment(
        loader=PackageLoader("stages.report"),
        autoescape=lambda name: str(name).startswith("report.html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    out.mkdir(parents=True, exist_ok=True)
    rows = [card.panels for card in content.cards["worst"][:IN_COMMENT] if card.panels]
    if rows:
        sheet(rows).save(out / "worst.jpg", quality=88)
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    for name in ("report.html", "report.md"):
        page = templates.get_template(f"{name}.j2").render(c=content, made=made, has_sheet=bool(rows))
        (out / name).write_text(page, encoding="utf-8")
    return content


def main(argv: list[str] | None = None) -> int:
    """Writes the report; returns the exit code: 0, 1 for what can't be done, 2 for wrong arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--against", metavar="REV", help="commit, branch, tag or DVC experiment to compare with")
    add("--out", type=Path, default=Path("report"), metavar="DIR", help="folder to write (default: report)")
    add("--pictures", type=int, default=12, metavar="N", help="images drawn in each section (default: 12)")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        write_report(Path.cwd(), args.against, args.out, args.pictures)
    except StageError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(f"{args.out / 'report.html'}\n{args.out / 'report.md'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
