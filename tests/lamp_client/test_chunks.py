"""Executors against closed forms, with a policy that says which call and which action it is."""

from __future__ import annotations

import numpy as np
import pytest

from lamp_client.chunks import Executor, OpenLoop, Replan, SimilarityEnsemble, TemporalEnsemble
from lamp_client.client import InProcessPolicy, NoiseSeed
from lamp_client.errors import InvalidValueError
from lamp_client.types import ActionChunk, Observation

SEEN = Observation(
    images={"front": np.zeros((2, 2, 3), dtype=np.uint8)}, state=np.zeros(1, dtype=np.float32), instruction=""
)


class Counting:
    """Chunk number c of length h is [[c, 0], [c, 1], ... [c, h - 1]]."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.seeds: list[NoiseSeed | None] = []
        self.looks = 0
        self.policy = InProcessPolicy(self._act)

    def _act(self, _: Observation, seed: NoiseSeed | None) -> np.ndarray:
        self.seeds.append(seed)
        return np.stack([np.full(self.length, len(self.seeds) - 1), np.arange(self.length)], axis=1)

    def observe(self) -> Observation:
        self.looks += 1
        return SEEN

    def run(self, executor: Executor, steps: int) -> np.ndarray:
        return np.stack([executor.next_action(self.observe, self.policy, (5,)) for _ in range(steps)])


def test_open_loop_executes_the_whole_chunk() -> None:
    counting = Counting(3)
    actions = counting.run(OpenLoop(), 7)
    np.testing.assert_array_equal(actions, [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2], [2, 0]])
    assert counting.seeds == [(5, 0), (5, 1), (5, 2)] and counting.looks == 3


@pytest.mark.parametrize("executor", [OpenLoop(execute=2), Replan(every=2)])
def test_a_part_of_the_chunk(executor: OpenLoop | Replan) -> None:
    counting = Counting(4)
    np.testing.assert_array_equal(counting.run(executor, 5), [[0, 0], [0, 1], [1, 0], [1, 1], [2, 0]])
    assert executor.calls == 3 and counting.looks == 3
    assert executor.chunk is not None and executor.chunk.actions[0, 0] == 2


@pytest.mark.parametrize("executor", [OpenLoop(), Replan(every=2), TemporalEnsemble(), SimilarityEnsemble()])
def test_reset_starts_over(executor: Executor) -> None:
    counting = Counting(3)
    counting.run(executor, 4)
    executor.reset()
    assert executor.chunk is None and executor.calls == 0
    fresh = Counting(3)
    np.testing.assert_array_equal(fresh.run(executor, 1), [[0, 0]])
    assert fresh.seeds == [(5, 0)]


def test_temporal_ensemble_weighs_exponentially_with_the_oldest_first() -> None:
    counting = Counting(3)
    actions = counting.run(TemporalEnsemble(decay=0.5), 5)
    a, b = np.exp(-0.5), np.exp(-1.0)
    np.testing.assert_allclose(actions[0], [0, 0])
    np.testing.assert_allclose(actions[1], [a / (1 + a), 1 / (1 + a)], rtol=1e-6)
    # From the third step on, three chunks of length three reach the present: calls t-2, t-1, t at places 2, 1, 0.
    for t in (2, 3, 4):
        calls = ((t - 2) + (t - 1) * a + t * b) / (1 + a + b)
        np.testing.assert_allclose(actions[t], [calls, (2 + a) / (1 + a + b)], rtol=1e-6)


def test_temporal_ensemble_without_decay_is_the_mean_of_the_window() -> None:
    actions = Counting(10).run(TemporalEnsemble(decay=0.0, window=2), 6)
    np.testing.assert_allclose(actions[1:, 0], np.arange(1, 6) - 0.5)
    np.testing.assert_allclose(actions[1:, 1], 0.5)


def test_similarity_ensemble_weighs_by_the_cosine_to_the_newest() -> None:
    chunks = iter([[[1.0, 0.0]] * 3, [[0.0, 2.0]] * 3, [[2.0, 0.0]] * 3])
    policy = InProcessPolicy(lambda *_: ActionChunk(actions=np.array(next(chunks), dtype=np.float32)))
    executor = SimilarityEnsemble(sharpness=0.7)
    actions = [executor.next_action(lambda: SEEN, policy, ()) for _ in range(3)]
    e = np.exp(0.7)
    np.testing.assert_allclose(actions[1], [1 / (1 + e), 2 * e / (1 + e)], rtol=1e-6)
    np.testing.assert_allclose(actions[2], [(e + 2 * e) / (1 + 2 * e), 2 / (1 + 2 * e)], rtol=1e-6)


@pytest.mark.parametrize(
    "build", [lambda: OpenLoop(execute=0), lambda: Replan(every=0), lambda: TemporalEnsemble(window=0)]
)
def test_counts_below_one_are_refused(build: object) -> None:
    with pytest.raises(InvalidValueError, match="at least 1"):
        build()  # pyright: ignore[reportCallIssue]


def test_a_chunk_shorter_than_what_is_to_be_executed() -> None:
    with pytest.raises(InvalidValueError, match="5 actions are to be executed of each chunk, but the policy's have 3"):
        Counting(3).run(OpenLoop(execute=5), 1)
