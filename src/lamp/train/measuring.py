"""The loss on held-out samples, with the same noise every time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from lamp.draws import Source, WholeBatch
from lamp.progress import Progress
from lamp.train.configs import LoopConfig
from lamp.train.counts import Counts, added, weighted
from lamp.train.drawing import Samples
from lamp.train.metrics import Value
from lamp.train.placement import AnyBatch, StepLoss
from lamp.train.randomness import generator_at


def spread(total: int, wanted: int) -> Int64[np.ndarray, " n"]:
    """Returns up to `wanted` indices, evenly spread over `total`: the same ones every time."""
    return np.unique(np.linspace(0, total - 1, min(wanted, total)).round().astype(np.int64))


@runtime_checkable
class Measured(Protocol):
    """What of a stage a measurement needs."""

    def loss(self, batch: AnyBatch, source: Source) -> StepLoss: ...

    def counts(self, batch: AnyBatch) -> Counts: ...


@torch.no_grad()
def held_out_loss(
    stage: Measured, samples: Samples, indices: Int64[np.ndarray, " n"], loop: LoopConfig, at_once: int | None = None
) -> dict[str, Value]:
    """Returns the mean loss over some samples and its parts, with the same noise every time.

    Args:
        stage: Whose loss.
        samples: Of held-out episodes.
        indices: Which of them.
        loop: Batch size, precision, device and seed.
        at_once: Samples that go through the model together; a batch by default. The noise does not depend on it.
    """
    sums: dict[str, Tensor] = {}
    with Progress("held-out loss", len(indices), "samples", brief=True) as progress:
        for number, part in enumerate(batches(indices, loop.batch_size)):
            noise = WholeBatch(generator=generator_at(loop.seed, "validation", number), rows=len(part))
            size = min(at_once or len(part), len(part))
            pieces = [(first, samples.batch(part[first : first + size])) for first in range(0, len(part), size)]
            counts = [stage.counts(piece) for _, piece in pieces]
            totals = added(counts)
            for (first, piece), count in zip(pieces, counts, strict=True):
                with loop.precision.autocast(loop.device):
                    step = stage.loss(piece.to(loop.device), noise.part(first, len(part[first : first + size])))
                for name, value in {"loss": step.total, **step.parts}.items():
                    mean = weighted(value.detach().float().cpu(), name, count, totals, parts=len(pieces))
                    sums[name] = sums.get(name, torch.zeros(())) + mean * len(part)
            progress.advance(len(part))
    return {name: (total / len(indices)).tolist() for name, total in sums.items()}


def batches(indices: Int64[np.ndarray, " n"], size: int) -> Iterator[Int64[np.ndarray, " b"]]:
    """Cuts indices into batches, the last one smaller where they do not divide."""
    for start in range(0, len(indices), size):
        yield indices[start : start + size]
