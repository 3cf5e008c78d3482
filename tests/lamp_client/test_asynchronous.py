"""Chunks executed while the next is computed, against closed forms; the policy says which call and which step it saw."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from lamp_client.asynchronous import Asynchronous
from lamp_client.client import InProcessPolicy, NoiseSeed
from lamp_client.errors import InvalidValueError, ServerError
from lamp_client.types import Observation


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
