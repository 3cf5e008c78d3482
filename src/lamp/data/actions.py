"""What recorded actions mean, and what of them a policy learns: absolute, delta, relative; gripper; rotations of poses."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from lamp.errors import ConfigError, DataError, MismatchError
from lamp_client.envs.rotations import rpy_from_matrix
from lamp_client.errors import InvalidValueError
from lamp_client.types import GripperUnits


@dataclass(frozen=True, kw_only=True)
class AxisAngle:
    """Three numbers: the axis times the angle."""

    SIZE: ClassVar[int] = 3
    degrees: bool = False
    """Whether the angle is in degrees, not radians."""

    def matrix(self, values: Float[np.ndarray, "*b 3"]) -> Float[np.ndarray, "*b 3 3"]:
        return Rotation.from_rotvec(values.astype(np.float64) * _unit(self.degrees)).as_matrix()

    def values(self, matrix: Float[np.ndarray, "*b 3 3"]) -> Float[np.ndarray, "*b 3"]:
        """The axis-angle of at most half a turn."""
        # Without assume_valid each matrix is made orthogonal first, which takes three times as long.
        return Rotation.from_matrix(matrix, assume_valid=True).as_rotvec() / _unit(self.degrees)

    def nearest(self, values: Float[np.ndarray, "*b 3"], to: Float[np.ndarray, "*b 3"]) -> Float[np.ndarray, "*b 3"]:
        """The same rotations, turned further by whole turns about their axes, as near to others' values as can be."""
        turn = 2 * np.pi / _unit(self.degrees)
        angle = np.linalg.norm(values, axis=-1, keepdims=True)
        # Without a turn there is no axis of its own, and any will do: the other's.
        length = np.linalg.norm(to, axis=-1, keepdims=True)
        axis = np.where(angle > 1e-9 * turn, values / np.maximum(angle, 1e-12), to / np.maximum(length, 1e-12))
        return values + axis * turn * np.round(((to * axis).sum(-1, keepdims=True) - angle) / turn)


@dataclass(frozen=True, kw_only=True)
class RollPitchYaw:
    """Three angles about the fixed x, y and z axes, in this order: R = Rz(yaw) Ry(pitch) Rx(roll)."""

    SIZE: ClassVar[int] = 3
    degrees: bool = False
    """Whether the angles are in degrees, not radians."""

    def matrix(self, values: Float[np.ndarray, "*b 3"]) -> Float[np.ndarray, "*b 3 3"]:
        return Rotation.from_euler("xyz", values.astype(np.float64) * _unit(self.degrees)).as_matrix()

    def values(self, matrix: Float[np.ndarray, "*b 3 3"]) -> Float[np.ndarray, "*b 3"]:
        """Pitch within a quarter turn; where it is at an end only yaw - roll is known, and roll is taken as 0."""
        # scipy's `as_euler` takes yaw as 0 there, and warns.
        return rpy_from_matrix(matrix) / _unit(self.degrees)

    def nearest(self, values: Float[np.ndarray, "*b 3"], to: Float[np.ndarray, "*b 3"]) -> Float[np.ndarray, "*b 3"]:
        turn = 2 * np.pi / _unit(self.degrees)
        roll, pitch, yaw = np.moveaxis(values, -1, 0)
        flipped = np.stack([roll + turn / 2, turn / 2 - pitch, yaw + turn / 2], axis=-1)
        both = [one + turn * np.round((to - one) / turn) for one in (values, flipped)]
        far = [np.abs(one - to).sum(-1, keepdims=True) for one in both]
        return np.where(far[1] < far[0], both[1], both[0])


RotationFormat = AxisAngle | RollPitchYaw


@dataclass(frozen=True, kw_only=True)
class Quaternion:
    """Four numbers of length 1; with all signs turned they are the same rotation."""

    order: Literal["xyzw", "wxyz"] = "xyzw"
    """Where the real part w is."""

    SIZE: ClassVar[int] = 4

    def matrix(self, values: Float[np.ndarray, "*b 4"]) -> Float[np.ndarray, "*b 3 3"]:
        """The rotation matrices; the length does not matter.

        Raises:
            DataError: It is 0, or not finite.
        """
        last = values.astype(np.float64) if self.order == "xyzw" else np.roll(values.astype(np.float64), -1, axis=-1)
        length = np.linalg.norm(last, axis=-1)
        if not (np.isfinite(length) & (length > 1e-6)).all():
            raise DataError(f"a state holds a quaternion of length {length.min():g}; expected 1")
        return Rotation.from_quat(last.reshape(-1, 4)).as_matrix().reshape(*values.shape[:-1], 3, 3)


StateRotationFormat = RotationFormat | Quaternion
"""What the policy can be shown as a matrix."""


