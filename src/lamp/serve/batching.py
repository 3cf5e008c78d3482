"""Requests of several clients, computed together: a bounded queue, a short wait for company, one thread that computes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from lamp.errors import LampError
from lamp.serve.message_values import NoiseSeed
from lamp.serve.policy_spec import ServedPolicy
from lamp.serve.protocols import ActReply
from lamp_client.errors import LampClientError
from lamp_client.types import ActionChunk, Observation

log = logging.getLogger("lamp.serve")


class BusyError(LampError):
    """The server has as many requests waiting as it accepts; the same request may be answered in a moment."""


class PolicyFailedError(LampError):
    """The policy raised something that is no mistake of the client's."""


@dataclass(kw_only=True, eq=False)
class QueuedRequest:
    """One observation that waits for its actions."""

    observation: Observation
    noise_seed: NoiseSeed
    foresight: bool
    client: int
    answer: asyncio.Future[ActReply]
    arrived: float = field(default_factory=time.perf_counter)

    @property
    def kind(self) -> tuple[bool, bool]:
        """What is computed together: predicting flow, or going on from committed actions, costs more than actions alone."""
        return self.foresight, self.observation.committed is not None


@dataclass(frozen=True, kw_only=True)
class ComputedBatch:
    """A batch that was computed."""

    requests: tuple[QueuedRequest, ...]
    chunks: tuple[ActionChunk | LampError | LampClientError, ...]
    infer_s: float


