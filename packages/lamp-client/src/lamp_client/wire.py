"""The msgpack codec of openpi's websocket protocol: plain maps, lists, numbers and strings, plus NumPy arrays and scalars.

An array travels as a map with BYTES keys ``__ndarray__``, ``data`` (C order), ``dtype`` and ``shape``; a NumPy scalar as
``__npgeneric__``, ``data``, ``dtype``. Nothing is ever pickled: object, void and complex types are refused both ways.

Reading is strict: every count is compared with the bytes that are left before anything is made of it. The usual reader makes a
list as long as a header claims, nested ones likewise, so that a message of a few megabytes can take all memory. This one
also refuses what the protocol does not carry: extension types, keys that are no names, the same key twice, and arrays whose
shape does not fit their bytes.
"""

from __future__ import annotations

import math
import re
import struct
import sys
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np

from lamp_client.errors import WireError

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""Default size limit of a message either way; two 224-pixel images take 0.3 MB."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The largest message that is accepted."""

    message_bytes: int = MAX_MESSAGE_BYTES
    array_bytes: int = MAX_MESSAGE_BYTES
    """Of one array."""
    items: int = 20_000
    """Values in all, those inside lists and maps counted; an array is a dozen of them, whatever its size."""
    depth: int = 24
    """Lists and maps inside each other."""


_NUMBERS = {
    0xCA: struct.Struct(">f"),
    0xCB: struct.Struct(">d"),
    0xCC: struct.Struct(">B"),
    0xCD: struct.Struct(">H"),
    0xCE: struct.Struct(">I"),
    0xCF: struct.Struct(">Q"),
    0xD0: struct.Struct(">b"),
    0xD1: struct.Struct(">h"),
    0xD2: struct.Struct(">i"),
    0xD3: struct.Struct(">q"),
}
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_SIZES = {1: struct.Struct(">B"), 2: struct.Struct(">H"), 4: struct.Struct(">I")}
_BYTES = {0xC4: 1, 0xC5: 2, 0xC6: 4}
_TEXTS = {0xD9: 1, 0xDA: 2, 0xDB: 4}
_LISTS = {0xDC: 2, 0xDD: 4}
_MAPS = {0xDE: 2, 0xDF: 4}

_ARRAY_KEYS = {b"__ndarray__", b"data", b"dtype", b"shape"}
_SCALAR_KEYS = {b"__npgeneric__", b"data", b"dtype"}
_DTYPE = re.compile(r"[<>|=](b1|[iu][1248]|f[248]|S[1-9]\d{0,5}|U[1-9]\d{0,5}|[mM]8(\[\d{0,6}[a-zA-Z]{1,2}\])?)")
_LARGEST_CHARACTER = 0x10FFFF
_VIEW_BYTES = 16 * 1024
_SCALARS = {"b": (bool,), "i": (int,), "u": (int,), "f": (float, int), "S": (bytes,), "U": (str,)}


