"""Where random numbers come from: every draw of training and inference has an address, so any of them can be made again.

A generator is seeded by a hash of its address, for instance `(seed, "loss", step)`. A run that was stopped needs no history to
continue, and a sample's noise does not depend on the batch it is in.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lamp.draws import EachRow, Source, WholeBatch


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
    """Puts back what `global_states` returned."""
    torch.set_rng_state(tensors["torch"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])
    kind, position, has_gauss, gauss = plain["numpy"]
    np.random.set_state((kind, tensors["numpy"].numpy().astype(np.uint32), position, has_gauss, gauss))
    version, internal, gauss_next = plain["python"]
    random.setstate((version, tuple(internal), gauss_next))
