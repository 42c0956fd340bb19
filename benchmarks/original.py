"""The design that this project replaces: a FastAPI app that answers each pixel as a number in nested lists.

python -m benchmarks.original MODEL_BASE_PATH PORT
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request

from serving.local.model import Model
from serving.postprocessing import mask_at, probability_levels
from serving.preprocessing import letterbox, read_image
from stages.export import latest_version

__all__ = ["main", "make_app"]


def make_app(model: Model, size: tuple[int, int], threshold: float) -> FastAPI:
    """Makes the app; `POST /analyze` takes an image file to `{"pred": [[0, 255, ...], ...]}`.

    Args:
        model: with the signature `serving_default`.
        size: height and width of its input, in pixels.
        threshold: from which a probability is a defect.
    """
    app = FastAPI()

    @app.post("/analyze")
    async def analyze(request: Request) -> dict[str, Any]:  # on the event loop, as there
        gray = read_image(await request.body())
        image, place = letterbox(gray, size)
        probabilities = model.predict("", {"images": image[None]})["probabilities"][0]
        mask = mask_at(probability_levels(probabilities, place, *gray.shape), threshold)
        return {"pred": mask.tolist()}

    return app


def main(argv: list[str] | None = None) -> int:
    """Serves until it is told to end; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.original", description=__doc__.split("\n")[0])
    parser.add_argument("model_base_path", type=Path, metavar="MODEL_BASE_PATH")
    parser.add_argument("port", type=int, metavar="PORT")
    args = parser.parse_args(argv)
    model = Model(latest_version(args.model_base_path))
    [_, height, width, _] = model.metadata["serving_default"]["inputs"]["images"]["tensor_shape"]["dim"]
    app = make_app(model, (int(height["size"]), int(width["size"])), 0.5)
    uvicorn.run(app, port=args.port, log_level="warning")
    return 0


if __name__ == "__main__":
    sys.exit(main())
