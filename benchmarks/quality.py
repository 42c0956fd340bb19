"""What the recipe of params.yaml reaches on splits and seeds of one's choice: python -m benchmarks.quality

Splits, pretrains, trains and evaluates once for each protocol and seed, and prints the figures of the
test sides with their mean and its 95 % confidence interval. What is finished is kept, what was cut off
goes on; so several commands can share the seeds between the cores of a machine, and a last one prints all.
With --mean-of it judges the mean of the probabilities of networks that are there, as one network.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras

    from stages.params import EvaluateParams, PretrainParams, TrainParams
    from stages.tiles import Tile

__all__ = ["main", "mean_interval", "table"]

Metrics = dict[str, Any]

SIDES = ("train", "val", "test")

FEW = 0.01
"""Share of the good validation tiles with a false alarm that the second threshold allows."""

FIGURES: dict[str, Callable[[Metrics], float | None]] = {
    "Dice, original crop": lambda found: found["original_protocol"]["dice_pooled"],
    "IoU, original crop": lambda found: found["original_protocol"]["iou_pooled"],
    "Dice, pooled": lambda found: found["dice_pooled"],
    "IoU, pooled": lambda found: found["iou_pooled"],
    "Dice, mean of classes": lambda found: found["dice_class_mean"],
    "Dice, Blowhole": lambda found: found["class"].get("Blowhole", {}).get("dice"),
    "Dice, Break": lambda found: found["class"].get("Break", {}).get("dice"),
    "Dice, Crack": lambda found: found["class"].get("Crack", {}).get("dice"),
    "Dice, Fray": lambda found: found["class"].get("Fray", {}).get("dice"),
    "Dice, Uneven": lambda found: found["class"].get("Uneven", {}).get("dice"),
    "defects found": lambda found: found["component_recall"],
    "false alarms": lambda found: found["false_alarm_rate"],
    "images with a defect called good": lambda found: found["missed_image_rate"],
    "defects found, threshold for few false alarms": lambda found: _few(found, "component_recall"),
    "images with a defect called good there": lambda found: _few(found, "missed_image_rate"),
    "false alarms there": lambda found: _few(found, "false_alarm_rate"),
    "Dice, pooled, there": lambda found: _few(found, "dice_pooled"),
    "IoU, pooled, there": lambda found: _few(found, "iou_pooled"),
    "Dice, mean of classes, there": lambda found: _few(found, "dice_class_mean"),
    "AUROC": lambda found: found["auroc"],
    "exposures agree": lambda found: found["exposure_agreement"],
    "exposures agree, threshold for few false alarms": lambda found: _few(found, "exposure_agreement"),
}


def _few(found: Metrics, name: str) -> float | None:
    return None if found["few"] is None else found["few"].get(name)


def main(argv: Sequence[str] | None = None) -> int:
    """Trains what is missing and prints a table for each protocol; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality",
        description=(__doc__ or "").split("\n\n", 1)[1],
        epilog="The data come first: dvc repro data_load.",
    )
    add = parser.add_argument
    add("--protocols", nargs="+", default=["grouped", "random"], choices=["grouped", "random"])
    add("--seeds", type=int, nargs="+", default=[1, 2, 3], metavar="N", help="of split and training")
    add("--params", type=Path, default=Path("params.yaml"), metavar="FILE", help="the recipe")
    add("--data", type=Path, default=Path("data/tiles"), metavar="DIR", help="what data_load has made")
    add("--out", type=Path, default=Path("models/quality"), metavar="DIR", help="a folder for each run")
    either = parser.add_mutually_exclusive_group().add_argument
    either(
        "--judge-again",
        action="store_true",
        help="evaluate networks that are there anew, as after a change of it",
    )
    add(
        "--mean-of",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="train nothing: take the mean of the networks below these --out folders, and keep it",
    )
    either("--print-only", action="store_true", help="train nothing: the table of what is finished")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from stages.errors import StageError

    run = _mean if args.mean_of else _run
    try:
        results = {
            protocol: {seed: metrics for seed in args.seeds if (metrics := run(args, protocol, seed))}
            for protocol in args.protocols
        }
    except StageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for protocol, found in results.items():
        print(f"\n{protocol} split, {len(found)} run(s), seeds {', '.join(map(str, found)) or 'none'}\n")
        print(table([*found.values()]))
    return 0


