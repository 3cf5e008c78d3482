"""What a rollout needs from an environment. The adapters live in this package's modules and import their simulator lazily."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from lamp_client.types import Observation


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one action led to."""

    success: bool
    """Whether the task's goal holds now."""
    done: bool
    """Whether the episode is over: the goal holds, or the environment stopped."""


class Env(Protocol):
    """A task that a policy can act in."""

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the images in an observation, the reference camera first."""
        ...

    @property
    def instruction(self) -> str: ...

    @property
    def step_limit(self) -> int:
        """Actions allowed after settling."""
        ...

    def observe(self) -> Observation:
        """Renders and reads the state of this very moment; nothing is rendered unless this is called."""
        ...

    def step(self, action: np.ndarray) -> StepResult:
        """Executes one action in the ENVIRONMENT's units."""
        ...

    def action_from_policy(self, action: np.ndarray) -> np.ndarray:
        """Converts an action, its gripper 1 = open, 0 = closed, to the environment's convention. A policy whose data hold other
        numbers says so (`GripperUnits`), and its actions are given that gripper before."""
        ...


@runtime_checkable
class Simulator(Env, Protocol):
    """A task that an evaluation can put into an initial state."""

    @property
    def placement(self) -> Mapping[str, Any]:
        """Name of each displaced object -> its offset (x, y) in [m]."""
        ...

    @property
    def variation(self) -> Mapping[str, Any]:
        """How the scene differs from the task's standard one since the last reset, as JSON values: `benchmark`, `category`,
        `level`, and what was drawn; empty where it does not."""
        ...

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the episode's record should know of the simulator, such as versions that this process does not see."""
        ...

    def reset(self, initial_state: int, placement_seed: int | None = None) -> None:
        """Goes to a stored initial state, displaces objects if so configured, and lets everything settle."""
        ...

    def close(self) -> None: ...
