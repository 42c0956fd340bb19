"""The client for scripts and threads."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from serving.client.conversation import (
    SEGMENT,
    Conversation,
    Done,
    ModelInfo,
    Prediction,
    Steps,
    VersionStatus,
    advance,
)
from serving.client.defaults import DEFAULT_MODEL, DEFAULT_URL
from serving.client.ordered import ordered_map
from serving.client.tile import Source, Tile
from serving.client.transport import RestTransport, Transport
from serving.errors import ImageError, RequestRefused

if TYPE_CHECKING:
    import requests

__all__ = ["TileClient"]

Result = TypeVar("Result")


class TileClient:
    """Asks a model server for the defects of tiles. Safe to share between threads.

    Args:
        url: of the server: `http://host:8501` or `https://...` for its REST API, `grpc://host:8500`
            or `grpcs://...` for gRPC, which needs `pip install .[grpc]`.
        model: its name on the server.
        version: of the model; None for the latest, or the one with the label.
        signature: `segment`, or one that takes and gives tensors, as `serving_default` does.
        threshold: probability that makes a defect, above 0 and at most 1, instead of the model's own.
        label: of a version on the server, such as `stable`; the latest may be a canary, on trial.
        timeout: seconds to wait for an answer.
        retries: further tries, with growing waits, after connection errors, 429 and 503.
        api_key: that a proxy before the server asks for; sent as `Authorization: Bearer KEY`.
        ca_file: certificates (PEM) to trust instead of the usual ones, as for a CA of your own.
        session: your own `requests.Session`, for instance with other credentials; HTTP only.

    Raises:
        ValueError: if the threshold is out of range, the label can't be one, or it comes with a version.
        ServerError: if the URL asks for gRPC and what it needs is not installed, the key would
            travel unencrypted to another machine, or the CA file can't be used.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        model: str = DEFAULT_MODEL,
        version: int | None = None,
        signature: str = SEGMENT,
        threshold: float | None = None,
        *,
        label: str | None = None,
        timeout: float = 60.0,
        retries: int = 3,
        api_key: str | None = None,
        ca_file: str | os.PathLike[str] | None = None,
        session: requests.Session | None = None,
    ) -> None:
        self._transport: Transport
        settings: dict[str, Any] = {
            "timeout": timeout,
            "retries": retries,
            "api_key": api_key,
            "ca_file": ca_file,
        }
        if url.startswith(("grpc://", "grpcs://")):
            from serving.client.grpc_transport import GrpcTransport

            self._transport = GrpcTransport(url, **settings)
        else:
            self._transport = RestTransport(url, session=session, **settings)
        self._conversation = Conversation(self._transport.url, model, version, signature, threshold, label)

    @property
    def url(self) -> str:
        """URL of the server."""
        return self._transport.url

    @property
    def model(self) -> str:
        """Name of the model on the server."""
        return self._conversation.model

    @property
    def version(self) -> int | None:
        """Version that is asked for; None for the latest, or the one with the label."""
        return self._conversation.version

    @property
    def label(self) -> str | None:
        """Label whose version is asked for; None for none."""
        return self._conversation.label

    @property
    def signature(self) -> str:
        """Signature that `predict` uses."""
        return self._conversation.signature

    @property
    def threshold(self) -> float | None:
        """On the probability; None for the model's own."""
        return self._conversation.threshold

    def using(self, **changes: Any) -> TileClient:
        """A client with the same connections and another `version`, `label`, `signature` or `threshold`.

        A version takes the place of a label, and a label that of a version.

        Raises:
            ValueError: see `TileClient`.
        """
        if changes.keys() & {"version", "label"}:
            changes = {"version": None, "label": None, **changes}
        other = object.__new__(TileClient)
        other._transport = self._transport
        other._conversation = dataclasses.replace(self._conversation, **changes)
        return other

    def predict(self, source: Source) -> Prediction:
        """Finds the defects of one tile.

        Args:
            source: path of an image file, the bytes of one, an array, or a Pillow image;
                see `serving.client.tile.Tile.load`.

        Raises:
            ImageError: the tile can't be used.
            ServerUnavailable: the server does not answer.
            ModelNotFound: it has no such model, version, label or signature.
            RequestRefused: it refuses this tile.
            ServerError: its answer makes no sense.
        """
        return self._hold(self._conversation.predict(Tile.load(source)))

    def predict_many(
        self, sources: Iterable[Source], *, concurrency: int = 4
    ) -> Iterator[Prediction | ImageError | RequestRefused]:
        """Finds the defects of many tiles, with a few requests at a time.

        Sources are read as they are needed, so that memory stays flat.

        Args:
            sources: see `predict`.
            concurrency: requests in flight.

        Yields:
            In the order of the sources, a prediction, or the error of a tile that can't be
            used; the others go on.

        Raises:
            ServerError: those that concern all tiles; see `predict`.
        """

        def one(source: Source) -> Prediction | ImageError | RequestRefused:
            try:
                return self.predict(source)
            except (ImageError, RequestRefused) as error:
                return error

        yield from ordered_map(one, sources, concurrency)

    def status(self) -> list[VersionStatus]:
        """All versions of the model on the server, the newest first.

        Raises:
            ModelNotFound: the server has no such model.
            ServerError: see `predict`.
        """
        return self._hold(self._conversation.status())

    def current_version(self) -> int:
        """The version that answers now: the one that is named, has the label, or is the latest.

        Raises:
            ModelNotFound: the server has no such model, version or label, or the version is not ready.
            ServerError: see `predict`.
        """
        return self._hold(self._conversation.current_version())

    def signatures(self) -> dict[str, Any]:
        """Signatures of the model by name, as the server describes them.

        Raises:
            ServerError: see `predict`.
        """
        return self._hold(self._conversation.signatures())

    def model_info(self) -> ModelInfo:
        """What the model says of itself: version, input size, threshold, metrics.

        Raises:
            ServerError: see `predict`.
        """
        return self._hold(self._conversation.model_info())

    def close(self) -> None:
        """Closes the connections."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _hold(self, steps: Steps[Result]) -> Result:
        """Holds a conversation to its end."""
        step = advance(steps)
        while not isinstance(step, Done):
            step = advance(steps, self._transport.ask(step))
        return step.result
