"""What the report shows, as plain values for its two templates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from serving.postprocessing import DEFECT, GOOD
from stages.report.charts import Line, line_chart
from stages.report.comparison import Difference, MetricRow, compare_data, compare_metrics, differences
from stages.report.pictures import Panel, draw_panels
from stages.report.snapshot import Snapshot
from stages.tiles import CLASSES
from stages.verdicts import SIZES, Exposures, ImageRow, compare_exposures

__all__ = ["Content", "gather"]

DRAWN_TILES = 6
"""Tiles drawn of those whose exposures disagree, each with all its images."""

ON_GOOD = "good images"
Counts = Mapping[str, int]


@dataclass(frozen=True)
class Card:
    """An image: its row in both states, and its pictures."""

    now: ImageRow
    before: ImageRow | None
    panels: list[Panel]


@dataclass(frozen=True)
class Chart:
    """A chart, its lines, and what its vertical line marks."""

    title: str
    svg: Markup
    lines: list[Line]
    mark: str


@dataclass(frozen=True)
class Content:
    """All of the report.

    Attributes:
        now: the state it is about.
        before: the state it is compared with, None without one.
        notices: what a reader must know before comparing anything.
        metrics: of the test side.
        classes: name, counts now and before of the defects of each class; the last is of good images.
        sizes: the same by size.
        newly_right: images whose answer, good or defect, was wrong before.
        newly_wrong: images whose answer was right before.
        alarms: good images on which something was found, the highest score first.
        passed: images with a defect on which nothing was found, the lowest score first.
        exposures: tiles by whether their images get one answer.
        worst: images with the largest share of wrong pixels.
        cards: pictures of an image, by section (`worst`, `alarms`, `passed`, or a tile).
        charts: curves of training and thresholds.
        data: images by what became of them.
        params: parameters that differ.
        packages: packages that differ.
    """

    now: Snapshot
    before: Snapshot | None
    notices: list[str]
    metrics: list[MetricRow]
    classes: list[tuple[str, Counts, Counts]]
    sizes: list[tuple[str, Counts, Counts]]
    newly_right: list[str]
    newly_wrong: list[str]
    alarms: list[ImageRow]
    passed: list[ImageRow]
    exposures: Exposures
    worst: list[ImageRow]
    cards: dict[str, list[Card]]
    charts: list[Chart]
    data: dict[str, list[str]]
    params: list[Difference]
    packages: list[Difference]


def gather(now: Snapshot, before: Snapshot | None, *, pictures: int, notices: Sequence[str] = ()) -> Content:
    """Collects the report.

    Args:
        now: the state to report of.
        before: the state to compare with.
        pictures: images to draw in each section.
        notices: further ones.
    """
    rows = list(now.images.values())
    old = before.metrics if before else {}
    alarms = sorted((r for r in rows if (r.truth, r.answer) == (GOOD, DEFECT)), key=lambda r: -r.score)
    passed = sorted((r for r in rows if (r.truth, r.answer) == (DEFECT, GOOD)), key=lambda r: r.score)
    worst = sorted((r for r in rows if r.wrong), key=lambda r: -r.wrong)
    exposures = compare_exposures((r.tile, r.truth == DEFECT, r.answer == DEFECT) for r in rows)
    shared = [(r, before.images[r.image]) for r in rows if before and r.image in before.images]
    data = compare_data(now, before) if before else {}

    def cards(chosen: Sequence[ImageRow], *kinds: str) -> list[Card]:
        return [
            Card(r, before.images.get(r.image) if before else None, draw_panels(r.image, now, before, kinds))
            for r in chosen
        ]

    return Content(
        now=now,
        before=before,
        notices=[*notices, *_notices(now, before, data)],
        metrics=compare_metrics(now.metrics, old),
        classes=[
            *_pairs(now.metrics.get("class", {}), old.get("class", {}), CLASSES),
            (ON_GOOD, _on_good(now.metrics), _on_good(old)),
        ],
        sizes=_pairs(now.metrics.get("size", {}), old.get("size", {}), list(SIZES)),
        newly_right=[r.image for r, b in shared if r.answer == r.truth and b.answer != b.truth],
        newly_wrong=[r.image for r, b in shared if r.answer != r.truth and b.answer == b.truth],
        alarms=alarms,
        passed=passed,
        exposures=exposures,
        worst=worst,
        cards={
            "worst": cards(worst[:pictures], "image", "truth", "now", "before"),
            "alarms": cards(alarms[:pictures], "image", "now"),
            "passed": cards(passed[:pictures], "image", "truth"),
            **{
                tile: cards(sorted((r for r in rows if r.tile == tile), key=lambda r: r.exposure), "now")
                for tile in exposures.disagreeing[:DRAWN_TILES]
            },
        },
        charts=_charts(now, before),
        data=data,
        params=differences(now.params, before.params) if before else [],
        packages=differences(now.packages, before.packages) if before else [],
    )


def _pairs(
    now: Mapping[str, Counts], before: Mapping[str, Counts], names: Sequence[str]
) -> list[tuple[str, Counts, Counts]]:
    return [
        (name, now.get(name, {}), before.get(name, {})) for name in names if name in now or name in before
    ]


def _on_good(metrics: Mapping[str, Any]) -> Counts:
    false = metrics.get("false_components_on_good")
    return {} if false is None else {"found": 0, "missed": 0, "false": false}


def _notices(now: Snapshot, before: Snapshot | None, data: Mapping[str, Sequence[str]]) -> list[str]:
    notices = []
    both = now.images.keys() & before.images.keys() if before else set()
    differs = [
        change for change, paths in data.items() if "test side" in change or not both.isdisjoint(paths)
    ]
    if before and differs:
        notices.append(
            f"The two states are measured on different data: {len(both)} test images are in both, "
            f"{len(now.images)} in this one, {len(before.images)} in the other."
        )
    for state in filter(None, (now, before)):
        if state.missing:
            notices.append(
                f"{state.name} has no {', '.join(state.missing)}: what needs them is left out. Files that "
                "DVC keeps come with `dvc fetch`; those that git keeps must have been committed."
            )
        if state.newer:
            notices.append(
                f"The results of {state.name} are older than its {', '.join(state.newer)}: pictures and data "
                "may not be those that were measured. `dvc repro evaluate` there brings all up to date."
            )
    return notices


def _charts(now: Snapshot, before: Snapshot | None) -> list[Chart]:
    states = [(now, False), *([(before, True)] if before else [])]

    def training(name: str) -> list[Line]:
        return [
            Line(words, _drawable(state.training[side, name]), color, dashed)
            for state, dashed in states
            for color, (side, words) in enumerate((("train", "training"), ("eval", "validation")))
        ]

    def sweep(x: str, *names: str) -> list[Line]:
        return [
            Line(name, [(point[x], point[name]) for point in state.thresholds], color, dashed)
            for state, dashed in states
            for color, name in enumerate(names)
        ]

    used = float(now.metrics["threshold"])
    epochs: dict[str, Any] = {"x_top": None}
    drawn: list[tuple[str, list[Line], str, str, dict[str, Any]]] = [
        ("Dice while training", training("dice"), "epoch", "Dice", epochs),
        ("Loss while training", training("loss"), "epoch", "loss", epochs | {"y_top": None}),
        ("Precision and recall of pixels", sweep("recall", "precision"), "recall", "precision", {}),
        ("Thresholds", sweep("threshold", "precision", "recall", "dice"), "threshold", "", {"mark": used}),
    ]
    return [
        Chart(
            title,
            line_chart(title, lines, x, y, **options),
            lines,
            f"threshold in use, {used:.3f}" if "mark" in options else "",
        )
        for title, lines, x, y, options in drawn
        if any(line.points for line in lines)
    ]


def _drawable(values: Sequence[float]) -> list[tuple[float, float]]:
    """Epochs and their values; without the last one of a run that went astray, which is NaN or endless."""
    return [(epoch, value) for epoch, value in enumerate(values, start=1) if math.isfinite(value)]
