"""Random draws for a batch whose rows may be computed in parts: a row gets the same numbers whichever part it is in.

The leading axis of whatever is drawn belongs to the rows: with n rows, each has 1, 2, 3 ... of n, 2n, 3n ... leading entries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

Draw = Callable[[int, torch.Generator], Tensor]
"""Draws so many leading entries."""


@dataclass(kw_only=True)
class WholeBatch:
    """One generator for all rows of a batch. Each part draws for all of them and takes its own, so that parts agree.

    What was drawn is kept for the next part: all ask for the same things in the same order.
    """

    generator: torch.Generator
    rows: int
    _drawn: list[Tensor] = field(default_factory=list)

    def part(self, first: int, count: int) -> Source:
        """The draws of some rows, for one pass through the model."""
        return self.generator if count == self.rows else PartOfBatch(self, first, count)

    def drawn(self, place: int, entries: int, draw: Draw) -> Tensor:
        """What is drawn at this place of the order; drawn now where no part has been there."""
        if place == len(self._drawn):
            self._drawn.append(draw(entries, self.generator))
        return self._drawn[place]


class PartOfBatch:
    """The draws of some rows of a `WholeBatch`."""

    def __init__(self, whole: WholeBatch, first: int, count: int) -> None:
        self._whole, self._first, self._count, self._place = whole, first, count, 0

    def draw(self, entries: int, draw: Draw) -> Tensor:
        each = entries // self._count
        found = self._whole.drawn(self._place, each * self._whole.rows, draw)
        self._place += 1
        return found[each * self._first : each * (self._first + self._count)]


@dataclass(frozen=True, kw_only=True)
class EachRow:
    """A generator for each row: nothing is drawn for rows that are computed elsewhere."""

    generators: tuple[torch.Generator, ...]

    def draw(self, entries: int, draw: Draw) -> Tensor:
        each = entries // len(self.generators)
        return torch.cat([draw(each, generator) for generator in self.generators])


Source = torch.Generator | PartOfBatch | EachRow
"""Where noise and flow times come from; a plain generator belongs to nobody else's rows."""


def drawn(source: Source, entries: int, draw: Draw) -> Tensor:
    """Returns so many leading entries of whatever `draw` draws, for the rows of `source`."""
    return draw(entries, source) if isinstance(source, torch.Generator) else source.draw(entries, draw)


def normal(shape: tuple[int, ...], source: Source) -> Tensor:
    """Draws standard noise, where the generator lives."""
    return drawn(source, shape[0], lambda n, g: torch.randn((n, *shape[1:]), generator=g, device=g.device))


def uniform(shape: tuple[int, ...], source: Source) -> Tensor:
    """Draws numbers in [0, 1), where the generator lives."""
    return drawn(source, shape[0], lambda n, g: torch.rand((n, *shape[1:]), generator=g, device=g.device))


def beta(alpha: float, beta: float, entries: int, source: Source) -> Tensor:
    """Draws from a Beta distribution, on the CPU."""

    def draw(n: int, generator: torch.Generator) -> Tensor:
        # torch's own Beta takes no generator: one number of ours seeds numpy's.
        seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
        return torch.from_numpy(np.random.default_rng(seed).beta(alpha, beta, n)).float()

    return drawn(source, entries, draw)
