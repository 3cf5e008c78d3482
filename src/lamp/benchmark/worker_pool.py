"""The main process' side of an evaluation: hands episodes to workers and answers their observations in batches."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import isfinite
from multiprocessing.connection import Connection, wait

from lamp.benchmark.episodes import EpisodeRecord, EvaluationEpisode
from lamp.benchmark.launchers import Launcher, LocalLauncher, Process
from lamp.benchmark.sim_worker import ActionRequest, EpisodeFailure, EpisodeOutcome, EpisodeTask, WorkerSetup
from lamp.benchmark.statistics import Rate
from lamp.errors import LampError
from lamp.progress import Progress, clock
from lamp_client.types import ActionChunk

MAX_DEATHS = 3
"""After a worker died this often on one episode, or without any, the evaluation stops and says so."""


class SimulationStoppedError(LampError):
    """An episode raised, or killed its worker again and again."""


@dataclass
class Worker:
    """A simulator process and the episode it is busy with."""

    number: int
    process: Process
    connection: Connection
    task: EpisodeTask | None = None
    simulator_key: tuple[str, int] | None = None
    """The suite and task whose simulator it has open."""
    since: float = 0.0
    """When it was given its episode, on the monotonic clock [s]."""
    overdue: bool = False
    """Whether it was stopped because its episode took too long."""


@dataclass
class WorkerPool:
    """Runs episodes in several processes.

    Workers whose policy waits are answered together: the pool collects what arrives within `gather_s` of the first request,
    or less where every busy worker has asked, and passes it to `answer` at once.
    """

    size: int
    setup: WorkerSetup
    answer: Callable[[Sequence[ActionRequest]], Sequence[ActionChunk]]
    gather_s: float = 0.02
    deadline_s: float = float("inf")
    """An episode that takes longer loses its worker, as if that had died: simulators may hang."""
    launcher: Launcher = field(default_factory=LocalLauncher)
    """Where the workers run."""
    say: Callable[[str], None] = field(default=lambda text: print(text, file=sys.stderr, flush=True))
    workers: list[Worker] = field(default_factory=list)
    deaths: Counter[str] = field(default_factory=Counter)
    """Name of an episode -> number of workers that died on it."""

    def run(self, tasks: Sequence[EpisodeTask]) -> Iterator[EpisodeOutcome]:
        """Yields the episodes as they end; leaves no process behind, whatever happens.

        Raises:
            SimulationStoppedError: An episode raised an error, or its workers keep dying.
        """
        pending = list(tasks)
        try:
            numbers = range(min(self.size, len(pending)))
            for number, launched in zip(numbers, self.launcher.launch(numbers, self.setup), strict=True):
                self.workers.append(Worker(number=number, process=launched.process, connection=launched.connection))
            for worker in self.workers:
                self._assign(worker, pending)
            while any(worker.task for worker in self.workers):
                yield from self._poll(pending)
        finally:
            self._shut_down()

    def _assign(self, worker: Worker, pending: list[EpisodeTask]) -> None:
        worker.task = None
        if not pending:
            return
        task = pending.pop(self._choice(worker, pending))
        worker.task, worker.simulator_key, worker.since = task, task.episode.simulator_key, time.monotonic()
        # A worker that has died says so by the end of its pipe in the next round, where the episode goes back to the list.
        with suppress(OSError):
            worker.connection.send(task)

    def _choice(self, worker: Worker, pending: Sequence[EpisodeTask]) -> int:
        """The next episode of the worker's task, as opening a simulator takes seconds; else of the task that is most behind."""
        left = Counter(task.episode.simulator_key for task in pending)
        key = worker.simulator_key
        if key is None or key not in left:
            busy = Counter(other.simulator_key for other in self.workers if other.task and other is not worker)
            # Of several that are as far behind the first: `left` is in the order of the list.
            key = max(left, key=lambda key: left[key] / (1 + busy[key]))
        return next(index for index, task in enumerate(pending) if task.episode.simulator_key == key)

    def _poll(self, pending: list[EpisodeTask]) -> Iterator[EpisodeOutcome]:
        """One round: waits for messages, collects requests for a moment, answers them."""
        requests: list[tuple[Worker, ActionRequest]] = []
        deadline: float | None = None
        while True:
            waiting = {id(worker) for worker, _ in requests}
            listened = {w.connection: w for w in self.workers if w.task and id(w) not in waiting}
            awaited = [worker for worker in listened.values() if worker.task and worker.task.actions is None]
            remaining = None if deadline is None else deadline - time.monotonic()
            if requests and (not awaited or (remaining is not None and remaining <= 0)):
                break
            if not listened:
                return
            for connection in wait(list(listened), timeout=self._patience(listened.values(), remaining)):
                worker = listened[connection]  # pyright: ignore[reportArgumentType]
                message = self._receive(worker, pending)
                if isinstance(message, ActionRequest):
                    requests.append((worker, message))
                    deadline = deadline or time.monotonic() + self.gather_s
                elif isinstance(message, EpisodeOutcome):
                    self._assign(worker, pending)
                    yield message
            self._kill_overdue(listened.values())
        self._reply(requests)

    def _patience(self, listened: Iterable[Worker], remaining: float | None) -> float | None:
        """How long to wait for messages: to the end of the gathering, or to the next deadline."""
        ends = [worker.since + self.deadline_s - time.monotonic() for worker in listened]
        waits = [*([] if remaining is None else [remaining]), *(max(0.0, end) for end in ends if isfinite(end))]
        return min(waits, default=None)

    def _kill_overdue(self, listened: Iterable[Worker]) -> None:
        """Kills workers whose episode is past its deadline; the end of their pipes then says so."""
        now = time.monotonic()
        for worker in listened:
            if worker.task and not worker.overdue and now > worker.since + self.deadline_s:
                worker.overdue = True
                worker.process.kill()

    def _reply(self, requests: Sequence[tuple[Worker, ActionRequest]]) -> None:
        chunks = self.answer([request for _, request in requests])
        for (worker, _), chunk in zip(requests, chunks, strict=True):
            with suppress(OSError):  # as in `_assign`
                worker.connection.send(chunk)

    def _receive(self, worker: Worker, pending: list[EpisodeTask]) -> ActionRequest | EpisodeOutcome | None:
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            self._replace_dead_worker(worker, pending)
            return None
        if isinstance(message, EpisodeFailure):
            if message.cause is not None:
                raise message.cause
            episode = message.episode
            self.say(message.trace)
            raise SimulationStoppedError(
                f"{_title(episode)} failed: {message.error}. Finished episodes are kept; run the same command to go on."
            )
        return message

    def _replace_dead_worker(self, worker: Worker, pending: list[EpisodeTask]) -> None:
        """Reports a dead worker, puts its episode back and starts another."""
        worker.process.join(timeout=10.0)
        worker.connection.close()
        task = worker.task
        assert task is not None
        self.deaths[task.episode.name] += 1
        late = f"stopped: its episode took longer than {self.deadline_s:g} s"
        cause = late if worker.overdue else f"died ({worker.process.cause()})"
        how = f"worker {worker.number} {cause} on {_title(task.episode)}"
        if self.deaths[task.episode.name] >= MAX_DEATHS:
            advice = f"Is there memory for {self.size} simulators? Try fewer --workers."
            raise SimulationStoppedError(
                f"{how}; {MAX_DEATHS} workers were lost on it. {'Try a longer --deadline-s.' if worker.overdue else advice} "
                "Finished episodes are kept; run the same command to go on."
            )
        self.say(f"{how}; a new worker takes over")
        pending.insert(0, task)
        (fresh,) = self.launcher.launch([worker.number], self.setup)
        worker.process, worker.connection, worker.simulator_key, worker.overdue = (
            fresh.process,
            fresh.connection,
            None,
            False,
        )
        self._assign(worker, pending)

    def _shut_down(self) -> None:
        for worker in self.workers:
            with suppress(OSError):
                worker.connection.send(None)  # who has nothing to do leaves by itself
            worker.connection.close()
            if worker.process.alive():
                worker.process.terminate()
        for worker in self.workers:
            worker.process.join(timeout=5.0)
            if worker.process.alive():
                worker.process.kill()
                worker.process.join(timeout=5.0)
        self.workers = []


