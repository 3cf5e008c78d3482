"""Rotations in NumPy, between the ways in which datasets, benchmarks and controllers write them.

Quaternions are (w, x, y, z) unless noted otherwise."""

from __future__ import annotations

import numpy as np

VERTICAL = np.array([0.0, 0.0, 1.0])


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


def quaternion_from_matrix(matrix: np.ndarray) -> np.ndarray:
    """(4,) w, x, y, z with w >= 0 of a rotation (3, 3)."""
    m = np.asarray(matrix, dtype=np.float64)
    # Four times the products of the components; the row of the largest square loses no digits.
    squares = 1 + np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) @ np.diagonal(m)
    plus = {(1, 2): m[1, 0] + m[0, 1], (1, 3): m[0, 2] + m[2, 0], (2, 3): m[2, 1] + m[1, 2]}
    minus = {(0, 1): m[2, 1] - m[1, 2], (0, 2): m[0, 2] - m[2, 0], (0, 3): m[1, 0] - m[0, 1]}
    products = np.diag(squares)
    for (row, column), value in {**plus, **minus}.items():
        products[row, column] = products[column, row] = value
    largest = products[np.argmax(squares)]
    quaternion = largest / np.linalg.norm(largest)
    return -quaternion if quaternion[0] < 0 else quaternion


def axis_angle_from_matrix(matrix: np.ndarray) -> np.ndarray:
    """Axis times angle (3,) [rad], of at most half a turn, of a rotation (3, 3)."""
    quaternion = quaternion_from_matrix(matrix)
    sine = float(np.linalg.norm(quaternion[1:]))
    # Towards no rotation angle / sine goes to 2.
    scale = 2 * np.arctan2(sine, quaternion[0]) / sine if sine > 1e-9 else 2.0
    return quaternion[1:] * scale


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
    """Roll, pitch and yaw (..., 3) [rad] of matrices (..., 3, 3) = Rz(yaw) Ry(pitch) Rx(roll).

    Where the pitch is a quarter turn only the difference of the others is known, and the roll is taken as 0.
    """
    m = np.moveaxis(matrix, (-2, -1), (0, 1))
    flat = np.hypot(m[0, 0], m[1, 0])
    upright = flat > 1e-9
    roll = np.where(upright, np.arctan2(m[2, 1], m[2, 2]), 0.0)
    yaw = np.where(upright, np.arctan2(m[1, 0], m[0, 0]), np.arctan2(-m[0, 1], m[1, 1]))
    return np.stack([roll, np.arctan2(-m[2, 0], flat), yaw], axis=-1)


def axis_angle_from_quaternion(quaternion: np.ndarray) -> np.ndarray:
    """Axis times angle (3,) [rad] of a unit quaternion (x, y, z, w), with its sign as given: the angle may exceed half a turn, as
    in robosuite."""
    w = float(np.clip(quaternion[3], -1.0, 1.0))
    sine = np.sqrt(1.0 - w * w)
    if np.isclose(sine, 0.0):
        return np.zeros(3)
    return quaternion[:3] * 2.0 * np.arccos(w) / sine


def quaternion_about(axis: np.ndarray, degrees: float) -> np.ndarray:
    """The quaternion of a turn about a unit axis, counter-clockwise when the axis points at the viewer."""
    half = np.deg2rad(degrees) / 2
    return np.concatenate([[np.cos(half)], np.sin(half) * np.asarray(axis, dtype=np.float64)])


def quaternion_product(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The rotation `second`, followed by the rotation `first`."""
    w, x, y, z = first
    a, b, c, d = second
    return np.array(
        [
            w * a - x * b - y * c - z * d,
            w * b + x * a + y * d - z * c,
            w * c - x * d + y * a + z * b,
            w * d + x * c - y * b + z * a,
        ]
    )


def rotated(vectors: np.ndarray, quaternion: np.ndarray) -> np.ndarray:
    """Vectors (..., 3), rotated by a unit quaternion."""
    w, axis = quaternion[0], quaternion[1:]
    twice = 2 * np.cross(axis, vectors)
    return vectors + w * twice + np.cross(axis, twice)
