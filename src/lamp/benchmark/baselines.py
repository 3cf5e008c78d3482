"""The conditions of an evaluation: a policy, and the controls that say what its success rate is worth.

Every condition acts on the same episodes. `Replay`, `Zero` and `Scripted` never look, so they cost no rendering;
`WrongInstruction` and `Blank` ask the same checkpoint, but take one of its inputs away.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lamp.benchmark.suites import Simulators, placement_seed
from lamp.errors import ConfigError, DataError, unknown
from lamp.model.prior_interventions import Intervention, Shuffled, WrongPriorInstruction, is_intervention
from lamp_client.types import Observation


@dataclass(frozen=True, kw_only=True)
class PolicyCondition:
    """A condition that looks, and asks a checkpoint's policy."""

    path: Path
    """The checkpoint, or the run that holds it."""
    is_intended: ClassVar[bool] = False
    """Whether the policy acts as its checkpoint is meant to."""
    is_oracle: ClassVar[bool] = False
    """Whether it is told the true motion to come."""
    changes_policy: ClassVar[bool] = False
    """Whether the policy itself is `changed`."""

    def changed(self, policy: Any) -> Any:
        """Returns the `BatchPolicy` that acts in place of the checkpoint's."""
        return policy

    @property
    def shuffles(self) -> bool:
        """Whether the motion prior is given another task's observation."""
        return False

    def altered(self, observation: Observation, *, task: int, instructions: tuple[str, ...]) -> Observation:
        """Returns what the policy is shown."""
        return observation

    def prior_instruction(self, observation: Observation, *, task: int, instructions: tuple[str, ...]) -> str | None:
        """Returns what the Motion Expert is told in place of the instruction; None: the same as the policy."""
        return None


@dataclass(frozen=True, kw_only=True)
class Checkpoint(PolicyCondition):
    """The policy of a checkpoint, as it is meant to be used."""

    name: str
    is_intended: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class Oracle(Checkpoint):
    """The policy of a checkpoint, told the true motion to come."""

    is_oracle: ClassVar[bool] = True
    changes_policy: ClassVar[bool] = True

    def changed(self, policy: Any) -> Any:
        return policy.oracle()


ORACLE = "oracle"
"""How a policy that was trained with the true motion is called where it is told it."""


def oracle_name(name: str) -> str:
    """What another policy is called where it is told the true motion."""
    return name if is_oracle(name) else f"{name} ({ORACLE})"


def is_oracle(condition: str) -> bool:
    """Whether a condition of an evaluation was told the true motion to come, by its name."""
    return condition == ORACLE or condition.endswith(f"({ORACLE})")


@dataclass(frozen=True, kw_only=True)
class WrongInstruction(PolicyCondition):
    """The same policy, told the instruction of the suite's next task: near the policy's rate, language is not used."""

    name: str = "wrong_instruction"
    among: tuple[int, ...] = ()
    """Tasks whose instructions come first, such as those that are evaluated: a policy may not know the words of others."""

    def altered(self, observation: Observation, *, task: int, instructions: tuple[str, ...]) -> Observation:
        other = wrong_instruction(observation.instruction, task, instructions, self.among)
        return dataclasses.replace(observation, instruction=other)


def wrong_instruction(right: str, task: int, instructions: tuple[str, ...], among: tuple[int, ...]) -> str:
    """The instruction of the suite's next task that says something else; those of the tasks `among` come first.

    Raises:
        ConfigError: All tasks are told the same.
    """
    turns = [(task + step) % len(instructions) for step in range(1, len(instructions))]
    for turn in sorted(turns, key=lambda turn: turn not in among):
        if instructions[turn] != right:
            return instructions[turn]
    raise ConfigError("a wrong instruction needs a suite with at least two different instructions")


@dataclass(frozen=True, kw_only=True)
class Intervened(PolicyCondition):
    """The same policy, its motion prior changed while it acts: near the policy's rate, that is not what success depends on."""

    intervention: Intervention
    among: tuple[int, ...] = ()
    """Tasks whose instructions come first where the prior is told a wrong one."""
    changes_policy: ClassVar[bool] = True

    def changed(self, policy: Any) -> Any:
        return policy.intervened(self.intervention)

    @property
    def name(self) -> str:
        return self.intervention.name

    @property
    def shuffles(self) -> bool:
        return isinstance(self.intervention, Shuffled)

    def prior_instruction(self, observation: Observation, *, task: int, instructions: tuple[str, ...]) -> str | None:
        if not isinstance(self.intervention, WrongPriorInstruction):
            return None
        return wrong_instruction(observation.instruction, task, instructions, self.among)


