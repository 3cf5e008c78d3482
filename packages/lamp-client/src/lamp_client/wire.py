"""The msgpack codec of openpi's websocket protocol: plain maps, lists, numbers and strings, plus NumPy arrays and scalars.

An array travels as a map with BYTES keys ``__ndarray__``, ``data`` (C order), ``dtype`` and ``shape``; a NumPy scalar as
``__npgeneric__``, ``data``, ``dtype``. Nothing is ever pickled: object, void and complex types are refused both ways.
"""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np

from lamp_client.errors import WireError
from lamp_client.unpacking import MAX_MESSAGE_BYTES, Limits, Reader

__all__ = ["MAX_MESSAGE_BYTES", "Limits", "pack", "unpack"]

_ALLOWED_KINDS = "biufSUmM"
_DEFAULT = Limits()


def pack(message: Any, *, limits: Limits = _DEFAULT) -> bytes:
    """Encodes a message.

    Raises:
        WireError: for a value or an array type that the protocol does not carry, or a message that is too large.
    """
    try:
        encoded = msgpack.packb(message, default=_encode)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise WireError(f"the message cannot be encoded: {error}.") from error
    if encoded is None or len(encoded) > limits.message_bytes:
        raise WireError(f"the message has {len(encoded or b'')} bytes; the limit is {limits.message_bytes}.")
    return encoded


def unpack(encoded: bytes, *, limits: Limits = _DEFAULT, copy: bool = True) -> Any:
    """Decodes a message.

    Args:
        encoded: The whole message.
        limits: What is accepted.
        copy: Whether arrays are copies that may be written to; without, images are read-only views of the message, which spares
            a server the copy.

    Raises:
        WireError: for bytes that are no message of this protocol, or beyond a limit.
    """
    if len(encoded) > limits.message_bytes:
        raise WireError(f"the message has {len(encoded)} bytes; the limit is {limits.message_bytes}.")
    return Reader(encoded, limits, copy=copy).message()


def _encode(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        _check_dtype(value.dtype)
        # Viewed as bytes, so that msgpack copies them once, from where they are.
        data = np.ascontiguousarray(value).reshape(-1).view(np.uint8).data if value.size else b""
        return {b"__ndarray__": True, b"data": data, b"dtype": value.dtype.str, b"shape": value.shape}
    if isinstance(value, np.generic):
        _check_dtype(value.dtype)
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise WireError(f"a {type(value).__name__} cannot be sent; expected numbers, strings, lists, maps or NumPy arrays.")


def _check_dtype(dtype: np.dtype[Any]) -> None:
    if dtype.hasobject or dtype.kind not in _ALLOWED_KINDS or not dtype.itemsize:
        raise WireError(f"arrays of type {dtype.str!r} are refused; expected booleans, numbers or text.")
