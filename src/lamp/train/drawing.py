"""A stage's samples and their noise: this process's share of every batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int64

from lamp.data.features import Features
from lamp.data.loading import Loader
from lamp.data.mixture import Mixture
from lamp.data.sampler import Sampler, Share
from lamp.draws import Source, uniform
from lamp.train.configs import LoopConfig
from lamp.train.placement import AnyBatch
from lamp.types import Batch


@runtime_checkable
class Samples(Protocol):
    """Samples of some episodes."""

    def __len__(self) -> int: ...

    def batch(self, indices: Int64[np.ndarray, " b"], *, epoch: int = 0) -> AnyBatch: ...


class Drawn:
    """Where a stage's samples come from: this process's share of the batches of a sampler, and of their noise."""

    def __init__(
        self, samples: Samples, loop: LoopConfig, share: Share, weights: Float[np.ndarray, " n"] | None = None
    ) -> None:
        self._loop, self._share = loop, share
        first = samples.parts[0] if isinstance(samples, Mixture) else samples
        self._features: Features | None = getattr(first, "features", None)
        self._sampler = Sampler(len(samples), loop.batch_size, seed=loop.seed, weights=weights, share=share)
        self._loader: Loader[AnyBatch] = Loader(samples, self._sampler, workers=loop.workers)

    @property
    def batch_samples(self) -> int:
        """Samples of a step, over all processes."""
        return self._sampler.batch_size

    @property
    def at_once(self) -> int:
        """Samples that this process has in its memory together."""
        return max(1, self._loop.batch_size // (self._share.of * self._loop.accumulate))

    def next_batch(self) -> AnyBatch:
        batch = next(self._loader)
        if self._features is not None and isinstance(batch, Batch):
            return replace(batch, encoded=self._features.finished(batch.encoded))
        return batch

    def noise(self, what: str, step: int) -> Source:
        """The draws of these rows of a step's batch."""
        rows = self._share.rows(self.batch_samples)
        return self._loop.noise.at(self._loop.seed, what, step, rows=self.batch_samples).part(rows.start, len(rows))

    def state(self) -> dict[str, Any]:
        return self._loader.state_dict()

    def restore(self, state: dict[str, Any]) -> None:
        self._loader.load_state_dict(state)

    def close(self) -> None:
        self._loader.close()


def with_fewer_tokens(batch: Batch, share: float, source: Source) -> Batch:
    """Hides a share of the backbone's tokens, drawn anew at every step."""
    if not share:
        return batch
    return replace(batch, kept=uniform(tuple(batch.encoded.mask.shape), source) >= share)