SHORTCUT = "shortcut"
"""How the policy is called that knows the task's number and none of its words."""


@dataclass(frozen=True, kw_only=True)
class Shortcut(PolicyCondition):
    """A small policy that was told the task's number in training: near the policy's rate, the suite does not need words."""

    name: str = SHORTCUT

    def altered(self, observation: Observation, *, task: int, instructions: tuple[str, ...]) -> Observation:
        # By the standard instruction it looks the number up; reworded ones are none of its business.
        return dataclasses.replace(observation, instruction=instructions[task])


BANK_TASKS, BANK_OF_TASK = 4, 4
"""Tasks in a bank of the benchmark's own observations, and observations of each."""
BANK_REPEAT, BANK_DRAW = 1_000_003, 0xBA2C
"""Keep a bank's placements apart from those of episodes, and its draws from other random numbers."""


@dataclass(frozen=True, kw_only=True)
class PriorBank:
    """Observations of several tasks: where the prior is shuffled, an episode gets z_m of one of another task's.

    Which one depends on the episode's noise seed and on how often it has asked, never on who else asks.
    """

    observations: tuple[Observation, ...]
    """Each with its task's instruction."""
    instructions: tuple[str, ...]
    """Of every task of the suite that is evaluated."""

    def other(self, task: int, noise_seed: tuple[int, ...]) -> Observation:
        """An observation of another task than this one, drawn by the request's noise seed.

        Raises:
            ConfigError: There is none.
        """
        others = self._others(task)
        if not others:
            raise ConfigError(
                f"prior_shuffled: there is no observation of another task than {self.instructions[task]!r}; name a dataset that "
                "has other tasks (--data DIR), evaluate several tasks, or leave it out"
            )
        return others[int(np.random.default_rng([BANK_DRAW, *noise_seed]).integers(len(others)))]

    def _others(self, task: int) -> list[Observation]:
        own = _spelling(self.instructions[task])
        return [one for one in self.observations if _spelling(one.instruction) != own]

    @classmethod
    def of_simulators(
        cls, simulators: Simulators, tasks: Sequence[int], states: Sequence[int], *, seed: int
    ) -> PriorBank:
        """Shows some tasks of a suite as they begin, those that are evaluated first.

        Args:
            tasks: The tasks that are evaluated.
            states: The initial states that are evaluated; the first few are shown.
        """
        instructions, found = simulators.instructions(), []
        for task in bank_tasks(instructions, tasks):
            simulator = simulators.make(task)
            try:
                for state in states[:BANK_OF_TASK]:
                    simulator.reset(state, placement_seed(seed, simulators.suite, task, state, BANK_REPEAT))
                    found.append(dataclasses.replace(simulator.observe(), instruction=instructions[task]))
            finally:
                simulator.close()
        return cls(observations=tuple(found), instructions=tuple(instructions))

    @classmethod
    def of_data(cls, data: Path, instructions: Sequence[str], *, seed: int) -> PriorBank:
        """Frames of a dataset, spread over its episodes and tasks.

        Raises:
            DataError: The dataset cannot be read.
        """
        from lamp.data.lerobot import LeRobotDataset

        dataset, generator = LeRobotDataset(data), np.random.default_rng([BANK_DRAW, seed])
        by_task: dict[str, list[int]] = {}
        for episode in dataset.episodes:
            by_task.setdefault(episode.task, []).append(episode.index)
        found = []
        for task, episodes in by_task.items():
            for _ in range(BANK_OF_TASK):
                episode = int(generator.choice(episodes))
                frame = int(generator.choice(np.flatnonzero(dataset.fresh(episode))))
                images = {camera: dataset.frames(camera, episode, [frame])[0] for camera in dataset.cameras}
                found.append(Observation(images=images, state=np.zeros(1, np.float32), instruction=task))
        return cls(observations=tuple(found), instructions=tuple(instructions))

    def check(self, tasks: Sequence[int]) -> None:
        """
        Raises:
            ConfigError: There is nothing of another task for one of these.
        """
        for task in tasks:
            self.other(task, (0,))


def bank_tasks(instructions: Sequence[str], tasks: Sequence[int]) -> list[int]:
    """Which tasks of a suite to make a bank of: at most `BANK_TASKS`, of different instructions, the evaluated ones first.

    Raises:
        ConfigError: All tasks have the same instruction.
    """
    chosen: dict[str, int] = {}
    for task in (*tasks, *range(len(instructions))):
        chosen.setdefault(_spelling(instructions[task]), task)
    if len(chosen) < 2:
        raise ConfigError(
            "prior_shuffled takes z_m of other tasks' observations, and there is one task only; name a dataset that has others "
            "(--data DIR), or leave it out"
        )
    return list(chosen.values())[:BANK_TASKS]


