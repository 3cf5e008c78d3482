"""Disturbing what the expert executes, so that demonstrations show how to come back from states the expert would not visit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from lamp.collect.expert import Decision, Phase
from lamp.collect.pick_and_place import CLOSE

CORRELATION = 6.0
"""Steps after which the action noise has forgotten 1 - 1/e of what it was."""
ROTATION_SHARE = 0.3
"""Standard deviation of the noise on rotations, as a share of that on positions."""
PRECISION_SHARE = 0.85
"""Share of the noise that is held back in the most precise steps."""
PUSH_DISTANCE = (0.01, 0.03)
"""Least and greatest length of a push in [m]."""
PUSH_REACH = (0.01, 0.12)
"""Nearest and farthest distance from the grasp at which a push begins in [m]."""
FUMBLE_DISTANCE = (0.01, 0.035)
"""How far aside the hand is pushed while it closes too early, least and most, in [m]."""
FUMBLE_REACH = (0.008, 0.05)
"""Nearest and farthest distance from the grasp at which a fumble begins in [m]."""
FUMBLE_STEPS = (6, 14)
"""Least and greatest number of steps for which a fumbling gripper closes; about ten close it fully."""
METRES_PER_STEP = 0.0125
"""How far the arm moves in one step under an action of 1 [m]."""


class OrnsteinUhlenbeck:
    """Noise with mean 0, a stationary standard deviation `std`, and a correlation of exp(-n / `correlation`) over n steps."""

    def __init__(self, generator: np.random.Generator, *, std: Float[np.ndarray, " a"], correlation: float) -> None:
        self.generator, self.std = generator, std
        self.keep = float(np.exp(-1.0 / correlation))
        self.value = std * generator.standard_normal(len(std))

    def sample(self) -> Float[np.ndarray, " a"]:
        fresh = np.sqrt(1.0 - self.keep**2) * self.std * self.generator.standard_normal(len(self.std))
        self.value = self.keep * self.value + fresh
        return self.value


class Disturbance:
    """Turns the expert's clean action into the executed one: correlated noise, at times a push or a fumble before the grasp.

    A fumble closes the gripper beside the object. What the expert then does (open, rise, come again) is what a policy must
    know when it has missed; without it a policy carries nothing to the goal and stays there.

    Args:
        seed: Everything drawn follows from it and from the decisions.
        std: Standard deviation of the noise on each action value where the expert bears it; less in precise steps.
        push_probability: Probability that the episode has a push of 1 to 3 cm on the way to the grasp.
        fumble_probability: Probability that it has a fumble, independently.
    """

    def __init__(
        self, seed: int | Sequence[int], *, std: float, push_probability: float, fumble_probability: float = 0.0
    ) -> None:
        generator = np.random.default_rng(seed)
        self.pushed = bool(generator.uniform() < push_probability)
        angle, lift = generator.uniform(-np.pi, np.pi), generator.uniform(0.0, 0.5)
        direction = np.array([np.cos(angle), np.sin(angle), lift])
        self._push = direction / np.linalg.norm(direction)
        self._push_steps = int(np.ceil(generator.uniform(*PUSH_DISTANCE) / METRES_PER_STEP)) if self.pushed else 0
        self._push_reach = float(generator.uniform(*PUSH_REACH))
        scale = np.array([1.0] * 3 + [ROTATION_SHARE] * 3)
        self._noise = OrnsteinUhlenbeck(generator, std=std * scale, correlation=CORRELATION)
        # A generator of its own: fumbles do not change the noise and pushes that a seed stands for.
        self._draw_fumble(np.random.default_rng((*np.atleast_1d(seed).tolist(), 1)), fumble_probability)

    def _draw_fumble(self, generator: np.random.Generator, probability: float) -> None:
        self.fumbled = bool(generator.uniform() < probability)
        angle = generator.uniform(-np.pi, np.pi)
        self._aside = np.array([np.cos(angle), np.sin(angle), generator.uniform(0.0, 0.5)])
        self._aside_steps = int(np.ceil(generator.uniform(*FUMBLE_DISTANCE) / METRES_PER_STEP))
        self._fumble_steps = int(generator.integers(*FUMBLE_STEPS, endpoint=True)) if self.fumbled else 0
        self._fumble_reach = float(generator.uniform(*FUMBLE_REACH))
        self._fumbling = False
        self.overriding = False
        """Whether the last executed action was a push or a fumble instead of the clean one."""

    def executed(self, decision: Decision) -> Float[np.ndarray, "7"]:
        """The action to execute in place of the clean one; the gripper's command stays as it is but in a fumble."""
        action = decision.action.copy()
        noise = self._noise.sample() * (1.0 - PRECISION_SHARE * decision.precision)
        self.overriding = False
        if self._push_steps and decision.phase is Phase.APPROACH and decision.reach < self._push_reach:
            self._push_steps -= 1
            self.overriding = True
            action[:3] = self._push
        self._fumbling |= decision.phase is Phase.APPROACH and decision.reach < self._fumble_reach
        if self._fumbling and self._fumble_steps:
            self._fumble_steps -= 1
            self.overriding = True
            action[6] = CLOSE
            if self._aside_steps:
                self._aside_steps -= 1
                action[:3] = self._aside
        action[:6] = np.clip(action[:6] + noise, -1.0, 1.0)
        return action
