"""Noise and pushes: their statistics, and what they must leave alone."""

from __future__ import annotations

import numpy as np
import pytest

from lamp.collect.expert import Decision, Phase
from lamp.collect.noise import (
    CORRELATION,
    FUMBLE_DISTANCE,
    FUMBLE_STEPS,
    METRES_PER_STEP,
    PUSH_DISTANCE,
    ROTATION_SHARE,
    Disturbance,
    OrnsteinUhlenbeck,
)


def decision(
    *, phase: Phase = Phase.CARRY, precision: float = 0.0, reach: float = 0.3, gripper: float = -1.0
) -> Decision:
    action = np.array([0.2, -0.1, 0.0, 0.0, 0.0, 0.1, gripper])
    return Decision(action=action, phase=phase, precision=precision, reach=reach)


def test_noise_has_the_stated_deviation_and_memory() -> None:
    noise = OrnsteinUhlenbeck(np.random.default_rng(0), std=np.array([0.15, 0.3]), correlation=5.0)
    drawn = np.stack([noise.sample() for _ in range(40_000)])
    np.testing.assert_allclose(drawn.std(axis=0), [0.15, 0.3], rtol=0.05)
    np.testing.assert_allclose(drawn.mean(axis=0), 0.0, atol=0.02)
    for lag in (1, 5):
        correlation = np.corrcoef(drawn[:-lag, 0], drawn[lag:, 0])[0, 1]
        assert correlation == pytest.approx(np.exp(-lag / 5.0), abs=0.03)


def test_noise_is_stationary_from_the_first_step() -> None:
    first = [
        OrnsteinUhlenbeck(np.random.default_rng(i), std=np.array([0.15]), correlation=6.0).sample() for i in range(4000)
    ]
    assert np.std(first) == pytest.approx(0.15, rel=0.05)


def test_executed_actions_scatter_around_the_clean_one() -> None:
    disturbance = Disturbance(3, std=0.15, push_probability=0.0)
    clean = decision()
    executed = np.stack([disturbance.executed(clean) for _ in range(20_000)])
    np.testing.assert_allclose(executed[:, :3].std(axis=0), 0.15, rtol=0.1)
    np.testing.assert_allclose(executed[:, 3:6].std(axis=0), 0.15 * ROTATION_SHARE, rtol=0.1)
    np.testing.assert_allclose(executed.mean(axis=0), clean.action, atol=0.15 * 3 * np.sqrt(2 * CORRELATION / 20_000))


def test_precise_steps_are_disturbed_less() -> None:
    deviations = []
    for precision in (0.0, 0.5, 1.0):
        disturbance = Disturbance(3, std=0.15, push_probability=0.0)
        deviations.append(np.std([disturbance.executed(decision(precision=precision))[0] for _ in range(3000)]))
    assert deviations[0] > 1.5 * deviations[1] > 3.0 * deviations[2] > 0.0


def test_the_gripper_and_the_clean_action_are_left_alone() -> None:
    disturbance = Disturbance(0, std=0.5, push_probability=1.0)
    for gripper in (-1.0, 1.0):
        clean = decision(phase=Phase.APPROACH, reach=0.005, gripper=gripper)
        before = clean.action.copy()
        executed = disturbance.executed(clean)
        assert executed[6] == gripper
        assert np.abs(executed).max() <= 1.0
        np.testing.assert_array_equal(clean.action, before)


def test_without_noise_and_push_the_clean_action_is_executed() -> None:
    disturbance = Disturbance(0, std=0.0, push_probability=0.0)
    clean = decision(phase=Phase.APPROACH, reach=0.001)
    np.testing.assert_array_equal(disturbance.executed(clean), clean.action)


def test_a_push_comes_near_the_grasp_and_only_there() -> None:
    for seed in range(30):
        disturbance = Disturbance(seed, std=0.0, push_probability=1.0)
        for phase, reach in ((Phase.APPROACH, 0.2), (Phase.CARRY, 0.0), (Phase.CLOSE, 0.0)):
            clean = decision(phase=phase, reach=reach)
            np.testing.assert_array_equal(disturbance.executed(clean), clean.action)
        near = decision(phase=Phase.APPROACH, reach=0.0)
        pushes, overriding = [], []
        for _ in range(10):
            pushes.append(disturbance.executed(near)[:3])
            overriding.append(disturbance.overriding)
        pushed = [push for push in pushes if not np.array_equal(push, near.action[:3])]
        assert overriding == [not np.array_equal(push, near.action[:3]) for push in pushes]
        assert PUSH_DISTANCE[0] <= len(pushed) * METRES_PER_STEP <= PUSH_DISTANCE[1] + METRES_PER_STEP
        for push in pushed:
            np.testing.assert_array_equal(push, pushed[0])
            assert np.linalg.norm(push) == pytest.approx(1.0) and push[2] >= 0.0


def test_the_share_of_pushed_episodes_is_the_probability() -> None:
    pushed = [Disturbance(seed, std=0.1, push_probability=0.3).pushed for seed in range(1500)]
    assert np.mean(pushed) == pytest.approx(0.3, abs=0.05)


def test_the_seed_decides_everything() -> None:
    def sequence(seed: int) -> np.ndarray:
        disturbance = Disturbance(seed, std=0.15, push_probability=0.5)
        return np.stack([disturbance.executed(decision(phase=Phase.APPROACH, reach=0.05)) for _ in range(20)])

    np.testing.assert_array_equal(sequence(11), sequence(11))
    assert not np.array_equal(sequence(11), sequence(12))


def test_a_fumble_closes_the_gripper_beside_the_object_and_only_there() -> None:
    for seed in range(30):
        disturbance = Disturbance(seed, std=0.0, push_probability=0.0, fumble_probability=1.0)
        for phase, reach in ((Phase.APPROACH, 0.2), (Phase.CARRY, 0.0), (Phase.CLOSE, 0.0)):
            far = decision(phase=phase, reach=reach)
            np.testing.assert_array_equal(disturbance.executed(far), far.action)
        near = decision(phase=Phase.APPROACH, reach=0.005)
        executed = np.stack([disturbance.executed(near) for _ in range(30)])
        closing = executed[:, 6] == 1.0
        assert FUMBLE_STEPS[0] <= closing.sum() <= FUMBLE_STEPS[1]
        assert closing[: closing.sum()].all()
        assert not disturbance.overriding
        aside = ~np.isclose(executed[:, :3], near.action[:3]).all(axis=1)
        assert FUMBLE_DISTANCE[0] <= aside.sum() * METRES_PER_STEP <= FUMBLE_DISTANCE[1] + METRES_PER_STEP
        assert near.action[6] == -1.0, "the recorded action is the clean one: open"


def test_fumbles_change_neither_noise_nor_pushes_of_a_seed() -> None:
    for seed in (4, (1, 2)):
        plain = Disturbance(seed, std=0.15, push_probability=0.5)
        fumbling = Disturbance(seed, std=0.15, push_probability=0.5, fumble_probability=1.0)
        away = [decision(phase=Phase.CARRY) for _ in range(20)]
        np.testing.assert_array_equal([plain.executed(one) for one in away], [fumbling.executed(one) for one in away])
        assert plain.pushed == fumbling.pushed and not plain.fumbled and fumbling.fumbled
