"""A policy that goes on from committed actions: related to the state of the moment, over the wire, refused where it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from serve_fakes import asked, connected, running
from training_fakes import ACTION, SIDE, WIDTH, PatchBackbone, policy_training  # pyright: ignore[reportMissingImports]

from lamp.data.actions import Absolute, Delta, Gripper, Pose, Relative
from lamp.data.embodiment import Embodiment, StateRotation
from lamp.data.normalizers import ContinuousRotation, Standardise
from lamp.data.policy_dataset import PolicyScaling
from lamp.errors import MismatchError
from lamp.model.lamp import LaMP, LaMPConfig
from lamp.model.realtime import TrainedDelays
from lamp.policy import LaMPPolicy
from lamp.serve.policy_spec import CheckpointPolicy, policy_spec
from lamp.train.checkpoint_metadata import BackboneRecord, CameraInput, DataRecord, Description, PolicyRecord
from lamp_client.asynchronous import RealTime
from lamp_client.client import WebsocketPolicy
from lamp_client.envs.rotations import matrix_from_axis_angle
from lamp_client.types import Committed, Observation

CHUNK = 6


class OneCamera(PatchBackbone):
    """The patches, of one camera."""

    description = {"kind": "patches", "cameras": [["agentview", SIDE]]}  # noqa: RUF012


def policy_of(kind: Any = None, trained: TrainedDelays | None = None) -> LaMPPolicy:
    """Random weights, of a rig whose gripper is 2 = open, -3 = closed; relative poses where nothing is said."""
    torch.manual_seed(3)
    expert = replace(ACTION, chunk=CHUNK, state_dim=10, action_dim=7)
    model = LaMPConfig(token_width=WIDTH, motion=None, guidance=None, action=expert, real_time=trained)
    robot = Embodiment(
        name="rig", cameras={"agentview": "front"}, kind=kind or Relative(pose=Pose()),
        gripper=Gripper(dim=6, opened=2.0, closed=-3.0), rotations=(StateRotation(),),
    )  # fmt: skip
    config = policy_training(with_motion=False, model=model, embodiment=robot)
    scaling = PolicyScaling(
        state_transform=ContinuousRotation(),
        state=Standardise(mean=(0.0,) * 10, std=(1.0,) * 10),
        actions=Standardise(mean=(0.1,) * 6 + (0.0,), std=(0.2,) * 6 + (1.0,), binary=(6,)),
    )
    record = PolicyRecord(state_width=7, scaling=scaling, chunk=CHUNK, execute=3, fps=20.0, embodiment=robot)
    inputs = (CameraInput(name="agentview", height=SIDE, width=SIDE),)
    data = DataRecord(name="mine", fingerprint="", episodes=1, frames=1, tasks=("go",), validation_episodes=())
    description = Description(
        kind="policy", model=model, backbone=BackboneRecord(key=None, description={}, cameras=inputs), flow=None,
        policy=record, motion_source=None, training=config, data=data, step=1, averaged=False, exactly_reproducible=True,
        code="", packages={},
    )  # fmt: skip
    return LaMPPolicy(LaMP(model), description, OneCamera())


@pytest.fixture(scope="module")
def policy() -> LaMPPolicy:
    return policy_of()


def observation(seed: int = 0, committed: Committed | None = None) -> Observation:
    generator = np.random.default_rng(seed)
    image = generator.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    state = generator.normal(scale=0.5, size=7).astype(np.float32)
    return Observation(images={"agentview": image}, state=state, instruction="go", committed=committed)


def left(seed: int, count: int = 4, delay: int = 2) -> Committed:
    generator = np.random.default_rng(seed + 100)
    actions = generator.normal(scale=0.4, size=(count, 7)).astype(np.float32)
    actions[:, 6] = np.where(generator.random(count) < 0.5, 2.0, -3.0)
    return Committed(actions=actions, delay=delay)


@pytest.mark.parametrize("name", ["auto", "guided", "identity"])
@pytest.mark.parametrize("fast", [False, True])
def test_a_chunk_begins_with_what_is_committed(name: Any, fast: bool) -> None:
    policy = policy_of()
    policy = policy.compile() if fast else policy
    policy.real_time = name
    free = policy.act(observation(), noise_seed=(1,))
    committed = left(0)
    bound = policy.act(observation(committed=committed), noise_seed=(1,))
    np.testing.assert_array_equal(bound.actions[:2], committed.actions[:2])
    # What is only left is followed, and not to the letter.
    near = np.abs(bound.actions[2] - committed.actions[2])[:6].mean()
    assert 0 < near < np.abs(free.actions[2] - committed.actions[2])[:6].mean()
    together = policy.act_batch([observation(committed=committed), observation(5)], [(1,), (2,)])
    np.testing.assert_allclose(together[0].actions, bound.actions, atol=1e-4)
    np.testing.assert_allclose(together[1].actions, policy.act(observation(5), noise_seed=(2,)).actions, atol=1e-4)


def test_a_policy_that_was_trained_for_it_is_conditioned() -> None:
    policy = policy_of(trained=TrainedDelays(largest=2))
    assert policy.metadata["real_time"] == "trained"
    committed = left(0)
    bound = policy.act(observation(committed=committed), noise_seed=(1,))
    np.testing.assert_array_equal(bound.actions[:2], committed.actions[:2])
    # Beyond what it was trained for, guidance takes over.
    policy.real_time = "guided"
    guided = policy.act(observation(committed=replace(committed, delay=3)), noise_seed=(1,))
    policy.real_time = "auto"
    again = policy.act(observation(committed=replace(committed, delay=3)), noise_seed=(1,))
    np.testing.assert_array_equal(guided.actions, again.actions)
    with pytest.raises(MismatchError, match="trained without delays"):
        policy_of().real_time = "trained"


def test_in_a_batch_each_request_goes_on_in_its_own_way() -> None:
    policy = policy_of(trained=TrainedDelays(largest=2))
    trained, longer = left(0), replace(left(1), delay=3)
    seen = [observation(3, trained), observation(4, longer), observation(5)]
    seeds = [(1,), (2,), (3,)]
    together = policy.act_batch(seen, seeds)
    alone = [policy.act(one, noise_seed=seed) for one, seed in zip(seen, seeds, strict=True)]
    policy.real_time = "guided"
    guided = policy.act_batch(seen, seeds)
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one.actions, other.actions, atol=1e-4)
    # The one that was trained for is not guided because another's delay is longer.
    assert np.abs(together[0].actions - guided[0].actions).max() > 1e-3
    np.testing.assert_allclose(together[1].actions, guided[1].actions, atol=1e-4)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_relative_poses_are_related_to_the_state_of_the_moment(seed: int) -> None:
    policy, committed = policy_of(), left(seed)
    seen = observation(seed, committed)
    from lamp.model.realtime import Guided

    _, going_on = policy._going_on([seen], seen.state[None], Guided())
    shown = policy.record.scaling.actions.invert(going_on["previous"].actions[0, :4].double().numpy())
    frame, origin = matrix_from_axis_angle(seen.state[3:6].astype(np.float64)), seen.state[:3]
    for action, relative in zip(committed.actions.astype(np.float64), shown, strict=True):
        np.testing.assert_allclose(relative[:3], frame.T @ (action[:3] - origin), atol=1e-5)
        np.testing.assert_allclose(
            matrix_from_axis_angle(relative[3:6]), frame.T @ matrix_from_axis_angle(action[3:6]), atol=1e-4
        )
        assert relative[6] == pytest.approx((action[6] + 3) / 5, abs=1e-5)


@pytest.mark.parametrize("kind", [Absolute(), Delta()])
def test_other_actions_are_what_they_are_whatever_the_state(kind: Any) -> None:
    policy, committed = policy_of(kind), left(1)
    bound = policy.act(observation(3, committed), noise_seed=(1,))
    np.testing.assert_array_equal(bound.actions[:2], committed.actions[:2])


def test_what_does_not_fit_is_refused(policy: LaMPPolicy) -> None:
    with pytest.raises(MismatchError, match="7 actions left of a chunk of 6"):
        policy.act(observation(committed=left(0, count=7)))
    with pytest.raises(MismatchError, match="of 6 values; this policy's have 7"):
        policy.act(observation(committed=Committed(actions=np.zeros((3, 6), np.float32), delay=1)))


@pytest.fixture(scope="module")
def client(policy: LaMPPolicy) -> Iterator[WebsocketPolicy]:
    served = CheckpointPolicy(spec=policy_spec(policy), act_batch=policy.act_batch)
    with running(served) as server, WebsocketPolicy("127.0.0.1", server.port) as client:
        yield client


def test_over_the_wire(policy: LaMPPolicy, client: WebsocketPolicy) -> None:
    assert client.metadata["real_time"] == "guided"
    seen = observation(committed=left(0))
    there, here = client.act(seen, noise_seed=(7,)), policy.act(seen, noise_seed=(7,))
    np.testing.assert_allclose(there.actions, here.actions, atol=1e-5)
    np.testing.assert_allclose(
        client.act(observation(), noise_seed=(7,)).actions,
        policy.act(observation(), noise_seed=(7,)).actions,
        atol=1e-5,
    )  # without it, as before


def test_an_executor_goes_on_over_the_wire(client: WebsocketPolicy) -> None:
    executor = RealTime(every=2, delay=1)
    chunks, executed = [], []
    for step in range(9):
        executed.append(executor.next_action(lambda step=step: observation(step), client, (4,)))
        assert executor.chunk is not None
        if not chunks or executor.chunk is not chunks[-1]:
            chunks.append(executor.chunk)
    # Asked at steps 2, 5 and 8: the first action of the next chunk is the one that was executed meanwhile.
    assert len(chunks) == 3 and executor.late == executor.waits == 0
    for chunk, asked_at in zip(chunks[1:], (2, 5), strict=True):
        np.testing.assert_array_equal(chunk.actions[0], executed[asked_at])
        np.testing.assert_array_equal(chunk.actions[1], executed[asked_at + 1])
    executor.close()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"lamp/delay": 2}, "'lamp/delay' and no 'lamp/committed'"),
        ({"lamp/committed": "no", "lamp/delay": 1}, "'lamp/committed' is str"),
        ({"lamp/committed": np.zeros((2, 6), np.float32), "lamp/delay": 1}, "shape (2, 6)"),
        ({"lamp/committed": np.zeros((7, 7), np.float32), "lamp/delay": 1}, "1 to 6 actions of 7 values"),
        ({"lamp/committed": np.full((2, 7), np.nan, np.float32), "lamp/delay": 1}, "holds nan"),
        ({"lamp/committed": np.full((2, 7), 1e30, np.float64), "lamp/delay": 1}, "expected numbers up to"),
        ({"lamp/committed": np.zeros((2, 7), np.float32), "lamp/delay": 3}, "expected 0 to 2 steps"),
        ({"lamp/committed": np.zeros((2, 7), np.float32), "lamp/delay": 1.5}, "'lamp/delay' is '1.5'"),
        ({"lamp/committed": np.zeros((2, 7), np.float32)}, "'lamp/delay' is 'None'"),
    ],
)
def test_requests_that_are_wrong(policy: LaMPPolicy, client: WebsocketPolicy, more: Any, message: str) -> None:
    request = client.layout.request(observation())
    served = CheckpointPolicy(spec=policy_spec(policy), act_batch=policy.act_batch)
    with running(served) as server, connected(server) as raw:
        assert message in asked(raw, request | more)


def test_units_of_an_environment_and_other_policies_refuse(policy: LaMPPolicy) -> None:
    committed = {"lamp/committed": np.zeros((2, 7), np.float32), "lamp/delay": 1}
    delta = policy_of(Delta())
    served = CheckpointPolicy(spec=policy_spec(delta), act_batch=delta.act_batch)
    with running(served, units="libero") as server, WebsocketPolicy("127.0.0.1", server.port) as client:
        assert "real_time" not in client.metadata
        request = client.layout.request(observation())
        with connected(server) as raw:
            assert "does not go on from committed actions" in asked(raw, request | committed)