def _unit(degrees: bool) -> float:
    """One unit in radians."""
    return np.pi / 180 if degrees else 1.0


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

    per_frame: ClassVar[bool] = True
    """Whether an action is the same thing in every chunk that it is part of."""
    are_increments: ClassVar[bool] = False
    """Whether an action belongs to the time between two frames."""

    def relate(
        self, chunks: Float[np.ndarray, "b h a"], states: Float[np.ndarray, "b s"]
    ) -> Float[np.ndarray, "b h a"]:
        return chunks

    def restore(
        self, chunks: Float[np.ndarray, "b h a"], states: Float[np.ndarray, "b s"]
    ) -> Float[np.ndarray, "b h a"]:
        return chunks


@dataclass(frozen=True, kw_only=True)
class Delta(Absolute):
    """Actions are changes from one step to the next, learnt as they are recorded."""

    are_increments: ClassVar[bool] = True


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

    per_frame: ClassVar[bool] = False
    are_increments: ClassVar[bool] = False
    pose: Pose | None = None
    offsets: tuple[tuple[int, int], ...] = ()
    """Pairs of an action's and a state's dimension whose difference is learnt: joint angles, or a position alone."""

    def relate(
        self, chunks: Float[np.ndarray, "b h a"], states: Float[np.ndarray, "b s"]
    ) -> Float[np.ndarray, "b h a"]:
        """Recorded targets to what is learnt, each chunk by its own state."""
        out = self._shifted(chunks, states, -1.0)
        if self.pose is not None:
            position, rotation = _read_pose(chunks, self.pose.action, self.pose)
            origin, frame = _read_pose(states[:, None], self.pose.state, self.pose)
            back = np.swapaxes(frame, -1, -2)
            _write_pose(out, np.einsum("...ij,...j->...i", back, position - origin), back @ rotation, self.pose)
        return out

    def restore(
        self, chunks: Float[np.ndarray, "b h a"], states: Float[np.ndarray, "b s"]
    ) -> Float[np.ndarray, "b h a"]:
        """The inverse of `relate`; rotations come back within half a turn, or near the state's (`Pose.unwrapped`)."""
        out = self._shifted(chunks, states, 1.0)
        if self.pose is not None:
            position, rotation = _read_pose(chunks, self.pose.action, self.pose)
            origin, frame = _read_pose(states[:, None], self.pose.state, self.pose)
            _write_pose(out, origin + np.einsum("...ij,...j->...i", frame, position), frame @ rotation, self.pose)
            if self.pose.unwrapped:
                first, last = self.pose.action + 3, self.pose.action + 6
                before = states[:, self.pose.state + 3 : self.pose.state + 6].astype(np.float64)
                for step in range(out.shape[1]):
                    before = self.pose.rotation.nearest(out[:, step, first:last].astype(np.float64), before)
                    out[:, step, first:last] = before
        return out

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


def _read_pose(
    values: Float[np.ndarray, "b n d"], start: int, pose: Pose
) -> tuple[Float[np.ndarray, "b n 3"], Float[np.ndarray, "b n 3 3"]]:
    """The position and the rotation matrix of the six values from `start`."""
    if values.shape[-1] < start + 6:
        raise MismatchError(f"{values.shape[-1]} values hold no pose of six at {start}")
    six = values[..., start : start + 6].astype(np.float64)
    return six[..., :3], pose.rotation.matrix(six[..., 3:])


def _write_pose(
    out: Float[np.ndarray, "b h a"],
    position: Float[np.ndarray, "b h 3"],
    rotation: Float[np.ndarray, "b h 3 3"],
    pose: Pose,
) -> None:
    out[..., pose.action : pose.action + 3] = position
    out[..., pose.action + 3 : pose.action + 6] = pose.rotation.values(rotation)


ActionKind = Absolute | Delta | Relative

AHEAD = 5
"""A robot reaches its target, or carries out a change, within so many frames."""
FOLLOWS = 0.9
"""Share of a target's variance that the state explains, where it is one in the same units."""
GOES_WITH = 0.5
"""Correlation of a change that is commanded with the one that comes of it: controllers lag, hands tremble."""

SCALED = 0.97
"""Correlation of a target with the state where it is one in other units, such as degrees."""
SURE = 4.0
"""Standard errors by which a correlation must differ from none: many pairs of values and moments are tried."""


@dataclass(frozen=True, kw_only=True)
class ActionComparison:
    """Whether actions are targets or changes of the state."""

    kind: Literal["absolute", "delta"] | None
    """None: undecided."""
    why: str
    """In words."""
    pairs: tuple[tuple[int, int], ...] = ()
    """Dimensions of the action that are targets, each with that of the state which follows it, in the same units."""


