"""Which tasks, initial states and seeds an evaluation covers; where its simulators come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lamp.data.episode_selection import parse_numbers
from lamp.errors import ConfigError, unknown
from lamp_client.chunks import Executor, OpenLoop
from lamp_client.envs import Simulator

if TYPE_CHECKING:
    from lamp.benchmark.flow_errors import FlowProbe
    from lamp.benchmark.oracle import Lookahead

SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
"""The four LIBERO suites in the order that numbers them in the noise seed."""

TASKS_PER_SUITE = 10

LIBERO_PLUS = "LIBERO-Plus"
"""The benchmark of that name, run from its own task files."""
LIBERO_PRO = "LIBERO-Pro"
"""The benchmark of that name, run from the task files of its package."""
PLUS_STYLE = "plus-style"
"""Perturbations of LaMP's own; suites, tables and episodes are named so, and are not LIBERO-Plus."""


class Simulators(ABC):
    """Makes the simulators of a suite; travels to worker processes, so it must pickle."""

    suite: str
    """Name of the suite."""
    stop_on_success: bool = True
    """Whether the first success ends an episode."""
    film_every: int = 4
    """Simulation steps from one film frame to the next; rendering is what makes filming slow."""

    def shifted(self, shift: float) -> Simulators:
        """The same tasks with objects displaced by up to so much along x and y [m], as a suite of another name.

        Raises:
            ConfigError: The suite cannot.
        """
        raise ConfigError(f"the scenes of {self.suite} cannot be shifted; expected a suite of LIBERO")

    @abstractmethod
    def instructions(self) -> tuple[str, ...]:
        """The instruction of every task of the suite, in order."""

    @abstractmethod
    def make(self, task: int) -> Simulator:
        """Opens the simulator of a task."""

    def executor(self, execute: int) -> Executor:
        """Makes one action a step of a policy's chunks, of which `execute` actions each are to be executed."""
        return OpenLoop(execute=execute)

    def expert(self, simulator: Any) -> Callable[[], np.ndarray]:
        """A scripted expert for a simulator that has just been reset; each call is its next action, in the dataset's units.

        Raises:
            ConfigError: The suite has none.
        """
        raise ConfigError(f"{self.suite} has no scripted expert; expected one of LIBERO's or SimplerEnv's")

    def lookahead(self, task: int, probe: FlowProbe) -> Lookahead:
        """Opens what tells an oracle the true motion to come in a task for which `check_oracle` finds nothing to refuse."""
        from lamp.benchmark.oracle import Lookahead

        return Lookahead(self.make(task), probe)

    def check_oracle(self, task: int) -> None:
        """Checks that the true motion to come can be known in a task: an expert that makes it, in a simulator that tells it.

        Raises:
            ConfigError: It cannot.
        """
        raise ConfigError(
            f"--prior oracle needs a scripted expert in a simulator that tells its state, and {self.suite} has none; expected "
            "LIBERO's own suites, as they are or with --perturb"
        )


@dataclass(frozen=True, kw_only=True)
class SuitePlan:
    """The tasks and initial states of one suite in an evaluation."""

    simulators: Simulators
    tasks: tuple[int, ...]
    states: tuple[int, ...]
    """Initial states of each task."""
    repeats: int = 1
    """Episodes of each initial state."""
    placement_shift: float = 0.0
    """Largest displacement of an object along x and y [m]."""


