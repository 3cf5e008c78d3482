"""Rotations in NumPy: axis-angle and roll-pitch-yaw to matrices and back, for poses that are recorded as six numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True, kw_only=True)
class AxisAngle:
    """Three numbers: the axis times the angle."""

    degrees: bool = False
    """Whether the angle is in degrees, not radians."""

    def matrix(self, values: Float[np.ndarray, "*b 3"]) -> Float[np.ndarray, "*b 3 3"]:
        """Rodrigues' formula, R = I + sin(a)/a K + (1 - cos(a))/a^2 K^2."""
        vector = values.astype(np.float64) * _unit(self.degrees)
        angle = np.linalg.norm(vector, axis=-1)[..., None, None]
        cross = _cross(vector)
        # np.sinc(x) is sin(pi x) / (pi x), exact at 0; (1 - cos a) / a^2 = sinc(a / 2)^2 / 2 likewise.
        sine, cosine = np.sinc(angle / np.pi), np.sinc(angle / (2 * np.pi)) ** 2 / 2
        return np.eye(3) + sine * cross + cosine * (cross @ cross)

    def values(self, matrix: Float[np.ndarray, "*b 3 3"]) -> Float[np.ndarray, "*b 3"]:
        """The axis-angle of at most half a turn."""
        quaternion = _quaternion(matrix)
        sine = np.linalg.norm(quaternion[..., 1:], axis=-1, keepdims=True)
        angle = 2 * np.arctan2(sine, quaternion[..., :1])
        # Towards no rotation angle / sine goes to 2, whichever way.
        vector = quaternion[..., 1:] * np.where(sine > 1e-12, angle / np.maximum(sine, 1e-12), 2.0)
        return vector / _unit(self.degrees)

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
        """The three turns one after another."""
        values = values.astype(np.float64) * _unit(self.degrees)
        units = [AxisAngle().matrix(values[..., axis : axis + 1] * np.eye(3)[axis]) for axis in range(3)]
        return units[2] @ units[1] @ units[0]

    def values(self, matrix: Float[np.ndarray, "*b 3 3"]) -> Float[np.ndarray, "*b 3"]:
        """Pitch within a quarter turn; where it is at an end only yaw - roll is known, and roll is taken as 0."""
        flat = np.hypot(matrix[..., 0, 0], matrix[..., 1, 0])
        pitch = np.arctan2(-matrix[..., 2, 0], flat)
        upright = flat > 1e-9
        roll = np.where(upright, np.arctan2(matrix[..., 2, 1], matrix[..., 2, 2]), 0.0)
        yaw = np.where(
            upright,
            np.arctan2(matrix[..., 1, 0], matrix[..., 0, 0]),
            np.arctan2(-matrix[..., 0, 1], matrix[..., 1, 1]),
        )
        return np.stack([roll, pitch, yaw], axis=-1) / _unit(self.degrees)

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


def _cross(vector: Float[np.ndarray, "*b 3"]) -> Float[np.ndarray, "*b 3 3"]:
    x, y, z = np.moveaxis(vector, -1, 0)
    nothing = np.zeros_like(x)
    rows = [[nothing, -z, y], [z, nothing, -x], [-y, x, nothing]]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def _quaternion(matrix: Float[np.ndarray, "*b 3 3"]) -> Float[np.ndarray, "*b 4"]:
    """(w, x, y, z) with w >= 0, by the eigenvector that is best determined: exact near half turns too."""
    m = matrix
    diagonal = np.stack([m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]], axis=-1)
    trace = diagonal.sum(-1)
    # Row r holds 4 q_r q: the row of the largest q_r is far from zero.
    table = np.empty((*matrix.shape[:-2], 4, 4))
    table[..., 0, 0] = 1 + trace
    for i in range(3):
        j, k = (i + 1) % 3, (i + 2) % 3
        table[..., 0, i + 1] = table[..., i + 1, 0] = m[..., k, j] - m[..., j, k]
        table[..., i + 1, i + 1] = 1 + 2 * diagonal[..., i] - trace
        table[..., j + 1, k + 1] = table[..., k + 1, j + 1] = m[..., k, j] + m[..., j, k]
    best = np.einsum("...ii->...i", table).argmax(-1)
    row = np.take_along_axis(table, best[..., None, None], axis=-2)[..., 0, :]
    unit = row / np.linalg.norm(row, axis=-1, keepdims=True)
    return np.where(unit[..., :1] < 0, -unit, unit)
