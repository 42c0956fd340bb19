"""Stage `evaluate`: figures, plots and pictures on the test side, at the tiles' own resolution.

The decision threshold is that of the operating point, found on the validation side; the test
side is only measured. All figures are defined in `stages.metrics`.
"""

from __future__ import annotations

import json
import logging
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

from serving.overlay import overlay
from serving.postprocessing import find_defects, mask_at, probability_levels, score
from serving.preprocessing import letterbox, read_image
from stages.dataset import read_mask
from stages.errors import StageError, run_stage
from stages.metrics import (
    Components,
    PixelCounts,
    count_components,
    count_levels,
    count_pixels,
    curve,
)
from stages.operating_point import choose_level, gather_evidence, wilson_interval
from stages.params import EvaluateParams, load_params
from stages.tiles import CLASSES, GOOD_CLASS, Tile, read_tiles

__all__ = ["choose_threshold", "evaluate", "predict_levels", "prediction_path"]

log = logging.getLogger(__name__)

ORIGINAL_SIDE = 224
"""Pixels; the original project resized the shorter side to it and cropped the centre square."""


@dataclass(frozen=True)
class Judged:
    """What is known of one test image after it was compared with its mask."""

    tile: Tile
    pixels: PixelCounts
    original: PixelCounts
    components: Components
    score: float
    any_found: bool


def predict_levels(
    model: keras.Model, data: Path, tiles: Sequence[Tile], batch_size: int
) -> Iterator[tuple[Tile, NDArray[np.uint8]]]:
    """Predicts tiles, a batch at a time.

    Yields:
        Each tile with its probability levels, (H, W) uint8 at the tile's own size.
    """
    _, height, width, _ = model.input_shape
    for start in range(0, len(tiles), batch_size):
        rows = tiles[start : start + batch_size]
        boxed = [letterbox(read_image(data / tile.image), (height, width)) for tile in rows]
        answers = np.asarray(model.predict_on_batch(np.stack([image for image, _ in boxed])))
        for tile, answer, (_, place) in zip(rows, answers, boxed, strict=True):
            yield tile, probability_levels(answer, place, tile.height, tile.width)


def choose_threshold(params: EvaluateParams, model: keras.Model, data: Path, tiles: Sequence[Tile]) -> float:
    """The threshold k/255 of the operating point on these tiles.

    Raises:
        StageError: if the model can't work at that point.
    """
    predictions = predict_levels(model, data, tiles, params.batch_size)
    bar = tqdm(predictions, total=len(tiles), desc="validation", unit="tile")
    compared = ((levels, read_mask(data / tile.mask), tile.class_ == GOOD_CLASS) for tile, levels in bar)
    evidence = gather_evidence(compared, params.component_overlap)
    return choose_level(params.operating_point, evidence) / 255


def evaluate(
    params: EvaluateParams,
    model: keras.Model,
    data: Path,
    val_tiles: Sequence[Tile],
    test_tiles: Sequence[Tile],
    out: Path,
) -> dict[str, Any]:
    """Measures a model and writes `metrics.json`, `plots/`, `overlays/` and `predictions/`.

    Args:
        params: operating point, batch size, overlap that counts as found, number of overlays.
        model: (N, H, W, 1) float32, 0-255 -> probabilities.
        data: folder to which the paths of the tiles are relative.
        val_tiles: rows to choose the threshold on.
        test_tiles: rows to measure on.
        out: folder to write.

    Returns:
        The metrics.

    Raises:
        StageError: if the model can't work at the operating point.
    """
    threshold = choose_threshold(params, model, data, val_tiles)
    counts = np.zeros((2, 256), np.int64)
    judged = []
    predictions = predict_levels(model, data, test_tiles, params.batch_size)
    for tile, levels in tqdm(predictions, total=len(test_tiles), desc="test", unit="tile"):
        truth = read_mask(data / tile.mask)
        mask = mask_at(levels, threshold)
        counts += count_levels(levels, truth)
        judged.append(_judge(tile, levels, mask, truth, params.component_overlap))
        _save_levels(prediction_path(out / "predictions", tile), levels)
    metrics = _metrics(judged, threshold)
    _write_plots(out / "plots", metrics, counts)
    _write_overlays(out, data, judged, threshold, params.overlays)
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    return metrics


def prediction_path(folder: Path, tile: Tile) -> Path:
    """Where the probability image of a tile is kept; its mask follows from the threshold."""
    return folder / Path(tile.mask).relative_to("masks")


def _judge(
    tile: Tile, levels: NDArray[np.uint8], mask: NDArray[np.uint8], truth: NDArray[np.uint8], overlap: float
) -> Judged:
    return Judged(
        tile=tile,
        pixels=count_pixels(mask, truth),
        original=count_pixels(_centre(mask), _centre(truth)),
        components=count_components(mask, truth, overlap),
        score=score(levels),
        any_found=bool(mask.any()),
    )