@dataclass(frozen=True, kw_only=True)
class EvaluationPlan:
    """The suites, tasks and initial states of an evaluation."""

    suites: tuple[SuitePlan, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What else decides the results, beside the command's settings: perturbations in full, which tasks were found."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What is worth knowing, but may differ between sessions."""
    instructions: tuple[str, ...] = ()
    """Of every task of the suite, for the manifest."""

    @property
    def tasks(self) -> tuple[int, ...]:
        """Numbers of the tasks of all suites."""
        return tuple(sorted({task for suite_plan in self.suites for task in suite_plan.tasks}))


@dataclass(frozen=True, kw_only=True)
class LiberoSimulators(Simulators):
    """The simulators of one LIBERO suite."""

    suite: str
    render: Literal["exact", "fast"] = "exact"
    placement_shift: float = 0.0
    """Largest displacement of an object along x and y in [m]."""
    image_size: int = 256
    seed: int = 7
    """The environment's own seed; 7 in the protocol."""

    def __post_init__(self) -> None:
        if self.suite not in SUITES:
            raise unknown("suite", self.suite, SUITES)

    def instructions(self) -> tuple[str, ...]:
        """The instruction of every task of the suite, in order."""
        from lamp_client.envs.libero import load_task

        return tuple(load_task(self.suite, task).instruction for task in range(TASKS_PER_SUITE))

    def make(self, task: int) -> Simulator:
        """Opens the simulator of one task (seconds)."""
        from lamp_client.envs.libero import LiberoEnv, load_task

        return LiberoEnv(
            load_task(self.suite, task),
            image_size=self.image_size,
            render=self.render,
            placement_shift=self.placement_shift,
            seed=self.seed,
        )

    def shifted(self, shift: float) -> ShiftedSimulators:
        return ShiftedSimulators(standard=replace(self, placement_shift=shift))

    def expert(self, simulator: Any) -> Callable[[], np.ndarray]:
        """The expert that `lamp collect` records; it knows pick-and-place tasks."""
        from lamp.collect.episode_recording import act_of_expert

        return act_of_expert(simulator)

    def check_oracle(self, task: int) -> None:
        """The expert knows pick-and-place tasks.

        Raises:
            ConfigError: This is none.
        """
        from lamp.collect.scene_state import check_goals
        from lamp_client.envs.bddl import goals_of, read_definition
        from lamp_client.envs.libero import load_task

        try:
            check_goals(goals_of(read_definition(load_task(self.suite, task).bddl_path)))
        except ConfigError as error:
            raise ConfigError(
                f"--prior oracle needs a scripted expert, and {self.suite} task {task} has none: {error}"
            ) from None


@dataclass(frozen=True, kw_only=True)
class ShiftedSimulators(Simulators):
    """A LIBERO suite whose objects are displaced, beside the suite as it is."""

    standard: LiberoSimulators
    """With the displacement."""

    suite: str = field(init=False)
    """Different from the standard suite's name, so that no table counts both together."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "suite", f"{self.standard.suite} shifted by {self.standard.placement_shift:g} m")

    def instructions(self) -> tuple[str, ...]:
        """The instruction of every task of the suite, in order."""
        return self.standard.instructions()

    def make(self, task: int) -> Simulator:
        """Opens the simulator of one task (seconds)."""
        return self.standard.make(task)

    def expert(self, simulator: Any) -> Callable[[], np.ndarray]:
        """The standard suite's."""
        return self.standard.expert(simulator)

    def check_oracle(self, task: int) -> None:
        """As in the standard suite."""
        self.standard.check_oracle(task)


def parse_states(text: str, available: int = 50) -> tuple[int, ...]:
    """Reads initial states as Python writes slices, joined by commas: `30:50`, `0:50:5`, `0,3,40:50`.

    Raises:
        ConfigError: The text is no such list, names a state twice, or one that the suite does not have.
    """
    return parse_numbers(text, available, "initial states")


def noise_seed(suite: str, task: int, state: int, repeat: int = 0) -> int:
    """The policy's noise seed of one episode: 7 + 100000 suite + 1000 task + episode, as the released evaluation has it.

    The episode number is the initial state, so that evaluating a few states gives the very episodes of the full run;
    repetitions of a state count on in steps of 50.
    """
    return 7 + 100_000 * _number(suite) + 1_000 * task + state + 50 * repeat


def _number(suite: str) -> int:
    """A suite's number in seeds; a perturbed suite has the standard one's, so that only what is perturbed differs."""
    standard = suite.split()[0]
    return SUITES.index(standard) if standard in SUITES else len(SUITES)


def placement_seed(seed: int, suite: str, task: int, state: int, repeat: int = 0) -> int:
    """The seed that displaces an episode's objects: the same for every condition, whichever subset is evaluated."""
    # The leading constant keeps evaluation placements apart from any that collection draws from small integer seeds.
    return int(np.random.SeedSequence([0xE7A1, seed, _number(suite), task, state, repeat]).generate_state(1)[0])
