"""Which samples come next: shuffled anew every epoch, and resumable to the very batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int64, Shaped

from lamp.errors import ConfigError, DataError, MismatchError


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which part of every batch is meant: the `index`-th of `of` parts of nearly the same size."""

    index: int = 0
    of: int = 1

    def rows(self, total: int) -> range:
        """The rows of a batch of so many that are in this part."""
        return range(total * self.index // self.of, total * (self.index + 1) // self.of)

    def parts(self, count: int) -> list[Share]:
        """Cuts this part into smaller ones."""
        return [Share(index=self.index * count + part, of=self.of * count) for part in range(count)]


WHOLE = Share()


@dataclass(frozen=True, kw_only=True)
class Pick:
    """One batch's samples, or a part of them."""

    indices: Int64[np.ndarray, " b"]
    epoch: int


@dataclass(frozen=True, kw_only=True)
class SamplerState:
    """Where a sampler is; JSON-friendly."""

    size: int
    batch_size: int
    seed: int
    epoch: int
    position: int
    """Samples of the epoch that have been given out."""


class Sampler:
    """An endless stream of batches of sample indices.

    The order of an epoch depends on the seed and the epoch alone. A last batch that would be too small is dropped; where
    there are fewer samples than one batch takes, each batch is all of them. Processes that share the batches each have such a
    sampler; the batches, and where the sampler is, do not depend on how many they are.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int = 0,
        weights: Float[np.ndarray, " n"] | None = None,
        share: Share = WHOLE,
    ):
        """
        Args:
            size: Number of samples.
            batch_size: Samples a batch.
            seed: Of the order.
            weights: How often to take each sample, relative to the others; None takes each once an epoch.
            share: The part of each batch that is given out.

        Raises:
            DataError: There are no samples.
            ConfigError: The batch size is not positive, or the weights do not fit.
        """
        if size < 1:
            raise DataError("there are no samples to draw from; expected at least one episode with a usable frame")
        if batch_size < 1:
            raise ConfigError(f"a batch size of {batch_size} is not possible; expected at least 1")
        if weights is not None and (len(weights) != size or (weights < 0).any() or not 0 < weights.sum() < np.inf):
            raise ConfigError(f"expected {size} weights, none negative and not all zero; got {len(weights)}")
        self.size, self.batch_size, self.seed, self.share = size, min(batch_size, size), seed, share
        self._shares = None if weights is None else weights / weights.sum()
        self.epoch = self.position = 0
        self._order = self._epoch_order()

    def _epoch_order(self) -> Int64[np.ndarray, " n"]:
        generator = np.random.default_rng((self.seed, self.epoch))
        if self._shares is None:
            return generator.permutation(self.size)
        # Systematic resampling: every sample comes up its expected number of times, rounded up or down.
        points = (generator.random() + np.arange(self.size)) / self.size
        taken = np.searchsorted(np.cumsum(self._shares), points, side="right")
        return generator.permutation(np.minimum(taken, self.size - 1))

    @property
    def batches_per_epoch(self) -> int:
        """Batches in one epoch."""
        return self.size // self.batch_size

    def __iter__(self) -> Iterator[Pick]:
        return self

    def __next__(self) -> Pick:
        """The next batch."""
        if self.position + self.batch_size > self.size:
            self.epoch, self.position = self.epoch + 1, 0
            self._order = self._epoch_order()
        batch = self._order[self.position : self.position + self.batch_size]
        self.position += self.batch_size
        rows = self.share.rows(self.batch_size)
        return Pick(indices=batch[rows.start : rows.stop], epoch=self.epoch)

    def state_dict(self) -> dict[str, Any]:
        """Where the sampler is, as plain numbers."""
        state = SamplerState(
            size=self.size, batch_size=self.batch_size, seed=self.seed, epoch=self.epoch, position=self.position
        )
        return asdict(state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to where another sampler was.

        Raises:
            MismatchError: The state is of a sampler over other samples, or with another batch size or seed.
        """
        try:
            found = SamplerState(**state)
        except TypeError:
            raise MismatchError(f"{sorted(state)} is no sampler state; expected {list(self.state_dict())}") from None
        for name in ("size", "batch_size", "seed"):
            if getattr(found, name) != getattr(self, name):
                raise MismatchError(
                    f"the run to be continued has a sampler {name} of {getattr(found, name)}, this one {getattr(self, name)}; "
                    "continue with the same data and settings, or start afresh"
                )
        self.epoch, self.position = found.epoch, found.position
        self._order = self._epoch_order()


def balanced_weights(groups: Shaped[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Weights that make every group (such as a task) come up equally often, however many samples it has."""
    _, group, counts = np.unique(groups, return_inverse=True, return_counts=True)
    return 1.0 / counts[group]
