"""Stage `evaluate`: figures, plots and pictures on the test side, at the tiles' own resolution.

The decision threshold is that of the operating point, found on the validation side; the test
side is only measured. `stages.figures` has the figures, `stages.metrics` what they mean.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from serving.overlay import overlay
from serving.postprocessing import find_defects, mask_at, mask_levels, probability_levels
from serving.preprocessing import letterbox, read_image
from stages.dataset import read_mask
from stages.errors import StageError, run_stage
from stages.figures import Judged, figures, judge
from stages.metrics import count_levels, curve
from stages.operating_point import choose_level, gather_evidence, too_few_to_tell
from stages.params import EvaluateParams, load_params
from stages.tiles import GOOD_CLASS, Tile, prediction_path, read_tiles
from stages.verdicts import DefectRow, ImageRow, as_csv, defect_rows, image_row

__all__ = ["choose_threshold", "evaluate", "predict_levels"]

log = logging.getLogger(__name__)


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
    threshold = choose_level(params.operating_point, evidence) / 255
    if doubt := too_few_to_tell(params.operating_point, evidence):
        log.warning("%s", doubt)
    return threshold


def evaluate(
    params: EvaluateParams,
    model: keras.Model,
    data: Path,
    val_tiles: Sequence[Tile],
    test_tiles: Sequence[Tile],
    out: Path,
) -> dict[str, Any]:
    """Measures a model; writes `metrics.json`, `images.csv`, `defects.csv`, and three folders.

    These are `plots/`, `overlays/` of the worst images, and `predictions/` of all.

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
    for folder in ("overlays", "predictions"):  # of an earlier run by hand; DVC takes them away itself
        shutil.rmtree(out / folder, ignore_errors=True)
    counts = np.zeros((2, 256), np.int64)
    judged = []
    predictions = predict_levels(model, data, test_tiles, params.batch_size)
    for tile, levels in tqdm(predictions, total=len(test_tiles), desc="test", unit="tile"):
        truth = read_mask(data / tile.mask)
        mask = mask_at(levels, threshold)
        counts += count_levels(mask_levels(levels), truth)
        judged.append(judge(tile, levels, mask, truth, params.component_overlap))
        _save_levels(prediction_path(out / "predictions", tile), levels)
    metrics = figures(judged, threshold)
    _write_tables(out, judged)
    _write_plots(out / "plots", metrics, counts)
    _write_overlays(out, data, judged, threshold, params.overlays)
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    return metrics


def _save_levels(path: Path, levels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels).save(path)


def _write_tables(out: Path, judged: Sequence[Judged]) -> None:
    images = [image_row(one.tile, one.pixels, one.areas, one.score) for one in judged]
    defects = [row for one in judged for row in defect_rows(one.tile, one.areas)]
    (out / "images.csv").write_text(as_csv(ImageRow, images))
    (out / "defects.csv").write_text(as_csv(DefectRow, defects))


def _write_plots(folder: Path, metrics: dict[str, Any], counts: NDArray[np.int64]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    curves = curve(counts)
    points = [
        {"threshold": (index + 1) / 255, **{name: float(values[index]) for name, values in curves.items()}}
        for index in range(255)
        if not math.isnan(curves["recall"][index])
    ]
    bars = [{"class": name, "dice": values["dice"]} for name, values in metrics["class"].items()]
    sizes = [{"size": name, "recall": values["component_recall"]} for name, values in metrics["size"].items()]
    asked = [row for row in sizes if row["recall"] is not None]
    for name, rows in {"thresholds": points, "classes": bars, "sizes": asked}.items():
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
