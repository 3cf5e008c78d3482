"""The oracle in LIBERO itself: the future that the expert would make is the one that a recorded episode of it shows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lamp.benchmark.flow_errors import FlowProbe
from lamp.benchmark.suites import LiberoSimulators
from lamp.collect.noise import Disturbance
from lamp.errors import ConfigError

pytest.importorskip("libero")

SIMULATORS = LiberoSimulators(suite="libero_object", render="fast")
PROBE = FlowProbe(camera="agentview", grid=(20, 20), horizon=8, stride=4)


def recorded_flow(env: Any, trajectory: Any, frames: list[int]) -> list[np.ndarray]:
    """The scene flow from some frames of an episode on, as `lamp flow build` finds it; NaN where it is not known."""
    from lamp.sceneflow.exact_flow import RayCast, Sampling, episode_flow
    from lamp.sceneflow.rendering import BodyDepthRenderer
    from lamp.sceneflow.sim_states import Playback, Recording
    from lamp.sceneflow.tracks import flow_from_tracks

    position, rotation = env.model_poses()
    recording = Recording(
        states=trajectory.states,
        body_poses=trajectory.body_poses,
        model_body_pos=position,
        model_body_quat=rotation,
        metadata={},
    )
    model = env.simulation[0]
    sampling = Sampling(grid=PROBE.grid, horizon=PROBE.horizon, stride=PROBE.stride)
    with BodyDepthRenderer(model, width=256, height=256, mirrored=True, geom_groups=(1, 2)) as renderer:
        found = episode_flow(Playback(model, recording), renderer, "agentview", frames, sampling, RayCast())
        flows = [flow_from_tracks(tracks, camera) for tracks, camera in found]
    return [torch.where(flow.mask, flow.increments, torch.nan).numpy() for flow in flows]


def environment_action(action: np.ndarray) -> np.ndarray:
    return np.append(action[:6], 1 - 2 * action[6])


@pytest.mark.slow
@pytest.mark.sim
def test_the_expert_s_future_is_the_recorded_one() -> None:
    from lamp.benchmark.oracle import FollowedSimulator, Lookahead
    from lamp.collect.episode_recording import simulate

    env: Any = SIMULATORS.make(0)
    twin = SIMULATORS.make(0)
    try:
        env.reset(12)
        trajectory = simulate(env, Disturbance(0, std=0.0, push_probability=0.0))
        assert trajectory.outcome == "success" and trajectory.retries == 0
        gripper = trajectory.clean[:, 6]
        grasping, letting_go = np.flatnonzero(np.diff(gripper))[:2].tolist()
        carrying, last = (grasping + letting_go) // 2, trajectory.length - 6
        frames = [0, grasping - 3, carrying, letting_go - 2, last]
        truth = recorded_flow(env, trajectory, frames)
        with Lookahead(twin, PROBE) as lookahead:
            env.reset(12)
            followed, told, states = lookahead.follow(env, 12, None), {}, []
            for frame in range(trajectory.length):
                if frame in frames:
                    told[frame] = followed.flow()
                if frame == carrying:  # a policy that got there in its own way, which the expert has not seen
                    stranger = FollowedSimulator(env, lookahead)
                    stranger._command = followed._command
                    told[-1] = stranger.flow()
                states.append(env.snapshot().state)
                followed.step(environment_action(trajectory.clean[frame]))
            np.testing.assert_array_equal(np.stack(states), trajectory.states, "what is evaluated was touched")
            for frame, wanted in zip(frames, truth, strict=True):
                known = np.isfinite(wanted)
                assert (known == np.isfinite(told[frame])).mean() > 0.999, frame
                np.testing.assert_allclose(told[frame][known], wanted[known], atol=1e-5, err_msg=str(frame))
            assert np.nanmax(np.abs(truth[2])) > 0.01, "what is carried moves"
            assert np.isfinite(truth[-1][:, 0]).any() and not np.isfinite(truth[-1][:, -1]).any(), "past the end"
            np.testing.assert_allclose(told[-1], told[carrying], atol=1e-5)
    finally:
        env.close()


@pytest.mark.sim
def test_tasks_without_an_expert_are_refused_by_name() -> None:
    LiberoSimulators(suite="libero_spatial").check_oracle(3)
    with pytest.raises(ConfigError, match=r"needs a scripted expert, and libero_goal task 7 has none.*turnon"):
        LiberoSimulators(suite="libero_goal").check_oracle(7)
