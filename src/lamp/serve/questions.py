"""What a client's message asks for, whichever dialect it is written in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lamp_client.errors import InvalidValueError
from lamp_client.types import ActionChunk, Observation

NoiseSeed = tuple[int, ...]
MAX_SEED_PARTS = 8


@dataclass(frozen=True, kw_only=True)
class Act:
    """Asks for a chunk of actions for each observation."""

    observations: tuple[Observation, ...]
    noise_seed: NoiseSeed | None = None
    """None: the client's episode gives it, or chance."""
    foresight: bool = False
    """Whether the predicted flow is to come with the actions."""


@dataclass(frozen=True, kw_only=True)
class Reset:
    """Begins an episode."""

    noise_seed: NoiseSeed | None = None
    """Of the episode: its calls are numbered, so that it can be repeated. None: chance."""


@dataclass(frozen=True, kw_only=True)
class Ping:
    """Asks whether anybody is there."""


Asked = Act | Reset | Ping


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A chunk, and what it took."""

    chunk: ActionChunk
    infer_ms: float
    queue_ms: float
    batch: int
    """Observations that were computed together."""


def seed_from(value: Any, where: str) -> NoiseSeed | None:
    """Reads a noise seed: nothing, a whole number, or a few of them.

    Raises:
        InvalidValueError: It is something else.
    """
    if value is None:
        return None
    small = isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.size <= MAX_SEED_PARTS)
    plain: Any = value.tolist() if small else value
    parts: list[Any] = plain if isinstance(plain, list) else [plain]
    whole = all(type(part) is int and 0 <= part < 2**63 for part in parts)
    if not whole or not 1 <= len(parts) <= MAX_SEED_PARTS:
        raise InvalidValueError(
            f"{where!r} is {str(value)[:60]}; expected 1 to {MAX_SEED_PARTS} whole numbers from 0 to 2**63 - 1."
        )
    return tuple(parts)


def flag_from(message: Mapping[Any, Any], key: str) -> bool:
    """Reads a yes or no, absent for no.

    Raises:
        InvalidValueError: It is neither.
    """
    value = message.get(key, False)
    if not isinstance(value, bool | np.bool_):
        raise InvalidValueError(f"{key!r} is {str(value)[:60]}; expected true or false.")
    return bool(value)
