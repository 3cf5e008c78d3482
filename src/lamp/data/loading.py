"""Batches made ahead by worker processes, in the sampler's order, and resumable to the very batch."""

from __future__ import annotations

import pickle
from collections import Counter, deque
from collections.abc import Iterator
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from jaxtyping import Int64
from torch.utils.data import DataLoader

from lamp.data.image_samples import ObservedBatch
from lamp.data.sampler import Pick, Sampler
from lamp.errors import ConfigError

Made_co = TypeVar("Made_co", covariant=True)
Made = TypeVar("Made")


class Batches(Protocol[Made_co]):
    """Samples that are collated by index."""

    def __len__(self) -> int: ...

    def batch(self, indices: Int64[np.ndarray, b], *, epoch: int = 0) -> Made_co: ...


class Loader(Generic[Made]):
    """An endless stream of batches.

    Workers get their picks from this process, so that epochs are shuffled anew however long the workers live, and the order is
    the sampler's whatever their number. The sampler runs ahead of what was given out; `state_dict` does not.
    """

    def __init__(self, samples: Batches[Made], sampler: Sampler, *, workers: int = 0, ahead: int = 2):
        """
        Args:
            samples: What to collate.
            sampler: Which samples come next; the loader's own from now on.
            workers: Processes, of one thread each; 0 makes batches in this one.
            ahead: Batches that each worker makes before they are asked for.

        Raises:
            ConfigError: The number of workers is negative, or nothing is to be made ahead.
        """
        if workers < 0 or ahead < 1:
            raise ConfigError(f"{workers} workers, {ahead} batches ahead; expected 0 or more, and at least 1")
        self.samples, self.workers, self.ahead = samples, workers, ahead
        self.left_out: Counter[str] = Counter()
        """Samples that were left out of batches so far, by the file that cannot be read."""
        self._sampler = sampler
        self._state = sampler.state_dict()
        self._states: deque[dict[str, Any]] = deque()
        self._made: Iterator[Made] | None = None

    def __iter__(self) -> Iterator[Made]:
        return self

    def __next__(self) -> Made:
        """The next batch."""
        if self._made is None:
            self._made = iter(self._loader())
        batch = next(self._made)
        self._state = self._states.popleft()
        if isinstance(batch, ObservedBatch):
            for fault in batch.left_out:
                self.left_out[fault.file] += fault.samples
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Where the sampler was after the batch that was given out last."""
        return dict(self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to where another loader was; what was made ahead is dropped.

        Raises:
            MismatchError: The state is of other samples, or another batch size or seed.
        """
        self.close()
        self._sampler.load_state_dict(state)
        self._state = self._sampler.state_dict()

    def close(self) -> None:
        """Ends the workers; the next batch starts new ones, where this loader was."""
        self._made = None
        self._states.clear()
        self._sampler.load_state_dict(self._state)

    def _loader(self) -> DataLoader[Made]:
        parallel: dict[str, Any] = {"num_workers": self.workers}
        if self.workers:
            # A fork of a process that has computed with torch may wait for ever on a lock that no thread of its own holds.
            parallel |= {"multiprocessing_context": "spawn"}
            parallel |= {"prefetch_factor": self.ahead, "worker_init_fn": _one_thread}
        return DataLoader(
            _ByPick(self.samples),  # pyright: ignore[reportArgumentType]
            batch_size=None,
            collate_fn=_as_made,
            sampler=self._picks(),  # pyright: ignore[reportArgumentType]
            **parallel,
        )

    def _picks(self) -> Iterator[Pick]:
        for pick in self._sampler:
            self._states.append(self._sampler.state_dict())
            yield pick


class _ByPick(Generic[Made]):
    """What a worker is asked for."""

    def __init__(self, samples: Batches[Made]):
        self.samples = samples

    def __getstate__(self) -> bytes:
        """As plain bytes: by itself multiprocessing would put tensors into shared memory, of which containers have little."""
        return pickle.dumps(self.samples)

    def __setstate__(self, packed: bytes) -> None:
        self.samples = pickle.loads(packed)

    def __getitem__(self, pick: Pick) -> Made:
        return self.samples.batch(pick.indices, epoch=pick.epoch)


def _as_made(batch: Made) -> Made:
    return batch


def _one_thread(_worker: int) -> None:
    torch.set_num_threads(1)
