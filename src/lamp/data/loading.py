"""Batches made ahead by worker processes, in the sampler's order, and resumable to the very batch."""

from __future__ import annotations

import os
import pickle
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import cycle
from multiprocessing import util
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64

from lamp.data.handing import Handed, Slab
from lamp.data.image_samples import ObservedBatch
from lamp.data.sampler import Pick, Sampler
from lamp.errors import ConfigError, LampError
from lamp_client.child_processes import ProcessPool

Made_co = TypeVar("Made_co", covariant=True)
Made = TypeVar("Made")


@runtime_checkable
class Batches(Protocol[Made_co]):
    """Samples that are collated by index."""

    def __len__(self) -> int: ...

    def batch(self, indices: Int64[np.ndarray, " b"], *, epoch: int = 0) -> Made_co: ...


class LoaderDiedError(LampError):
    """A process that makes batches has died."""


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
        self._pool: ProcessPool | None = None
        self._slabs = tuple(Slab() for _ in range(workers * ahead))
        # Batches are taken in the order in which they are asked for, so that the slab after the last one is free.
        self._places = cycle(range(len(self._slabs)))
        self._coming: deque[tuple[Future[Handed], int, dict[str, Any]]] = deque()

    def __iter__(self) -> Iterator[Made]:
        return self

    def __next__(self) -> Made:
        """The next batch.

        Raises:
            LoaderDiedError: A worker died; the loader is where it was before.
        """
        batch, self._state = self._next() if self.workers else (self._collate(next(self._sampler)), self._position())
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
        self._forget()
        self._sampler.load_state_dict(state)
        self._state = self._position()

    def wait(self) -> None:
        """Waits until the workers have made what is asked of them."""
        wait([future for future, *_ in self._coming])

    def close(self) -> None:
        """Ends the workers; the next batch starts new ones, where this loader was."""
        self._forget()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def _forget(self) -> None:
        # Those that have begun write to their slabs until they are done.
        wait([future for future, *_ in self._coming if not future.cancel()])
        self._coming.clear()
        self._sampler.load_state_dict(self._state)

    def _position(self) -> dict[str, Any]:
        return self._sampler.state_dict()

    def _collate(self, pick: Pick) -> Made:
        return self.samples.batch(pick.indices, epoch=pick.epoch)

    def _next(self) -> tuple[Made, dict[str, Any]]:
        if self._pool is None:
            # Not forked: a fork of a process that has computed with torch may wait for ever on a lock that no thread of its own
            # holds. The samples go as plain bytes: by itself multiprocessing would put tensors into shared memory.
            self._pool = ProcessPool(self.workers, _start, (pickle.dumps(self.samples), self._slabs))
        while len(self._coming) < len(self._slabs):
            pick, place = next(self._sampler), next(self._places)
            self._coming.append((self._pool.submit(_work, pick, place), place, self._position()))
        future, place, state = self._coming.popleft()
        try:
            return self._slabs[place].take(future.result()), state
        except BrokenProcessPool:
            raise LoaderDiedError("a worker process of the loader died (out of memory?); use fewer workers") from None


_samples: Batches[Any] | None = None
_slabs: tuple[Slab, ...] = ()


def _start(packed: bytes, slabs: tuple[Slab, ...]) -> None:
    global _samples, _slabs
    torch.set_num_threads(1)
    _samples, _slabs = pickle.loads(packed), slabs
    # Threads that libraries have started may abort an interpreter that is taken apart in order; nothing is left to be saved.
    util.Finalize(None, os._exit, args=(0,), exitpriority=-100)


def _work(pick: Pick, place: int) -> Handed:
    assert _samples is not None
    return _slabs[place].put(_samples.batch(pick.indices, epoch=pick.epoch))
