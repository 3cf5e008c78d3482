"""Filling a store: any number of processes, of one command or of several, each make the episodes that no other is making.

A process claims an episode by a lock on one byte of a file in the store's folder. The system lets go of it when the process
ends, however it ends, so that nothing has to be cleaned up after a process that was killed.
"""

from __future__ import annotations

import fcntl
import os
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from lamp.errors import ConfigError, LampError
from lamp.files import TEMPORARY, remove_leftovers
from lamp_client.child_processes import CONTEXT, ProcessPool

LOCK_FILE = ".claims"
RETRY_INTERVAL_S = 0.5
"""How long to wait before asking again for episodes that another process is making. [s]"""


@runtime_checkable
class ShardBuilder(Protocol):
    """Makes a store's shards. It is pickled for worker processes, and loads its model there."""

    @property
    def folder(self) -> Path:
        """The store."""
        ...

    def load(self, device: str | None) -> None:
        """Loads its model on a device; None: where it is best."""
        ...

    def is_done(self, episode: int) -> bool:
        """Whether an episode's shard needs nothing."""
        ...

    def make(self, episode: int) -> None:
        """Makes an episode's shard, or notes why it cannot be made."""
        ...


@dataclass(frozen=True, kw_only=True)
class Workers:
    """The processes that make shards, and their devices."""

    processes: int = 1
    """1: this process alone."""
    devices: tuple[str, ...] = ()
    """One for each process, in turn; empty: where each model is loaded."""

    def __post_init__(self) -> None:
        if self.processes < 1:
            raise ConfigError(f"{self.processes} processes given; expected at least 1.")


@dataclass(frozen=True, kw_only=True)
class BuildProgress:
    """How much of a store is done."""

    episodes: int
    of_episodes: int
    frames: int
    of_frames: int
    elsewhere: int = 0
    """Episodes that other processes are making, where nothing else is left to do."""


class EpisodeLocks:
    """The episodes that this process is making. One object a process and store: closing a second would let go of all."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)

    def take(self, episode: int) -> bool:
        """Claims an episode; False where another process has."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, episode)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def release(self, episode: int) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, episode)

    def close(self) -> None:
        os.close(self._file)


def in_use(locks: Path) -> bool:
    """Whether another process has claimed an episode, by the file of a store's claims."""
    file = os.open(locks, os.O_RDWR)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return True
    finally:
        os.close(file)
    return False


def _try_build(work: ShardBuilder, locks: EpisodeLocks, episode: int) -> bool:
    """Makes an episode's shard if it needs making; False where another process is at it."""
    if not locks.take(episode):
        return False
    try:
        if not work.is_done(episode):
            work.make(episode)
    finally:
        locks.release(episode)
    return True


def build_shards(
    work: ShardBuilder, episodes: Sequence[int], workers: Workers, elsewhere: Callable[[int], None] = lambda count: None
) -> Iterator[int]:
    """Makes shards, here or in workers, and yields each episode that is done, by whichever process.

    Args:
        elsewhere: Called with the number of episodes left that only other processes are making.

    Raises:
        LampError: A shard could not be made, or a worker died.
    """
    for folder in {path.parent for path in work.folder.rglob(f"{TEMPORARY}*")}:
        remove_leftovers(folder)
    if workers.processes <= 1 or len(episodes) <= 1:
        yield from _build_here(work, episodes, workers, elsewhere)
    else:
        yield from _build_in_pool(work, episodes, workers, elsewhere)


def _build_here(
    work: ShardBuilder, left: Sequence[int], workers: Workers, elsewhere: Callable[[int], None]
) -> Iterator[int]:
    locks = EpisodeLocks(work.folder)
    try:
        if left:
            work.load(next(iter(workers.devices), None))
        while left:
            taken = []
            for episode in left:
                if _try_build(work, locks, episode):
                    yield episode
                else:
                    taken.append(episode)
            left = taken
            if left:
                elsewhere(len(left))
                time.sleep(RETRY_INTERVAL_S)
    finally:
        locks.close()


class _BuildWorker:
    """The state of a worker process, set when it starts; the model is loaded for the first episode."""

    work: ShardBuilder
    device: str | None
    locks: EpisodeLocks | None = None


def _start(packed: bytes, devices: Any) -> None:
    torch.set_num_threads(1)
    _BuildWorker.work, _BuildWorker.device = pickle.loads(packed), devices.get()


def _build_in_worker(episode: int) -> bool:
    if _BuildWorker.locks is None:
        _BuildWorker.work.load(_BuildWorker.device)
        _BuildWorker.locks = EpisodeLocks(_BuildWorker.work.folder)
    return _try_build(_BuildWorker.work, _BuildWorker.locks, episode)


def _build_in_pool(
    work: ShardBuilder, left: Sequence[int], workers: Workers, elsewhere: Callable[[int], None]
) -> Iterator[int]:
    # As plain bytes: by itself multiprocessing would put weights into shared memory, of which containers have little.
    packed = pickle.dumps(work)
    count = min(workers.processes, len(left))
    devices = CONTEXT.SimpleQueue()
    for place in range(count):
        devices.put(workers.devices[place % len(workers.devices)] if workers.devices else None)
    with ProcessPool(count, _start, (packed, devices)) as pool:
        try:
            while left:
                submitted, taken = {pool.submit(_build_in_worker, episode): episode for episode in left}, []
                for future in as_completed(submitted):
                    if future.result():
                        yield submitted[future]
                    else:
                        taken.append(submitted[future])
                left = taken
                if left:
                    elsewhere(len(left))
                    time.sleep(RETRY_INTERVAL_S)
        except BrokenProcessPool:
            raise LampError(
                "a worker process died while filling the cache (out of memory?); use fewer processes: what is finished stays"
            ) from None