def _spelling(instruction: str) -> str:
    return " ".join(instruction.casefold().split())


@dataclass(frozen=True, kw_only=True)
class Blank(PolicyCondition):
    """The same policy, shown grey images: near the policy's rate, the scene does not need to be seen."""

    name: str = "blank"

    def altered(self, observation: Observation, *, task: int, instructions: tuple[str, ...]) -> Observation:
        grey = {camera: np.full_like(image, 127) for camera, image in observation.images.items()}
        return dataclasses.replace(observation, images=grey)


@dataclass(frozen=True, kw_only=True)
class Replay:
    """One expert episode of the task, its executed actions sent again without looking."""

    data: Path
    name: str = "replay"

    def actions(self, task: int) -> np.ndarray:
        """Returns the expert's actions (steps, 7) in dataset units (gripper 1 = open).

        Raises:
            DataError: The dataset has no episode of the task.
        """
        return expert_actions(self.data, task)


@dataclass(frozen=True, kw_only=True)
class Zero:
    """No motion at all, gripper open: what the task gives away for free."""

    name: str = "zero"

    def actions(self, task: int) -> np.ndarray:
        """Returns a single action, which is repeated to the step limit."""
        return np.array([[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]], dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class Scripted:
    """The suite's scripted expert, which is told where everything is: what the tasks allow, and that they can be solved here."""

    name: str = "expert"


Condition = Checkpoint | Oracle | WrongInstruction | Blank | Shortcut | Intervened | Replay | Zero | Scripted
CONTROLS = ("expert", "replay", "zero", "wrong_instruction", "blank", SHORTCUT)
ORDER = ("with_motion", "policy", "without_motion", *CONTROLS)
"""The order of conditions in tables; others follow the policies by name."""


def is_policy(condition: str) -> bool:
    """Whether a condition is a policy that acts as it is meant to: no control, no change of its prior, and no oracle."""
    return condition not in CONTROLS and not is_intervention(condition) and not is_oracle(condition)


def rank(condition: str) -> tuple[int, str, float]:
    """Sorts conditions as tables show them: policies, others by name and then by their value (`gate=0.5`), controls."""
    name, _, value = condition.partition("=")
    number = float(value) if value.replace(".", "", 1).lstrip("-").isdigit() else 0.0
    if condition in CONTROLS:
        return len(ORDER) + CONTROLS.index(condition), name, number
    return (ORDER.index(condition) if condition in ORDER else 3), name, number


def control(name: str, *, checkpoint: Path | None, data: Path | None, tasks: tuple[int, ...] = ()) -> Condition:
    """Builds the control of that name, for an evaluation of some tasks.

    Raises:
        ConfigError: No such control, or what it needs was not given.
    """
    if name == "zero":
        return Zero()
    if name == "expert":
        return Scripted()
    if name == "replay":
        if data is None:
            raise ConfigError("the control replay needs --data: the dataset folder whose expert episodes it replays")
        return Replay(data=data)
    if name in ("wrong_instruction", "blank"):
        if checkpoint is None:
            raise ConfigError(f"the control {name} needs --checkpoint: it asks the policy with one input taken away")
        return WrongInstruction(path=checkpoint, among=tasks) if name == "wrong_instruction" else Blank(path=checkpoint)
    raise unknown("control", name, [known for known in CONTROLS if known != SHORTCUT])


EXECUTED = "action.executed"
"""What was sent to the robot."""


def expert_actions(data: Path, task: int) -> np.ndarray:
    """Reads the executed actions of the dataset's first episode of a task, in dataset units (gripper 1 = open).

    Raises:
        DataError: The dataset has no episode of the task, or no actions.
    """
    from lamp.data.lerobot import LeRobotDataset
    from lamp.json_files import read_lines_json

    # Of recordings that were imported, no line says which of the suite's tasks it is.
    lines = [line for line in read_lines_json(data / "meta" / "lamp_episodes.jsonl") if "task" in line]
    found = sorted(line["episode_index"] for line in lines if line["task"] == task)
    if not found:
        tasks = sorted({line["task"] for line in lines})
        raise DataError(
            f"{data} has no episode of task {task} to replay; it has tasks {', '.join(map(str, tasks)) or 'none'}"
        )
    dataset = LeRobotDataset(data)
    if EXECUTED not in dataset.features:
        raise DataError(
            f"{data} records no {EXECUTED} to replay; expected a dataset of `lamp collect` without --motion-only"
        )
    return np.asarray(dataset.column(EXECUTED, found[0]), dtype=np.float32)
