"""What the commands show on a terminal: a table, a progress bar, a line per tile, marks of the doctor."""

from __future__ import annotations

import heapq
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from serving.client.doctor import Check
from serving.client.job import Outcome

__all__ = ["Summary", "as_line", "print_check", "progress", "warn"]

MOST_ROWS = 50
"""Tiles in a table; of more, those with the highest scores are shown."""

MARKS = {"ok": ("green", "✓"), "hint": ("yellow", "!"), "failed": ("red", "✗")}


class Summary:
    """Counts outcomes and keeps a few, however many there are."""

    def __init__(self) -> None:
        self.tiles = self.defective = self.errors = self.earlier = 0
        self._kept: list[tuple[float, int, Outcome]] = []

    def add(self, outcome: Outcome) -> None:
        """Takes an outcome into account."""
        if outcome.error:
            self.errors += 1
            return
        self.tiles += 1
        self.defective += outcome.has_defects
        self.earlier += not outcome.is_new
        row = (float(outcome.facts["score"]), -self.tiles, outcome)  # of equal ones, the first stays
        if len(self._kept) < MOST_ROWS:
            heapq.heappush(self._kept, row)
        else:
            heapq.heappushpop(self._kept, row)

    def print(self, out: Path | None, *, in_mm: bool) -> None:
        """Prints a table of the tiles, unless there are none.

        Args:
            out: folder of the results, if there is one.
            in_mm: whether outcomes have lengths in millimetres.
        """
        if not self.tiles:
            return
        console = Console(file=sys.stdout)
        console.print(self._table(in_mm))
        lines = []
        if self.tiles > MOST_ROWS:
            lines.append(f"the {MOST_ROWS} tiles with the highest scores; --json or --out gives all")
        plural = "tile" if self.tiles == 1 else "tiles"
        good = self.tiles - self.defective
        lines.append(f"{self.tiles:,} {plural}: {self.defective:,} with defects, {good:,} good")
        if self.earlier:
            lines.append(f"{self.earlier:,} of them were done by an earlier run; --force does them again")
        if out is not None:
            lines.append(f"masks, overlays, results.jsonl and results.csv are in {out}")
        console.print(Text("\n".join(lines)))

    def _table(self, in_mm: bool) -> Table:
        table = Table("image", "label", box=None, header_style="bold", pad_edge=False)
        for heading in ("score", "defects", "largest [px]", *(["largest [mm²]"] * in_mm), "tile [%]"):
            table.add_column(Text(heading), justify="right", no_wrap=True)
        table.columns[0].overflow = "fold"
        by_score = self.tiles > MOST_ROWS
        rows = sorted(self._kept, key=lambda row: (-row[0], -row[1]) if by_score else (0.0, -row[1]))
        for _, _, outcome in rows:
            table.add_row(*_row(outcome, in_mm))
        return table


def _row(outcome: Outcome, in_mm: bool) -> Iterator[Text]:
    facts = outcome.facts
    defects = facts["defects"]
    yield Text(outcome.image)
    yield Text(facts["label"], "bold red" if outcome.has_defects else "green")
    yield Text(f"{facts['score']:.2f}")
    yield Text(str(len(defects)))
    yield Text(f"{defects[0]['area']:,}" if defects else "-")
    if in_mm:
        yield Text(f"{defects[0]['area_mm2']:.3g}" if defects else "-")
    yield Text(f"{sum(defect['area_percent'] for defect in defects):.2f}" if defects else "-")


def as_line(outcome: Outcome) -> str:
    """An outcome in one line."""
    if outcome.error:
        return f"error   {outcome.image}: {outcome.error}"
    facts = outcome.facts
    defects: list[dict[str, Any]] = facts["defects"]
    found = ""
    if defects:
        largest = f"{defects[0]['area']:,} px"
        if "area_mm2" in defects[0]:
            largest += f" = {defects[0]['area_mm2']:.3g} mm²"
        found = f"  {len(defects)} found, the largest {largest}"
    return f"{facts['label']:<7} {facts['score']:.2f}  {outcome.image}{found}"


def progress(outcomes: Iterable[Outcome], total: int) -> Iterator[Outcome]:
    """Passes outcomes on, with a progress bar if stderr is a terminal and there are several."""
    yield from tqdm(outcomes, total=total, unit="tile", file=sys.stderr, disable=None if total > 1 else True)


def warn(line: str) -> None:
    """An error on stderr, above the progress bar if there is one."""
    tqdm.write(f"error: {line}", file=sys.stderr)


def print_check(check: Check) -> None:
    """A finding of the doctor, and what mends it."""
    console = Console(soft_wrap=True)
    colour, mark = MARKS[check.state]
    console.print(Text.assemble((mark, colour), f" {check.text}"))
    if check.mend:
        console.print(Text(f"  to mend: {check.mend}"))
