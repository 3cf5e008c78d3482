"""A simulator and a policy without physics. Run as a script, it evaluates them in processes of its own.

The gripper of the fake is a number on a line. It starts at a place that the initial state and the placement give, and the episode
succeeds when it reaches the target; the policy can read both from the image, if it looks and is told the right instruction.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lamp.benchmark.suites import Simulators
from lamp.errors import MismatchError
from lamp_client.envs import StepResult
from lamp_client.types import ActionChunk, Observation


class FakeSimulator:
    variation: Mapping[str, Any] = {}
    facts: Mapping[str, Any] = {}
    cameras = ("agentview", "wrist")
    step_limit = 24

    def __init__(self, task: int, instruction: str, pause_s: float, journal: Path | None) -> None:
        self.task, self.instruction = task, instruction
        self.pause_s, self.journal = pause_s, journal
        self.placement: dict[str, list[float]] = {}
        self.position = 0.0
        self.renders = 0

    def reset(self, initial_state: int, placement_seed: int | None = None) -> None:
        generator = np.random.default_rng([initial_state, placement_seed or 0])
        self.position = float(generator.uniform(4, 20))
        self.placement = {"bowl": [self.position / 1000, 0.0]}
        if self.journal is not None:
            with self.journal.open("a") as stream:
                stream.write(f"{os.getpid()} {self.task} {initial_state}\n")

    def observe(self) -> Observation:
        self.renders += 1
        image = np.zeros((64, 64, 3), np.uint8)
        image[:, : 1 + int(max(self.position, 0))] = 200
        state = np.array([self.position, self.task, 0, 0.1, 0.2, 0.3, 0, 0], np.float32)
        return Observation(images={"agentview": image, "wrist": image}, state=state, instruction=self.instruction)

    def step(self, action: np.ndarray) -> StepResult:
        time.sleep(self.pause_s)
        self.position -= float(action[0])
        reached = self.position <= 0
        return StepResult(success=reached, done=reached)

    def action_from_policy(self, action: np.ndarray) -> np.ndarray:
        return np.asarray(action)

    def close(self) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class FakeSimulators(Simulators):
    suite: str = "fake"
    pause_s: float = 0.0
    journal: Path | None = None
    """A file that gets a line for every episode begun."""
    raises_at: int | None = None
    """The task whose simulator cannot be opened."""
    hangs_at: int | None = None
    """The task whose simulator never opens; with a journal, the first time only."""

    def instructions(self) -> tuple[str, ...]:
        return ("push left", "push right", "push up")

    def make(self, task: int) -> FakeSimulator:
        if task == self.raises_at:
            raise RuntimeError("the simulator exploded")
        if task == self.hangs_at and (self.journal is None or _first(self.journal.with_name("hung"))):
            time.sleep(3600)
        return FakeSimulator(task, self.instructions()[task], self.pause_s, self.journal)


def _first(mark: Path) -> bool:
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


class PolicyDefaults:
    """What policies without a motion prior say."""

    metadata: Mapping[str, Any] = {}
    foresees = None

    def intervened(self, intervention: Any) -> Any:
        raise MismatchError("there is no motion prior")

    def oracle(self) -> Any:
        raise MismatchError("there is no motion prior")


class FakePolicy(PolicyDefaults):
    """Moves by 1 a step if it sees something and is told the instruction of the task; else stands still."""

    execute = 4

    def __init__(self, path: Path, device: str = "cpu", threads: int = 1) -> None:
        self.uses_motion = "without" not in path.name
        self.batches: list[int] = []
        self.seeds: list[tuple[int, ...]] = []

    def act_batch(
        self, observations: list[Observation], noise_seeds: list[tuple[int, ...]], foresight: bool = False
    ) -> list[ActionChunk]:
        self.batches.append(len(observations))
        self.seeds += noise_seeds
        instructions = FakeSimulators().instructions()
        chunks = []
        for observation in observations:
            image = observation.images["agentview"]
            right = observation.instruction == instructions[int(observation.state[1])]
            actions = np.zeros((6, 7), np.float32)
            actions[:, 0] = 1.0 if right and image.std() > 0 else 0.0
            path = np.tile(np.linspace(0.2, 0.6, 5, dtype=np.float32)[None, :, None], (4, 1, 3))
            chunks.append(ActionChunk(actions=actions, foresight=path if foresight else None))
        return chunks


def make_checkpoint(folder: Path, content: str = "weights") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "lamp.json").write_text("{}")
    (folder / "model.safetensors").write_text(content)
    return folder


if __name__ == "__main__":
    from lamp.benchmark.evaluate import EvaluateConfig, evaluate

    root = Path(sys.argv[1])
    evaluate(
        EvaluateConfig(
            checkpoint=root / "policy", states="0:10", task=(0, 1), controls=("zero",), out=root / "out", workers=2
        ),
        load=FakePolicy,
        simulators=FakeSimulators(pause_s=float(sys.argv[2]), journal=root / "journal"),
    )
