"""Perturbations of several kinds together."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from lamp_client.envs.effects import Drawn, Effects, Standard
from lamp_client.envs.plus_style.camera import Distance, FieldOfView, Orbit, Turn
from lamp_client.envs.plus_style.language import Reworded
from lamp_client.envs.plus_style.light import Brightness, LightDirection, Shadows, Tint
from lamp_client.envs.plus_style.noise import Corrupted
from lamp_client.envs.plus_style.robot import JointShift
from lamp_client.errors import InvalidValueError

Single = (
    Orbit
    | Distance
    | Turn
    | FieldOfView
    | JointShift
    | Corrupted
    | Reworded
    | Brightness
    | LightDirection
    | Tint
    | Shadows
)
"""What changes one thing."""


@dataclass(frozen=True, kw_only=True)
class OneOf:
    """One of several of a category, drawn for each episode."""

    choices: tuple[Single, ...]

    def __post_init__(self) -> None:
        if len({choice.category for choice in self.choices}) != 1:
            raise InvalidValueError(f"{self}: expected perturbations of one category.")

    @property
    def category(self) -> str:
        """That of the choices."""
        return self.choices[0].category

    def draw(self, generator: np.random.Generator, standard: Standard) -> Drawn:
        """Draws a choice, and what it draws."""
        chosen = self.choices[int(generator.integers(len(self.choices)))]
        drawn = chosen.draw(generator, standard)
        return dataclasses.replace(drawn, numbers={"aspect": type(chosen).__name__, **drawn.numbers})


@dataclass(frozen=True, kw_only=True)
class Joined:
    """Several of different categories at once."""

    parts: tuple[Single | OneOf, ...]

    def __post_init__(self) -> None:
        categories = [part.category for part in self.parts]
        if len(categories) < 2 or len(set(categories)) != len(categories):
            raise InvalidValueError(
                f"{' and '.join(categories) or 'nothing'} together: expected two or more different categories."
            )

    @property
    def category(self) -> str:
        """The categories of the parts, joined."""
        return "+".join(part.category for part in self.parts)

    def draw(self, generator: np.random.Generator, standard: Standard) -> Drawn:
        """Draws every part."""
        effects, numbers = Effects(), {}
        for part in self.parts:
            drawn = part.draw(generator, standard)
            changed = {item.name: getattr(drawn.effects, item.name) for item in dataclasses.fields(drawn.effects)}
            effects = dataclasses.replace(
                effects, **{name: value for name, value in changed.items() if value is not None}
            )
            numbers[part.category] = drawn.numbers
        return Drawn(effects=effects, numbers=numbers)


Perturbation = Single | OneOf | Joined
