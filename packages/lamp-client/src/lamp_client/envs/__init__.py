"""What a rollout needs from an environment. The adapters live in this package's modules and import their simulator lazily."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

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
