"""The arm elsewhere at the start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lamp_client.envs.effects import ArmStart, Drawn, Effects, Standard


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