def _run(args: argparse.Namespace, protocol: str, seed: int) -> Metrics | None:
    """The metrics of one split and seed, from its folder or from a training."""
    from stages.checkpoint import fingerprint
    from stages.errors import StageError
    from stages.params import load_params

    index = args.data / "tiles.csv"
    if not index.exists():
        raise StageError(f"no {index}; run `dvc repro data_load`")
    params = load_params(args.params)
    split_params = params.data_split.model_copy(update={"strategy": protocol, "seed": seed})
    network = params.train.model_copy(update={"seed": seed})
    learnt = fingerprint(
        [index, *map(Path, (params.pretrain.weights, network.backbone_weights))],
        data_split=split_params.model_dump(mode="json"),
        pretrain=params.pretrain.model_dump(mode="json"),
        train=network.model_dump(mode="json"),
    )
    recipe = learnt | fingerprint([], evaluate=params.evaluate.model_dump(mode="json"))
    folder: Path = args.out / f"{protocol}-{seed}"
    kept = _kept(args, folder, recipe)
    if kept or args.print_only:
        return kept

    import keras

    from stages.data_split import data_split
    from stages.tiles import read_tiles

    logging.info("%s split, seed %d, in %s", protocol, seed, folder)
    data_split(split_params, args.data, read_tiles(index), folder / "split")
    train_side, val_side, test_side = (read_tiles(folder / "split" / f"{side}.csv") for side in SIDES)
    model_path, made = folder / "unet.keras", folder / "unet.json"
    if made.exists() and model_path.exists() and json.loads(made.read_text()) == learnt:
        model = keras.models.load_model(model_path, compile=False)
    else:
        model = _train(params.pretrain, network, args.data, train_side, val_side, folder, learnt)
        made.write_text(json.dumps(learnt))
    return _judge(params.evaluate, model, args.data, val_side, test_side, folder, recipe)


def _mean(args: argparse.Namespace, protocol: str, seed: int) -> Metrics | None:
    """The metrics of the mean of networks that other recipes have made of one split and seed."""
    import keras

    from stages.checkpoint import fingerprint
    from stages.errors import StageError
    from stages.params import load_params
    from stages.tiles import read_tiles

    run = f"{protocol}-{seed}"
    members: list[Path] = [out / run for out in args.mean_of]
    for member in members:
        if not (member / "unet.keras").exists():
            raise StageError(f"no {member / 'unet.keras'}; train it, with its --params and --out")
    sides = [{name: (member / "split" / f"{name}.csv").read_text() for name in SIDES} for member in members]
    if any(side != sides[0] for side in sides):
        raise StageError(f"{' and '.join(map(str, members))} are of different splits of the tiles")
    params = load_params(args.params).evaluate
    networks = [member / "unet.keras" for member in members]
    recipe = fingerprint(networks, evaluate=params.model_dump(mode="json"))
    folder: Path = args.out / run
    if (folder / "unet.json").exists():
        raise StageError(
            f"{folder} has a network that was trained, which the mean would replace; name another --out"
        )
    kept = _kept(args, folder, recipe)
    if kept or args.print_only:
        return kept

    logging.info("mean of %s", " and ".join(map(str, members)))
    models = [keras.models.load_model(path, compile=False) for path in networks]
    images = keras.Input(models[0].input_shape[1:], name="images")
    for index, model in enumerate(models):
        model.name = f"unet{index + 1}"
    mean = keras.Model(
        images, keras.layers.Average(name="probabilities")([model(images) for model in models])
    )
    folder.mkdir(parents=True, exist_ok=True)
    mean.save(folder / "unet.keras")
    val_side, test_side = (read_tiles(members[0] / "split" / f"{side}.csv") for side in ("val", "test"))
    return _judge(params, mean, args.data, val_side, test_side, folder, recipe)


