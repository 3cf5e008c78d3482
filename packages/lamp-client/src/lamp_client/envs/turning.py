"""Rotations of points, directions and quaternions (w, x, y, z) about an axis."""

from __future__ import annotations

import numpy as np

VERTICAL = np.array([0.0, 0.0, 1.0])


def about(axis: np.ndarray, degrees: float) -> np.ndarray:
    """The quaternion of a turn about a unit axis, counter-clockwise when the axis points at the viewer."""
    half = np.deg2rad(degrees) / 2
    return np.concatenate([[np.cos(half)], np.sin(half) * np.asarray(axis, dtype=np.float64)])


def product(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The turn `second`, followed by the turn `first`."""
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


def turned(vectors: np.ndarray, quaternion: np.ndarray) -> np.ndarray:
    """Vectors (..., 3), turned."""
    w, axis = quaternion[0], quaternion[1:]
    twice = 2 * np.cross(axis, vectors)
    return vectors + w * twice + np.cross(axis, twice)
