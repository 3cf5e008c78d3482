"""The arm elsewhere at the start, and corrupted images of the reference camera."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lamp_client.envs.corruption import Corruption
from lamp_client.envs.perturbations import ArmStart, Drawn, Effects, Standard


@dataclass(frozen=True, kw_only=True)
class Corrupted:
    """One of several corruptions, the same throughout an episode; its own random draws differ from image to image."""

    category: ClassVar[str] = "noise"
    choices: tuple[Corruption, ...]

    def draw(self, generator: np.random.Generator, standard: Standard) -> Drawn:
        """Draws one of the choices."""
        chosen = self.choices[int(generator.integers(len(self.choices)))]
        numbers = {"corruption": type(chosen).__name__, **dataclasses.asdict(chosen)}
        return Drawn(effects=Effects(corruption=chosen), numbers=numbers)


@dataclass(frozen=True, kw_only=True)
class JointShift:
    """Initial joints in a random direction from the standard ones; the arm stands there when the episode begins.

    Deviation: LIBERO-Plus' stored states put the arm back to the standard joints, and only its controller begins elsewhere.
    """

    category: ClassVar[str] = "robot"
    distance: tuple[float, float]
    """Least and largest Euclidean distance over the seven joints [rad]."""

    def draw(self, generator: np.random.Generator, standard: Standard) -> Drawn:
        """Draws direction and distance."""
        direction = generator.standard_normal(len(standard.joints))
        joints = standard.joints + direction / np.linalg.norm(direction) * generator.uniform(*self.distance)
        numbers: dict[str, object] = {"joints": [round(float(angle), 6) for angle in joints]}
        return Drawn(effects=Effects(arm=ArmStart(joints=joints, moved=True)), numbers=numbers)
