"""An evaluation gives the environment the gripper that it expects, whatever numbers the policy's data have."""

from __future__ import annotations

from multiprocessing import Pipe
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from benchmark_fakes import FakeSimulator, FakeSimulators, PolicyDefaults, make_checkpoint

from lamp.benchmark.baselines import Checkpoint, Zero
from lamp.benchmark.episodes import EvaluationEpisode
from lamp.benchmark.policies import Policies
from lamp.benchmark.sim_worker import EpisodeTask, RemotePolicy, WorkerSetup, plain, play
from lamp_client.types import ActionChunk

TOLD = {"gripper": {"dim": 6, "opened": 70.0, "closed": 10.0}, "action_units": "dataset"}


class Watching(FakeSimulator):
    """Keeps what it is asked to convert."""

    def action_from_policy(self, action: np.ndarray) -> np.ndarray:
        self.asked = np.array(action)
        return super().action_from_policy(action)


class Told(PolicyDefaults):
    """A policy that says what its gripper's numbers are."""

    uses_motion, execute, metadata = False, 8, TOLD

    def act_batch(self, *_: Any, **__: Any) -> list[ActionChunk]:
        raise AssertionError("not asked here")


@pytest.mark.parametrize("condition", ["policy", "zero"])
def test_the_adapter_is_given_1_open_0_closed(condition: str, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "policy")
    policies = Policies(lambda path: Told())
    conditions = policies.conditions([(checkpoint, "policy")], ["zero"], None)
    assert policies.metadata() == {"policy": TOLD}
    assert isinstance(conditions["policy"], Checkpoint) and isinstance(conditions["zero"], Zero)
    here, there = Pipe()
    actions = np.tile(np.array([1, 0, 0, 0, 0, 0, 70], np.float32), (24, 1))
    for _ in range(24):
        here.send(ActionChunk(actions=actions))
    simulator = Watching(0, "go", 0.0, None)
    episode = EvaluationEpisode(
        condition=condition, suite="fake", task=0, state=0, repeat=0, placement_seed=0, noise_seed=(1,), checkpoint=""
    )
    setup = WorkerSetup(
        simulators={"fake": FakeSimulators()}, conditions=conditions, instructions={"fake": ("go",)}, execute={"policy": 24},
        folder=None, artist=plain, policies=policies.metadata(),
    )  # fmt: skip
    task = EpisodeTask(episode=episode, actions=None if condition == "policy" else Zero().actions(0), filmed=False)
    play(cast(Any, simulator), task, RemotePolicy(cast(Any, there), setup, task), setup)
    assert simulator.asked[6] == 1.0, "open, whoever says so"
