"""Executing a chunk while the next one is being computed, so that a robot does not stand still to think."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np

from lamp_client.chunks import ObservationFn
from lamp_client.client import NoiseSeed, Policy
from lamp_client.errors import InvalidValueError
from lamp_client.types import ActionChunk, Committed, Observation

DELAYS = 10
"""Answers of which the slowest says how long the next may take."""


@dataclass(kw_only=True)
class Asynchronous:
    """Requests the next chunk in a thread of its own while the present one is executed.

    A chunk begins at the moment of its observation. By the time it is there, some of that time has passed: the actions for it
    are skipped, and the next is executed. Where the present chunk ends before the next is there, the robot waits.

    The policy is called in that thread only; it must not be used elsewhere meanwhile.
    """

    every: int = 4
    """Steps after a chunk took over at which the next one is requested. Where a request takes d steps, chunks need `every` + 2 d
    actions, or the robot waits (`waits`)."""
    delay: int | None = None
    """Steps from the request until the new chunk takes over, whenever it came: an episode in a simulator, whose time is not the
    world's, can then be repeated. None: as soon as it is there."""
    blend: int = 0
    """Steps over which the old chunk's actions, where it still has some, fade into the new one's."""
    chunk: ActionChunk | None = field(default=None, init=False, repr=False, compare=False)
    """The chunk that is executed."""
    calls: int = field(default=0, init=False, repr=False, compare=False)
    waits: int = field(default=0, init=False, compare=False)
    """How often the robot had to wait since `reset`, the first chunk aside."""
    _step: int = field(default=0, init=False, repr=False, compare=False)
    _from: int = field(default=0, init=False, repr=False, compare=False)
    """Step of the present chunk's observation."""
    _taken_over: int = field(default=0, init=False, repr=False, compare=False)
    """Step at which the present chunk took over."""
    _old: tuple[np.ndarray, int] | None = field(default=None, init=False, repr=False, compare=False)
    """Actions of the chunk before, and the step of its observation."""
    _next: tuple[Future[ActionChunk], int] | None = field(default=None, init=False, repr=False, compare=False)
    """The chunk that is being computed, and the step of its observation."""
    _thread: ThreadPoolExecutor | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, value, least in (("every", self.every, 1), ("delay", self.delay, 1), ("blend", self.blend, 0)):
            if value is not None and value < least:
                raise InvalidValueError(f"{name} is {value}; expected at least {least}.")

    def reset(self) -> None:
        """Forgets everything; waits for what is being computed, as the policy is used by one thread at a time."""
        self._finish()
        self.chunk, self._old, self.calls, self.waits, self._step = None, None, 0, 0, 0

    def close(self) -> None:
        """Ends the thread; the next episode begins another."""
        self._finish()
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None

    def next_action(self, observe: ObservationFn, policy: Policy, noise_seed: NoiseSeed) -> np.ndarray:
        """See `lamp_client.chunks.Executor`.

        Raises:
            InvalidValueError: the policy's chunks are too short for `every` and `delay`.
        """
        chunk = self.chunk
        if chunk is None:
            chunk = self._take(*self._ask(observe, policy, noise_seed))
        else:
            if self._next is None and self._step - self._taken_over >= self.every:
                self._next = self._ask(observe, policy, noise_seed)
            if self._next is not None and self._due(chunk, *self._next):
                chunk = self._take(*self._next)
        action = self._blended(chunk)
        self._step += 1
        return action

    def _ask(self, observe: ObservationFn, policy: Policy, noise_seed: NoiseSeed) -> tuple[Future[ActionChunk], int]:
        """Requests a chunk; returns its future and the step of its observation."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="lamp-ask")
        seed, seen = (*noise_seed, self.calls), self._seen(observe(), policy)
        future = self._thread.submit(policy.act, seen, noise_seed=seed)
        self.calls += 1
        return future, self._step

    def _seen(self, observation: Observation, policy: Policy) -> Observation:
        """What the policy is asked about."""
        return observation

    def _due(self, chunk: ActionChunk, future: Future[ActionChunk], observed_at: int) -> bool:
        """Whether the next chunk takes over now: it is there, its time has come, or the present chunk has ended."""
        if self._step - self._from >= len(chunk.actions):
            self.waits += not future.done()
            return True
        return future.done() if self.delay is None else self._step - observed_at >= self.delay

    def _take(self, future: Future[ActionChunk], observed_at: int) -> ActionChunk:
        self._next = None
        chunk = future.result()
        if self._step - observed_at >= len(chunk.actions):
            raise InvalidValueError(
                f"a chunk of {len(chunk.actions)} actions came {self._step - observed_at} steps after its observation.",
                hint="Expected longer chunks, a faster policy, or a smaller `every`.",
            )
        self._old = None if self.chunk is None else (self.chunk.actions, self._from)
        self.chunk, self._from, self._taken_over = chunk, observed_at, self._step
        return chunk

    def _blended(self, chunk: ActionChunk) -> np.ndarray:
        """The chunk's action for this step, faded over from the one before."""
        new = chunk.actions[self._step - self._from]
        since = self._step - self._taken_over
        if self._old is None or since >= self.blend:
            return new
        actions, begun = self._old
        if self._step - begun >= len(actions):
            return new
        share = (since + 1) / (self.blend + 1)
        return (share * new + (1 - share) * actions[self._step - begun]).astype(np.float32)

    def _finish(self) -> None:
        if self._next is not None:
            future, _ = self._next
            self._next = None
            future.exception()  # waits; whatever went wrong concerns an episode that is over


