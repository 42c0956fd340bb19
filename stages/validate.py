"""Stage `validate`: a real server with the exported model must answer what `evaluate` predicted.

`results/validated.json` says for which files that is so; `serving.promote` lets no others be served.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from serving.client import TileClient
from serving.errors import ServingError
from serving.fingerprint import fingerprint
from serving.postprocessing import mask_at
from serving.up import running_server
from stages.errors import StageError, run_stage
from stages.params import ValidateParams, load_params
from stages.tiles import Tile, prediction_path, read_tiles

__all__ = ["validate"]

log = logging.getLogger(__name__)


def validate(
    params: ValidateParams, client: TileClient, data: Path, tiles: Sequence[Tile], predictions: Path
) -> dict[str, Any]:
    """Compares served masks and probabilities with those of `evaluate`.

    Args:
        params: tolerances.
        client: of a server with the exported model.
        data: folder to which the paths of the tiles are relative.
        tiles: rows of the test side.
        predictions: probability images of `evaluate`.

    Returns:
        Number of tiles and the largest differences.

    Raises:
        StageError: names the tiles beyond a tolerance.
    """
    threshold = client.model_info().threshold
    worst_mask, worst_level, problems = 0.0, 0, []
    for tile in tqdm(tiles, desc="served against evaluated", unit="tile"):
        answer = client.predict(data / tile.image)
        levels = np.asarray(Image.open(prediction_path(predictions, tile)))
        share = float(np.mean(answer.mask != mask_at(levels, threshold)))
        level = int(np.abs(answer.levels.astype(int) - levels.astype(int)).max())
        if share > params.max_mask_difference or level > params.max_probability_difference:
            problems.append(f"{tile.image}: {share:.4%} of the mask differ, probabilities by {level}/255")
        worst_mask, worst_level = max(worst_mask, share), max(worst_level, level)
    if problems:
        raise StageError("\n  ".join(["the served model differs from the evaluated one:", *problems]))
    return {
        "images": len(tiles),
        "max_mask_difference": worst_mask,
        "max_probability_difference": worst_level,
    }


def main(url: str | None = None) -> None:
    """Runs the stage on params.yaml; with a URL, checks that server and writes nothing."""
    params = load_params()
    name = params.export.name
    base_path = Path("models") / name
    here = running_server(base_path, name, backend="embedded")
    try:
        with nullcontext(url) if url else here as address:
            client = TileClient(address, name)
            result = validate(
                params.validate_,
                client,
                Path("data/tiles"),
                read_tiles(Path("data/split/test.csv")),
                Path("results/evaluate/predictions"),
            )
            version = client.model_info().version
    except ServingError as error:
        raise StageError(f"the server can't be checked: {error}") from error
    if not url:
        results = Path("results")
        (results / "validate.json").write_text(json.dumps(result, indent=2) + "\n")
        model = {"version": version, "sha256": fingerprint(base_path / str(version))}
        (results / "validated.json").write_text(json.dumps(model | result, indent=2) + "\n")
    log.info("served and evaluated predictions agree: %s", result)


if __name__ == "__main__":
    run_stage(main, url="check the server that runs there, say in a container, and write nothing")
