"""The units in which actions leave the server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from lamp.errors import MismatchError, unknown
from lamp_client.envs import libero, simpler_tasks

Actions = Float[np.ndarray, "h a"]


@dataclass(frozen=True, kw_only=True)
class AsRecorded:
    """The dataset's units, gripper 1 = open where the data say so; LaMP's own environment adapters convert."""

    action_units: Literal["dataset", "environment"] = "dataset"

    def check(self, width: int) -> None:
        """Every width will do."""

    def __call__(self, actions: Actions) -> Actions:
        return actions


@dataclass(frozen=True, kw_only=True)
class Libero:
    """LIBERO's own: the gripper becomes -1 = open, +1 = close. What openpi's LIBERO client executes as it is."""

    action_units: Literal["dataset", "environment"] = "environment"

    def check(self, width: int) -> None:
        """
        Raises:
            MismatchError: The actions are no LIBERO actions.
        """
        _check_seven(width, "libero")

    def __call__(self, actions: Actions) -> Actions:
        return libero.action_from_policy(actions)


@dataclass(frozen=True, kw_only=True)
class WidowX:
    """SimplerEnv's WidowX: the gripper becomes +1 = open, -1 = close; roll, pitch and yaw become an axis-angle."""

    action_units: Literal["dataset", "environment"] = "environment"

    def check(self, width: int) -> None:
        """
        Raises:
            MismatchError: The actions are no WidowX actions.
        """
        _check_seven(width, "widowx")

    def __call__(self, actions: Actions) -> Actions:
        return simpler_tasks.action_from_policy(actions)


Units = AsRecorded | Libero | WidowX
UNITS: Mapping[str, Callable[[], Units]] = {"dataset": AsRecorded, "libero": Libero, "widowx": WidowX}


def units_named(name: str) -> Units:
    """Builds the units of that name.

    Raises:
        ConfigError: There are none of that name.
    """
    if name not in UNITS:
        raise unknown("units", name, UNITS)
    return UNITS[name]()


def _check_seven(width: int, name: str) -> None:
    if width != 7:
        raise MismatchError(f"--units {name} needs actions of 7 values; this policy's have {width}. Known: dataset.")
