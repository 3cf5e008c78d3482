"""Where simulator processes run: here, in processes of this machine; on others, `lamp.benchmark.cluster`."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Protocol, runtime_checkable

from lamp.benchmark.workers import Post, work

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "LP_NUM_THREADS")
"""Numeric libraries read these names when they are loaded, so setting them inside the process would be too late."""


@runtime_checkable
class Process(Protocol):
    """A simulator's process, wherever it is. Its death is also the end of its connection."""

    def alive(self) -> bool:
        """Whether it runs, as far as is known."""
        ...

    def terminate(self) -> None:
        """Asks it to end."""
        ...

    def kill(self) -> None:
        """Ends it at once."""
        ...

    def join(self, timeout: float) -> None:
        """Waits until it has ended, for so long at most [s]."""
        ...

    def cause(self) -> str:
        """Why it died, in words."""
        ...


@dataclass(frozen=True)
class Hired:
    """A process that has begun, and the line to it."""

    process: Process
    connection: Connection


@runtime_checkable
class Place(Protocol):
    """Starts simulator processes."""

    def hire(self, numbers: Sequence[int], post: Post) -> list[Hired]:
        """Starts a worker for each number.

        Raises:
            LampError: One cannot be started.
        """
        ...


@dataclass(frozen=True)
class Local:
    """A process of this machine."""

    process: BaseProcess

    def alive(self) -> bool:
        """See `Process`."""
        return self.process.is_alive()

    def terminate(self) -> None:
        """See `Process`."""
        self.process.terminate()

    def kill(self) -> None:
        """See `Process`."""
        self.process.kill()

    def join(self, timeout: float) -> None:
        """See `Process`."""
        self.process.join(timeout=timeout)

    def cause(self) -> str:
        """See `Process`."""
        code = self.process.exitcode
        return "killed, often for lack of memory" if code == -9 else f"exit code {code}"


@dataclass(frozen=True)
class Here:
    """This machine."""

    def hire(self, numbers: Sequence[int], post: Post) -> list[Hired]:
        """See `Place`."""
        with _starting():
            return [self._hired(number, post) for number in numbers]

    def _hired(self, number: int, post: Post) -> Hired:
        # Spawned, not forked: neither OpenGL nor torch's threads survive a fork.
        context = multiprocessing.get_context("spawn")
        ends: tuple[Any, Any] = context.Pipe()
        ours, theirs = ends
        process = context.Process(target=work, args=(theirs, post), name=f"lamp-simulator-{number}", daemon=True)
        process.start()
        theirs.close()  # so that the worker's death is the end of the pipe
        return Hired(Local(process), ours)


@contextmanager
def _starting() -> Iterator[None]:
    """Processes started here compute on one thread each, and leave Ctrl-C to the main process from their first moment."""
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update({name: value or "1" for name, value in before.items()})
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if in_main else None
    try:
        yield
    finally:
        if in_main:
            signal.signal(signal.SIGINT, handler)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
