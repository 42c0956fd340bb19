"""Makes pretrained/slim18.weights.h5 from drawn tiles alone: python -m scripts.pretrained_weights

No picture of a real tile goes into them, so that no split of real tiles can leak through them, and no weights
of others. The demo starts from them; so can whoever wants nothing of ImageNet, or the fastest network.
It runs on any backend of Keras: KERAS_BACKEND=jax where JAX has a GPU, with --workers to feed it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import shutil
import sys
from pathlib import Path

__all__ = ["compress", "main"]

log = logging.getLogger(__name__)

DECODER_FILTERS = (128, 64, 32, 16, 16)

FIRST_STEPS = 500
"""With plain defects; lifelike ones teach random weights nothing."""


def main(argv: list[str] | None = None) -> int:
    """Draws, trains, writes the file; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.pretrained_weights", description=(__doc__ or "").split("\n\n", 1)[1]
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("pretrained/slim18.weights.h5"), metavar="FILE")
    add("--steps", type=int, default=9000, metavar="N", help="batches, after the first 500 (default: 9000)")
    add("--batch-size", type=int, default=16, metavar="N", help="images in them (default: 16)")
    add("--tiles", type=int, default=4000, metavar="N", help="tiles to draw on (default: 4000)")
    add("--side", type=int, default=256, metavar="PIXELS", help="of the network's input (default: 256)")
    add("--workers", type=int, default=1, metavar="N", help="processes that draw, 1 for threads (default: 1)")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    import numpy as np
    from tqdm import tqdm

    from stages.checkpoint import Checkpoint, fingerprint
    from stages.errors import StageError
    from stages.lifelike import draw_lifelike_tile
    from stages.params import PretrainParams, load_params
    from stages.precision import emulates_bfloat16
    from stages.pretrain import pretrain

    network = load_params().train.model_copy(
        update={
            "backbone": "slim18",
            "backbone_weights": "none",
            "decoder_filters": DECODER_FILTERS,
            "image_size": (args.side, args.side),
            "mixed_precision": not emulates_bfloat16(),
            "workers": args.workers,
        }
    )
    rng = np.random.default_rng(network.seed)
    shorter = (25 * args.side // 64, args.side)  # scales as different as those of real tiles in an input
    number = tqdm(range(args.tiles), desc="drawing tiles", unit="tile")
    images = [draw_lifelike_tile(rng, shorter) for _ in number]
    settings = {**vars(args), "out": None, "workers": None}  # neither decides the weights
    recipe = fingerprint([], args=settings, train=network.model_dump(mode="json"))
    # A folder for each recipe: a run that was stopped is gone on with, and never by another one.
    name = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]
    work = Path("models/checkpoint/pretrained_weights", name)
    first, last = work / "first.weights.h5", work / "last.weights.h5"
    # Not those of params.yaml, which are for steps from these weights on.
    plain = PretrainParams(
        weights="none", drawings="plain", scale=1.0, steps=FIRST_STEPS, batch_size=8, learning_rate=0.001
    )
    then = {"weights": str(first), "drawings": "both", "steps": args.steps, "batch_size": args.batch_size}
    both = plain.model_copy(update=then)
    try:
        for step, weights in ((plain, first), (both, last)):
            if weights.exists():  # of this command, stopped after it
                continue
            checkpoint = Checkpoint(work / weights.name.partition(".")[0], recipe)
            checkpoint.begin(resume=True)
            log.info("%s", pretrain(step, network, images, weights, checkpoint))
    except StageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    args.out.parent.mkdir(parents=True, exist_ok=True)
    compress(last, args.out)
    shutil.rmtree(work)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB")
    return 0


def compress(source: Path, target: Path) -> None:
    """Rewrites a weights file: kernels in half precision, packed, without the state of an optimizer."""
    import h5py
    import numpy as np

    partial = target.with_name(f".partial-{target.name}")
    with h5py.File(source) as before, h5py.File(partial, "w") as after:

        def copy(name: str, item: h5py.Group | h5py.Dataset) -> None:
            if name.partition("/")[0] == "optimizer":
                return
            if isinstance(item, h5py.Group):
                after.require_group(name).attrs.update(item.attrs)
                return
            values = item[()]
            if values.ndim > 1:
                values = values.astype(np.float16)
            after.create_dataset(name, data=values, **({"compression": 9} if values.ndim else {}))

        after.attrs.update(before.attrs)
        before.visititems(copy)
    partial.replace(target)


if __name__ == "__main__":
    sys.exit(main())
