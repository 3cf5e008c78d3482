"""How a group of released tensors becomes a group of ours, and back.

Where the release leaves an arithmetic freedom, ours is the simpler form: what can be multiplied together is one matrix, and the
direction of time is in the weights. `inward` and `outward` of a fold are inverse to each other but for what its docstring says.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class Fold:
    """A map between groups of tensors, with its inverse."""

    inward: Callable[..., Tensors]
    """The release's tensors to ours."""
    outward: Callable[..., Tensors]
    """Ours to the release's."""


def _same(x: Tensor) -> Tensors:
    return (x,)


def _first_of_one(x: Float[Tensor, "1 n d"]) -> Tensors:
    return (x[0],)


def _one_of_first(x: Float[Tensor, "n d"]) -> Tensors:
    return (x[None],)


def _negative(x: Tensor) -> Tensors:
    return (-x,)


def _stack(*parts: Tensor) -> Tensors:
    return (torch.cat(parts),)


def _three(x: Tensor) -> Tensors:
    return x.chunk(3)


def _query_apart(x: Tensor) -> Tensors:
    query = len(x) // 3
    return x[:query], x[query:]


def _swap_halves(weight: Float[Tensor, "d c"]) -> Tensors:
    return (weight.roll(weight.shape[1] // 2, 1),)


SAME = Fold(inward=_same, outward=_same)
UNBATCHED = Fold(inward=_first_of_one, outward=_one_of_first)
"""A learned table with a batch axis of one."""
NEGATED = Fold(inward=_negative, outward=_negative)
"""The released Action Expert predicts noise minus data; Eq. 5 has data minus noise."""
STACKED = Fold(inward=_stack, outward=_three)
"""Query, key and value apart; ours are one matrix."""
QUERY_APART = Fold(inward=_query_apart, outward=_stack)
"""Query, key and value in one; ours has the query apart, since it reads another sequence."""
COSINES_FIRST = Fold(inward=_swap_halves, outward=_swap_halves)
"""The motion time's cosines come before its sines; ours the other way."""


def _condition_in(
    project: Float[Tensor, "e v"],
    text: Float[Tensor, "d e"],
    bias: Float[Tensor, " d"],
    filling: Float[Tensor, "1 c e"],
) -> Tensors:
    text = text.double()
    return text @ project.double(), bias, filling[0].double() @ text.T


def _condition_out(weight: Float[Tensor, "d v"], bias: Float[Tensor, " d"], filling: Float[Tensor, "c d"]) -> Tensors:
    return weight, torch.eye(len(weight), device=weight.device), bias, filling[None]


CONDITION = Fold(inward=_condition_in, outward=_condition_out)
"""Two linear layers in a row, the first without bias, with learned rows put in between: ours is one layer. Which part of the
product was in which layer cannot be told from it: outward, the first layer holds all, and the second is the identity."""


def noise_level(action_dim: int, channels: int, longest: float) -> Fold:
    """The Action Expert's input layer, which in the release reads cosines and sines of the noise level s = 1 - tau.

    cos(w s) = cos w cos(w tau) + sin w sin(w tau), and sin(w s) = sin w cos(w tau) - cos w sin(w tau): a rotation of each pair
    of columns by w. The release fills an odd number of channels up with a zero, whose column is dropped here and zero outward.

    Args:
        action_dim: Columns before the time's.
        channels: The time's columns in the release.
        longest: The frequencies w go from 1 down to nearly 1 / longest.
    """
    half = channels // 2

    def parts(weight: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        steps = torch.arange(half, dtype=torch.float64, device=weight.device) / half
        w = torch.exp(-math.log(longest) * steps)
        before, first, second, _, after = weight.double().split(
            [action_dim, half, half, width - 2 * half, weight.shape[1] - action_dim - width], dim=1
        )
        return before, first, second, after, w.cos(), w.sin()

    def inward(weight: Float[Tensor, "d c"]) -> Tensors:
        actions, cosines, sines, state, cos, sin = parts(weight, channels)
        return (torch.cat([actions, cosines * sin - sines * cos, cosines * cos + sines * sin, state], dim=1),)

    def outward(weight: Float[Tensor, "d c"]) -> Tensors:
        actions, sines, cosines, state, cos, sin = parts(weight, 2 * half)
        unused = actions.new_zeros(len(actions), channels - 2 * half)
        time = [sines * sin + cosines * cos, cosines * sin - sines * cos, unused]
        return (torch.cat([actions, *time, state], dim=1),)

    return Fold(inward=inward, outward=outward)
