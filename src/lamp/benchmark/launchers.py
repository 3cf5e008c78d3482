"""Where simulator processes run: on this machine, or on the machines of a Ray cluster; the policy stays in the main process.

Ray starts and ends the processes of a cluster. What they say goes over a connection of its own that each opens to the main
process, where the pool listens to it as to a local worker's: its end is the worker's death.
"""

from __future__ import annotations

import hmac
import queue
import secrets
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Protocol, runtime_checkable

from lamp.benchmark.sim_worker import WorkerSetup, work
from lamp.cluster import ClusterError, cause_of, join_cluster, task_environment
from lamp.errors import ConfigError
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
        return self.process.is_alive()

    def terminate(self) -> None:
        self.process.terminate()

    def kill(self) -> None:
        self.process.kill()

    def join(self, timeout: float) -> None:
        self.process.join(timeout=timeout)

    def cause(self) -> str:
        code = self.process.exitcode
        return "killed, often for lack of memory" if code == -9 else f"exit code {code}"


@dataclass(frozen=True)
class LocalLauncher:
    """This machine."""

    def launch(self, numbers: Sequence[int], setup: WorkerSetup) -> list[LaunchedWorker]:
        return [self._launched(number, setup) for number in numbers]

    def _launched(self, number: int, setup: WorkerSetup) -> LaunchedWorker:
        ends: tuple[Any, Any] = CONTEXT.Pipe()
        ours, theirs = ends
        process = ChildProcess(target=work, args=(theirs, setup), name=f"lamp-simulator-{number}", daemon=True)
        process.start()
        theirs.close()  # so that the worker's death is the end of the pipe
        return LaunchedWorker(LocalProcess(process), ours)


START_S = 180.0
"""How long a simulator's process may take to call back [s]; Ray may have to start its own process first."""
SHAKE_S = 20.0
"""How long either side waits for the other's part of the handshake [s]."""
PASSED_ON = ("MUJOCO_GL", "PYOPENGL_PLATFORM")
"""Names whose values simulators on other machines get from here."""
_NONCE = 32


@dataclass(frozen=True)
class RayProcess:
    """A process of the cluster."""

    ray: Any
    task: Any

    def alive(self) -> bool:
        return not self.ray.wait([self.task], timeout=0)[0]

    def terminate(self) -> None:
        """Nothing: the end of its connection, which comes first, ends it too."""

    def kill(self) -> None:
        self.ray.cancel(self.task, force=True)

    def join(self, timeout: float) -> None:
        self.ray.wait([self.task], timeout=timeout)

    def cause(self) -> str:
        try:
            self.ray.get(self.task, timeout=5)
        except Exception as error:
            return cause_of(error)
        return "it ended by itself"