def _centre(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The part that the original project looks at, at its resolution, nearest neighbour."""
    height, width = mask.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = Image.fromarray(np.ascontiguousarray(mask[top : top + side, left : left + side]))
    return np.asarray(square.resize((ORIGINAL_SIDE, ORIGINAL_SIDE), Image.Resampling.NEAREST))


def _metrics(judged: Sequence[Judged], threshold: float) -> dict[str, Any]:
    pooled = sum((one.pixels for one in judged), PixelCounts())
    original = sum((one.original for one in judged if one.tile.class_ != GOOD_CLASS), PixelCounts())
    components = sum((one.components for one in judged), Components())
    by_class: dict[str, list[Judged]] = defaultdict(list)
    for one in judged:
        by_class[one.tile.class_].append(one)
    classes = {
        name: _class_metrics(by_class[name]) for name in CLASSES if name != GOOD_CLASS and by_class[name]
    }
    good = by_class[GOOD_CLASS]
    false_alarm_rate = _mean([one.any_found for one in good])
    recall = _number(components.recall)
    return {
        "threshold": threshold,
        "images": len(judged),
        "dice_pooled": pooled.dice,
        "iou_pooled": pooled.iou,
        "dice_class_mean": _mean([values["dice"] for values in classes.values()]),
        "component_recall": recall,
        "component_recall_interval": wilson_interval(recall, _tiles(judged, defective=True)),
        "false_components": components.false,
        "auroc": _auroc(judged),
        "false_alarm_rate": false_alarm_rate,
        "false_alarm_rate_interval": wilson_interval(false_alarm_rate, _tiles(good)),
        "original_protocol": {"dice_pooled": original.dice, "iou_pooled": original.iou},
        "class": classes,
    }


def _tiles(judged: Sequence[Judged], *, defective: bool = False) -> int:
    """Number of tiles, whatever their exposures; `defective`: those with any defect pixel."""
    return len({one.tile.tile for one in judged if one.tile.defect_pixels or not defective})


def _class_metrics(judged: Sequence[Judged]) -> dict[str, float | int | None]:
    pixels = sum((one.pixels for one in judged), PixelCounts())
    components = sum((one.components for one in judged), Components())
    return {
        "images": len(judged),
        "dice": pixels.dice,
        "iou": pixels.iou,
        "component_recall": _number(components.recall),
    }


def _auroc(judged: Sequence[Judged]) -> float | None:
    """Area under the ROC curve of the score, images with a defect pixel against those without."""
    truth = [one.tile.defect_pixels > 0 for one in judged]
    if len(set(truth)) < 2:
        return None
    return float(roc_auc_score(truth, [one.score for one in judged]))


def _mean(values: Sequence[Any]) -> float | None:
    return float(np.mean([float(value) for value in values])) if values else None


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value


def _save_levels(path: Path, levels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels).save(path)


def _write_plots(folder: Path, metrics: dict[str, Any], counts: NDArray[np.int64]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    curves = curve(counts)
    points = [
        {"threshold": (index + 1) / 255, **{name: float(values[index]) for name, values in curves.items()}}
        for index in range(255)
        if not math.isnan(curves["recall"][index])
    ]
    bars = [{"class": name, "dice": values["dice"]} for name, values in metrics["class"].items()]
    for name, rows in {"thresholds": points, "classes": bars}.items():
        (folder / f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n")


def _write_overlays(out: Path, data: Path, judged: Sequence[Judged], threshold: float, number: int) -> None:
    """Draws the images with most wrong pixels, as a share of the tile; the worst comes first."""
    folder = out / "overlays"
    folder.mkdir(parents=True, exist_ok=True)
    worst = sorted(
        judged, key=lambda one: -(one.pixels.fp + one.pixels.fn) / (one.tile.width * one.tile.height)
    )
    for place, one in enumerate(worst[:number], start=1):
        levels = np.asarray(Image.open(prediction_path(out / "predictions", one.tile)))
        mask = mask_at(levels, threshold)
        picture = overlay(
            read_image(data / one.tile.image),
            mask,
            truth=read_mask(data / one.tile.mask),
            defects=find_defects(mask, levels),
        )
        picture.save(folder / f"{place:02d}_{one.tile.class_}_{Path(one.tile.image).stem}.png")


def main() -> None:
    """Runs the stage on params.yaml."""
    model_path = Path("models/unet.keras")
    if not model_path.exists():
        raise StageError(f"no {model_path}; run `dvc repro train`")
    split = Path("data/split")
    metrics = evaluate(
        load_params().evaluate,
        keras.models.load_model(model_path, compile=False),
        Path("data/tiles"),
        read_tiles(split / "val.csv"),
        read_tiles(split / "test.csv"),
        Path("results/evaluate"),
    )
    log.info("%s", json.dumps({k: v for k, v in metrics.items() if not isinstance(v, dict)}, indent=2))


if __name__ == "__main__":
    run_stage(main)
