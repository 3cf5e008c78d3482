"""Means over many steps, kept where the values are: nothing is asked of the device until they are read, and then once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Value = float | int | str | list[float] | dict[str, float]
"""What a log line may hold."""

Total = Callable[[Tensor], Tensor]
"""Sums a tensor over all processes of a run."""


def alone(tensor: Tensor) -> Tensor:
    """The `Total` of a single process."""
    return tensor


@dataclass(frozen=True, kw_only=True)
class Named:
    """Several values with a name each. Where there are counts, a value is its sum over its count, and left out where nothing
    was counted; otherwise it is a mean over the steps."""

    names: tuple[str, ...]
    sums: Float[Tensor, " n"]
    counts: Float[Tensor, " n"] | None = None


Part = Tensor | Named
"""A number, a row of numbers, or numbers with names and counts of their own."""


class Means:
    """Adds up values step by step."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}
        self._names: dict[str, tuple[str, ...]] = {}
        self._weight = 0.0

    def add(self, values: Mapping[str, Part], weight: float = 1.0) -> None:
        """Takes in the values of a step, which must be the same ones each time.

        Args:
            values: By name.
            weight: Of this step relative to others, such as its number of samples; what brings counts has its own weight.
        """
        self._weight += weight
        for name, value in values.items():
            if isinstance(value, Named):
                self._names[name] = value.names
                if value.counts is not None:
                    _increase(self._sums, name, value.sums)
                    _increase(self._counts, name, value.counts)
                    continue
                value = value.sums
            value = value.detach().float()
            _increase(self._sums, name, value if weight == 1.0 else value * weight)

    def read(self, total: Total = alone) -> dict[str, Value]:
        """Returns the means; the one place that waits for the device."""
        if not self._sums:
            return {}
        held = [*self._sums.values(), *self._counts.values()]
        device = held[0].device
        flat = torch.cat([value.reshape(-1).to(device) for value in held] + [held[0].new_full((1,), self._weight)])
        *parts, weight = total(flat).cpu().split([*(value.numel() for value in held), 1])
        sums = dict(zip(self._sums, parts, strict=False))
        counts = dict(zip(self._counts, parts[len(sums) :], strict=True))
        return {name: self._value(name, value, counts.get(name), weight) for name, value in sums.items()}

    def _value(self, name: str, sums: Tensor, counts: Tensor | None, weight: Tensor) -> Value:
        means = (sums / (weight if counts is None else counts)).tolist()
        if name not in self._names:
            return means if self._sums[name].ndim else means[0]
        present = [True] * len(means) if counts is None else (counts > 0).tolist()
        return {
            key: mean for key, mean, there in zip(self._names[name], means, present, strict=True) if there
        }


def _increase(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    value = value.detach().float()
    sums[name] = sums[name] + value if name in sums else value
