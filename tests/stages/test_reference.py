"""docs/reference.md explains every figure that evaluation writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import keras

from stages.evaluate import evaluate
from stages.params import load_params
from stages.tiles import CLASSES
from stages.verdicts import SIZES
from tests.conftest import DETECTOR_SIZE
from tests.stages.conftest import Data

ROOT = Path(__file__).parents[2]


def names(metrics: Mapping[str, Any]) -> Iterator[str]:
    """Names of all figures, however deep; classes and sizes are no figures."""
    for name, value in metrics.items():
        if name not in (*CLASSES, *SIZES):
            yield name
        if isinstance(value, Mapping):
            yield from names(value)


def test_every_metric_is_explained(data: Data, tmp_path: Path) -> None:
    images = keras.Input((*DETECTOR_SIZE, 1))
    model = keras.Model(images, keras.layers.Rescaling(-1 / 255, offset=1.0)(images))
    params = load_params(ROOT / "params.yaml").evaluate
    metrics = evaluate(params, model, data.root, data.val, data.test, tmp_path)
    page = (ROOT / "docs/reference.md").read_text()
    assert len({*names(metrics)}) > 10
    assert {name for name in names(metrics) if f"`{name}`" not in page} == set()
