"""Limits of actions, which the greeting tells: wide for whatever a policy may say, and in the units in which it says it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from serve_fakes import SIDE, asked, connected, observation, request, running

from lamp.data.actions import Absolute, Gripper, Pose, Relative
from lamp.data.embodiment import OWN, Embodiment
from lamp.data.normalizers import ClampedRange, Identity, MinMax, Normaliser, Quantile, Standardise
from lamp.serve.policy_spec import ActionLimits, FakePolicy, action_limits
from lamp_client.client import LARGEST_ACTION, WebsocketPolicy
from lamp_client.errors import WireError
from lamp_client.types import ActionChunk

ROBOT = replace(OWN, gripper=None, kind=Absolute())


def record(actions: Normaliser, embodiment: Embodiment = ROBOT) -> SimpleNamespace:
    """As much of a policy's record as limits need."""
    return SimpleNamespace(scaling=SimpleNamespace(actions=actions), embodiment=embodiment, state_width=8)


def limits(actions: Normaliser, embodiment: Embodiment = ROBOT) -> ActionLimits:
    found = action_limits(record(actions, embodiment))
    assert found is not None
    return found


def test_limits_are_far_outside_the_data() -> None:
    low, high = limits(Standardise(mean=(0.0, 5.0), std=(0.01, 2.0)))
    np.testing.assert_allclose(low, [-0.2, -35.0], atol=1.0)
    np.testing.assert_allclose(high, [0.2, 45.0], atol=1.0)
    for kind in (MinMax, Quantile):
        low, high = limits(kind(low=(-1.0, 0.0), high=(1.0, 10.0)))
        assert low[0] < -15 and high[0] > 15 and low[1] < -90 and high[1] > 100
    low, high = limits(ClampedRange(low=(-1.0,), high=(1.0,)))
    assert -1.1 < low[0] < -1 and 1 < high[0] < 1.1  # it clamps, and rounding has room


def test_what_is_not_known_has_no_limits() -> None:
    assert action_limits(record(Identity(dimensions=2))) is None
    low, high = limits(Standardise(mean=(0.0, 0.0), std=(1.0, 1.0), masked=(1,)))
    assert (low[1], high[1]) == (-LARGEST_ACTION, LARGEST_ACTION) and high[0] < 30


def test_limits_are_in_the_units_in_which_actions_leave() -> None:
    """A gripper of 70 = open and 10 = closed."""
    robot = replace(ROBOT, gripper=Gripper(dim=-1, opened=70.0, closed=10.0))
    low, high = limits(Standardise(mean=(0.0, 0.5), std=(1.0, 0.5), binary=(1,)), robot)
    assert low[1] <= 10 and high[1] >= 70 and high[1] - low[1] < 5000 and low[0] > -30


def test_where_the_state_decides_there_are_none() -> None:
    robot = replace(ROBOT, kind=Relative(pose=Pose()))
    found = action_limits(record(Standardise(mean=(0.0,) * 7, std=(0.1,) * 7), robot))
    low, high = found or ((-LARGEST_ACTION,) * 7, (LARGEST_ACTION,) * 7)
    assert low[:6] == (-LARGEST_ACTION,) * 6 and high[:6] == (LARGEST_ACTION,) * 6


class Limited(FakePolicy):
    """Breaks loose on an instruction."""

    def __init__(self) -> None:
        super().__init__(side=SIDE)
        self.spec = replace(self.spec, action_limits=((-(10.0**7),) * 7, (10.0**7,) * 7))

    def act_batch(self, *arguments: object, **options: object) -> list[ActionChunk]:
        chunks = super().act_batch(*arguments, **options)  # pyright: ignore[reportArgumentType]
        (first, *_), *_ = arguments  # pyright: ignore[reportGeneralTypeIssues]
        if first.instruction != "wild":
            return chunks
        fifth = np.arange(10)[:, None] == 4
        return [replace(chunk, actions=np.where(fifth, np.float32(2e7), chunk.actions)) for chunk in chunks]


def test_a_client_takes_no_action_beyond_them() -> None:
    with running(Limited()) as server, WebsocketPolicy(server.address) as policy:
        assert policy.metadata["action_high"] == [10.0**7] * 7
        assert policy.act(observation()).actions.shape == (10, 7)
        with pytest.raises(
            WireError, match=r"replied with 2e[+]07 for value 0 of action 4; its data have -1e[+]07 to 1e[+]07"
        ):
            policy.act(replace(observation(), instruction="wild"))
        with connected(server) as client:  # others decide for themselves
            assert asked(client, request() | {"prompt": "wild"})["actions"].max() == 2e7
    with running(Limited(), units="libero") as server, WebsocketPolicy(server.address) as policy:
        assert "action_low" not in policy.metadata  # of the dataset's units, which these are not
