"""JSON of a predict request -> input arrays, with the rules and error texts of TensorFlow Serving."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.local.status import RequestError

__all__ = ["DTYPES", "PredictRequest", "decode_request", "decode_tensors"]

# TensorFlow's names of types -> numpy's
DTYPES: dict[str, Any] = {
    "float": np.float32,
    "double": np.float64,
    "half": np.float16,
    "int8": np.int8,
    "int16": np.int16,
    "int32": np.int32,
    "int64": np.int64,
    "uint8": np.uint8,
    "uint16": np.uint16,
    "uint32": np.uint32,
    "uint64": np.uint64,
    "bool": np.bool_,
    "string": np.object_,
}
_FLOATS: dict[str, tuple[int, Any]] = {
    "float": (24, np.float32),
    "double": (53, np.float64),
    "half": (24, np.float32),
}
# The wire carries small integers as int32, so that is the range which is checked.
_INT32, _INT64, _UINT32, _UINT64 = (-(2**31), 2**31), (-(2**63), 2**63), (0, 2**32), (0, 2**64)
_INTEGERS = {name: _INT32 for name in ("int8", "int16", "int32", "uint8", "uint16")} | {
    "int64": _INT64,
    "uint32": _UINT32,
    "uint64": _UINT64,
}
_PARSE_ERRORS = {
    "Expecting value": "Invalid value.",
    "Expecting property name enclosed in double quotes": "Missing a name for object member.",
    "Illegal trailing comma before end of object": "Missing a name for object member.",
    "Illegal trailing comma before end of array": "Invalid value.",
    "Expecting ':' delimiter": "Missing a colon after a name of object member.",
    "Extra data": "The document root must not be followed by other values.",
    "Unterminated string starting at": "Missing a closing quotation mark in string.",
    "Invalid control character at": "Invalid encoding in string.",
    "Invalid \\escape": "Invalid escape character in string.",
    "Invalid \\uXXXX escape": "Incorrect hex digit after \\u escape in string.",
}
_ESCAPES = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?P<half>u[dD][89a-fA-F])|.)", re.DOTALL
)
_SHOWN = 1000  # characters of a wrong value that an error text repeats


@dataclass(frozen=True)
class PredictRequest:
    """A parsed request, its values still as JSON has them.

    Attributes:
        signature: name of the signature, "" for the default one.
        document: the whole JSON object.
    """

    signature: str
    document: dict[str, Any]


def decode_request(body: bytes) -> PredictRequest:
    """Parses the body of a request.

    Raises:
        RequestError: it is not a JSON object, or its signature name is not a string.
    """
    document = _parse(body)
    if not isinstance(document, dict):
        raise RequestError(f"JSON Value: {_show(document)} Is not object")
    signature = document.get("signature_name", "")
    if not isinstance(signature, str):
        raise RequestError(
            f"JSON Value: {_show(document)} not formatted correctly. "
            "'signature_name' key must be a string value."
        )
    return PredictRequest(signature, document)


def decode_tensors(
    document: Mapping[str, Any], inputs: Mapping[str, str]
) -> tuple[dict[str, NDArray[Any]], bool]:
    """Makes the input arrays of a request.

    Args:
        document: with `instances` (rows) or `inputs` (columns).
        inputs: TensorFlow's type name of each input of the signature.

    Returns:
        An array per input, and whether the request is in row format.

    Raises:
        RequestError: names the first value that doesn't fit.
    """
    if "instances" in document:
        if "inputs" in document:
            raise RequestError(
                f"JSON Value: {_show(document)} Not formatted correctly expecting only one of "
                "'inputs' or 'instances' keys to exist "
            )
        rows = document["instances"]
        if not isinstance(rows, list):
            raise RequestError(f"JSON Value: {_show(document)} Excepting 'instances' to be an list/array")
        if not rows:
            raise RequestError(f"JSON Value: {_show(document)} No values in 'instances' array")
        return _from_rows(rows, inputs), True
    if "inputs" in document:
        return _from_columns(document["inputs"], inputs), False
    raise RequestError("Missing 'inputs' or 'instances' key")


def _parse(body: bytes) -> Any:
    # Bytes that are not UTF-8 pass through strings unchanged, as in TensorFlow Serving.
    text = body.decode("utf-8", errors="surrogateescape")
    if not text:
        raise RequestError("JSON Parse error: The document is empty")
    if not text.strip():
        raise RequestError(f"JSON Parse error: The document is empty. at offset: {len(body)}")
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        reason = _PARSE_ERRORS.get(error.msg) or _missing_comma(text, error.pos)
        raise _parse_error(reason, text, error.pos) from error
    except RecursionError as error:
        raise RequestError("JSON Parse error: The document is nested too deeply. at offset: 0") from error
    except ValueError as error:  # an integer of thousands of digits
        raise RequestError("JSON Parse error: Number too big to be stored in double. at offset: 0") from error
    if "\\ud" in text or "\\uD" in text:
        _check_surrogates(text)
    return document


def _parse_error(reason: str, text: str, position: int) -> RequestError:
    offset = len(text[:position].encode("utf-8", errors="surrogateescape"))
    return RequestError(f"JSON Parse error: {reason} at offset: {offset}")


def _check_surrogates(text: str) -> None:
    """Refuses escapes that are half a character, which Python lets pass, and which no answer could repeat."""
    for escape in _ESCAPES.finditer(text):
        if escape["half"]:
            raise _parse_error("The surrogate pair in string is invalid.", text, escape.start())


def _missing_comma(text: str, position: int) -> str:
    depth = {"}": 0, "]": 0}
    opening = {"{": "}", "[": "]"}
    quoted = False
    for character in reversed(text[:position]):
        if character == '"':
            quoted = not quoted
        elif not quoted and character in depth:
            depth[character] += 1
        elif not quoted and character in opening:
            depth[opening[character]] -= 1
            if depth[opening[character]] < 0:
                kind = "} after an object member" if character == "{" else "] after an array element"
                return f"Missing a comma or {kind}."
    return "Invalid value."


def _from_rows(rows: list[Any], inputs: Mapping[str, str]) -> dict[str, NDArray[Any]]:
    if not isinstance(rows[0], dict) and len(inputs) > 1:
        raise RequestError(
            "instances is a plain list, but expecting list of objects as multiple "
            "input tensors required as per tensorinfo_map"
        )
    if _is_named(rows[0]):
        return _from_named_rows(rows, inputs)
    name = next(iter(inputs))
    for index, row in enumerate(rows):
        if _is_named(row):
            raise RequestError(f"Expecting value/list but got object at item {index} of input list")
    return {name: _stack(rows, inputs[name], "Failed to process element: {} of 'instances' list.")}


def _from_named_rows(rows: list[Any], inputs: Mapping[str, str]) -> dict[str, NDArray[Any]]:
    for index, row in enumerate(rows):
        if not _is_named(row):
            raise RequestError(f"Expecting object but got list at item {index} of input list")
        for key in row:
            if key not in inputs:
                raise RequestError(
                    f"Failed to process element: {index} key: {key} of 'instances' list. Error: "
                    f"INVALID_ARGUMENT: JSON object: does not have named input: {key}"
                )
        if row.keys() != inputs.keys():
            raise RequestError(
                f"Failed to process element: {index} of 'instances' list. JSON object: {_show(row)} "
                f"keys must be equal to: {','.join(sorted(inputs))}"
            )
    return {
        name: _stack(
            [row[name] for row in rows],
            dtype,
            f"Failed to process element: {{}} key: {name} of 'instances' list.",
        )
        for name, dtype in inputs.items()
    }


def _stack(rows: list[Any], dtype: str, failure: str) -> NDArray[Any]:
    """Makes one array of all rows; a wrong row is found by looking at each alone."""
    try:
        return _to_array(rows, dtype)
    except RequestError:
        first: NDArray[Any] | None = None
        for index, row in enumerate(rows):
            try:
                array = _to_array(row, dtype)
                first = array if first is None else first
                _check_same(first, array)
            except RequestError as error:
                raise RequestError(f"{failure.format(index)} Error: {error}") from error
        raise


def _check_same(first: NDArray[Any], array: NDArray[Any]) -> None:
    if first.size != array.size:
        raise RequestError(f"Expecting tensor size: {first.size} but got: {array.size}")
    if first.shape != array.shape:
        shapes = [f"[{','.join(map(str, one.shape))}]" for one in (first, array)]
        raise RequestError(f"Expecting shape {shapes[0]} but got: {shapes[1]}")


def _from_columns(value: Any, inputs: Mapping[str, str]) -> dict[str, NDArray[Any]]:
    if not _is_named(value):
        if len(inputs) > 1:
            raise RequestError(
                "inputs is a plain value/list, but expecting an object as multiple "
                "input tensors required as per tensorinfo_map"
            )
        name, dtype = next(iter(inputs.items()))
        return {name: _to_array(value, dtype)}
    arrays = {}
    for name, dtype in inputs.items():
        if name not in value:
            raise RequestError(f"Missing named input: {name} in 'inputs' object.")
        arrays[name] = _to_array(value[name], dtype)
    return arrays


def _is_base64(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"b64"} and isinstance(value["b64"], str)


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and not _is_base64(value)


def _to_array(value: Any, dtype: str) -> NDArray[Any]:
    """Makes an array of nested lists; all leaves lie at the same depth.

    Raises:
        RequestError: names the first value that doesn't fit.
    """
    shape = _shape(value)
    leaves = [value]
    for length in shape:
        if any(type(one) is not list or len(one) != length for one in leaves):
            _complain(value, shape, 0, dtype)
        leaves = list(chain.from_iterable(leaves))
    if any(type(one) is list for one in leaves):
        _complain(value, shape, 0, dtype)
    try:
        array = _convert(leaves, dtype)
    except (RequestError, TypeError, ValueError, OverflowError):
        _complain(value, shape, 0, dtype)
        raise
    try:
        return array.reshape(shape)
    except ValueError as error:
        raise RequestError(f"values are nested {len(shape)} levels deep; no array has as many") from error


def _shape(value: Any) -> list[int]:
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        if not value:
            break
        value = value[0]
    return shape


def _convert(leaves: list[Any], dtype: str) -> NDArray[Any]:
    """Makes a flat array, checking all leaves at once."""
    if dtype == "string":
        return np.array([_to_bytes(one) for one in leaves] or [], dtype=np.object_)
    if dtype not in DTYPES:
        raise RequestError("", "UNIMPLEMENTED")
    types = set(map(type, leaves))
    allowed = {bool} if dtype == "bool" else {int} if dtype in _INTEGERS else {int, float}
    if not types <= allowed:
        raise TypeError
    if dtype in _INTEGERS:
        low, high = _INTEGERS[dtype]
        if leaves and not low <= min(leaves) <= max(leaves) < high:
            raise ValueError
        wide = np.array(leaves, dtype=np.uint64 if dtype == "uint64" else np.int64)
        return wide.astype(DTYPES[dtype])
    if dtype == "bool":
        return np.array(leaves, dtype=np.bool_)
    wide = np.array(leaves, dtype=np.float64)
    digits, kind = _FLOATS[dtype]
    if np.any(np.abs(wide[np.isfinite(wide)]) > np.finfo(kind).max):
        raise ValueError
    if int in types and any(2**digits <= abs(one) < 2**64 for one in leaves if type(one) is int):
        raise ValueError
    with np.errstate(over="ignore"):
        return wide.astype(DTYPES[dtype])


def _to_bytes(value: Any) -> bytes:
    if type(value) is str:
        return value.encode("utf-8", errors="surrogateescape")
    if not isinstance(value, dict):
        raise TypeError
    if not _is_base64(value):
        raise RequestError(f"JSON Value: {_show(value)} not formatted correctly for base64 data")
    text = value["b64"].rstrip("=")
    try:
        # Both alphabets, with or without padding.
        return base64.b64decode(
            text.replace("-", "+").replace("_", "/") + "=" * (-len(text) % 4), validate=True
        )
    except (binascii.Error, ValueError) as error:
        raise RequestError("Unable to base64 decode") from error


def _complain(value: Any, shape: list[int], level: int, dtype: str) -> None:
    """Walks to the first value that doesn't fit, and raises its error."""
    rank = len(shape)
    if not isinstance(value, list):
        if level != rank:
            raise RequestError(
                f"JSON Value: {_show(value)} found at incorrect level: {level + 1} "
                f"in the JSON DOM. Expected at level: {rank}"
            )
        _complain_of_leaf(value, dtype)
        return
    if level >= rank:
        raise RequestError(f"Encountered list at unexpected level: {level} expected < {rank}")
    if len(value) != shape[level]:
        raise RequestError(
            f"Encountered list at unexpected size: {len(value)} at level: {level} "
            f"expected size: {shape[level]}"
        )
    for one in value:
        _complain(one, shape, level + 1, dtype)


def _complain_of_leaf(value: Any, dtype: str) -> None:
    try:
        _convert([value], dtype)
    except RequestError as error:
        if error.code != "UNIMPLEMENTED":
            raise
        raise RequestError(
            f"Conversion of JSON Value: {_show(value)} to type: {dtype}", error.code
        ) from error
    except (TypeError, ValueError, OverflowError) as error:
        if isinstance(error, ValueError) and dtype in _FLOATS:
            raise RequestError(
                f"Cannot convert JSON value: {_show(value)} to {dtype} without loss of precision."
            ) from error
        raise RequestError(
            f"JSON Value: {_show(value)} Type: {_type_name(value)} is not of expected type: {dtype}"
        ) from error


def _type_name(value: Any) -> str:
    for kind, name in ((dict, "Object"), (list, "Array"), (str, "String")):
        if isinstance(value, kind):
            return name
    return "Null" if value is None else str(value) if isinstance(value, bool) else "Number"


def _show(value: Any) -> str:
    text = json.dumps(value, indent=4, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text)} characters)"
