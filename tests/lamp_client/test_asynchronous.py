"""Chunks executed while the next is computed, against closed forms; the policy says which call and which step it saw."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamp_client.asynchronous import Asynchronous, RealTime
from lamp_client.client import InProcessPolicy, NoiseSeed
from lamp_client.errors import InvalidValueError, ServerError
from lamp_client.types import ActionChunk, Committed, Observation


class World:
    """Chunk number c of an observation at step t says [c, t + i] at place i: with no time lost, step t executes [c, t]."""

    def __init__(self, length: int = 8, pause_s: float = 0.0) -> None:
        self.length, self.pause_s, self.step, self.calls = length, pause_s, 0, 0
        self.seeds: list[NoiseSeed | None] = []
        self.threads: set[int] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.policy = InProcessPolicy(self._act)

    def _act(self, seen: Observation, seed: NoiseSeed | None) -> np.ndarray:
        self.threads.add(threading.get_ident())
        self.seeds.append(seed)
        self.gate.wait(5)
        time.sleep(self.pause_s)
        self.calls += 1
        return np.stack([np.full(self.length, self.calls - 1), seen.state[0] + np.arange(self.length)], axis=1)

    def observe(self) -> Observation:
        image = np.zeros((2, 2, 3), dtype=np.uint8)
        return Observation(images={"front": image}, state=np.array([self.step], np.float32), instruction="")

    def run(self, executor: Asynchronous, steps: int, tick_s: float = 0.0) -> np.ndarray:
        actions = []
        for _ in range(steps):
            actions.append(executor.next_action(self.observe, self.policy, (5,)))
            self.step += 1
            time.sleep(tick_s)
        return np.stack(actions)


def test_each_step_executes_the_action_meant_for_it() -> None:
    world, executor = World(pause_s=0.01), Asynchronous(every=3)
    actions = world.run(executor, 30, tick_s=0.004)
    np.testing.assert_array_equal(actions[:, 1], np.arange(30))
    assert (np.diff(actions[:, 0]) >= 0).all() and executor.calls >= 4
    assert world.seeds[:3] == [(5, 0), (5, 1), (5, 2)]
    assert world.threads.isdisjoint({threading.get_ident()}) and len(world.threads) == 1
    executor.close()


def test_a_fixed_delay_makes_an_episode_repeatable() -> None:
    found = []
    for pause in (0.0, 0.01):
        executor = Asynchronous(every=3, delay=2)
        found.append(World(pause_s=pause).run(executor, 20))
        executor.close()
    np.testing.assert_array_equal(*found)
    # Asked at steps 0, 3, 8, 13, 18; each takes over two steps later, and the next is asked for three steps after that.
    np.testing.assert_array_equal(found[0][:, 0], [0] * 5 + [1] * 5 + [2] * 5 + [3] * 5)


def test_the_robot_goes_on_while_the_policy_thinks() -> None:
    world, executor = World(length=8), Asynchronous(every=2)
    world.run(executor, 1)
    world.gate.clear()
    started = time.perf_counter()
    world.run(executor, 7)
    assert time.perf_counter() - started < 1.0 and world.calls == 1 and executor.waits == 0
    # The chunk has ended: now it has to wait, and then goes on at the right place.
    threading.Timer(0.1, world.gate.set).start()
    np.testing.assert_array_equal(world.run(executor, 1), [[1, 8]])
    assert executor.waits == 1
    executor.close()


def test_blending_fades_the_old_chunk_into_the_new() -> None:
    world, executor = World(length=10), Asynchronous(every=3, delay=1, blend=3)
    actions = world.run(executor, 8)
    np.testing.assert_allclose(actions[:, 0], [0, 0, 0, 0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(actions[:, 1], np.arange(8), rtol=1e-6)
    executor.close()


def test_reset_forgets_what_is_on_its_way() -> None:
    world, executor = World(pause_s=0.02), Asynchronous(every=1)
    world.run(executor, 3)
    executor.reset()
    assert executor.chunk is None and executor.calls == executor.waits == 0
    again = World()
    np.testing.assert_array_equal(again.run(executor, 2)[0], [0, 0])
    assert again.seeds[0] == (5, 0)
    executor.close()


def test_errors_of_the_policy_come_through() -> None:
    calls = [0]

    def act(_: Observation, seed: NoiseSeed | None) -> np.ndarray:
        calls[0] += 1
        if calls[0] == 2:
            raise ServerError("no")
        return np.zeros((4, 2))

    world, executor = World(), Asynchronous(every=1)
    world.policy = InProcessPolicy(act)
    with pytest.raises(ServerError):
        world.run(executor, 8)
    executor.close()


def test_chunks_that_are_too_short() -> None:
    world, executor = World(length=3), Asynchronous(every=2)
    world.run(executor, 2)
    world.length = 1
    world.gate.clear()
    threading.Timer(0.05, world.gate.set).start()
    with pytest.raises(InvalidValueError, match="a chunk of 1 actions came 1 steps after its observation"):
        world.run(executor, 6)
    executor.close()


@pytest.mark.parametrize(
    ("settings", "words"), [({"every": 0}, "every is 0"), ({"delay": 0}, "delay is 0"), ({"blend": -1}, "blend is -1")]
)
def test_settings_that_do_not_fit(settings: dict[str, int], words: str) -> None:
    with pytest.raises(InvalidValueError, match=words):
        Asynchronous(**settings)


class Later:
    """A thread whose answers are there after so many steps of the world."""

    def __init__(self, world: World, latencies: list[int]) -> None:
        self.world, self.latencies = world, latencies

    def submit(self, act: Any, seen: Observation, *, noise_seed: NoiseSeed) -> Any:
        ready = self.world.step + self.latencies[len(self.world.seeds) % len(self.latencies)]
        chunk, world = act(seen, noise_seed=noise_seed), self.world

        class Answer:
            def done(self) -> bool:
                return world.step >= ready

            def result(self) -> ActionChunk:
                return chunk

            def exception(self) -> None:
                return None

        return Answer()

    def shutdown(self) -> None:
        pass


class GoingOn(World):
    """The same, but for committed actions, with which a chunk begins; [c, t + i] after them."""

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.asked: list[Committed | None] = []
        self.policy = InProcessPolicy(self._act, {"real_time": "guided"})

    def _act(self, seen: Observation, seed: NoiseSeed | None) -> np.ndarray:
        self.asked.append(seen.committed)
        actions = super()._act(seen, seed)
        if seen.committed is not None:
            actions[: seen.committed.delay] = seen.committed.actions[: seen.committed.delay]
        return actions


@given(
    every=st.integers(1, 6), spare=st.integers(2, 12), delay=st.none() | st.integers(1, 5),
    latencies=st.lists(st.integers(0, 9), min_size=1, max_size=6),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_no_action_is_executed_twice_or_skipped_and_committed_ones_are_executed(
    every: int, spare: int, delay: int | None, latencies: list[int]
) -> None:
    length = every + 10 + spare
    world, executor = GoingOn(length), RealTime(every=every, delay=delay)
    executor._thread = Later(world, latencies)  # pyright: ignore[reportAttributeAccessIssue]
    questions, actions = dict[int, Committed](), []
    for step in range(60):
        before = len(world.asked)
        actions.append(executor.next_action(world.observe, world.policy, (5,)))
        if len(world.asked) > before and world.asked[-1] is not None:
            questions[step] = world.asked[-1]
        world.step += 1
    executed = np.stack(actions)
    np.testing.assert_array_equal(executed[:, 1], np.arange(60))  # each step, the action that is meant for it
    chunks = executed[:, 0]
    assert (np.diff(chunks) >= 0).all() and len(questions) > 60 / (every + 12)
    for step, committed in questions.items():
        until = min(step + committed.delay, 60)
        np.testing.assert_array_equal(executed[step:until], committed.actions[: until - step])
        # The next chunk takes over exactly then, unless it is late.
        if delay is not None and until < 60:
            assert committed.delay == delay and chunks[until] == chunks[until - 1] + 1


def test_the_delay_is_that_of_the_slowest_answer_of_late() -> None:
    world, executor = GoingOn(20), RealTime(every=4)
    executor._thread = Later(world, [2, 5, 1, 1, 1])  # pyright: ignore[reportAttributeAccessIssue]
    world.run(executor, 40)
    delays = [one.delay for one in world.asked if one is not None]
    assert delays[0] == 4  # nothing is known yet, but that `every` should do
    assert 5 in delays and max(delays) == 5
    assert executor.late == 1 and executor.waits == 0


def test_a_policy_that_does_not_go_on_is_refused() -> None:
    world = World()
    with pytest.raises(InvalidValueError, match="metadata have no `real_time`"):
        world.run(RealTime(), 1)
    with pytest.raises(InvalidValueError, match="blend is 2; expected 0"):
        RealTime(blend=2)


@pytest.mark.parametrize(
    ("actions", "delay", "message"),
    [
        (np.zeros((3, 2), np.float32), 4, "expected 0 to 3 steps"),
        (np.zeros((3, 2), np.float32), True, "delay is True"),
        (np.zeros((0, 2), np.float32), 0, "are none, or not finite"),
        (np.full((1, 2), np.nan, np.float32), 0, "not finite"),
        (np.zeros((3, 2)), 1, "expected float32"),
    ],
)
def test_committed_actions_that_are_none(actions: np.ndarray, delay: Any, message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        Committed(actions=actions, delay=delay)
