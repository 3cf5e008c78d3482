"""Where simulator processes run: here, in processes of this machine; on others, `lamp.benchmark.cluster`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Protocol, runtime_checkable

from lamp.benchmark.sim_worker import WorkerSetup, work
from lamp_client.child_processes import CONTEXT, ChildProcess


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
class LaunchedWorker:
    """A process that has begun, and the line to it."""

    process: Process
    connection: Connection


@runtime_checkable
class Launcher(Protocol):
    """Starts simulator processes."""

    def launch(self, numbers: Sequence[int], setup: WorkerSetup) -> list[LaunchedWorker]:
        """Starts a worker for each number.

        Raises:
            LampError: One cannot be started.
        """
        ...


@dataclass(frozen=True)
class LocalProcess:
    """A process of this machine."""

    process: ChildProcess

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
class LocalLauncher:
    """This machine."""

    def launch(self, numbers: Sequence[int], setup: WorkerSetup) -> list[LaunchedWorker]:
        """See `Launcher`."""
        return [self._launched(number, setup) for number in numbers]

    def _launched(self, number: int, setup: WorkerSetup) -> LaunchedWorker:
        ends: tuple[Any, Any] = CONTEXT.Pipe()
        ours, theirs = ends
        process = ChildProcess(target=work, args=(theirs, setup), name=f"lamp-simulator-{number}", daemon=True)
        process.start()
        theirs.close()  # so that the worker's death is the end of the pipe
        return LaunchedWorker(LocalProcess(process), ours)
