"""The real simulator behind an evaluation, cut short."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from benchmark_fakes import make_checkpoint

from lamp.benchmark.evaluating import EvaluateConfig, evaluate
from lamp.benchmark.suites import LiberoSimulators, Simulator
from lamp.data.video import video_info
from lamp.view.overlay import ForesightArtist
from lamp_client.types import ActionChunk, Observation

pytest.importorskip("libero")


@dataclass(frozen=True, kw_only=True)
class ShortLibero(LiberoSimulators):
    """LIBERO with 24 steps an episode."""

    def make(self, task: int) -> Simulator:
        from lamp_client.envs.libero import LiberoEnv, load_task

        short = dataclasses.replace(load_task(self.suite, task), step_limit=24)
        return LiberoEnv(short, render=self.render, placement_shift=self.placement_shift, seed=self.seed)


class Downwards:
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
