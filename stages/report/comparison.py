"""What differs between two states: metrics with a verdict, data, parameters and packages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from stages.report.snapshot import Snapshot

__all__ = ["Difference", "MetricRow", "compare_data", "compare_metrics", "differences"]

TITLES: dict[str, tuple[str, Literal["higher", "lower", "neither"], str]] = {
    "dice_pooled": ("Dice, pixels of all images pooled", "higher", ".3f"),
    "dice_class_mean": ("Dice, mean of the classes", "higher", ".3f"),
    "component_recall": ("Defects found", "higher", ".1%"),
    "false_components": ("False defects", "lower", "d"),
    "missed_image_rate": ("Images with a defect passed as good", "lower", ".1%"),
    "false_alarm_rate": ("Good images with a false alarm", "lower", ".1%"),
    "exposure_agreement": ("Tiles with one answer under all exposures", "higher", ".1%"),
    "auroc": ("AUROC of the score", "higher", ".3f"),
    "threshold": ("Threshold", "neither", ".3f"),
    "images": ("Test images", "neither", "d"),
}
"""The metrics that the report is about: what each is, which way is better, how it is written."""


@dataclass(frozen=True)
class MetricRow:
    """One metric of two states, as text.

    Attributes:
        key: its name in `metrics.json`.
        title: what it is.
        now: value, or a dash.
        interval: 95 % confidence interval of `now`, or empty.
        before: value, or a dash.
        change: with its sign; empty where one of the two lacks.
        verdict: `better`, `worse` or `same`; empty where no direction is better.
    """

    key: str
    title: str
    now: str
    interval: str
    before: str
    change: str
    verdict: str


def compare_metrics(now: Mapping[str, Any], before: Mapping[str, Any]) -> list[MetricRow]:
    """Rows of the metrics that `now` has; `before` may be empty."""
    return [_row(key, now, before) for key in TITLES if key in now]


def _row(key: str, now: Mapping[str, Any], before: Mapping[str, Any]) -> MetricRow:
    title, better, style = TITLES[key]
    new, old, interval = now[key], before.get(key), now.get(f"{key}_interval")
    change = verdict = ""
    if new is not None and old is not None:
        change = format(new - old, f"+{style}").replace("%", " points")
        is_same = format(new, style) == format(old, style)
        if better != "neither":
            verdict = "same" if is_same else "better" if (new > old) == (better == "higher") else "worse"
        change = "0" if is_same else change
    return MetricRow(
        key=key,
        title=title,
        now=_text(new, style),
        interval=f"{interval['low']:{style}} to {interval['high']:{style}}" if interval else "",
        before=_text(old, style),
        change=change,
        verdict=verdict,
    )


def _text(value: float | None, style: str) -> str:
    return "-" if value is None else format(value, style)


@dataclass(frozen=True)
class Difference:
    """A name whose value is another; None where it has none."""

    name: str
    before: Any
    now: Any


def differences(now: Mapping[str, Any], before: Mapping[str, Any]) -> list[Difference]:
    """All names whose values differ, sorted."""
    names = sorted(now.keys() | before.keys())
    pairs = (Difference(name, before.get(name), now.get(name)) for name in names)
    return [pair for pair in pairs if pair.before != pair.now]


def compare_data(now: Snapshot, before: Snapshot) -> dict[str, list[str]]:
    """Images by what became of them; only what occurs, and nothing if one state lacks its tables.

    Returns:
        Paths by `added`, `removed`, `other pixels`, `other mask`, `new in the test side`,
        `no longer in the test side`.
    """
    if not all((now.tiles, before.tiles, now.images, before.images)):
        return {}
    shared = now.tiles.keys() & before.tiles.keys()

    def changed(column: str) -> set[str]:
        return {path for path in shared if now.tiles[path][column] != before.tiles[path][column]}

    found = {
        "added": now.tiles.keys() - before.tiles.keys(),
        "removed": before.tiles.keys() - now.tiles.keys(),
        "other pixels": changed("image_sha256"),
        "other mask": changed("mask_sha256"),
        "new in the test side": now.images.keys() - before.images.keys(),
        "no longer in the test side": before.images.keys() - now.images.keys(),
    }
    return {name: sorted(paths) for name, paths in found.items() if paths}
