"""One image from its file to its results: read, asked, written."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving.client.blocking import TileClient
from serving.client.conversation import Prediction, Refused
from serving.client.inputs import Input
from serving.client.outputs import as_json, write_pictures
from serving.client.results import Results, Stamp
from serving.client.tile import Tile
from serving.errors import ImageError, ModelNotFound, RequestRefused
from serving.postprocessing import DEFECT

__all__ = ["Job", "Outcome"]

ADDED = ("image", "source", "settings")
"""What a line of the results has beside the facts."""


@dataclass(frozen=True)
class Outcome:
    """What became of one image: facts of its prediction, or an error; no pixels.

    Attributes:
        one: the image.
        error: one line, empty if all is well.
        facts: all else, for JSON; paths of pictures are relative to the folder of results.
        stamp: of the file; None if there is none.
        settings: of the request; what has others is to be done again.
        is_new: False if an earlier run did it.
        is_unreadable: whether the error is one of the file itself.
        may_pass: whether the error is one of the server (500 and the like), so that another try may help.
    """

    one: Input
    error: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    stamp: Stamp | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    is_new: bool = True
    is_unreadable: bool = False
    may_pass: bool = False

    @property
    def image(self) -> str:
        """The path as the user would write it."""
        return str(self.one.path)

    @property
    def has_defects(self) -> bool:
        return self.facts.get("label") == DEFECT

    @property
    def document(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {"image": self.image, **({"error": self.error} if self.error else self.facts)}


@dataclass(frozen=True)
class _Pinned:
    """A client for one version, so that it is known which one answered, and with what threshold."""

    client: TileClient
    version: int
    threshold: float


class Job:
    """Does images. Safe to share between threads.

    A version of the model, the latest or the one with the client's label, is looked up when the first
    image needs it, and named in each request; unless the user named one, it is looked up again once it
    is gone.

    Args:
        client: for the server.
        results: where to write, if anywhere.
        mm_per_pixel: side of a pixel on the tile.
        again: whether to do again what is done.
    """

    def __init__(
        self,
        client: TileClient,
        results: Results | None = None,
        *,
        mm_per_pixel: float | None = None,
        again: bool = False,
    ) -> None:
        self._client = client
        self._results = results
        self._mm_per_pixel = mm_per_pixel
        self._again = again
        self._pinned: _Pinned | None = None
        self._pinning = threading.Lock()

    def do(self, one: Input) -> Outcome:
        """Reads, predicts and writes one image, unless it is done.

        Raises:
            ServerError: those that concern all images; see `TileClient.predict`.
            ServingError: the results can't be written.
        """
        stamp = None
        settings: dict[str, Any] = {}
        try:
            if one.problem:
                raise ImageError(one.problem)
            stamp = self._stamp(one.path)
            settings = self._settings(self._pin())
            earlier = None
            if self._results and not self._again:
                earlier = self._results.done(one.path, stamp, settings)
            if earlier is not None:
                facts = {key: value for key, value in earlier.items() if key not in ADDED}
                return Outcome(one, facts=facts, stamp=stamp, settings=settings, is_new=False)
            tile = Tile.load(one.path)
            if self._stamp(one.path) != stamp:
                raise ImageError("changed while it was read; run it again when it is written")
            prediction, pinned = self._predict(tile)
            facts = as_json(prediction, self._mm_per_pixel)
            facts |= {"version": pinned.version, "threshold": pinned.threshold}
            if self._results:
                facts |= write_pictures(tile, prediction, self._results.folder, one.name)
        except (ImageError, RequestRefused) as error:
            return Outcome(
                one,
                str(error),
                stamp=stamp,
                settings=settings,
                is_unreadable=isinstance(error, ImageError),
                may_pass=isinstance(error, Refused) and error.status >= 500,
            )
        return Outcome(one, facts=facts, stamp=stamp, settings=self._settings(pinned))

    def record(self, outcome: Outcome) -> None:
        """Adds an outcome to the results, if it is a new one of a file.

        Raises:
            ServingError: if the disk refuses.
        """
        if self._results and outcome.is_new and outcome.stamp:
            self._results.add(
                outcome.one.path, outcome.one.name, outcome.stamp, outcome.settings, outcome.document
            )

    def look_up(self) -> None:
        """Looks for the version to ask now.

        Raises:
            ServerError: see `TileClient.predict`.
        """
        with self._pinning:
            self._pinned = self._found()

    def _found(self) -> _Pinned:
        version = self._client.version
        if version is None:
            version = self._client.current_version()
        client = self._client.using(version=version)
        info = client.model_info()
        threshold = info.threshold if client.threshold is None else client.threshold
        return _Pinned(client, version, threshold)

    def _pin(self, stale: _Pinned | None = None) -> _Pinned:
        with self._pinning:
            if self._pinned is None or self._pinned is stale:
                self._pinned = self._found()
            return self._pinned

    def _predict(self, tile: Tile) -> tuple[Prediction, _Pinned]:
        pinned = self._pin()
        try:
            return pinned.client.predict(tile), pinned
        except ModelNotFound:
            if self._client.version is not None:
                raise
            pinned = self._pin(stale=pinned)  # another version has taken over
            return pinned.client.predict(tile), pinned

    def _settings(self, pinned: _Pinned) -> dict[str, Any]:
        return {
            "model": self._client.model,
            "version": pinned.version,
            "threshold": pinned.threshold,
            "signature": self._client.signature,
            "mm_per_pixel": self._mm_per_pixel,
        }

    @staticmethod
    def _stamp(path: Path) -> Stamp:
        try:
            return Stamp.of(path)
        except OSError as error:
            raise ImageError(f"can't be read: {error.strerror or error}") from error
        except ValueError as error:  # a NUL in the name
            raise ImageError(f"can't be read: {error}") from error
