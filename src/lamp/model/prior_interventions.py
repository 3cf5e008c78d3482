"""What can be changed about a motion prior while a policy acts, to see whether it is used and what for; `lamp.model.intervene`
does it. Simulator processes import this module, so it needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from lamp.errors import ConfigError, unknown

PriorKind = Literal["predicted", "oracle"]
"""Where z_m comes from: the Motion Expert's prediction; or, as an oracle, the TRUE motion that follows. Where a policy acts
nobody knows that: an oracle says how much the best of priors could give, and is no result."""


class PriorChange:
    """What an intervention may change; the defaults change nothing."""

    reads_other: ClassVar[bool] = False
    """Whether the Motion Expert reads what the caller brings in place of the observation."""

    @property
    def denoised_steps(self) -> int | None:
        """Steps of the solver before z_m is read; None: the configuration's."""
        return None

    @property
    def gate(self) -> float | None:
        """Where the gate stands; None: where training has left it."""
        return None

    @property
    def euler_steps(self) -> int | None:
        """Steps from noise to actions; None: the configuration's."""
        return None


@dataclass(frozen=True, kw_only=True)
class Zeroed(PriorChange):
    """z_m is zero (a path: the mean one); the guidance still adds what it makes of that."""

    name = "prior_zeroed"


@dataclass(frozen=True, kw_only=True)
class Shuffled(PriorChange):
    """z_m of another task's observation, which the caller brings, from the episode's own noise."""

    name = "prior_shuffled"
    reads_other = True


@dataclass(frozen=True, kw_only=True)
class WrongPriorInstruction(PriorChange):
    """z_m of the same images and another instruction; the Action Expert hears the right one."""

    name = "prior_told_wrong"
    reads_other = True


@dataclass(frozen=True, kw_only=True)
class Redrawn(PriorChange):
    """z_m of another draw of noise, which is as likely as the first."""

    name = "prior_redrawn"


@dataclass(frozen=True, kw_only=True)
class Gate(PriorChange):
    """The gate of Eq. 4 stands elsewhere; at 0 the Action Expert reads z itself."""

    opening: float

    @property
    def name(self) -> str:
        return f"gate={self.opening:g}"

    @property
    def gate(self) -> float:
        return self.opening


@dataclass(frozen=True, kw_only=True)
class Denoised(PriorChange):
    """z_m after another number of the solver's steps, at tau = steps / N."""

    steps: int

    @property
    def name(self) -> str:
        return f"denoised={self.steps}"

    @property
    def denoised_steps(self) -> int:
        return self.steps


@dataclass(frozen=True, kw_only=True)
class ActionSteps(PriorChange):
    """Actions from another number of Euler steps."""

    steps: int

    @property
    def name(self) -> str:
        return f"action_steps={self.steps}"

    @property
    def euler_steps(self) -> int:
        return self.steps


Intervention = Zeroed | Shuffled | WrongPriorInstruction | Redrawn | Gate | Denoised | ActionSteps

PLAIN: dict[str, Intervention] = {kind.name: kind() for kind in (Zeroed, Shuffled, WrongPriorInstruction, Redrawn)}
EVERY = (
    *PLAIN,
    "gate=0",
    "gate=0.5",
    "gate=1",
    "denoised=0",
    "denoised=3",
    "denoised=10",
    "action_steps=1",
    "action_steps=3",
)
"""What `all` stands for."""


def parse(names: Sequence[str]) -> tuple[Intervention, ...]:
    """Reads interventions by their names: `prior_zeroed`, `gate=0.5`, ...; `all` stands for `EVERY`.

    Raises:
        ConfigError: There is no such intervention, or its value is impossible.
    """
    expanded = [each for name in names for each in (EVERY if name == "all" else (name,))]
    return tuple(dict.fromkeys(map(_one, expanded)))


def is_intervention(name: str) -> bool:
    """Whether a condition of an evaluation is an intervention, by its name."""
    return name in PLAIN or name.partition("=")[0] in ("gate", "denoised", "action_steps")


def _one(name: str) -> Intervention:
    kind, _, value = name.partition("=")
    if name in PLAIN:
        return PLAIN[name]
    if kind == "gate":
        return Gate(opening=_number(name, value, "-1 to 1", -1.0, 1.0))
    if kind == "denoised":
        return Denoised(steps=int(_number(name, value, "0 to the solver's steps", 0.0, 1e4, whole=True)))
    if kind == "action_steps":
        return ActionSteps(steps=int(_number(name, value, "1 or more", 1.0, 1e4, whole=True)))
    raise unknown("intervention", name, (*PLAIN, "gate=X", "denoised=N", "action_steps=N", "all"))


def _number(name: str, value: str, expected: str, least: float, most: float, *, whole: bool = False) -> float:
    try:
        number = float(int(value) if whole else value)
    except ValueError:
        number = float("nan")
    if not least <= number <= most:
        raise ConfigError(f"intervention {name!r}: {value or 'no value'!r} given, a number expected: {expected}")
    return number