@dataclass
class RayLauncher:
    """A Ray cluster. Each simulator takes one of its CPUs."""

    ray: Any
    host: str
    """This machine, as the others know it."""
    key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    """Whoever knows it may connect; Ray carries it to the processes."""
    _arrived: queue.Queue[tuple[int, Connection]] = field(default_factory=queue.Queue, init=False)
    _listener: socket.socket | None = field(default=None, init=False)

    @classmethod
    def at(cls, address: str, simulators: int) -> RayLauncher:
        """Joins the cluster at an address.

        Raises:
            MissingDependencyError: Ray is not installed.
            ClusterError: There is no cluster.
            ConfigError: It has fewer CPUs than there are to be simulators.
        """
        instead = "Without it, --shard divides an evaluation among machines."
        ray = join_cluster(address, flag=f"--ray {address}", instead=instead)
        room = int(ray.cluster_resources().get("CPU", 0))
        if room < simulators:
            raise ConfigError(
                f"the Ray cluster has {room} CPUs for {simulators} simulators; expected --workers {room} at most."
            )
        return cls(ray=ray, host=ray.util.get_node_ip_address())

    def launch(self, numbers: Sequence[int], setup: WorkerSetup) -> list[LaunchedWorker]:
        """See `lamp.benchmark.launchers.Launcher`.

        Raises:
            ClusterError: A simulator did not start, or could not connect to this machine.
        """
        if self._listener is None:
            self._listener = socket.create_server((self.host, 0))
            threading.Thread(
                target=self._accept_workers, args=(self._listener,), name="lamp-ray-door", daemon=True
            ).start()
        environment = task_environment(PASSED_ON)
        remote = self.ray.remote(num_cpus=1, max_retries=0, max_calls=1, runtime_env=environment)(simulate)
        shared = self.ray.put(setup)
        address = (self.host, self._listener.getsockname()[1])
        tasks = {number: remote.remote(address, self.key, number, shared) for number in numbers}
        try:
            lines = self._wait_for_workers(tasks)
        except BaseException:
            for task in tasks.values():
                self.ray.cancel(task, force=True)
            raise
        return [LaunchedWorker(RayProcess(self.ray, tasks[number]), lines[number]) for number in numbers]

    def _wait_for_workers(self, tasks: dict[int, Any]) -> dict[int, Connection]:
        """Waits until all have called back."""
        lines: dict[int, Connection] = {}
        deadline = time.monotonic() + START_S
        while len(lines) < len(tasks):
            try:
                number, line = self._arrived.get(timeout=0.5)
            except queue.Empty:
                waiting = [task for number, task in tasks.items() if number not in lines]
                if failed := self.ray.wait(waiting, timeout=0)[0]:
                    raise ClusterError(
                        f"a simulator on the Ray cluster did not start: {RayProcess(self.ray, failed[0]).cause()}. "
                        "Expected LaMP and the benchmark in the same versions on all machines, and that they reach this one "
                        f"at {self.host}."
                    ) from None
                if time.monotonic() > deadline:
                    raise ClusterError(
                        f"{len(waiting)} of {len(tasks)} simulators on the Ray cluster did not start within {START_S:g} s; "
                        "expected that many free CPUs: is the cluster busy? Try fewer --workers."
                    ) from None
            else:
                lines[number] = line
        return lines

    def _accept_workers(self, door: socket.socket) -> None:
        """Runs in a thread: lets processes in that know the key, each by itself, as a stranger may say nothing for long."""
        while True:
            try:
                caller, _ = door.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._admit_worker, args=(caller,), daemon=True).start()

    def _admit_worker(self, caller: socket.socket) -> None:
        try:
            number = _authenticate_worker(caller, self.key)
        except (OSError, ClusterError):
            caller.close()
            return
        self._arrived.put((number, _as_connection(caller)))


def simulate(address: tuple[str, int], key: bytes, number: int, setup: WorkerSetup) -> None:
    """Runs in a process of the cluster: calls back, then works as a local worker does."""
    caller = socket.create_connection(address, timeout=SHAKE_S)
    _authenticate_to_pool(caller, key, number)
    work(_as_connection(caller), setup)


def _as_connection(caller: socket.socket) -> Connection:
    caller.settimeout(None)
    caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    caller.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a machine that is gone says nothing more
    return Connection(caller.detach())


def _authenticate_worker(caller: socket.socket, key: bytes) -> int:
    """Our part of the handshake; each proves that it knows the key, as either will unpickle what the other sends.

    Raises:
        ClusterError: The caller does not know the key.
    """
    caller.settimeout(SHAKE_S)
    ours = secrets.token_bytes(_NONCE)
    caller.sendall(ours)
    reply = _receive_exactly(caller, 2 * _NONCE + 4)
    proof, theirs, number = reply[:_NONCE], reply[_NONCE : 2 * _NONCE], reply[2 * _NONCE :]
    if not hmac.compare_digest(proof, _proof(key, b"simulator", ours, number)):
        raise ClusterError("a process that does not know the key called")
    caller.sendall(_proof(key, b"pool", theirs, number))
    return int.from_bytes(number, "big")


def _authenticate_to_pool(caller: socket.socket, key: bytes, number: int) -> None:
    """The simulator's part.

    Raises:
        ClusterError: Whoever answers does not know the key.
    """
    name, ours, theirs = number.to_bytes(4, "big"), secrets.token_bytes(_NONCE), _receive_exactly(caller, _NONCE)
    caller.sendall(_proof(key, b"simulator", theirs, name) + ours + name)
    if not hmac.compare_digest(_receive_exactly(caller, _NONCE), _proof(key, b"pool", ours, name)):
        raise ClusterError("whoever answered does not know the key")


def _proof(key: bytes, who: bytes, nonce: bytes, number: bytes) -> bytes:
    return hmac.digest(key, who + nonce + number, "sha256")


def _receive_exactly(caller: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        more = caller.recv(size - len(received))
        if not more:
            raise ClusterError("the connection ended in the middle of the handshake")
        received += more
    return received
