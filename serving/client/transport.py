"""HTTP to a model server with threads: time-outs, retries with backoff."""

from __future__ import annotations

import os
import time
from typing import Any, Protocol, Self
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import ReadTimeoutError
from urllib3.util import Retry

from serving.client import access, rest
from serving.client.conversation import Answer, Call, Refused
from serving.errors import ServerError

__all__ = ["RestTransport", "Transport"]

POOL_SIZE = 32


class Transport(Protocol):
    """Carries calls to one server. Safe to share between threads."""

    @property
    def url(self) -> str:
        """URL of the server."""

    def ask(self, call: Call) -> Answer | Refused:
        """Sends a call and returns its answer, which may be a refusal.

        Raises:
            ServerUnavailable: no connection, no answer in time, or the server is too busy.
            ServerError: the answer makes no sense, or the URL is none.
        """

    def close(self) -> None:
        """Closes the connections."""


class _Retry(Retry):
    """Repeats what never reached the model; an answer that is merely late is not asked for again."""

    def increment(self, *args: Any, **kwargs: Any) -> Self:
        error = kwargs.get("error")
        if isinstance(error, ReadTimeoutError):
            raise error
        return super().increment(*args, **kwargs)


class RestTransport:
    """Speaks JSON over HTTP.

    Args:
        url: of the server; `http://` is put before it if it has no scheme.
        timeout: seconds to wait for an answer.
        retries: further tries after connection errors, 429 and 503, for GET and POST.
        api_key: sent as a bearer token.
        ca_file: certificates (PEM) to trust instead of the usual ones.
        session: your own, for instance with other credentials.

    Raises:
        ServerError: if key or file can't be used; see `access.authorization` and `access.trust`.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float,
        retries: int,
        api_key: str | None = None,
        ca_file: str | os.PathLike[str] | None = None,
        session: requests.Session | None = None,
    ) -> None:
        self.url = rest.with_scheme(url)
        self.timeout = timeout
        self._retries = retries
        self._authorization = access.authorization(self.url, api_key)
        if ca_file:
            access.trust(ca_file)
        self._ca_file = os.fspath(ca_file) if ca_file else None  # empty, requests would trust anyone
        self.session = session or requests.Session()
        if session is None and urlsplit(self.url).hostname in rest.LOOPBACK:
            self.session.trust_env = False  # a proxy for the web must not get what is meant for this machine
        retry = _Retry(
            total=retries,
            status_forcelist=rest.BUSY,
            allowed_methods=None,  # a prediction changes nothing, so that POST can be repeated
            backoff_factor=rest.BACKOFF,
            backoff_max=rest.LONGEST_PAUSE,
            raise_on_status=False,
            respect_retry_after_header=False,  # up to hours, without a word
        )
        self.session.mount(self.url, HTTPAdapter(pool_maxsize=POOL_SIZE, max_retries=retry))

    def ask(self, call: Call) -> Answer | Refused:
        request = rest.write(call)
        try:
            response = self._send(request)
        except requests.ConnectTimeout as error:
            raise rest.unavailable(self.url, "no connection in time") from error
        except requests.Timeout as error:
            raise rest.late(self.url, self.timeout) from error
        except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
            if error.args and isinstance(error.args[0], ReadTimeoutError):  # in the middle of the answer
                raise rest.late(self.url, self.timeout) from error
            raise rest.unavailable(self.url, rest.reason(error)) from error
        except (requests.RequestException, ValueError) as error:
            raise ServerError(f"can't ask {self.url}: {rest.clip(str(error))}") from error
        if response.history and response.request.method != request.method:
            raise rest.moved(self.url, response.url, request.path)
        return rest.read(call, self.url, response.status_code, response.reason, response.content)

    def close(self) -> None:
        self.session.close()

    def _send(self, request: rest.Request) -> requests.Response:
        """Sends a request, and again if its answer broke off, which urllib3 does not look at."""
        pauses = rest.pauses(self._retries)
        while True:
            try:
                return self.session.request(
                    request.method,
                    self.url + request.path,
                    data=request.body,
                    headers={"Content-Type": "application/json"} if request.body else None,
                    auth=self._authorize if self._authorization else None,
                    verify=self._ca_file,
                    timeout=(min(rest.CONNECT_TIMEOUT, self.timeout), self.timeout),
                )
            except requests.exceptions.ChunkedEncodingError:
                if (pause := next(pauses, None)) is None:
                    raise
            time.sleep(pause)

    def _authorize(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Adds the key; were it a plain header, one of ~/.netrc would take its place."""
        request.headers["Authorization"] = self._authorization
        return request
