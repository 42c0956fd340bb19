"""HTTP to a model server: time-outs, retries with backoff, and every answer checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import ReadTimeoutError
from urllib3.util import Retry

from serving.errors import RequestRefused, ServerError, ServerUnavailable

__all__ = ["Connection", "Refused"]

CONNECT_TIMEOUT = 3.05
"""Seconds; a little more than the 3 s after which TCP repeats a lost packet."""

BACKOFF = 0.2
"""Seconds; the waits before the tries are 0, 0.4, 0.8, 1.6 ..."""

POOL_SIZE = 32
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Refused(RequestRefused):
    """An HTTP error, with its status code."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


class _Retry(Retry):
    """Repeats what never reached the model; an answer that is merely late is not asked for again."""

    def increment(self, *args: Any, **kwargs: Any) -> Self:
        error = kwargs.get("error")
        if isinstance(error, ReadTimeoutError):
            raise error
        return super().increment(*args, **kwargs)


class Connection:
    """Sends JSON to one server and gives back JSON objects. Safe to share between threads.

    Args:
        url: of the server; `http://` is put before it if it has no scheme.
        timeout: seconds to wait for an answer.
        retries: further tries after connection errors and 503, for GET and POST.
        session: your own, for instance with credentials or a CA bundle.
    """

    def __init__(
        self, url: str, *, timeout: float, retries: int, session: requests.Session | None = None
    ) -> None:
        self.url = (url if "://" in url else f"http://{url}").rstrip("/")
        self.timeout = timeout
        self.session = session or requests.Session()
        if session is None and urlsplit(self.url).hostname in LOOPBACK:
            self.session.trust_env = False  # a proxy for the web must not get what is meant for this machine
        retry = _Retry(
            total=retries,
            status_forcelist=[503],
            allowed_methods=None,  # a prediction changes nothing, so that POST can be repeated
            backoff_factor=BACKOFF,
            raise_on_status=False,
        )
        self.session.mount(self.url, HTTPAdapter(pool_maxsize=POOL_SIZE, max_retries=retry))

    def get(self, path: str) -> dict[str, Any]:
        """GETs a path; see `post` for what it raises."""
        return self._ask("GET", path, None)

    def post(self, path: str, body: Mapping[str, object]) -> dict[str, Any]:
        """POSTs a JSON object and returns the JSON object of the answer.

        Raises:
            ServerUnavailable: no connection, no answer in time, or 502-504.
            Refused: any other HTTP error.
            ServerError: the answer is no JSON object, or the URL is none.
        """
        return self._ask("POST", path, body)

    def close(self) -> None:
        self.session.close()

    def _ask(self, method: str, path: str, body: Mapping[str, object] | None) -> dict[str, Any]:
        timeout = (min(CONNECT_TIMEOUT, self.timeout), self.timeout)
        try:
            response = self.session.request(method, self.url + path, json=body, timeout=timeout)
        except requests.ConnectTimeout as error:
            raise self._unavailable("no connection in time") from error
        except requests.Timeout as error:
            raise ServerUnavailable(
                f"{self.url} gave no answer within {self.timeout:g} s; is it overloaded? "
                "A longer --timeout may help"
            ) from error
        except requests.ConnectionError as error:
            raise self._unavailable(_reason(error)) from error
        except (requests.RequestException, ValueError) as error:
            raise ServerError(f"can't ask {self.url}: {_clip(str(error))}") from error
        return self._checked(response)

    def _checked(self, response: requests.Response) -> dict[str, Any]:
        try:
            document = response.json()
        except ValueError:
            document = None
        if not response.ok:
            text = document.get("error") if isinstance(document, dict) else response.text
            said = f"{response.status_code}: {_clip(str(text or response.reason))}"
            if response.status_code in (502, 503, 504):
                raise ServerUnavailable(f"{self.url} can't answer now ({said}); try again later")
            raise Refused(f"{self.url} refused the request ({said})", response.status_code)
        if not isinstance(document, dict):
            raise ServerError(
                f"the answer of {self.url} is no JSON object, so it is no model server: "
                f"{_clip(response.text)!r}"
            )
        return document

    def _unavailable(self, reason: str) -> ServerUnavailable:
        return ServerUnavailable(
            f"no model server at {self.url} ({reason}); start one with `python -m serving.up`, "
            "or name another with --url"
        )


def _reason(error: BaseException) -> str:
    """What the operating system said, out of the layers that wrap it."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, OSError) and inner.strerror:
            return inner.strerror
        wrapped = inner.args[0] if inner.args and isinstance(inner.args[0], BaseException) else None
        reason = getattr(inner, "reason", None)
        inner = (
            reason if isinstance(reason, BaseException) else wrapped or inner.__cause__ or inner.__context__
        )
    return "the connection broke, or it speaks no HTTP"


def _clip(text: str, limit: int = 300) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[:limit]}..."
