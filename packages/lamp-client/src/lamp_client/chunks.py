"""From chunks of actions to one action per step: open loop, replanning, and averaging over chunks.

Each executor calls the policy with the noise seed (episode's seed ..., number of the call), so that an episode is reproduced
whatever ran before it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from lamp_client.client import NoiseSeed, Policy
from lamp_client.errors import InvalidValueError
from lamp_client.types import ActionChunk, Observation

ObservationFn = Callable[[], Observation]


@runtime_checkable
class Executor(Protocol):
    """Chooses one action per step."""

    @property
    def chunk(self) -> ActionChunk | None:
        """The newest chunk."""
        ...

    @property
    def calls(self) -> int:
        """Requests to the policy since `reset`."""
        ...

    def reset(self) -> None:
        """Forgets everything; to be called before an episode."""
        ...

    def next_action(self, observe: ObservationFn, policy: Policy, noise_seed: NoiseSeed) -> np.ndarray:
        """Returns (a,) float32 in the policy's units; calls `observe` only if the policy must be called."""
        ...


@dataclass(kw_only=True)
class _ChunkExecutor:
    chunk: ActionChunk | None = field(default=None, init=False, repr=False, compare=False)
    calls: int = field(default=0, init=False, repr=False, compare=False)

    def reset(self) -> None:
        self.chunk, self.calls = None, 0

    def _request_chunk(self, observe: ObservationFn, policy: Policy, noise_seed: NoiseSeed) -> ActionChunk:
        self.chunk = policy.act(observe(), noise_seed=(*noise_seed, self.calls))
        self.calls += 1
        return self.chunk


@dataclass(kw_only=True)
class OpenLoop(_ChunkExecutor):
    """Executes the first actions of a chunk without looking, then requests another."""

    execute: int | None = None
    """Number of actions executed of each chunk; None executes all of it."""
    _next: int = field(default=0, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_positive("execute", self.execute)

    def reset(self) -> None:
        super().reset()
        self._next = 0

    def next_action(self, observe: ObservationFn, policy: Policy, noise_seed: NoiseSeed) -> np.ndarray:
        """See `Executor`.

        Raises:
            InvalidValueError: if the policy's chunks are shorter than `execute`.
        """
        chunk = self.chunk
        if chunk is None or self._next >= (self.execute or len(chunk.actions)):
            chunk = self._request_chunk(observe, policy, noise_seed)
            if self.execute is not None and self.execute > len(chunk.actions):
                raise InvalidValueError(
                    f"{self.execute} actions are to be executed of each chunk, but the policy's have {len(chunk.actions)}.",
                    hint=f"Expected 1 to {len(chunk.actions)}.",
                )
            self._next = 0
        action = chunk.actions[self._next]
        self._next += 1
        return action


@dataclass(kw_only=True)
class Replan(_ChunkExecutor):
    """Requests a chunk at every `every`-th step, and executes the newest one in between."""

    every: int = 1
    """Steps between two requests."""
    _loop: OpenLoop = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_positive("every", self.every)
        self._loop = OpenLoop(execute=self.every)

    def reset(self) -> None:
        super().reset()
        self._loop.reset()

    def next_action(self, observe: ObservationFn, policy: Policy, noise_seed: NoiseSeed) -> np.ndarray:
        action = self._loop.next_action(observe, policy, noise_seed)
        self.chunk, self.calls = self._loop.chunk, self._loop.calls
        return action


@dataclass(kw_only=True)
class _Averaging(_ChunkExecutor):
    """Requests a chunk at every step and averages the predictions of all chunks so far for the present step."""

    window: int | None = None
    """Number of newest chunks averaged; None averages all that reach the present step."""
    _chunks: deque[np.ndarray] = field(default_factory=deque, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_positive("window", self.window)

    def reset(self) -> None:
        super().reset()
        self._chunks.clear()

    def next_action(self, observe: ObservationFn, policy: Policy, noise_seed: NoiseSeed) -> np.ndarray:
        self._chunks.append(self._request_chunk(observe, policy, noise_seed).actions)
        while self.window is not None and len(self._chunks) > self.window:
            self._chunks.popleft()
        while len(self._chunks[0]) < len(self._chunks):  # the oldest no longer reaches the present step
            self._chunks.popleft()
        newest = len(self._chunks) - 1
        predictions = np.stack([chunk[newest - place] for place, chunk in enumerate(self._chunks)]).astype(np.float64)
        weights = self._weights(predictions)
        return (weights @ predictions / weights.sum()).astype(np.float32)

    def _weights(self, predictions: np.ndarray) -> np.ndarray:
        raise NotImplementedError


@dataclass(kw_only=True)
class TemporalEnsemble(_Averaging):
    """Averages with weights exp(-`decay` i), where i = 0 is the OLDEST chunk: a positive decay trusts old plans more."""

    decay: float = 0.01

    def _weights(self, predictions: np.ndarray) -> np.ndarray:
        return np.exp(-self.decay * np.arange(len(predictions)))


@dataclass(kw_only=True)
class SimilarityEnsemble(_Averaging):
    """Averages with weights exp(`sharpness` cos(prediction, newest prediction)), so that a changed mind is not averaged away."""

    window: int | None = 7
    sharpness: float = 0.1

    def _weights(self, predictions: np.ndarray) -> np.ndarray:
        newest = predictions[-1]
        norms = np.linalg.norm(predictions, axis=1) * np.linalg.norm(newest)
        return np.exp(self.sharpness * (predictions @ newest) / np.maximum(norms, 1e-7))


def _check_positive(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise InvalidValueError(f"{name} is {value}; expected at least 1.")