@dataclass(kw_only=True)
class RealTime(Asynchronous):
    """Real-time chunking: the next chunk goes on from what the robot does while it is computed.

    With each question goes what is left of the present chunk, and how many of these actions, the `delay`, will be executed before
    the new chunk takes over, exactly then. The new chunk begins with these and follows from them, so that nothing jumps where it
    takes over (docs/realtime.md). Where an answer comes later than that, the present chunk goes on until it is there.
    """

    delay: int | None = None
    """Steps from asking until the new chunk takes over. None: the most that any of the last `DELAYS` answers took; `every` before
    there was one."""
    late: int = field(default=0, init=False, compare=False)
    """How often an answer came after its time since `reset`, so that the new chunk did not know all that was executed."""
    _took: deque[int] = field(default_factory=lambda: deque(maxlen=DELAYS), init=False, repr=False, compare=False)
    """Steps that the last answers took."""
    _promised: int = field(default=0, init=False, repr=False, compare=False)
    """The delay that the question on its way was asked with."""
    _noted: bool = field(default=False, init=False, repr=False, compare=False)
    """Whether how long its answer took has been noted."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.blend:
            raise InvalidValueError(
                f"blend is {self.blend}; expected 0: a chunk that goes on from the last needs none."
            )

    def reset(self) -> None:
        super().reset()
        self.late = 0  # how long answers take is still known

    def _seen(self, observation: Observation, policy: Policy) -> Observation:
        if not policy.metadata.get("real_time"):
            raise InvalidValueError(
                "the policy does not go on from committed actions: its metadata have no `real_time`.",
                hint="Expected a LaMP server with --units dataset, or the executor Asynchronous.",
            )
        self._promised = 0
        if self.chunk is None or self._step - self._from >= len(self.chunk.actions):
            return observation
        left = self.chunk.actions[self._step - self._from :]
        expected = self.delay or max(self._took, default=self.every)
        self._promised = min(expected, len(left))
        return replace(observation, committed=Committed(actions=left, delay=self._promised))

    def _due(self, chunk: ActionChunk, future: Future[ActionChunk], observed_at: int) -> bool:
        passed = self._step - observed_at
        if future.done() and passed > 0 and not self._noted:
            self._took.append(passed)
            self._noted = True
        if self._step - self._from >= len(chunk.actions):
            self.waits += not future.done()
            return True
        if passed < self._promised:
            return False
        return self.delay is not None or future.done()

    def _take(self, future: Future[ActionChunk], observed_at: int) -> ActionChunk:
        first = self.chunk is None
        chunk = super()._take(future, observed_at)
        if not first:
            if not self._noted:
                self._took.append(max(1, self._step - observed_at))
            self.late += self._step - observed_at > self._promised
        self._noted = False
        return chunk
