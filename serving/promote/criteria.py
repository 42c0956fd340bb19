"""Whether a version may be served: it has been validated, and is not worse than the one that is served."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.errors import ConfigError

__all__ = ["Criterion", "Finding", "compare_metrics", "read_criteria"]

KEYS = {"better", "tolerance", "limit"}


@dataclass(frozen=True)
class Criterion:
    """What one metric must reach.

    Attributes:
        metric: dotted name in the metrics.
        better: `higher` or `lower`.
        tolerance: how much worse than the version now serving it may be.
        limit: what it may never be worse than; None for no such limit.
    """

    metric: str
    better: str
    tolerance: float
    limit: float | None = None


@dataclass(frozen=True)
class Finding:
    """What one criterion says of a version, in one line."""

    passed: bool
    text: str


def read_criteria(path: Path) -> list[Criterion]:
    """Reads a file such as serving/promotion.toml.

    Raises:
        ConfigError: names what is wrong there.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"can't read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    return [_criterion(path, name, values) for name, values in tables.items()]


def _criterion(path: Path, name: str, values: Any) -> Criterion:
    problem = ""
    if (
        not isinstance(values, Mapping)
        or values.keys() - KEYS
        or not {"better", "tolerance"} <= values.keys()
    ):
        problem = f"needs better and tolerance, and may have limit. Received: {values}"
    elif values["better"] not in ("higher", "lower"):
        problem = f'better must be "higher" or "lower". Received: {values["better"]!r}'
    elif not all(_is_number(values.get(key, 0)) for key in ("tolerance", "limit")) or values["tolerance"] < 0:
        problem = f"tolerance and limit must be numbers, tolerance not below 0. Received: {dict(values)}"
    if problem:
        raise ConfigError(f"{path}: [{name}] {problem}")
    return Criterion(name, values["better"], values["tolerance"], values.get("limit"))


def _is_number(value: Any) -> bool:
    # NaN is no number: it would be neither better nor worse than anything, and pass.
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def compare_metrics(
    criteria: Sequence[Criterion], candidate: Mapping[str, Any], serving: Mapping[str, Any] | None
) -> list[Finding]:
    """Compares a version with the one that is served.

    Args:
        criteria: what to look at.
        candidate: metrics of the version.
        serving: metrics of the one that is served; None if there is none, then limits count alone.
    """
    return [_compare(one, candidate, serving or {}) for one in criteria]


def _compare(one: Criterion, candidate: Mapping[str, Any], serving: Mapping[str, Any]) -> Finding:
    (is_known, value), (_, served) = _find(candidate, one.metric), _find(serving, one.metric)
    if value is None:
        passed = is_known and served is None and one.limit is None
        return Finding(
            passed, f"{one.metric}: {'not measured' if is_known else 'no such metric, or no number'}"
        )
    sign = 1 if one.better == "higher" else -1
    problems = []
    # The small amount lets a difference of just the tolerance pass in spite of rounding.
    if served is not None and sign * (served - value) > one.tolerance + 1e-9:
        problems.append(f"worse by more than {one.tolerance:g}")
    if one.limit is not None and sign * (one.limit - value) > 1e-9:
        problems.append(f"worse than the limit, {one.limit:g}")
    text = f"{one.metric} {value:.4g}, {'served now: none' if served is None else f'served now {served:.4g}'}"
    return Finding(not problems, ": ".join([text, " and ".join(problems) or "good enough"]))


def _find(metrics: Mapping[str, Any], name: str) -> tuple[bool, float | None]:
    """Whether there is such a metric, and its value."""
    value: Any = metrics
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return False, None
        value = value[part]
    return (True, value) if value is None or _is_number(value) else (False, None)
