"""Rotations: axis-angle and roll-pitch-yaw to matrices and back, for poses that are recorded as six numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from lamp_client.envs.rotations import rpy_from_matrix


@dataclass(frozen=True, kw_only=True)
class AxisAngle:
    """Three numbers: the axis times the angle."""

    degrees: bool = False
    """Whether the angle is in degrees, not radians."""

    def matrix(self, values: Float[np.ndarray, "*b 3"]) -> Float[np.ndarray, "*b 3 3"]:
        """The rotation matrices."""
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

    degrees: bool = False
    """Whether the angles are in degrees, not radians."""

    def matrix(self, values: Float[np.ndarray, "*b 3"]) -> Float[np.ndarray, "*b 3 3"]:
        """The rotation matrices."""
        return Rotation.from_euler("xyz", values.astype(np.float64) * _unit(self.degrees)).as_matrix()

    def values(self, matrix: Float[np.ndarray, "*b 3 3"]) -> Float[np.ndarray, "*b 3"]:
        """Pitch within a quarter turn; where it is at an end only yaw - roll is known, and roll is taken as 0."""
        # scipy's `as_euler` takes yaw as 0 there, and warns.
        return rpy_from_matrix(matrix) / _unit(self.degrees)

    def nearest(self, values: Float[np.ndarray, "*b 3"], to: Float[np.ndarray, "*b 3"]) -> Float[np.ndarray, "*b 3"]:
        """The same rotations by other angles, as near to others' values as can be."""
        turn = 2 * np.pi / _unit(self.degrees)
        roll, pitch, yaw = np.moveaxis(values, -1, 0)
        flipped = np.stack([roll + turn / 2, turn / 2 - pitch, yaw + turn / 2], axis=-1)
        both = [one + turn * np.round((to - one) / turn) for one in (values, flipped)]
        far = [np.abs(one - to).sum(-1, keepdims=True) for one in both]
        return np.where(far[1] < far[0], both[1], both[0])


RotationFormat = AxisAngle | RollPitchYaw


def _unit(degrees: bool) -> float:
    """One unit in radians."""
    return np.pi / 180 if degrees else 1.0
