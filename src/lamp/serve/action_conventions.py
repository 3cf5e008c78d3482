"""The units in which actions leave the server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from lamp.errors import MismatchError, unknown
from lamp.serve.policy_spec import PolicySpec
from lamp_client.envs import libero, simpler_tasks
from lamp_client.types import GripperUnits

Actions = Float[np.ndarray, "h a"]


@dataclass(frozen=True, kw_only=True)
class DatasetUnits:
    """The dataset's own units, gripper included; LaMP's own environment adapters convert, as the greeting says what they are."""

    grippers: tuple[GripperUnits, ...] = ()
    """In the dataset's actions; none: unknown, and taken as one, 1 = open, 0 = closed, where it has to be converted."""
    action_units: Literal["dataset", "environment"] = "dataset"

    @property
    def sent(self) -> tuple[GripperUnits, ...]:
        """The grippers in the actions that are sent; none: unknown."""
        return self.grippers

    def openness(self, actions: Actions) -> Actions:
        """Actions as they are recorded, with grippers 1 = open, 0 = closed."""
        for gripper in self.grippers:
            actions = gripper.openness(actions)
        return actions

    def __call__(self, actions: Actions) -> Actions:
        """For openpi's clients."""
        return actions

    def for_starvla(self, actions: Actions) -> Actions:
        """For starVLA's clients."""
        return actions


@dataclass(frozen=True, kw_only=True)
class EnvironmentUnits(DatasetUnits):
    """Units of an environment whose openpi client executes actions as they are.

    starVLA's clients of these environments convert by themselves; they take the gripper as 1 = open, 0 = closed, and the rest as
    recorded.
    """

    action_units: Literal["dataset", "environment"] = "environment"

    def for_starvla(self, actions: Actions) -> Actions:
        return self.openness(actions)


@dataclass(frozen=True, kw_only=True)
class LiberoUnits(EnvironmentUnits):
    """LIBERO's own: the gripper becomes -1 = open, +1 = close. What openpi's LIBERO client executes as it is."""

    @property
    def sent(self) -> tuple[GripperUnits, ...]:
        return (GripperUnits(dim=6, opened=-1.0, closed=1.0),)

    def __call__(self, actions: Actions) -> Actions:
        return libero.action_from_policy(self.openness(actions))


@dataclass(frozen=True, kw_only=True)
class WidowXUnits(EnvironmentUnits):
    """SimplerEnv's WidowX: the gripper becomes +1 = open, -1 = close; roll, pitch and yaw become an axis-angle."""

    @property
    def sent(self) -> tuple[GripperUnits, ...]:
        return (GripperUnits(dim=6, opened=1.0, closed=-1.0),)

    def __call__(self, actions: Actions) -> Actions:
        return simpler_tasks.action_from_policy(self.openness(actions))


Units = DatasetUnits | LiberoUnits | WidowXUnits
UNITS: Mapping[str, type[Units]] = {"dataset": DatasetUnits, "libero": LiberoUnits, "widowx": WidowXUnits}


def check_units(name: str) -> None:
    """
    Raises:
        ConfigError: There are no units of that name.
    """
    if name not in UNITS:
        raise unknown("units", name, UNITS)


def action_units(name: str, spec: PolicySpec) -> Units:
    """The units of that name for a policy's actions.

    Raises:
        ConfigError: There are none of that name.
        MismatchError: The policy's actions are none of that environment's.
    """
    check_units(name)
    units = UNITS[name](grippers=spec.grippers)
    if units.action_units == "environment":
        if spec.action_width != 7:
            raise MismatchError(
                f"--units {name} needs actions of 7 values; this policy's have {spec.action_width}. Known: dataset."
            )
        if spec.kind != "delta":
            raise MismatchError(
                f"--units {name} needs actions that are changes of the pose; this policy's, trained on {spec.dataset}, are "
                f"{spec.kind} targets. Known: dataset."
            )
        places = [gripper.dim for gripper in spec.grippers]
        if any(place % spec.action_width != 6 for place in places):
            raise MismatchError(
                f"--units {name} needs the gripper as the last of 7 values; this policy has it at {places[0]}. "
                "Known: dataset."
            )
    return units
