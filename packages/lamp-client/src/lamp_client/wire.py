"""The msgpack codec of openpi's websocket protocol: plain maps, lists, numbers and strings, plus NumPy arrays and scalars.

An array travels as a map with BYTES keys ``__ndarray__``, ``data`` (C order), ``dtype`` and ``shape``; a NumPy scalar as
``__npgeneric__``, ``data``, ``dtype``. Nothing is ever pickled: object, void and complex types are refused both ways.
"""

from __future__ import annotations

import math
from typing import Any

import msgpack
import numpy as np

from lamp_client.errors import WireError

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""Default size limit of a message either way; two 224-pixel images take 0.3 MB."""

_ALLOWED_KINDS = "biufSUmM"


def pack(message: Any, *, max_bytes: int = MAX_MESSAGE_BYTES) -> bytes:
    """Encodes a message.

    Raises:
        WireError: for a value or an array type that the protocol does not carry, or a message that is too large.
    """
    try:
        encoded = msgpack.packb(message, default=_encode)
    except (TypeError, ValueError, OverflowError) as error:
        raise WireError(f"the message cannot be encoded: {error}.") from error
    if encoded is None or len(encoded) > max_bytes:
        raise WireError(f"the message has {len(encoded or b'')} bytes; the limit is {max_bytes}.")
    return encoded


def unpack(encoded: bytes, *, max_bytes: int = MAX_MESSAGE_BYTES) -> Any:
    """Decodes a message; arrays are copies that may be written to.

    Raises:
        WireError: for bytes that are no message of this protocol.
    """
    if len(encoded) > max_bytes:
        raise WireError(f"the message has {len(encoded)} bytes; the limit is {max_bytes}.")
    try:
        return msgpack.unpackb(encoded, object_hook=_decode, strict_map_key=False)
    except WireError:
        raise
    except Exception as error:  # msgpack raises ValueError, its own kinds and RecursionError for malformed bytes
        raise WireError(f"the message cannot be decoded: {type(error).__name__}: {error}.") from error


def _encode(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        _check_dtype(value.dtype)
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    if isinstance(value, np.generic):
        _check_dtype(value.dtype)
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise WireError(f"a {type(value).__name__} cannot be sent; expected numbers, strings, lists, maps or NumPy arrays.")


def _decode(fields: dict[Any, Any]) -> Any:
    if b"__ndarray__" in fields:
        dtype, shape, data = _dtype(fields), fields.get(b"shape"), fields.get(b"data")
        if not isinstance(data, bytes) or not isinstance(shape, list):
            raise WireError("an array lacks its data or shape.")
        if not all(isinstance(size, int) and not isinstance(size, bool) and size >= 0 for size in shape):
            raise WireError(f"an array's shape is {shape}; expected sizes of at least 0.")
        if math.prod(shape) * dtype.itemsize != len(data):
            raise WireError(f"an array of shape {shape} and type {dtype.str} came with {len(data)} bytes.")
        return np.frombuffer(data, dtype=dtype).reshape(shape).copy()
    if b"__npgeneric__" in fields:
        return _dtype(fields).type(fields.get(b"data"))
    return fields


def _dtype(fields: dict[Any, Any]) -> np.dtype[Any]:
    name = fields.get(b"dtype")
    if not isinstance(name, str):
        raise WireError(f"an array's dtype is {name!r}; expected a string such as '<f4'.")
    try:
        dtype = np.dtype(name)
    except (TypeError, ValueError) as error:
        raise WireError(f"an array's dtype {name!r} is unknown.") from error
    _check_dtype(dtype)
    return dtype


def _check_dtype(dtype: np.dtype[Any]) -> None:
    if dtype.hasobject or dtype.kind not in _ALLOWED_KINDS:
        raise WireError(f"arrays of type {dtype.str!r} are refused; expected booleans, numbers or text.")
