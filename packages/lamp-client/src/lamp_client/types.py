"""The data that environments and policies exchange, as NumPy arrays, checked when built."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from lamp_client.errors import InvalidValueError


@dataclass(frozen=True, kw_only=True)
class Committed:
    """What is left of the chunk before, from the moment of an observation on, while the next chunk is being computed.

    Raises:
        InvalidValueError: these are no actions, or more are committed than are left.
    """

    actions: np.ndarray
    """(n, a) float32, as the policy gave them."""
    delay: int
    """The first so many are executed before the next chunk takes over, whatever it says."""

    def __post_init__(self) -> None:
        _check_floats("committed actions", self.actions, 2)
        if not len(self.actions) or not np.isfinite(self.actions).all():
            raise InvalidValueError("committed actions are none, or not finite; expected finite numbers.")
        if isinstance(self.delay, bool) or not isinstance(self.delay, int) or not 0 <= self.delay <= len(self.actions):
            raise InvalidValueError(
                f"delay is {self.delay!r}; expected 0 to {len(self.actions)} steps, the actions left."
            )


DEPTH = "depth."
SIMULATION = "simulation."
"""Before the names in `Observation.extra`."""


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What the robot observes at one moment: images, proprioception, and the instruction.

    Raises:
        InvalidValueError: if an array has another shape or type.
    """

    images: Mapping[str, np.ndarray]
    """Camera name -> (H, W, 3) uint8, upright; the first camera is the reference of the scene flow."""
    state: np.ndarray
    """(s,) float32 proprioception, as the environment documents it."""
    instruction: str
    extra: Mapping[str, np.ndarray] = field(default_factory=dict)
    """What else is recorded of the moment and no policy is shown: `depth.CAMERA` (H, W) float32 [m], 0 where unknown;
    `simulation.states` and `simulation.body_poses` of a simulator."""
    committed: Committed | None = None
    """What is left of the chunk before, for a policy whose metadata say `real_time`; None: the next chunk begins anew."""

    def __post_init__(self) -> None:
        if not self.images:
            raise InvalidValueError("an observation has no images; expected at least one camera.")
        for name, image in self.images.items():
            shape = getattr(image, "shape", ())
            if getattr(image, "dtype", None) != np.uint8 or len(shape) != 3 or shape[2] != 3:
                raise InvalidValueError(
                    f"image {name!r} is {getattr(image, 'dtype', type(image).__name__)} {shape}; expected uint8 (H, W, 3)."
                )
        _check_floats("state", self.state, 1)


@dataclass(frozen=True, kw_only=True)
class GripperUnits:
    """Which value of an action is the gripper, and what it is where the gripper is open and where it is closed.

    Raises:
        InvalidValueError: if the two values are equal or not finite.
    """

    dim: int = -1
    """Counted from the end where negative."""
    opened: float = 1.0
    """The action's value that opens the gripper."""
    closed: float = 0.0

    def __post_init__(self) -> None:
        if self.opened == self.closed:
            raise InvalidValueError(
                f"a gripper with opened = closed = {self.opened} cannot be read; expected two values."
            )
        if not (math.isfinite(self.opened) and math.isfinite(self.closed)):
            raise InvalidValueError(f"a gripper from {self.opened} to {self.closed} cannot be read; expected numbers.")

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> GripperUnits:
        """Reads those of a policy's actions from its metadata; 1 = open, 0 = closed, the last value, where it does not say.

        Raises:
            InvalidValueError: if they cannot be read.
        """
        grippers = cls.all_of(metadata)
        if len(grippers) > 1:
            dims = ", ".join(str(one.dim) for one in grippers)
            raise InvalidValueError(
                f"the policy's actions have grippers at {dims}; expected those of a robot with one."
            )
        return grippers[0] if grippers else cls()

    @classmethod
    def all_of(cls, metadata: Mapping[str, Any]) -> tuple[GripperUnits, ...]:
        """Reads those of all grippers, one for each arm, from a policy's metadata; none where it does not say.

        Raises:
            InvalidValueError: if they cannot be read.
        """
        units = metadata.get("gripper")
        return (
            ()
            if units is None
            else tuple(cls._read(one) for one in (units if isinstance(units, list | tuple) else [units]))
        )

    @classmethod
    def _read(cls, entry: Any) -> GripperUnits:
        try:
            return cls(dim=int(entry["dim"]), opened=float(entry["opened"]), closed=float(entry["closed"]))
        except (TypeError, KeyError, ValueError, OverflowError):
            raise InvalidValueError(
                f"the policy's gripper is {str(entry)[:80]!r}; expected a map with the numbers dim, opened and closed."
            ) from None

    @property
    def plain(self) -> dict[str, Any]:
        """The values for a policy's metadata, which `of` reads."""
        return {name: asdict(self)[name] for name in ("dim", "opened", "closed")}

    @staticmethod
    def metadata_entry(grippers: Sequence[GripperUnits]) -> dict[str, Any]:
        """The entry of a policy's metadata that `all_of` reads: a map, a list of maps where there are several, or none."""
        entries = [gripper.plain for gripper in grippers]
        return {"gripper": entries[0] if len(entries) == 1 else entries} if entries else {}

    def openness(self, actions: np.ndarray) -> np.ndarray:
        """(..., a) actions in these units, as the same with 1 = open, 0 = closed."""
        if (self.opened, self.closed) == (1.0, 0.0):
            return actions
        out = actions.copy()
        out[..., self.dim] = (actions[..., self.dim] - self.closed) / (self.opened - self.closed)
        return out

    def from_openness(self, actions: np.ndarray) -> np.ndarray:
        """The inverse of `openness`."""
        if (self.opened, self.closed) == (1.0, 0.0):
            return actions
        out = actions.copy()
        out[..., self.dim] = actions[..., self.dim] * (self.opened - self.closed) + self.closed
        return out


@dataclass(frozen=True, kw_only=True)
class ActionChunk:
    """The next actions, in the units of the environment or of the dataset, as the policy documents.

    Raises:
        InvalidValueError: if an array has another shape or type, or an action is not finite.
    """

    actions: np.ndarray
    """(h, a) float32, the action for the present moment first."""
    timing_ms: Mapping[str, float] = field(default_factory=dict)
    """Milliseconds per stage, for reports."""
    foresight: np.ndarray | None = None
    """(k, t + 1, 3) float32 predicted points (u, v, d) in the first camera: image fractions and metres; when asked for."""
    gate: float | None = None
    """The motion gate sigma(g), when the policy has one."""

    def __post_init__(self) -> None:
        _check_floats("actions", self.actions, 2)
        if not len(self.actions):
            raise InvalidValueError("an action chunk is empty; expected at least one action.")
        if not np.isfinite(self.actions).all():
            raise InvalidValueError("an action chunk holds values that are not finite.")
        if self.foresight is not None:
            _check_floats("foresight", self.foresight, 3)


def _check_floats(name: str, value: np.ndarray, dimensions: int) -> None:
    if getattr(value, "dtype", None) != np.float32 or value.ndim != dimensions:
        kind = getattr(value, "dtype", type(value).__name__)
        raise InvalidValueError(f"{name} is {kind} {np.shape(value)}; expected float32 with {dimensions} dimension(s).")
