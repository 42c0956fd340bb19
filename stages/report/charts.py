"""Line charts as SVG that takes its colours from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

__all__ = ["Line", "line_chart"]

WIDTH, HEIGHT = 400, 250
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 10, 38


@dataclass(frozen=True)
class Line:
    """A curve.

    Attributes:
        name: for the legend.
        points: x, y.
        color: number of a colour of the page, 0 to 2.
        dashed: whether it belongs to the other state.
    """

    name: str
    points: Sequence[tuple[float, float]]
    color: int = 0
    dashed: bool = False


def line_chart(
    title: str,
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    *,
    x_top: float | None = 1.0,
    y_top: float | None = 1.0,
    mark: float | None = None,
) -> Markup:
    """Draws curves over axes that begin at 0.

    Args:
        title: what a screen reader says of it.
        lines: at least one with a point.
        x_label: of the axis.
        y_label: of the axis.
        x_top: end of the x axis; None for the largest value.
        y_top: the same of the y axis.
        mark: x of a vertical line.
    """
    x_top = x_top or max((x for line in lines for x, _ in line.points), default=1.0) or 1.0
    y_top = y_top or max((y for line in lines for _, y in line.points), default=1.0) or 1.0

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + (WIDTH - LEFT - RIGHT) * x / x_top,
            HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(y / y_top, 1.0),
        )

    parts = []
    for y_tick in _ticks(y_top):
        _, y = at(0, y_tick)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{y_tick:.3g}</text>')
    for x_tick in _ticks(x_top):
        x, _ = at(x_tick, 0)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{x_tick:.3g}</text>')
    parts.append(
        f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>'
    )
    middle = (TOP + HEIGHT - BOTTOM) / 2
    turned = f'transform="rotate(-90 11 {middle})" text-anchor="middle"'
    parts.append(f'<text x="11" y="{middle}" {turned}>{escape(y_label)}</text>')
    if mark is not None:
        x, _ = at(mark, 0)
        parts.append(f'<path class="mark" d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
    for line in sorted(lines, key=lambda line: not line.dashed):
        places = " ".join("{:.1f},{:.1f}".format(*at(x, y)) for x, y in line.points)
        style = f"line c{line.color}" + " before" * line.dashed
        parts.append(
            f'<polyline class="{style}" points="{places}"><title>{escape(line.name)}</title></polyline>'
        )
    body = "".join(parts)
    return Markup(f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{body}</svg>')


def _ticks(top: float) -> list[float]:
    """Round numbers from 0 to `top`, about five."""
    power = 10.0 ** math.floor(math.log10(top / 5))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= top / 5 * 0.999)
    return [step * index for index in range(int(top / step + 1e-6) + 1)]
