"""Means over batches that are computed in parts: how many samples each part's mean is over, and so how much it weighs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Counts = Mapping[str, Tensor]
"""How many samples each loss of a batch is a mean over: `loss`, and those of its parts that differ; and how many see the `prior`.
The counts of a batch's parts add up to its own."""


def added(counts: Sequence[Counts]) -> dict[str, Tensor]:
    """The counts of all parts together."""
    return {name: torch.stack([count[name] for count in counts]).sum(0) for name in counts[0]}


def weighted(value: Tensor, name: str, count: Counts, totals: Counts, *, parts: int) -> Tensor:
    """What a part contributes to the mean over the whole: contributions add up to it.

    Args:
        value: The mean over the part.
        name: Of the loss.
        count: Of the part.
        totals: Of the whole.
        parts: How many there are; a single one's mean is left as it is.
    """
    if parts == 1:
        return value
    mine, whole = (counts.get(name, counts["loss"]) for counts in (count, totals))
    weight = mine / whole.clamp(min=1)
    return value * (float(weight) if weight.ndim == 0 else weight.to(value))
