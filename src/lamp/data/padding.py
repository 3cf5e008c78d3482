"""Sequences of different lengths in one batch: on which side the padding lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lamp.errors import DataError
from lamp.types import Encoded


@dataclass(frozen=True, kw_only=True)
class RightPadding:
    """Real tokens come first: the place of a token does not depend on how long its sequence is."""


@dataclass(frozen=True, kw_only=True)
class LeftPadding:
    """Real tokens come last, as generation wants it and the release has it."""


Padding = RightPadding | LeftPadding


def padded(sequences: Sequence[Float[Tensor, "_ d"]], padding: Padding, length: int | None = None) -> Encoded:
    """Puts sequences into one batch, with zeros where there is padding.

    Args:
        sequences: Real tokens, at least one sequence.
        padding: The side of the zeros.
        length: Tokens of each padded sequence; None: as many as the longest has.

    Raises:
        DataError: A sequence is longer than that.
    """
    longest = max(len(sequence) for sequence in sequences)
    room = longest if length is None else length
    if longest > room:
        raise DataError(f"a sequence has {longest} tokens; at most {room} expected: raise the backbone's text_tokens.")
    tokens = sequences[0].new_zeros(len(sequences), room, sequences[0].shape[1])
    mask = torch.zeros(len(sequences), room, dtype=torch.bool, device=tokens.device)
    for row, sequence in enumerate(sequences):
        start = room - len(sequence) if isinstance(padding, LeftPadding) else 0
        tokens[row, start : start + len(sequence)] = sequence
        mask[row, start : start + len(sequence)] = True
    return Encoded(tokens=tokens, mask=mask)


def placed(
    tokens: Float[Tensor, "b n d"], real: Int[Tensor, " b"], padding: Padding, length: int, *, whole: bool | None = None
) -> Encoded:
    """As `padded`, for sequences that lie in one batch already, at its left; no tensor is asked for a value.

    Args:
        tokens: What stands past a sequence's end does not matter.
        real: Tokens of each sequence, at most `length`.
        padding: The side of the zeros.
        length: Tokens of each padded sequence.
        whole: Whether every sequence fills it, where the caller knows.
    """
    place = torch.arange(length, device=tokens.device).expand(len(tokens), -1)
    source = place + real[:, None] - length if isinstance(padding, LeftPadding) else place
    mask = (source >= 0) & (source < real[:, None])
    index = source.clamp(0, tokens.shape[1] - 1)[..., None].expand(-1, -1, tokens.shape[2])
    return Encoded(tokens=tokens.gather(1, index).masked_fill(~mask[..., None], 0.0), mask=mask, whole=whole)
