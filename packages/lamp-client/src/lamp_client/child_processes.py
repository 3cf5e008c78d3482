"""Starting processes: whatever LaMP starts is started here, and ends with the process that started it, however that ends.

On Linux the kernel kills a child as soon as its parent is dead, and a child whose parent was dead before it could ask for that
ends by itself. Elsewhere, and besides, a thread of each child waits for the end of a pipe whose other end the parent holds.

Ctrl-C is the parent's to interpret: it reaches every process of a terminal, and children ignore it from their first moment.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import multiprocessing
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal, TypeVar

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "LP_NUM_THREADS")
"""Numeric libraries read these names when they are loaded, so setting them inside the process would be too late."""
PATIENCE_S = 5.0
"""How long a terminated process (SIGTERM) may take to end before it is killed. [s]"""

_PR_SET_PDEATHSIG = 1
_LAUNCHER = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() != int(sys.argv[1]):
    os._exit(1)
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as error:
    sys.stderr.write(f"{sys.argv[2]}: {error.strerror}\\n")
    os._exit(126)
"""
"""Becomes the program that it is given, once that is sure to end with the parent."""

Result = TypeVar("Result")


def available_cores(root: Path = Path("/")) -> int:
    """How many processors this process may keep busy: those that it may run on (affinity), as far as its container lets it.

    Args:
        root: Where `proc` and `sys` are.
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([count, *(math.ceil(share) for share in _cgroup_shares(root))]))


def _cgroup_shares(root: Path) -> Iterator[float]:
    """Processors that each control group around this process allows, of cgroups v2 and v1."""
    mounted = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, name = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        for hierarchy in [controllers, "cpu", "cpu,cpuacct"] if controllers else ["", "unified"]:
            # A container may see its group under the host's name, which is not there, or as the root.
            inner = Path(*(part for part in name.split("/") if part not in ("", "..")))
            for folder in dict.fromkeys([inner, *inner.parents, Path()]):
                yield from _share(mounted / hierarchy / folder)


def _share(group: Path) -> Iterator[float]:
    quota, _, period = _text(group / "cpu.max").strip().partition(" ")
    if not quota:
        quota, period = (_text(group / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
    if quota.isdecimal() and period.isdecimal() and int(period):
        yield int(quota) / int(period)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


class ChildProcess(SpawnProcess):
    """A process of this machine, as `multiprocessing.Process`, that ends with its parent.

    Spawned, never forked: neither OpenGL nor torch's threads survive a fork.
    """

    single_threaded = True
    """Whether numeric libraries compute on one thread there, unless the environment sets another number."""

    def start(self) -> None:
        _in_lasting_thread(self._start)

    def _start(self) -> None:
        with _settings() if self.single_threaded else contextlib.nullcontext(), _without_interrupts():
            super().start()

    def run(self) -> None:
        threading.Thread(target=_end_with_parent, daemon=True).start()
        super().run()

    def __reduce__(self) -> tuple[Any, ...]:
        # The child calls this before it reads the rest, whose modules take seconds to import.
        return _received, (type(self), os.getpid()), self.__dict__


def _received(kind: type[ChildProcess], parent: int) -> ChildProcess:
    """Runs first in a child."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    return kind.__new__(kind)


def end_with_launcher() -> None:
    """Asks Linux for a SIGTERM when this process's parent ends, for those that another program starts, such as `torchrun`."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextlib.contextmanager
def _settings() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update({name: value or "1" for name, value in before.items()})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Holds Ctrl-C back, so that a child has none before it can ignore it; here it comes when the block has ended."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Context(SpawnContext):
    """What a pool starts its processes with."""

    def __init__(self, single_threaded: bool) -> None:
        super().__init__()
        self.single_threaded = single_threaded
        self.started: list[ChildProcess] = []

    def Process(self, *args: Any, **named: Any) -> ChildProcess:  # type: ignore[override]  # noqa: N802
        process = ChildProcess(*args, **named)
        process.single_threaded = self.single_threaded
        self.started.append(process)
        return process


CONTEXT = SpawnContext()
"""Makes queues and pipes to hand to children."""


class ProcessPool(ProcessPoolExecutor):
    """Workers that end with this process. A block that fails or is interrupted ends them at once, whatever they are doing.

    Args:
        workers: Number of processes.
        initializer: Called in each at its start, with `initargs`.
        single_threaded: See `ChildProcess`.
        patience_s: How long a terminated one (SIGTERM) may take to end. [s]
    """

    def __init__(
        self,
        workers: int,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        single_threaded: bool = True,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._children, self._patience_s = _Context(single_threaded), patience_s
        super().__init__(workers, self._children, initializer, initargs)  # type: ignore[arg-type]

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> Literal[False]:
        if kind is not None:
            self.stop()
        self.shutdown(cancel_futures=kind is not None)
        return False

    def stop(self) -> None:
        """Ends the workers, and with them what they are doing."""
        self.shutdown(wait=False, cancel_futures=True)
        end(self._children.started, self._patience_s)


def end(children: Sequence[BaseProcess], patience_s: float = PATIENCE_S) -> None:
    """Terminates processes (SIGTERM) and kills those that take longer than `patience_s` [s], or all at an interrupt."""
    deadline = time.monotonic() + patience_s
    try:
        for child in children:
            if child.is_alive():
                child.terminate()
        for child in children:
            child.join(None if patience_s == math.inf else max(0.0, deadline - time.monotonic()))
    finally:
        for child in children:
            if child.is_alive():
                child.kill()


def open_program(command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
    """Starts another program, as `subprocess.Popen`.

    Raises:
        FileNotFoundError: There is no such program.
    """
    return _in_lasting_thread(lambda: subprocess.Popen(_launched(command), **options))


def run_program(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[Any]:
    """Runs another program to its end, as `subprocess.run`.

    Raises:
        FileNotFoundError: There is no such program.
        subprocess.TimeoutExpired: It took longer than `timeout`, and was killed.
    """
    return _in_lasting_thread(lambda: subprocess.run(_launched(command), **options))


def _launched(command: Sequence[str]) -> list[str]:
    if shutil.which(command[0]) is None:
        raise FileNotFoundError(2, "no such program", command[0])
    if sys.platform != "linux" or not sys.executable:
        return [*command]
    return [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *command]


def _in_lasting_thread(work: Callable[[], Result]) -> Result:
    """Works in a thread that lasts as long as the process: to the kernel, that thread is the parent of what it starts."""
    if threading.current_thread() is threading.main_thread():
        return work()
    future: Future[Result] = Future()
    _starter().put((work, future))
    return future.result()


_lock = threading.Lock()
_queue: queue.SimpleQueue[Any] | None = None


def _starter() -> queue.SimpleQueue[Any]:
    global _queue
    with _lock:
        if _queue is None:
            _queue = queue.SimpleQueue()
            threading.Thread(target=_start_all, args=(_queue,), name="lamp-starter", daemon=True).start()
        return _queue


def _start_all(tasks: queue.SimpleQueue[Any]) -> None:
    while True:
        work, future = tasks.get()
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)