class Reader:
    """Reads one message.

    Args:
        encoded: The whole message.
        limits: What is accepted.
        copy: Whether large arrays are copies; otherwise they are read-only views of the message.
    """

    def __init__(self, encoded: bytes, limits: Limits, *, copy: bool = True) -> None:
        self._data = memoryview(encoded)
        self._end = len(encoded)
        self._at = 0
        self._items = 0
        self._limits = limits
        self._views_from = sys.maxsize if copy else _VIEW_BYTES

    def message(self) -> Any:
        """Returns the message.

        Raises:
            WireError: It is not of this protocol, or beyond a limit.
        """
        try:
            value = _plain(self._value(0))
        except (ValueError, TypeError, OverflowError, MemoryError, RecursionError) as error:  # whatever NumPy refuses
            raise WireError(f"the message cannot be read: {type(error).__name__}: {str(error)[:200]}.") from error
        if self._at != self._end:
            raise WireError(f"{self._end - self._at} bytes follow the message; expected one message and nothing else.")
        return value

    def _value(self, depth: int) -> Any:
        self._items += 1
        if self._items > self._limits.items:
            raise WireError(f"the message has more than {self._limits.items} values, the limit.")
        tag = self._take(1)[0]
        if tag <= 0x7F:
            return tag
        if tag >= 0xE0:
            return tag - 0x100
        if tag <= 0x8F:
            return self._map(tag & 0x0F, depth)
        if tag <= 0x9F:
            return self._list(tag & 0x0F, depth)
        if tag <= 0xBF:
            return self._text(tag & 0x1F)
        if tag in _CONSTANTS:
            return _CONSTANTS[tag]
        if tag in _NUMBERS:
            form = _NUMBERS[tag]
            return form.unpack(self._take(form.size))[0]
        return self._counted(tag, depth)

    def _counted(self, tag: int, depth: int) -> Any:
        if tag in _BYTES:
            return self._take(self._count(_BYTES[tag]))
        if tag in _TEXTS:
            return self._text(self._count(_TEXTS[tag]))
        if tag in _LISTS:
            return self._list(self._count(_LISTS[tag]), depth)
        if tag in _MAPS:
            return self._map(self._count(_MAPS[tag]), depth)
        raise WireError(
            f"byte {self._at - 1}, 0x{tag:02x}, cannot be decoded: an extension type, or no msgpack at all."
        )

    def _take(self, size: int) -> memoryview:
        """The next bytes, not copied."""
        start, self._at = self._at, self._at + size
        if self._at > self._end:
            raise WireError(f"the message ends at byte {self._end}; expected {self._at - self._end} more.")
        return self._data[start : self._at]

    def _count(self, width: int) -> int:
        return _SIZES[width].unpack(self._take(width))[0]

    def _room(self, values: int, depth: int) -> None:
        """Checks that so many values can follow: each takes a byte at least."""
        if depth >= self._limits.depth:
            raise WireError(f"lists and maps are nested more than {self._limits.depth} deep, the limit.")
        if values > self._end - self._at:
            raise WireError(f"{values} values are announced where {self._end - self._at} bytes are left.")
        if values > self._limits.items - self._items:
            raise WireError(f"the message has more than {self._limits.items} values, the limit.")

    def _text(self, size: int) -> str:
        try:
            return str(self._take(size), "utf-8")
        except UnicodeDecodeError as error:
            raise WireError("a text is not UTF-8.") from error

    def _list(self, count: int, depth: int) -> list[Any]:
        self._room(count, depth)
        return [_plain(self._value(depth + 1)) for _ in range(count)]

    def _map(self, count: int, depth: int) -> Any:
        self._room(2 * count, depth)
        fields: dict[Any, Any] = {}
        for _ in range(count):
            key = _plain(self._value(depth + 1))
            if type(key) not in (str, bytes, int):
                raise WireError(f"a map's key is a {type(key).__name__}; expected text, bytes or an integer.")
            if key in fields:
                raise WireError(f"the key {str(key)[:40]} comes twice in a map.")
            fields[key] = self._value(depth + 1)
        if b"__ndarray__" in fields:
            return self._array(fields)
        if b"__npgeneric__" in fields:
            return _scalar(fields)
        return {key: _plain(value) for key, value in fields.items()}

    def _array(self, fields: dict[Any, Any]) -> np.ndarray:
        dtype, shape, data = _dtype(fields, _ARRAY_KEYS), fields[b"shape"], fields[b"data"]
        if not isinstance(data, memoryview) or not isinstance(shape, list):
            raise WireError("an array's data or shape is of another kind; expected bytes and a list of sizes.")
        if len(shape) > 32 or not all(type(size) is int and 0 <= size <= self._limits.message_bytes for size in shape):
            raise WireError(f"an array's shape is {str(shape)[:80]}; expected up to 32 sizes of at least 0.")
        if math.prod(shape) * dtype.itemsize != len(data):
            raise WireError(f"an array of shape {str(shape)[:80]} and type {dtype.str} came with {len(data)} bytes.")
        if len(data) > self._limits.array_bytes:
            raise WireError(f"an array has {len(data)} bytes; the limit is {self._limits.array_bytes}.")
        if not len(data):
            # NumPy computes the size without the zeros, and refuses in its own words what would not fit.
            if math.prod(max(size, 1) for size in shape) * dtype.itemsize > self._limits.array_bytes:
                raise WireError(
                    f"an empty array has the shape {str(shape)[:80]}; expected sizes of which an array can be made."
                )
            return np.zeros(shape, dtype)
        if dtype.kind == "U" and np.frombuffer(data, dtype.str[0] + "u4").max() > _LARGEST_CHARACTER:
            raise WireError("an array of text holds what is no character.")
        array = np.ndarray(shape, dtype, buffer=data)
        # Bytes have no alignment; anything wider may start where its type must not.
        return array if dtype.itemsize == 1 and len(data) >= self._views_from else array.copy()


def _plain(value: Any) -> Any:
    return value.tobytes() if type(value) is memoryview else value


def _dtype(fields: dict[Any, Any], keys: set[bytes]) -> np.dtype[Any]:
    if fields.keys() != keys:
        names = ", ".join(sorted(key.decode() for key in keys))
        raise WireError(f"an array or scalar has the keys {str(list(fields))[:80]}; expected {names}.")
    name = fields[b"dtype"]
    if not isinstance(name, str) or not _DTYPE.fullmatch(name):
        shown = name[:40] if isinstance(name, str) else type(name).__name__
        raise WireError(
            f"an array's dtype is {shown!r}; expected booleans, integers, floats or text such as '<f4' or '|u1'."
        )
    try:
        return np.dtype(name)
    except (TypeError, ValueError) as error:
        raise WireError(f"an array's dtype {name!r} is unknown.") from error


def _scalar(fields: dict[Any, Any]) -> np.generic:
    dtype, data = _dtype(fields, _SCALAR_KEYS), _plain(fields[b"data"])
    if type(data) not in _SCALARS.get(dtype.kind, ()):
        raise WireError(f"a scalar of type {dtype.str} came with a {type(data).__name__}.")
    try:
        with np.errstate(over="ignore"):
            return dtype.type(data)
    except (OverflowError, ValueError, TypeError) as error:
        raise WireError(f"a scalar of type {dtype.str} came with {str(data)[:40]}, which it cannot hold.") from error


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
