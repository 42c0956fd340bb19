"""Errors that a user of the client or of a server can meet.

ServingError
├── ConfigError       a configuration file can't be used, or what is to be written there
├── ImageError        this one image can't be used; others can
└── ServerError       the server can't be reached, or refuses
    ├── ServerUnavailable   no connection, or no answer in time
    │   └── ServerBusy      429, 502, 503 or 504 after all retries
    ├── ModelNotFound       wrong model name, version, label or signature
    └── RequestRefused      any other answer that is not a result
"""

from __future__ import annotations

__all__ = [
    "ConfigError",
    "ImageError",
    "ModelNotFound",
    "RequestRefused",
    "ServerBusy",
    "ServerError",
    "ServerUnavailable",
    "ServingError",
]


class ServingError(Exception):
    """Base of all errors of this package; its text is one line meant for a person."""


class ConfigError(ServingError):
    """A configuration file that can't be used, or a setting that can't be written there."""


class ImageError(ServingError):
    """An image that can't be used: unreadable, truncated, too small or too large."""


class ServerError(ServingError):
    """The server could not be asked, or its answer is not a result."""


class ServerUnavailable(ServerError):
    """No connection, no answer in time, or a server that is too busy."""


class ServerBusy(ServerUnavailable):
    """The server, or what stands before it, says that it can't answer now: 429, 502, 503 or 504."""


class ModelNotFound(ServerError):
    """The server runs, but not this model, version, label or signature."""


class RequestRefused(ServerError):
    """The server answered with an error that trying again won't mend."""
