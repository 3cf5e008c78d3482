"""Rotations in NumPy, between the ways in which datasets, benchmarks and controllers write them."""

from __future__ import annotations

import numpy as np


def axis_angle_from_rpy(angles: np.ndarray) -> np.ndarray:
    """Axis times angle [rad] of (..., 3) roll, pitch and yaw [rad] about the FIXED x, y and z axes, in this order."""
    half = np.asarray(angles, dtype=np.float64) / 2
    (cr, cp, cy), (sr, sp, sy) = (np.moveaxis(function(half), -1, 0) for function in (np.cos, np.sin))
    w = cr * cp * cy + sr * sp * sy
    vector = np.stack([sr * cp * cy - cr * sp * sy, cr * sp * cy + sr * cp * sy, cr * cp * sy - sr * sp * cy], axis=-1)
    sine = np.linalg.norm(vector, axis=-1)
    # Towards no rotation angle / sine goes to 2.
    scale = np.where(sine > 1e-9, 2 * np.arctan2(sine, w) / np.maximum(sine, 1e-9), 2.0)
    return vector * scale[..., None]


def matrix_from_axis_angle(vector: np.ndarray) -> np.ndarray:
    """(3, 3) of (3,) axis times angle [rad], by Rodrigues' formula."""
    x, y, z = (float(value) for value in vector)
    angle = float(np.linalg.norm([x, y, z]))
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    # np.sinc(x) is sin(pi x) / (pi x), exact at 0; (1 - cos a) / a^2 = sinc(a / 2)^2 / 2 likewise.
    return np.eye(3) + np.sinc(angle / np.pi) * cross + np.sinc(angle / (2 * np.pi)) ** 2 / 2 * cross @ cross


def matrix_from_quaternion(quaternion: np.ndarray) -> np.ndarray:
    """(3, 3) of (4,) w, x, y, z of any length but 0."""
    w, x, y, z = np.asarray(quaternion, dtype=np.float64) / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def moving_xyz_from_matrix(matrix: np.ndarray) -> np.ndarray:
    """The angles (a, b, c) [rad] of matrix = Rx(a) Ry(b) Rz(c): about x, then the turned y, then the turned z.

    Where b is a quarter turn only a + c or c - a is known, and a is taken as 0.
    """
    flat = np.hypot(matrix[0, 0], matrix[0, 1])
    pitch = np.arctan2(matrix[0, 2], flat)
    if flat < 1e-9:
        return np.array([0.0, pitch, np.arctan2(matrix[1, 0], matrix[1, 1])])
    return np.array([np.arctan2(-matrix[1, 2], matrix[2, 2]), pitch, np.arctan2(-matrix[0, 1], matrix[0, 0])])


def rpy_from_matrix(matrix: np.ndarray) -> np.ndarray:
    """Roll, pitch and yaw [rad] of matrix = Rz(yaw) Ry(pitch) Rx(roll), the inverse of `axis_angle_from_rpy`'s reading.

    Where the pitch is a quarter turn only the difference of the others is known, and the roll is taken as 0.
    """
    flat = np.hypot(matrix[0, 0], matrix[1, 0])
    pitch = np.arctan2(-matrix[2, 0], flat)
    if flat < 1e-9:
        return np.array([0.0, pitch, np.arctan2(-matrix[0, 1], matrix[1, 1])])
    return np.array([np.arctan2(matrix[2, 1], matrix[2, 2]), pitch, np.arctan2(matrix[1, 0], matrix[0, 0])])