def _kept(args: argparse.Namespace, folder: Path, recipe: Mapping[str, Any]) -> Metrics | None:
    """The metrics that a run has left, if they are of this recipe."""
    from stages.errors import StageError

    result = folder / "result.json"
    if result.exists():
        saved = json.loads(result.read_text())
        if saved["recipe"] == recipe and not args.judge_again:
            return dict(saved["metrics"])
        if args.print_only:
            raise StageError(f"{result} is of another recipe; name its --params or another --out")
    return None


def _judge(
    params: EvaluateParams,
    model: keras.Model,
    data: Path,
    val_side: Sequence[Tile],
    test_side: Sequence[Tile],
    folder: Path,
    recipe: Mapping[str, Any],
) -> Metrics:
    """Evaluates with two thresholds, and leaves the metrics in the folder."""
    import keras

    from stages.errors import StageError
    from stages.evaluate import evaluate
    from stages.params import MaxFalseAlarmRate

    metrics = evaluate(params, model, data, val_side, test_side, folder / "evaluate")
    point = MaxFalseAlarmRate(max_false_alarm_rate=FEW)
    few = params.model_copy(update={"operating_point": point, "overlays": 0})
    try:
        metrics["few"] = evaluate(few, model, data, val_side, test_side, folder / "few")
    except StageError as error:  # no threshold does it
        logging.warning("%s", error)
        metrics["few"] = None
    keras.backend.clear_session()
    partial = folder / ".partial-result.json"
    partial.write_text(json.dumps({"recipe": recipe, "metrics": metrics}, indent=1) + "\n")
    partial.replace(folder / "result.json")
    return metrics


def _train(
    first: PretrainParams,
    network: TrainParams,
    data: Path,
    train_side: Sequence[Tile],
    val_side: Sequence[Tile],
    folder: Path,
    learnt: Mapping[str, Any],
) -> keras.Model:
    """Pretrains and trains, or goes on with what was cut off."""
    from dvclive import Live

    from serving.preprocessing import read_image
    from stages.checkpoint import Checkpoint
    from stages.pretrain import pretrain
    from stages.train import train

    # A folder for each recipe: what was cut off is gone on with, and never by another one.
    states = folder / "checkpoint" / hashlib.sha256(json.dumps(learnt).encode()).hexdigest()[:12]
    weights, made = folder / "pretrained.weights.h5", folder / "pretrained.json"
    if not made.exists() or json.loads(made.read_text()) != learnt:
        before = Checkpoint(states / "pretrain", learnt)
        before.begin(resume=True)
        good = (read_image(data / tile.image) for tile in train_side if not tile.defect_pixels)
        pretrain(first, network, good, weights, before)
        made.write_text(json.dumps(learnt))
    checkpoint = Checkpoint(states / "train", learnt, folder / "live", monitor="val_dice")
    checkpoint.begin(resume=True)
    with Live(str(folder / "live"), dvcyaml=False, save_dvc_exp=False, resume=checkpoint.epoch > 0) as live:
        return train(network, data, train_side, val_side, folder / "unet.keras", live, checkpoint, weights)


def table(results: Sequence[Metrics]) -> str:
    """A Markdown table: each figure's mean over runs, its 95 % interval, and the value of each run.

    A run that has none of a figure, as no threshold does it there, is not in its mean.
    """
    lines = [
        "| figure | mean | 95 % interval | runs |",
        "|---|---|---|---|",
    ]
    for name, of in FIGURES.items():
        each = [of(found) for found in results]
        values = [value for value in each if value is not None]
        if not values:
            continue
        low, high = mean_interval(values)
        low, high = max(low, 0.0), min(high, 1.0)  # all figures are shares
        spread = f"{low:.3f} to {high:.3f}" if len(values) > 1 else "one run tells none"
        runs = ", ".join("none" if value is None else f"{value:.3f}" for value in each)
        lines.append(f"| {name} | {statistics.fmean(values):.3f} | {spread} | {runs} |")
    return "\n".join(lines)


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % confidence interval of the mean, by Student's t; endless with fewer than two values."""
    from scipy import stats

    if len(values) < 2:
        return -math.inf, math.inf
    mean = statistics.fmean(values)
    half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return mean - half, mean + half


if __name__ == "__main__":
    sys.exit(main())
