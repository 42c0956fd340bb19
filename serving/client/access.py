"""What a proxy before the server asks for, and how it shows who it is: API key, CA."""

from __future__ import annotations

import os
import re
import ssl
from urllib.parse import urlsplit

from serving.client import rest
from serving.errors import ServerError

__all__ = ["authorization", "trust"]


def authorization(url: str, api_key: str | None) -> str:
    """The header `Authorization`, which HTTP libraries don't pass on to other hosts; empty without a key.

    Raises:
        ServerError: no header can carry the key, or it could be read on its way.
    """
    if not api_key:
        return ""
    if not re.fullmatch(r"[!-~]+", api_key):  # else the error of the HTTP library would show it
        raise ServerError("the API key can't be sent: it holds a space, a line break or what is not ASCII")
    parts = urlsplit(url)
    if parts.scheme not in ("https", "grpcs") and parts.hostname not in rest.LOOPBACK:
        raise ServerError(f"{url} is not encrypted, so that the API key could be read on its way; use https")
    return f"Bearer {api_key}"


def trust(ca_file: str | os.PathLike[str]) -> ssl.SSLContext:
    """Trusts the certificates that a file (PEM) vouches for.

    Raises:
        ServerError: it can't be read, or holds none.
    """
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # ssl.SSLError is one
        raise ServerError(
            f"CA file {os.fspath(ca_file)} can't be used: {error.strerror or error}; it must hold "
            "certificates in PEM"
        ) from error