def _title(episode: EvaluationEpisode) -> str:
    return f"{episode.condition} task {episode.task} state {episode.state}"


class EpisodeProgress:
    """Says on the error stream what came of each episode, and between them that they are on their way."""

    def __init__(self, done: list[EpisodeRecord], planned: int) -> None:
        self._line = Progress("evaluate", planned, "episodes", done=len(done), brief=True)
        self._planned, self._before = planned, len(done)
        self._done = len(done)
        self._started = time.monotonic()
        self._trials = Counter(record.condition for record in done)
        self._successes = Counter(record.condition for record in done if record.success)

    def tell(self, record: EpisodeRecord) -> None:
        """Says what came of an episode, and what that makes of the whole."""
        self._done += 1
        self._trials[record.condition] += 1
        self._successes[record.condition] += record.success
        rate = Rate(successes=self._successes[record.condition], trials=self._trials[record.condition])
        low, high = rate.interval
        result = "success" if record.success else "no success"
        self._line.update(self._done)
        self._line.tell(
            f"[{self._done}/{self._planned}] {record.condition} task {record.task} state {record.state}: {result} after "
            f"{record.steps} steps ({record.wall_s:.1f} s); so far {rate.successes}/{rate.trials} "
            f"({100 * rate.value:.0f}%, {100 * low:.0f} to {100 * high:.0f}){self._pace()}"
        )

    def close(self) -> None:
        """Ends it."""
        self._line.close()

    def _pace(self) -> str:
        elapsed = time.monotonic() - self._started
        hourly = 3600 * (self._done - self._before) / elapsed if elapsed > 0 else 0.0
        if not hourly:
            return ""
        return f"; {hourly:,.0f} episodes/h, {clock(3600 * (self._planned - self._done) / hourly)} left"
