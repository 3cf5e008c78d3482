"""Batches made ahead by worker processes, in the sampler's order, and resumable to the very batch.

Batches go from process to process through shared memory: pipes would take longer than making them."""

from __future__ import annotations

import io
import os
import pickle
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import cycle
from multiprocessing import reduction, util
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lamp.data.image_dataset import ObservedBatch
from lamp.errors import ConfigError, DataError, LampError, MismatchError
from lamp_client.child_processes import ProcessPool


@dataclass(frozen=True, kw_only=True)
class BatchShare:
    """Which part of every batch is meant: the `index`-th of `of` parts of nearly the same size."""

    index: int = 0
    of: int = 1

    def rows(self, total: int) -> range:
        """The rows of a batch of so many that are in this part."""
        return range(total * self.index // self.of, total * (self.index + 1) // self.of)

    def parts(self, count: int) -> list[BatchShare]:
        """Cuts this part into smaller ones."""
        return [BatchShare(index=self.index * count + part, of=self.of * count) for part in range(count)]


WHOLE = BatchShare()


@dataclass(frozen=True, kw_only=True)
class BatchIndices:
    """One batch's samples, or a part of them."""

    indices: Int64[np.ndarray, " b"]
    epoch: int


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
        share: BatchShare = WHOLE,
    ):
        """
        Args:
            weights: How often to take each sample, relative to the others; None takes each once an epoch.
            share: The part of each batch that is returned.

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
        self.epoch = self.position = 0  # the position counts the samples of the epoch that have been given out
        self._order = self._epoch_order()

    def _epoch_order(self) -> Int64[np.ndarray, " n"]:
        generator = np.random.default_rng((self.seed, self.epoch))
        if self._shares is None:
            return generator.permutation(self.size)
        # Systematic resampling: every sample comes up its expected number of times, rounded up or down.
        points = (generator.random() + np.arange(self.size)) / self.size
        taken = np.searchsorted(np.cumsum(self._shares), points, side="right")
        return generator.permutation(np.minimum(taken, self.size - 1))

    def __iter__(self) -> Iterator[BatchIndices]:
        return self

    def __next__(self) -> BatchIndices:
        """The next batch."""
        if self.position + self.batch_size > self.size:
            self.epoch, self.position = self.epoch + 1, 0
            self._order = self._epoch_order()
        batch = self._order[self.position : self.position + self.batch_size]
        self.position += self.batch_size
        rows = self.share.rows(self.batch_size)
        return BatchIndices(indices=batch[rows.start : rows.stop], epoch=self.epoch)

    def state_dict(self) -> dict[str, Any]:
        """Where the sampler is, as plain numbers."""
        return {name: getattr(self, name) for name in ("size", "batch_size", "seed", "epoch", "position")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to where another sampler was.

        Raises:
            MismatchError: The state is of a sampler over other samples, or with another batch size or seed.
        """
        own = self.state_dict()
        if state.keys() != own.keys():
            raise MismatchError(f"{sorted(state)} is no sampler state; expected {list(own)}")
        for name in ("size", "batch_size", "seed"):
            if state[name] != own[name]:
                raise MismatchError(
                    f"the run to be continued has a sampler {name} of {state[name]}, this one {own[name]}; "
                    "continue with the same data and settings, or start afresh"
                )
        self.epoch, self.position = state["epoch"], state["position"]
        self._order = self._epoch_order()


MAX_IO_BYTES = 1 << 30
"""Bytes in one call; systems write no more than 2 GiB in one."""


@dataclass(frozen=True)
class PackedBatch:
    """A value but for its tensors' contents, which are in a shared memory block."""

    head: bytes
    sizes: tuple[int, ...]
    """Of the tensors. [bytes]"""


class SharedMemoryBlock:
    """A file without a name, in memory where the system can do that, for one value at a time.

    It goes to a process when that is started, and is gone when the last one that has it has ended, however it ends.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        """
        Args:
            descriptor: Of a block that another process has made; None: makes one.
        """
        if descriptor is None and hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("lamp-batch")
        file = tempfile.TemporaryFile(buffering=0) if descriptor is None else open(descriptor, "r+b", buffering=0)  # noqa: SIM115
        self._file: io.FileIO = file  # pyright: ignore[reportAttributeAccessIssue]

    def __reduce__(self) -> tuple[Any, ...]:
        """A process that is being started gets it opened."""
        return _open_block, (reduction.DupFd(self._file.fileno()),)

    def put(self, value: object) -> PackedBatch:
        """Writes the contents of a value's tensors over what is here, and returns the rest."""
        contents: list[pickle.PickleBuffer] = []
        head = io.BytesIO()
        _Pickler(head, protocol=5, buffer_callback=contents.append).dump(value)
        raw = [content.raw() for content in contents]
        self._all(self._file.write, raw)
        return PackedBatch(head.getvalue(), tuple(map(len, raw)))

    def take(self, packed: PackedBatch) -> Any:
        """The value that was put here; a copy of its own."""
        contents = [np.empty(size, np.uint8) for size in packed.sizes]
        self._all(self._file.readinto, [content.data for content in contents])
        return pickle.loads(packed.head, buffers=contents)

    def _all(self, move: Callable[[memoryview], int], contents: Sequence[memoryview]) -> None:
        """Writes or reads from the start on, in as many calls as it takes."""
        self._file.seek(0)
        for content in contents:
            done = 0
            while done < len(content):
                moved = move(content[done : done + MAX_IO_BYTES])
                if not moved:
                    raise LampError(f"{len(content) - done} bytes of a batch are missing where a worker has put it")
                done += moved


