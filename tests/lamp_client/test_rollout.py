"""Episodes in an environment that counts."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from lamp_client.chunks import OpenLoop
from lamp_client.client import InProcessPolicy, NoiseSeed
from lamp_client.envs import Env, StepResult
from lamp_client.errors import InvalidValueError
from lamp_client.rollout import Frame, run_episode
from lamp_client.types import Observation


@dataclass
class CountingEnv:
    """The goal holds after the steps in `goal_at`; the environment breaks at `broken_at`."""

    goal_at: frozenset[int] = frozenset()
    broken_at: int | None = None
    cameras: tuple[str, ...] = ("front",)
    instruction: str = "count"
    step_limit: int = 10
    steps: int = 0
    looks: int = 0
    executed: list[np.ndarray] = field(default_factory=list)

    def observe(self) -> Observation:
        self.looks += 1
        image = np.full((2, 2, 3), self.steps, dtype=np.uint8)
        return Observation(images={"front": image}, state=np.zeros(1, dtype=np.float32), instruction=self.instruction)

    def step(self, action: np.ndarray) -> StepResult:
        self.steps += 1
        self.executed.append(action)
        success = self.steps in self.goal_at
        return StepResult(success=success, done=success or self.steps == self.broken_at)

    def action_from_policy(self, action: np.ndarray) -> np.ndarray:
        return -action


def policy_of(seeds: list[NoiseSeed | None] | None = None, units: str = "dataset") -> InProcessPolicy:
    def act(_: Observation, seed: NoiseSeed | None) -> np.ndarray:
        if seeds is not None:
            seeds.append(seed)
        return np.ones((4, 7))

    return InProcessPolicy(act, {"action_units": units})


def test_an_episode_without_success_runs_to_the_limit_and_looks_only_when_asked() -> None:
    env, seeds = CountingEnv(), []
    result = run_episode(env, policy_of(seeds), OpenLoop(), noise_seed=(7, 3))
    assert (result.success, result.success_last, result.steps, result.reason) == (False, False, 10, "step limit")
    assert env.looks == 3 == result.policy_calls and seeds == [(7, 3, 0), (7, 3, 1), (7, 3, 2)]
    assert 0 < result.policy_s <= result.wall_s


def test_the_environment_is_given_the_gripper_as_1_open_0_closed() -> None:
    env = CountingEnv()
    gripper = {"dim": 6, "opened": 70.0, "closed": 10.0}
    policy = InProcessPolicy(
        lambda *_: np.array([[0, 0, 0, 0, 0, 0.5, 70.0], [70, 0, 0, 0, 0, 0, 25.0]]), {"gripper": gripper}
    )
    run_episode(env, policy, OpenLoop(), noise_seed=(), max_steps=2)
    np.testing.assert_allclose(env.executed, [[0, 0, 0, 0, 0, -0.5, -1], [-70, 0, 0, 0, 0, 0, -0.25]])
    for wrong in ({"dim": 6}, "wide", {"dim": 6, "opened": 1, "closed": 1}, {"dim": 0, "opened": "a", "closed": 1}):
        with pytest.raises(InvalidValueError, match="gripper"):
            run_episode(env, InProcessPolicy(lambda *_: np.ones((1, 7)), {"gripper": wrong}), OpenLoop(), noise_seed=())


def test_success_ends_the_episode() -> None:
    env: Env = CountingEnv(goal_at=frozenset({6}))
    result = run_episode(env, policy_of(), OpenLoop(), noise_seed=())
    assert (result.success, result.success_last, result.steps, result.reason) == (True, True, 6, "success")


def test_success_that_is_lost_again_is_told_apart() -> None:
    env = CountingEnv(goal_at=frozenset({3, 4}))
    result = run_episode(env, policy_of(), OpenLoop(), noise_seed=(), stop_on_success=False)
    assert (result.success, result.success_last, result.steps, result.reason) == (True, False, 10, "step limit")


def test_an_environment_that_stops() -> None:
    result = run_episode(CountingEnv(broken_at=2), policy_of(), OpenLoop(), noise_seed=())
    assert (result.success, result.steps, result.reason) == (False, 2, "environment")


@pytest.mark.parametrize(("units", "sign"), [("dataset", -1.0), ("environment", 1.0)])
def test_actions_are_converted_by_their_units(units: str, sign: float) -> None:
    env = CountingEnv()
    run_episode(env, policy_of(units=units), OpenLoop(), noise_seed=(), max_steps=3)
    np.testing.assert_array_equal(env.executed, np.full((3, 7), sign))


def test_frames_show_every_other_moment_and_the_last() -> None:
    env, frames = CountingEnv(), list[Frame]()
    result = run_episode(
        env, policy_of(), OpenLoop(execute=3), noise_seed=(), max_steps=5, on_frame=frames.append, frame_every=2
    )
    assert result.steps == 5
    assert [frame.step for frame in frames] == [0, 2, 4, 5]
    assert [int(frame.observation.images["front"][0, 0, 0]) for frame in frames] == [0, 2, 4, 5]
    assert [frame.chunk_age for frame in frames] == [0, 2, 1, 2]
    assert all(frame.chunk is not None for frame in frames)
    # Moments 0, 2, 4, 5 are shown and moments 0, 3 are seen by the policy: each is rendered once.
    assert env.looks == 5


def test_no_steps_are_refused() -> None:
    with pytest.raises(InvalidValueError, match="at least 1"):
        run_episode(CountingEnv(), policy_of(), OpenLoop(), noise_seed=(), max_steps=0)