class Batcher:
    """Answers requests in the order of their arrival, several at a time.

    Args:
        policy: Called in one thread of its own, so that the event loop goes on meanwhile.
        gather_s: How long the first of a batch waits for others [s].
        max_batch: Observations computed together at most.
        max_queue: Observations that may wait; more are refused.
        active_clients: How many clients may be expected to ask soon. Once that many wait, waiting longer would bring nobody, so a
            lone robot never waits.
        on_done: Called with every batch, after its replies are out.
    """

    def __init__(
        self,
        policy: ServedPolicy,
        *,
        gather_s: float,
        max_batch: int,
        max_queue: int,
        active_clients: Callable[[], int],
        on_done: Callable[[ComputedBatch], None] = lambda done: None,
    ) -> None:
        self._policy, self._active_clients, self._on_done = policy, active_clients, on_done
        self.gather_s, self.max_batch, self.max_queue = gather_s, max_batch, max_queue
        self._waiting: deque[QueuedRequest] = deque()
        self._changed = asyncio.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="lamp-policy")
        self._task: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Observations in the queue."""
        return len(self._waiting)

    def start(self) -> None:
        """Begins to answer."""
        self._task = asyncio.get_running_loop().create_task(self._work(), name="lamp-batcher")

    async def stop(self) -> None:
        """Ends; what waits is refused. To be called when nothing is in flight any more, or may be lost."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for request in self._waiting:
            request.answer.cancel()
        self._waiting.clear()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def ask(
        self, observations: Sequence[Observation], seeds: Sequence[NoiseSeed], *, foresight: bool, client: int
    ) -> list[ActReply]:
        """Waits for the answers to all of a request's observations.

        Raises:
            BusyError: The queue has no room for them.
            MismatchError: An observation does not fit the policy.
            PolicyFailedError: The policy broke on one of them.
        """
        if len(self._waiting) + len(observations) > self.max_queue:
            raise BusyError(
                f"the server is busy: {len(self._waiting)} observations wait, and it accepts {self.max_queue}; try again soon."
            )
        loop = asyncio.get_running_loop()
        requests = [
            QueuedRequest(
                observation=seen, noise_seed=seed, foresight=foresight, client=client, answer=loop.create_future()
            )
            for seen, seed in zip(observations, seeds, strict=True)
        ]
        self._waiting.extend(requests)
        self._changed.set()
        try:
            return list(await asyncio.gather(*(request.answer for request in requests)))
        finally:
            # A client that has gone is not computed for, and its images, views of a whole message, are not kept.
            for request in requests:
                request.answer.cancel()
            if any(request.answer.done() for request in self._waiting):
                self._waiting = deque(request for request in self._waiting if not request.answer.done())

    async def compute(
        self, observations: Sequence[Observation], seeds: Sequence[NoiseSeed], foresight: bool
    ) -> ComputedBatch:
        """Computes at once, in the policy's thread: for warming up, and for pictures while nobody waits."""
        loop = asyncio.get_running_loop()
        requests = [
            QueuedRequest(
                observation=seen, noise_seed=seed, foresight=foresight, client=-1, answer=loop.create_future()
            )
            for seen, seed in zip(observations, seeds, strict=True)
        ]
        return await loop.run_in_executor(self._thread, self._infer, tuple(requests))

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._gather_batch()
            if not batch:
                continue
            started = time.perf_counter()
            done = await loop.run_in_executor(self._thread, self._infer, batch)
            for request, chunk in zip(done.requests, done.chunks, strict=True):
                if request.answer.done():
                    continue
                if isinstance(chunk, Exception):
                    request.answer.set_exception(chunk)
                else:
                    queue_ms = 1000.0 * (started - request.arrived)
                    answer = ActReply(chunk=chunk, infer_ms=1000.0 * done.infer_s, queue_ms=queue_ms, batch=len(batch))
                    request.answer.set_result(answer)
            try:
                self._on_done(done)
            except Exception:
                log.exception("noting a batch failed")

    async def _gather_batch(self) -> tuple[QueuedRequest, ...]:
        """Waits for the first request, then for company."""
        while not self._waiting:
            self._changed.clear()
            await self._changed.wait()
        # Who waited for the last batch has waited enough.
        deadline = self._waiting[0].arrived + self.gather_s
        while self._may_grow() and (left := deadline - time.perf_counter()) > 0:
            self._changed.clear()
            try:
                async with asyncio.timeout(left):
                    await self._changed.wait()
            except TimeoutError:
                break
        return self._take_batch()

    def _may_grow(self) -> bool:
        """Whether somebody may still join the batch."""
        return len(self._waiting) < self.max_batch and len({q.client for q in self._waiting}) < self._active_clients()

    def _take_batch(self) -> tuple[QueuedRequest, ...]:
        """The next batch: requests of the kind of the one that came first."""
        taken: list[QueuedRequest] = []
        left: deque[QueuedRequest] = deque()
        while self._waiting:
            request = self._waiting.popleft()
            if request.answer.done():
                continue
            if len(taken) < self.max_batch and (not taken or request.kind == taken[0].kind):
                taken.append(request)
            else:
                left.append(request)
        self._waiting = left
        return tuple(taken)

    def _infer(self, batch: tuple[QueuedRequest, ...]) -> ComputedBatch:
        """Runs in the policy's thread."""
        started = time.perf_counter()
        try:
            chunks: list[ActionChunk | LampError | LampClientError] = list(self._act(batch))
        except Exception as error:
            # One observation must not spoil the others' answers.
            alone = len(batch) == 1
            chunks = [_error_for_client(error) if alone else self._infer((request,)).chunks[0] for request in batch]
        return ComputedBatch(requests=batch, chunks=tuple(chunks), infer_s=time.perf_counter() - started)

    def _act(self, batch: tuple[QueuedRequest, ...]) -> list[ActionChunk]:
        observations = [request.observation for request in batch]
        seeds = [request.noise_seed for request in batch]
        chunks = self._policy.act_batch(observations, seeds, foresight=batch[0].foresight)
        if len(chunks) != len(batch):
            raise PolicyFailedError(f"the policy gave {len(chunks)} chunks for {len(batch)} observations")
        return chunks


def _error_for_client(error: Exception) -> LampError | LampClientError:
    """What the client is told: its mistake in full, ours without the trace, which is in the log."""
    if isinstance(error, LampError | LampClientError):
        return error
    log.error("the policy failed", exc_info=error)
    return PolicyFailedError(f"the policy failed: {type(error).__name__}: {str(error)[:300]}")
