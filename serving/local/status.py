"""Errors of a request, by TensorFlow's names of codes, and their HTTP codes."""

from __future__ import annotations

__all__ = ["CODES", "HTTP_CODES", "HttpError", "RequestError"]

# In the order of TensorFlow's numbers, from 0.
HTTP_CODES = {
    "OK": 200,
    "CANCELLED": 499,
    "UNKNOWN": 500,
    "INVALID_ARGUMENT": 400,
    "DEADLINE_EXCEEDED": 504,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "PERMISSION_DENIED": 403,
    "RESOURCE_EXHAUSTED": 429,
    "FAILED_PRECONDITION": 400,
    "ABORTED": 409,
    "OUT_OF_RANGE": 400,
    "UNIMPLEMENTED": 501,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DATA_LOSS": 500,
    "UNAUTHENTICATED": 401,
}
CODES = tuple(HTTP_CODES)


class RequestError(Exception):
    """A request that is answered with an error.

    Attributes:
        message: text of the answer.
        code: TensorFlow's name of the kind of error, a key of `HTTP_CODES`.
    """

    def __init__(self, message: str, code: str = "INVALID_ARGUMENT") -> None:
        super().__init__(message)
        self.message = message
        self.code = code

    @property
    def http_code(self) -> int:
        """HTTP code of the answer."""
        return HTTP_CODES.get(self.code, 500)

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class HttpError(RequestError):
    """A request that HTTP itself refuses, before it gets to a model."""

    def __init__(self, http_code: int, message: str) -> None:
        super().__init__(message)
        self._http_code = http_code

    @property
    def http_code(self) -> int:
        """HTTP code of the answer."""
        return self._http_code
