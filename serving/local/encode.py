"""Output arrays -> JSON of a predict answer, spelled and laid out as TensorFlow Serving does."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.local.status import RequestError

__all__ = ["encode_error", "encode_tensors"]

_NOT_FINITE = {"nan": "NaN", "-nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
_DIGITS = {np.dtype(np.float32): 9, np.dtype(np.float64): 17}


def encode_error(message: str) -> bytes:
    """Makes the body of an error."""
    return json.dumps({"error": message}, indent=4, ensure_ascii=False).encode(errors="surrogateescape")


def encode_tensors(outputs: Mapping[str, NDArray[Any]], *, rows: bool) -> bytes:
    """Makes the body of an answer.

    Args:
        outputs: arrays by name; strings are `bytes` in arrays of dtype object.
        rows: row format, one entry of `predictions` per instance; else `outputs` by column.

    Raises:
        RequestError: in row format, an output that isn't a batch, or batches of different sizes;
            a type that JSON can't hold.
    """
    if not outputs:
        raise RequestError("Cannot convert empty tensor map to JSON")
    text = _rows(outputs) if rows else _columns(outputs)
    return text.encode(errors="surrogateescape")


def _rows(outputs: Mapping[str, NDArray[Any]]) -> str:
    size = _batch_size(outputs)
    if size == 0:
        return '{\n    "predictions": []\n}'
    named = len(outputs) > 1
    depth = 3 if named else 2
    columns = {name: _items(name, array, depth) for name, array in outputs.items()}
    if not named:
        (items,) = columns.values()
        return f'{{\n    "predictions": [{", ".join(items)}\n    ]\n}}'
    objects = (
        ",\n".join(f"            {json.dumps(name)}: {items[index]}" for name, items in columns.items())
        for index in range(size)
    )
    body = ",".join(f"\n        {{\n{one}\n        }}" for one in objects)
    return f'{{\n    "predictions": [{body}\n    ]\n}}'


def _batch_size(outputs: Mapping[str, NDArray[Any]]) -> int:
    size = -1
    for name, array in outputs.items():
        if array.ndim == 0:
            raise RequestError(f"Tensor name: {name} has no shape information ")
        if size not in (-1, len(array)):
            raise RequestError(
                f"Tensor name: {name} has inconsistent batch size: {len(array)} expecting: {size}"
            )
        size = len(array)
    return size


def _items(name: str, array: NDArray[Any], depth: int) -> list[str]:
    """Encodes each row of a batch, arrays on one line."""
    step = math.prod(array.shape[1:])
    tokens = _tokens(name, array, depth + array.ndim - 1)
    return [
        _nest(tokens[index * step : (index + 1) * step], array.shape[1:], depth, one_line=True)
        for index in range(len(array))
    ]


def _columns(outputs: Mapping[str, NDArray[Any]]) -> str:
    depth = 2 if len(outputs) > 1 else 1
    values = {
        name: _nest(_tokens(name, array, depth + array.ndim), array.shape, depth, one_line=False)
        for name, array in outputs.items()
    }
    if depth == 1:
        (value,) = values.values()
        return f'{{\n    "outputs": {value}\n}}'
    body = ",\n".join(f"        {json.dumps(name)}: {value}" for name, value in values.items())
    return f'{{\n    "outputs": {{\n{body}\n    }}\n}}'


def _nest(tokens: Sequence[str], shape: Sequence[int], depth: int, *, one_line: bool) -> str:
    """Puts the encoded values of an array into nested brackets; `depth` is the indentation."""
    if not shape:
        return tokens[0]
    step = len(tokens) // shape[0] if shape[0] else 0
    parts: Sequence[str] = tokens
    if len(shape) > 1:
        parts = [
            _nest(tokens[index * step : (index + 1) * step], shape[1:], depth + 1, one_line=one_line)
            for index in range(shape[0])
        ]
    if one_line or not parts:
        return f"[{', '.join(parts)}]"
    inner, outer = "    " * (depth + 1), "    " * depth
    return "[" + ",".join(f"\n{inner}{part}" for part in parts) + f"\n{outer}]"


def _tokens(name: str, array: NDArray[Any], depth: int) -> list[str]:
    """Encodes each value of an array."""
    flat = array.reshape(-1)
    if array.dtype == np.object_:
        if name.endswith("_bytes"):
            inner, outer = "    " * (depth + 1), "    " * depth
            return [f'{{\n{inner}"b64": "{base64.b64encode(one).decode("ascii")}"\n{outer}}}' for one in flat]
        return [json.dumps(one.decode("utf-8", errors="surrogateescape"), ensure_ascii=False) for one in flat]
    if array.dtype == np.bool_:
        return ["true" if one else "false" for one in flat]
    if array.dtype.kind in "iu":
        return list(map(str, flat.tolist()))
    if array.dtype == np.float16:
        flat = flat.astype(np.float32)
    if flat.dtype not in _DIGITS:
        raise RequestError(f"Failed to write JSON value for tensor type: {array.dtype.name}")
    return _decimals(flat)


def _decimals(flat: NDArray[Any]) -> list[str]:
    """Writes floats with 6 digits, or with all where 6 don't read back as the same number."""
    numbers = flat.tolist()
    texts = [f"{one:g}" for one in numbers]
    back = np.array(texts, dtype=np.float64).astype(flat.dtype) if texts else flat
    for index in np.flatnonzero(back != flat):
        texts[index] = f"{numbers[index]:.{_DIGITS[flat.dtype]}g}"
    return [text if "." in text or "e" in text else _NOT_FINITE.get(text) or f"{text}.0" for text in texts]
