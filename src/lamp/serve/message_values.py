"""Values of a client's message, read one at a time: each is what is expected, or refused with the value and what was expected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lamp_client.errors import InvalidValueError, WireError

Message = Mapping[Any, Any]
NoiseSeed = tuple[int, ...]
MAX_SEED_PARTS = 8


def array_from(value: Any) -> Any:
    """An array that came in a map of another codec than openpi's; anything else as it is.

    `__ndarray__` with text keys is vla-eval's, as is `__image__` for images that are not compressed; `nd` is the
    `msgpack-numpy` package's and older vLLM clients'.

    Raises:
        InvalidValueError: The map describes no array.
    """
    match value:
        case {}:
            fields = {_text(key): part for key, part in value.items()}
        case _:
            return value
    if not fields.keys() & {"__ndarray__", "__image__", "nd"}:
        return value
    try:
        kind = fields["type"] if "nd" in fields else fields["dtype"]
        dtype = np.dtype(str(_text(kind)))
        if dtype.kind not in "biuf":
            raise ValueError(f"the type {dtype.str}")
        array = np.frombuffer(fields["data"], dtype)
        return array.reshape([int(size) for size in fields.get("shape", ())]) if fields.get("nd", True) else array[0]
    except (KeyError, TypeError, ValueError, OverflowError, IndexError) as error:
        raise InvalidValueError(
            f"an array cannot be read: {str(error)[:120]}; expected numbers with 'data', their type and 'shape'."
        ) from None


def size_of(value: Any) -> int:
    """How many values an array, a number or a list of these has, without making an array of it."""
    match value:
        case np.ndarray():
            return value.size
        case list():
            return sum(len(part) if type(part) is list else size_of(part) for part in value)
    return 1


def described(value: Any) -> str:
    """What a value is instead of what was expected, for errors."""
    match value:
        case np.ndarray():
            return f"an array of {value.dtype} {value.shape}"
        case list():
            return f"{len(value)} of them"
    return type(value).__name__


def _text(value: Any) -> Any:
    """A text that may have come as bytes."""
    return value.decode("utf-8", "replace") if type(value) is bytes else value


def map_from(value: Any, otherwise: str) -> Message:
    """
    Args:
        otherwise: What is wrong where it is no map, with {} for its type.

    Raises:
        WireError: It is no map.
    """
    match value:
        case {}:
            return value
    raise WireError(otherwise.format(type(value).__name__))


def seed_from(value: Any, where: str) -> NoiseSeed | None:
    """Reads a noise seed: nothing, a whole number, or a few of them.

    Raises:
        InvalidValueError: It is something else.
    """
    if value is None:
        return None
    match value:
        case np.generic():
            parts = [value.item()]
        case np.ndarray() if value.size <= MAX_SEED_PARTS:
            parts = value.tolist() if value.ndim else [value.item()]
        case list():
            parts = value
        case _:
            parts = [value]
    whole = all(type(part) is int and 0 <= part < 2**63 for part in parts)
    if not whole or not 1 <= len(parts) <= MAX_SEED_PARTS:
        raise InvalidValueError(
            f"{where!r} is {str(value)[:60]}; expected 1 to {MAX_SEED_PARTS} whole numbers from 0 to 2**63 - 1."
        )
    return tuple(parts)


def word_from(message: Message, key: str, words: Sequence[str], *, absent: str | None = None) -> str:
    """Reads one of some words; `absent` is taken where the key is not there.

    Raises:
        WireError: It is something else: an array, too, which compares with a word value by value.
    """
    value = message.get(key, absent)
    if type(value) is not str or value not in words:
        raise WireError(f"{key!r} is {str(value)[:40]!r}; expected one of {', '.join(words)}.")
    return value


def flag_from(message: Mapping[Any, Any], key: str) -> bool:
    """Reads a yes or no, absent for no.

    Raises:
        InvalidValueError: It is neither.
    """
    value = message.get(key, False)
    match value:
        case bool() | np.bool_():
            return bool(value)
    raise InvalidValueError(f"{key!r} is {str(value)[:60]}; expected true or false.")