def _open_block(descriptor: Any) -> SharedMemoryBlock:
    return SharedMemoryBlock(descriptor.detach())


class _Pickler(pickle.Pickler):
    """Leaves the contents of tensors and arrays out of the stream."""

    def reducer_override(self, value: Any) -> Any:
        if type(value) is not Tensor or value.device.type != "cpu" or value.layout != torch.strided:
            return NotImplemented
        flat = value.detach().contiguous().reshape(-1).view(torch.uint8)
        return _tensor, (flat.numpy(), value.dtype, tuple(value.shape))


def _tensor(contents: np.ndarray, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    return torch.from_numpy(contents).view(dtype).reshape(shape)


Batch_co = TypeVar("Batch_co", covariant=True)
Batch = TypeVar("Batch")


@runtime_checkable
class BatchSource(Protocol[Batch_co]):
    """Samples that are collated by index."""

    def __len__(self) -> int: ...

    def batch(self, indices: Int64[np.ndarray, " b"], *, epoch: int = 0) -> Batch_co: ...


class DataLoaderDiedError(LampError):
    """A process that makes batches has died."""


class DataLoader(Generic[Batch]):
    """An endless stream of batches.

    Workers get their picks from this process, so that epochs are shuffled anew however long the workers live, and the order is
    the sampler's whatever their number. The sampler runs ahead of what was given out; `state_dict` does not.
    """

    def __init__(self, samples: BatchSource[Batch], sampler: Sampler, *, workers: int = 0, ahead: int = 2):
        """
        Args:
            sampler: Owned by the loader from now on.
            workers: Processes, of one thread each; 0 makes batches in this one.
            ahead: Batches that each worker prefetches.

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
        self._blocks = tuple(SharedMemoryBlock() for _ in range(workers * ahead))
        # Batches are taken in the order of their requests, so that the block after the last one is free.
        self._places = cycle(range(len(self._blocks)))
        self._pending: deque[tuple[Future[PackedBatch], int, dict[str, Any]]] = deque()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
            DataLoaderDiedError: A worker died; the loader is where it was before.
        """
        if self.workers:
            batch, self._state = self._next()
        else:
            picks = next(self._sampler)
            batch, self._state = self.samples.batch(picks.indices, epoch=picks.epoch), self._sampler.state_dict()
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
        self._discard_pending()
        self._sampler.load_state_dict(state)
        self._state = self._sampler.state_dict()

    def wait(self) -> None:
        """Waits until the workers have finished all prefetched batches."""
        wait([future for future, *_ in self._pending])

    def close(self) -> None:
        """Ends the workers; the next batch starts new ones, where this loader was."""
        self._discard_pending()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def _discard_pending(self) -> None:
        # Those that have begun write to their blocks until they are done.
        wait([future for future, *_ in self._pending if not future.cancel()])
        self._pending.clear()
        self._sampler.load_state_dict(self._state)

    def _next(self) -> tuple[Batch, dict[str, Any]]:
        if self._pool is None:
            # Not forked: a fork of a process that has computed with torch may wait for ever on a lock that no thread of its own
            # holds. The samples go as plain bytes: by itself multiprocessing would put tensors into shared memory.
            self._pool = ProcessPool(self.workers, _start, (pickle.dumps(self.samples), self._blocks))
        while len(self._pending) < len(self._blocks):
            batch_indices, place = next(self._sampler), next(self._places)
            self._pending.append((self._pool.submit(_work, batch_indices, place), place, self._sampler.state_dict()))
        future, place, state = self._pending.popleft()
        try:
            return self._blocks[place].take(future.result()), state
        except BrokenProcessPool:
            message = "a worker process of the data loader died (out of memory?); use fewer workers"
            raise DataLoaderDiedError(message) from None


class _LoaderWorker:
    """The state of a worker process, set when it starts."""

    samples: BatchSource[Any]
    blocks: tuple[SharedMemoryBlock, ...]


def _start(packed: bytes, blocks: tuple[SharedMemoryBlock, ...]) -> None:
    torch.set_num_threads(1)
    _LoaderWorker.samples, _LoaderWorker.blocks = pickle.loads(packed), blocks
    # Threads that libraries have started may abort an interpreter that is taken apart in order; nothing is left to be saved.
    util.Finalize(None, os._exit, args=(0,), exitpriority=-100)


def _work(batch_indices: BatchIndices, place: int) -> PackedBatch:
    return _LoaderWorker.blocks[place].put(
        _LoaderWorker.samples.batch(batch_indices.indices, epoch=batch_indices.epoch)
    )
