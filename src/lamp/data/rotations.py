"""Rotations in NumPy: axis-angle and roll-pitch-yaw to matrices and back, for poses that are recorded as six numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True, kw_only=True)
class AxisAngle:
    """Three numbers: the axis times the angle [rad]."""

    def matrix(self, values: Float[np.ndarray, "*b 3"]) -> Float[np.ndarray, "*b 3 3"]:
        """Rodrigues' formula, R = I + sin(a)/a K + (1 - cos(a))/a^2 K^2."""
        vector = values.astype(np.float64)
        angle = np.linalg.norm(vector, axis=-1)[..., None, None]
        cross = _cross(vector)
        # np.sinc(x) is sin(pi x) / (pi x), exact at 0; (1 - cos a) / a^2 = sinc(a / 2)^2 / 2 likewise.
        sine, cosine = np.sinc(angle / np.pi), np.sinc(angle / (2 * np.pi)) ** 2 / 2
        return np.eye(3) + sine * cross + cosine * (cross @ cross)

    def values(self, matrix: Float[np.ndarray, "*b 3 3"]) -> Float[np.ndarray, "*b 3"]:
        """The axis-angle of at most pi."""
        quaternion = _quaternion(matrix)
        sine = np.linalg.norm(quaternion[..., 1:], axis=-1, keepdims=True)
        angle = 2 * np.arctan2(sine, quaternion[..., :1])
        # Towards no rotation angle / sine goes to 2, whichever way.
        return quaternion[..., 1:] * np.where(sine > 1e-12, angle / np.maximum(sine, 1e-12), 2.0)


@dataclass(frozen=True, kw_only=True)
class RollPitchYaw:
    """Three angles [rad] about the fixed x, y and z axes, in this order: R = Rz(yaw) Ry(pitch) Rx(roll)."""

    def matrix(self, values: Float[np.ndarray, "*b 3"]) -> Float[np.ndarray, "*b 3 3"]:
        """The three turns one after another."""
        units = [AxisAngle().matrix(values[..., axis : axis + 1] * np.eye(3)[axis]) for axis in range(3)]
        return units[2] @ units[1] @ units[0]

    def values(self, matrix: Float[np.ndarray, "*b 3 3"]) -> Float[np.ndarray, "*b 3"]:
        """Pitch in [-pi/2, pi/2]; where it is at an end only yaw - roll is known, and roll is taken as 0."""
        flat = np.hypot(matrix[..., 0, 0], matrix[..., 1, 0])
        pitch = np.arctan2(-matrix[..., 2, 0], flat)
        upright = flat > 1e-9
        roll = np.where(upright, np.arctan2(matrix[..., 2, 1], matrix[..., 2, 2]), 0.0)
        yaw = np.where(
            upright,
            np.arctan2(matrix[..., 1, 0], matrix[..., 0, 0]),
            np.arctan2(-matrix[..., 0, 1], matrix[..., 1, 1]),
        )
        return np.stack([roll, pitch, yaw], axis=-1)


RotationFormat = AxisAngle | RollPitchYaw


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
