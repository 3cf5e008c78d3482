"""Plus-style perturbations: camera, robot, noise, language and light, made on LIBERO's own assets.

They follow LIBERO-Plus in spirit, without its asset archive or its wordings. They are NOT LIBERO-Plus: what they give is named
plus-style wherever it is shown, and never stands in one column with the benchmark's numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from lamp_client.envs.perturbations import (
    CORRUPTIONS,
    Corruption,
    Effects,
    GaussianNoise,
    SampledPerturbation,
    StandardScene,
)
from lamp_client.envs.plus_style.perturbations import (
    CONTEXTS,
    FRAMES,
    Brightness,
    Corrupted,
    Distance,
    FieldOfView,
    JointShift,
    LightDirection,
    Orbit,
    Reworded,
    Shadows,
    Tint,
    Turn,
)
from lamp_client.errors import InvalidValueError, UnknownNameError

__all__ = ["ASPECTS", "CATEGORIES", "LEVELS", "Joined", "OneOf", "Perturbation", "at_level", "parse"]

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
        return self.choices[0].category

    def draw(self, generator: np.random.Generator, standard: StandardScene) -> SampledPerturbation:
        chosen = self.choices[int(generator.integers(len(self.choices)))]
        sampled = chosen.draw(generator, standard)
        return dataclasses.replace(sampled, numbers={"aspect": type(chosen).__name__, **sampled.numbers})


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
        return "+".join(part.category for part in self.parts)

    def draw(self, generator: np.random.Generator, standard: StandardScene) -> SampledPerturbation:
        effects, numbers = Effects(), {}
        for part in self.parts:
            sampled = part.draw(generator, standard)
            changed = {item.name: getattr(sampled.effects, item.name) for item in dataclasses.fields(sampled.effects)}
            effects = dataclasses.replace(
                effects, **{name: value for name, value in changed.items() if value is not None}
            )
            numbers[part.category] = sampled.numbers
        return SampledPerturbation(effects=effects, numbers=numbers)


Perturbation = Single | OneOf | Joined

LEVELS = (1, 2, 3, 4, 5)

CATEGORIES = ("camera", "robot", "language", "light", "noise")
"""The dimensions, in LIBERO-Plus' order; background and layout need its assets and have no plus-style counterpart."""

_REWORDED = (
    Reworded(around=FRAMES),
    Reworded(verbs=True),
    Reworded(verbs=True, around=FRAMES),
    Reworded(verbs=True, nouns=True),
    Reworded(verbs=True, nouns=True, around=CONTEXTS),
)


def _corrupted(family: int, level: int) -> Corrupted:
    """Two of LIBERO-Plus' ten severities."""
    severities: tuple[Corruption, ...] = CORRUPTIONS[family]
    return Corrupted(choices=severities[2 * level - 2 : 2 * level])


ASPECTS: dict[str, Callable[[int], Single]] = {
    "camera.orbit": lambda level: Orbit(azimuth=(15.0 * level - 10.0, 15.0 * level), elevation=(0.0, 15.0)),
    "camera.distance": lambda level: Distance(factor=(1.0 + 0.2 * level - 0.1, 1.0 + 0.2 * level)),
    "camera.turn": lambda level: Turn(angle=(2.0 * level - 1.0, 2.0 * level)),
    "camera.fov": lambda level: FieldOfView(change=(3.0 * level - 2.0, 3.0 * level)),
    "robot.joints": lambda level: JointShift(distance=(0.1 * level, 0.1 * level)),
    "language.words": lambda level: _REWORDED[level - 1],
    "light.brightness": lambda level: Brightness(stops=(0.3 * level - 0.15, 0.3 * level)),
    "light.direction": lambda level: LightDirection(
        azimuth=(36.0 * level - 18.0, 36.0 * level), from_above=(14.0 * level - 7.0, 14.0 * level)
    ),
    "light.tint": lambda level: Tint(saturation=(0.14 * level - 0.07, 0.14 * level)),
    "light.shadows": lambda level: Shadows(share=(0.14 * level - 0.07, 0.14 * level), height=80.0 - 10.0 * level),
    "noise.motion_blur": partial(_corrupted, 0),
    "noise.gaussian_blur": partial(_corrupted, 1),
    "noise.zoom_blur": partial(_corrupted, 2),
    "noise.fog": partial(_corrupted, 3),
    "noise.glass_blur": partial(_corrupted, 4),
    "noise.gaussian": lambda level: Corrupted(choices=(GaussianNoise(std=0.04 * level),)),
}
"""Name -> the perturbation at a level, 1 to 5."""


def at_level(name: str, level: int) -> Single | OneOf:
    """An aspect such as `camera.orbit`, or for a category one of its aspects, drawn for each episode.

    Raises:
        UnknownNameError: There is no such aspect, category or level.
    """
    if level not in LEVELS:
        raise UnknownNameError(f"level of {name}", level, LEVELS)
    if name in ASPECTS:
        return ASPECTS[name](level)
    aspects = [build for aspect, build in ASPECTS.items() if aspect.split(".")[0] == name]
    if not aspects:
        raise UnknownNameError("perturbation", name, (*CATEGORIES, *ASPECTS))
    return aspects[0](level) if len(aspects) == 1 else OneOf(choices=tuple(build(level) for build in aspects))


def parse(text: str) -> Perturbation:
    """Reads `camera=3`, `light.tint=5`, or several at once: `camera=3+noise.fog=2`.

    Raises:
        InvalidValueError: The text is no such thing, or joins two of one category.
        UnknownNameError: There is no such perturbation or level.
    """
    parts = []
    for part in text.split("+"):
        name, sign, level = part.strip().partition("=")
        if not sign or not level.isdigit():
            raise InvalidValueError(
                f"perturbation {text!r}: expected a name and a level such as 'camera=3' or 'light.tint=5', or several "
                "joined by +."
            )
        parts.append(at_level(name, int(level)))
    return parts[0] if len(parts) == 1 else Joined(parts=tuple(parts))
