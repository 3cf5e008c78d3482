"""The real simulator behind an evaluation, cut short."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from benchmark_fakes import PolicyDefaults, make_checkpoint

from lamp.benchmark.evaluate import EvaluateConfig, evaluate
from lamp.benchmark.flow_errors import FlowProbe, FlowRecorder
from lamp.benchmark.suites import LiberoSimulators
from lamp.data.lerobot.video import video_info
from lamp.sceneflow.tracks import grid_points
from lamp.view.overlay import ForesightArtist
from lamp_client.envs import Simulator
from lamp_client.types import ActionChunk, Observation

pytest.importorskip("libero")


@dataclass(frozen=True, kw_only=True)
class ShortLibero(LiberoSimulators):
    """LIBERO with 24 steps an episode."""

    def make(self, task: int) -> Simulator:
        from lamp_client.envs.libero import LiberoEnv, load_task

        short = dataclasses.replace(load_task(self.suite, task), step_limit=24)
        return LiberoEnv(short, render=self.render, placement_shift=self.placement_shift, seed=self.seed)


class Downwards(PolicyDefaults):
    """Lowers the open gripper, and foresees that everything rises."""

    uses_motion = True
    execute = 12

    def __init__(self, path: Path, device: str = "cpu", threads: int = 1) -> None:
        self.seen: list[Observation] = []

    def act_batch(
        self, observations: list[Observation], noise_seeds: list[tuple[int, ...]], foresight: bool = False
    ) -> list[ActionChunk]:
        self.seen += observations
        action = np.array([[0, 0, -0.5, 0, 0, 0, 1]], np.float32)
        rising = np.linspace([0.5, 0.8, 0], [0.5, 0.2, 0], 9, dtype=np.float32)[None]
        return [
            ActionChunk(actions=action.repeat(12, 0), foresight=rising if foresight else None) for _ in observations
        ]


@pytest.mark.long
@pytest.mark.sim
def test_conditions_meet_the_same_scene_in_libero(tmp_path: Path) -> None:
    opened: list[Downwards] = []

    def load(path: Path, device: str, threads: int) -> Downwards:
        opened.append(Downwards(path))
        return opened[-1]

    config = EvaluateConfig(
        checkpoint=make_checkpoint(tmp_path / "policy"),
        states="30",
        task=(0,),
        placement_shift=0.02,
        render="fast",
        controls=("zero", "wrong_instruction"),
        videos=1,
        workers=1,
        out=tmp_path / "out",
    )
    short = ShortLibero(suite="libero_object", render="fast", placement_shift=0.02)
    summary = evaluate(config, load=load, simulators=short, artist=ForesightArtist())
    records = {record.condition: record for record in summary.records}
    assert set(records) == {"with_motion", "zero", "wrong_instruction"} and summary.complete
    assert records["with_motion"].placement == records["zero"].placement != {}
    assert all(abs(shift) <= 0.02 for offset in records["zero"].placement.values() for shift in offset)
    assert all(record.steps == 24 and not record.success for record in records.values())
    assert records["with_motion"].policy_calls == 2 and records["zero"].policy_calls == 0
    assert records["wrong_instruction"].instruction != records["with_motion"].instruction

    filmed, told_wrongly = opened[0].seen[:2], opened[0].seen[2:]
    assert filmed[1].state[2] < filmed[0].state[2] - 0.01, "the gripper went down"
    # Filming renders more often, which must not change what happens: both policies do the same and so see the same.
    np.testing.assert_array_equal(filmed[1].images["agentview"], told_wrongly[1].images["agentview"])
    video = records["with_motion"].video
    assert video is not None
    info = video_info(tmp_path / "out" / video)
    assert (info.frames, info.height) == (7, 512)


@pytest.mark.long
@pytest.mark.sim
def test_foresight_is_measured_in_the_evaluated_episode_itself() -> None:
    """The hand goes down for two flow steps: a foresight of no motion errs as no motion does, a perfect one not at all."""
    env = LiberoSimulators(suite="libero_object", render="fast").make(0)
    try:
        env.reset(31)
        recorder, probe = FlowRecorder(env), FlowProbe(camera="agentview", grid=(20, 20), horizon=2, stride=5)
        before = recorder.observe().images["agentview"].copy()
        still = np.repeat(np.concatenate([grid_points(20, 20).numpy(), np.zeros((400, 1))], axis=1)[:, None], 3, axis=1)
        recorder.note(still.astype(np.float32))
        for _ in range(10):
            recorder.step(np.array([0.0, 0.0, -1.0, 0.0, 0.0, 0.0, -1.0]))
        found = recorder.errors(probe)
        assert found["queries"] == 1 and found["points"] is not None and 3 < found["points"] < 200
        error = found["ade_px"]
        assert error is not None and error == found["zero_motion_ade_px"] and error > 256 * 0.01 / 2
        # The renderer of the truth leaves the one of the pictures as it was.
        env.reset(31)
        assert np.abs(recorder.observe().images["agentview"].astype(int) - before).max() <= 1
    finally:
        env.close()


@pytest.mark.slow
@pytest.mark.sim
def test_the_scripted_expert_is_a_control(tmp_path: Path) -> None:
    config = EvaluateConfig(states="0", task=(3,), controls=("expert", "zero"), out=tmp_path, workers=1)
    expert, zero = evaluate(config, simulators=LiberoSimulators(suite="libero_object")).tables[0].rows
    assert (expert.condition, expert.total.successes) == ("expert", 1)
    assert (zero.condition, zero.total.successes) == ("zero", 0)
