"""Corrupted images of the reference camera."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lamp_client.envs.corruption import Corruption
from lamp_client.envs.effects import Drawn, Effects, Standard


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
