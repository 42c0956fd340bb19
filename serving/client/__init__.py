"""The thin client: a tile in, its mask and defects out. `python -m serving.client --help` for the commands.

    from serving.client import TileClient

    client = TileClient("http://127.0.0.1:8501")
    prediction = client.predict(Path("tile.jpg"))
    prediction.label, prediction.score, prediction.mask, prediction.defects

It needs no TensorFlow (but for `grpc://` URLs). With the signature `segment` (the default) the
server does all the work and the tile travels as its own file; with `serving_default` it travels
as numbers, and the client letterboxes it before and resizes the answer after. Both give the same
masks.

The modules, from the bottom up:

    tile, inputs, outputs, ordered    files in, pictures out, a few at a time
    conversation                      what is asked and what an answer means, without any I/O
    rest                              the same as HTTP requests and answers, without any I/O
    access                            API key and CA
    transport, grpc_transport         sockets
    blocking, asynchronous            TileClient, AsyncTileClient
    job, results, watch, doctor       what the commands do
    cli, commands, report             the command line
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serving.client.asynchronous import AsyncTileClient
    from serving.client.blocking import TileClient
    from serving.client.conversation import ModelInfo, Prediction, VersionStatus

__all__ = ["AsyncTileClient", "ModelInfo", "Prediction", "TileClient", "VersionStatus"]

_MODULES = {
    "AsyncTileClient": "asynchronous",
    "ModelInfo": "conversation",
    "Prediction": "conversation",
    "TileClient": "blocking",
    "VersionStatus": "conversation",
}


def __getattr__(name: str) -> object:
    """Imports a public name when it is first used: `--help` must not wait for NumPy and Pillow."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
