"""Where random numbers come from: every draw of training and inference has an address, so any of them can be made again.

A generator is seeded by a hash of its address, for instance `(seed, "loss", step)`. A stopped run needs no history to continue,
and a sample's noise does not depend on the batch it is in, nor on the part of a batch: with n rows, each has 1, 2, 3 ... of
n, 2n, 3n ... leading entries of whatever is drawn."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lamp.errors import DataError

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

    def draw_once(self, place: int, entries: int, draw: Draw) -> Tensor:
        """The draw at this place of the order; made now where no part has been there."""
        if place == len(self._drawn):
            self._drawn.append(draw(entries, self.generator))
        return self._drawn[place]


class PartOfBatch:
    """The draws of some rows of a `WholeBatch`."""

    def __init__(self, whole: WholeBatch, first: int, count: int) -> None:
        self._whole, self._first, self._count, self._place = whole, first, count, 0

    def draw(self, entries: int, draw: Draw) -> Tensor:
        each = entries // self._count
        whole = self._whole.draw_once(self._place, each * self._whole.rows, draw)
        self._place += 1
        return whole[each * self._first : each * (self._first + self._count)]


@dataclass(frozen=True, kw_only=True)
class EachRow:
    """A generator for each row: nothing is drawn for rows that are computed elsewhere."""

    generators: tuple[torch.Generator, ...]

    def draw(self, entries: int, draw: Draw) -> Tensor:
        each = entries // len(self.generators)
        return torch.cat([draw(each, generator) for generator in self.generators])


Source = torch.Generator | PartOfBatch | EachRow
"""Where noise and flow times come from; a plain generator belongs to nobody else's rows."""


def draw_rows(source: Source, entries: int, draw: Draw) -> Tensor:
    """Returns so many leading entries of whatever `draw` draws, for the rows of `source`."""
    return draw(entries, source) if isinstance(source, torch.Generator) else source.draw(entries, draw)


def normal(shape: tuple[int, ...], source: Source) -> Tensor:
    """Draws standard noise, where the generator lives."""
    return draw_rows(source, shape[0], lambda n, g: torch.randn((n, *shape[1:]), generator=g, device=g.device))


def uniform(shape: tuple[int, ...], source: Source) -> Tensor:
    """Draws numbers in [0, 1), where the generator lives."""
    return draw_rows(source, shape[0], lambda n, g: torch.rand((n, *shape[1:]), generator=g, device=g.device))


def beta(alpha: float, beta: float, entries: int, source: Source) -> Tensor:
    """Draws from a Beta distribution, on the CPU."""

    def draw(n: int, generator: torch.Generator) -> Tensor:
        # torch's own Beta takes no generator: one number of ours seeds numpy's.
        seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
        return torch.from_numpy(np.random.default_rng(seed).beta(alpha, beta, n)).float()

    return draw_rows(source, entries, draw)


def seed_of(*address: int | str) -> int:
    """Returns a 63-bit seed for an address; different addresses give unrelated seeds."""
    text = "/".join(f"{type(part).__name__}:{part}" for part in address)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator_at(*address: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Returns a fresh generator for an address, such as `(seed, "loss", step)`."""
    generator = torch.Generator(device=device)
    generator.manual_seed(seed_of(*address))
    return generator


@dataclass(frozen=True, kw_only=True)
class PerBatch:
    """One generator draws the noise of all samples of a step, in one go; each process draws for all and uses its own."""

    def at(self, *address: int | str, rows: int) -> WholeBatch:
        return WholeBatch(generator=generator_at(*address), rows=rows)


@dataclass(frozen=True, kw_only=True)
class SampleAddress:
    """Where the generators of the samples of one step are."""

    address: tuple[int | str, ...]

    def part(self, first: int, count: int) -> Source:
        """The draws of some samples, for one pass through the model."""
        return EachRow(generators=tuple(generator_at(*self.address, row) for row in range(first, first + count)))


@dataclass(frozen=True, kw_only=True)
class PerSample:
    """A generator for each sample of a step: many processes draw no more than they use."""

    def at(self, *address: int | str, rows: int) -> SampleAddress:
        return SampleAddress(address=address)


Noise = PerBatch | PerSample
"""How noise is drawn; either way a sample's does not depend on the process, or the part of a batch, that it is in."""


def seed_everything(*address: int | str) -> None:
    """Seeds the global generators of torch, numpy and Python (dropout and third-party code read them)."""
    seed = seed_of(*address)
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def global_states() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the global generators' states, as tensors and as JSON values."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    version, internal, gauss_next = random.getstate()
    tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64))}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    plain = {
        "numpy": [str(kind), int(position), int(has_gauss), float(gauss)],
        "python": [version, list(internal), gauss_next],
    }
    return tensors, plain


def restore_global_states(tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
    """Puts back what `global_states` returned.

    Raises:
        DataError: It is damaged.
    """
    try:
        torch.set_rng_state(tensors["torch"])
        if "cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["cuda"])
        kind, position, has_gauss, gauss = plain["numpy"]
        np.random.set_state((kind, tensors["numpy"].numpy().astype(np.uint32), position, has_gauss, gauss))
        version, internal, gauss_next = plain["python"]
        random.setstate((version, tuple(internal), gauss_next))
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise DataError(
            f"the stored states of the random generators are damaged ({error}); restore the checkpoint, or start with --fresh"
        ) from None
