"""What recorded actions mean, and what of them a policy learns: absolute, delta and relative; and how far a gripper is open."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from lamp.data.rotations import AxisAngle, RotationFormat
from lamp.errors import ConfigError, MismatchError
from lamp_client.errors import InvalidValueError
from lamp_client.types import GripperUnits


@dataclass(frozen=True, kw_only=True)
class Gripper(GripperUnits):
    """One dimension of the action, and its recorded values; a policy learns 1 = open, 0 = closed."""

    def __post_init__(self) -> None:
        try:
            super().__post_init__()
        except InvalidValueError as error:
            raise ConfigError(str(error)) from None

    learnt = GripperUnits.openness
    recorded = GripperUnits.from_openness


@dataclass(frozen=True, kw_only=True)
class Absolute:
    """Actions are targets (joint angles, a pose in the robot's frame), learnt as they are recorded."""

    def relate(
        self, chunks: Float[np.ndarray, "b h a"], states: Float[np.ndarray, "b s"]
    ) -> Float[np.ndarray, "b h a"]:
        """Returns the chunks as they are."""
        return chunks

    def restore(
        self, chunks: Float[np.ndarray, "b h a"], states: Float[np.ndarray, "b s"]
    ) -> Float[np.ndarray, "b h a"]:
        """Returns the chunks as they are."""
        return chunks


@dataclass(frozen=True, kw_only=True)
class Delta(Absolute):
    """Actions are changes from one step to the next, learnt as they are recorded."""


@dataclass(frozen=True, kw_only=True)
class Pose:
    """Six dimensions each of action and state: a position [m] and a rotation, in the same frame."""

    action: int = 0
    """Where the six start in the action."""
    state: int = 0
    """Where the six start in the raw state."""
    rotation: RotationFormat = field(default_factory=AxisAngle)
    unwrapped: bool = False
    """Whether the recorded numbers go on beyond half a turn where the rotation does. They are then restored as those of the same
    rotation that are nearest to the step before, the first to the state; otherwise as those within half a turn."""


@dataclass(frozen=True, kw_only=True)
class Relative:
    """Actions are targets, learnt relative to the state that the chunk starts from; all other dimensions as recorded.

    Relative poses are in the tool's own frame, T_state^-1 T_target: where the robot stands and which way it faces is gone.
    """

    pose: Pose | None = None
    offsets: tuple[tuple[int, int], ...] = ()
    """Pairs of an action's and a state's dimension whose difference is learnt: joint angles, or a position alone."""

    def relate(
        self, chunks: Float[np.ndarray, "b h a"], states: Float[np.ndarray, "b s"]
    ) -> Float[np.ndarray, "b h a"]:
        """Recorded targets to what is learnt, each chunk by its own state."""
        out = self._shifted(chunks, states, -1.0)
        if self.pose is not None:
            position, turned = self._poses(chunks, self.pose.action)
            origin, frame = self._poses(states[:, None], self.pose.state)
            back = np.swapaxes(frame, -1, -2)
            self._write(out, np.einsum("...ij,...j->...i", back, position - origin), back @ turned)
        return out

    def restore(
        self, chunks: Float[np.ndarray, "b h a"], states: Float[np.ndarray, "b s"]
    ) -> Float[np.ndarray, "b h a"]:
        """The inverse of `relate`; rotations come back within half a turn, or near the state's (`Pose.unwrapped`)."""
        out = self._shifted(chunks, states, 1.0)
        if self.pose is not None:
            position, turned = self._poses(chunks, self.pose.action)
            origin, frame = self._poses(states[:, None], self.pose.state)
            self._write(out, origin + np.einsum("...ij,...j->...i", frame, position), frame @ turned)
            if self.pose.unwrapped:
                self._unwrap(out, states)
        return out

    def _unwrap(self, out: Float[np.ndarray, "b h a"], states: Float[np.ndarray, "b s"]) -> None:
        assert self.pose is not None
        first, last = self.pose.action + 3, self.pose.action + 6
        before = states[:, self.pose.state + 3 : self.pose.state + 6].astype(np.float64)
        for step in range(out.shape[1]):
            before = self.pose.rotation.nearest(out[:, step, first:last].astype(np.float64), before)
            out[:, step, first:last] = before

    def _shifted(
        self, chunks: Float[np.ndarray, "b h a"], states: Float[np.ndarray, "b s"], sign: float
    ) -> Float[np.ndarray, "b h a"]:
        out = chunks.copy()
        for action, state in self.offsets:
            if action >= chunks.shape[-1] or state >= states.shape[-1]:
                raise MismatchError(
                    f"actions of {chunks.shape[-1]} and states of {states.shape[-1]} values have no pair ({action}, {state})"
                )
            out[..., action] += sign * states[:, None, state]
        return out

    def _poses(
        self, values: Float[np.ndarray, "b n d"], start: int
    ) -> tuple[Float[np.ndarray, "b n 3"], Float[np.ndarray, "b n 3 3"]]:
        if values.shape[-1] < start + 6:
            raise MismatchError(f"{values.shape[-1]} values hold no pose of six at {start}")
        assert self.pose is not None
        pose = values[..., start : start + 6].astype(np.float64)
        return pose[..., :3], self.pose.rotation.matrix(pose[..., 3:])

    def _write(
        self,
        out: Float[np.ndarray, "b h a"],
        position: Float[np.ndarray, "b h 3"],
        turned: Float[np.ndarray, "b h 3 3"],
    ) -> None:
        assert self.pose is not None
        start = self.pose.action
        out[..., start : start + 3] = position
        out[..., start + 3 : start + 6] = self.pose.rotation.values(turned)


ActionKind = Absolute | Delta | Relative