def compare_with_state(
    episodes: Sequence[tuple[np.ndarray, np.ndarray]], *, without: Collection[int] = ()
) -> ActionComparison:
    """Compares the recorded actions of some episodes with their states.

    A target is where the state is a moment later. A change goes with the difference of the state between now and then. Each
    dimension that moves has a vote; at least half of them must agree, and two thirds of those with a clear outcome: a change
    that corrects an error, as a controller's does, looks like a target in other units.

    Args:
        episodes: Of each, the actions (frames, a) and the states (frames, s).
        without: Dimensions of the action without a vote, such as grippers.
    """
    episodes = [(actions.astype(np.float64), states.astype(np.float64)) for actions, states in episodes]
    width, states = episodes[0][0].shape[1], episodes[0][1].shape[1]
    targets: dict[int, int | None] = {}
    changes: dict[int, float] = {}
    moving = 0
    for dim in range(width):
        if dim in without or all(np.ptp(actions[:, dim]) == 0 for actions, _ in episodes):
            continue
        moving += 1
        follows = {place: _explained(episodes, dim, place) for place in range(states)}
        best = max(follows, key=lambda place: follows[place], default=None)
        if best is not None and follows[best] >= FOLLOWS:
            # A value of the state at the same place comes first where it follows as well.
            targets[dim] = dim if follows.get(dim, 0.0) >= follows[best] - 0.02 else best
            continue
        level = max((_correlation(episodes, dim, place, change=False) for place in range(states)), default=0.0)
        change = max((_correlation(episodes, dim, place, change=True) for place in range(states)), default=0.0)
        if level >= SCALED and level > change:
            targets[dim] = None
        elif change >= GOES_WITH and change > level:
            changes[dim] = change
    if moving == 0:
        return ActionComparison(kind=None, why="no value of the action changes within an episode")
    most, votes = max(len(targets), len(changes)), len(targets) + len(changes)
    if 2 * most < moving:
        return ActionComparison(kind=None, why=f"{most} of {moving} values follow the state or its change")
    if 3 * most < 2 * votes:
        why = f"values {_listed(targets)} are targets of the state, values {_listed(changes)} go with its changes"
        return ActionComparison(kind=None, why=why)
    if len(targets) > len(changes):
        pairs = tuple((dim, place) for dim, place in targets.items() if place is not None)
        units = "" if len(pairs) == len(targets) else f", {len(targets) - len(pairs)} of them in other units"
        why = f"{len(targets)} of {moving} values are where the state is up to {AHEAD} frames later{units}"
        return ActionComparison(kind="absolute", why=why, pairs=pairs)
    mean = sum(changes.values()) / len(changes)
    why = f"{len(changes)} of {moving} values go with the change of the state, correlation {mean:.2f}"
    return ActionComparison(kind="delta", why=why)


def _explained(episodes: Sequence[tuple[np.ndarray, np.ndarray]], dim: int, place: int) -> float:
    """The share of an action's variance within episodes that the state explains a moment later, as it is, in the same units."""
    best = 0.0
    for ahead in range(AHEAD + 1):
        pairs = [(a[: len(a) - ahead, dim], s[ahead:, place]) for a, s in episodes if len(a) > ahead + 1]
        variance = sum(float(((a - a.mean()) ** 2).sum()) for a, _ in pairs)
        error = sum(float(((a - s) ** 2).sum()) for a, s in pairs)
        best = max(best, 1 - error / variance if variance > 0 else 0.0)
    return best


def _correlation(episodes: Sequence[tuple[np.ndarray, np.ndarray]], dim: int, place: int, *, change: bool) -> float:
    """The correlation within episodes of an action with the state, or its change, a moment later; 0 where it may be chance."""
    best = 0.0
    for ahead in range(AHEAD):
        both = np.zeros((0, 2))
        for actions, states in episodes:
            later = np.diff(states[ahead:, place]) if change else states[ahead:, place]
            if len(later) > 3:
                pair = np.stack([actions[: len(later), dim], later], axis=1)
                both = np.concatenate([both, pair - pair.mean(axis=0)])
        size = (both**2).sum(axis=0)
        if len(both) < 6 or not size.all():
            continue
        correlation = float(both.prod(axis=1).sum() / np.sqrt(size.prod()))
        # A smooth path has fewer independent samples than frames (Bartlett); Fisher's z has unit variance.
        smooth = float(np.prod((both[1:] * both[:-1]).sum(axis=0) / size))
        frames = len(both) * (1 - smooth) / (1 + smooth)
        if frames > 3 and np.arctanh(min(correlation, 1 - 1e-9)) * np.sqrt(frames - 3) > SURE:
            best = max(best, correlation)
    return best


def _listed(dims: Iterable[int]) -> str:
    return ", ".join(map(str, dims))
