"""Camera poses as LIBERO-Plus computes them, to its four decimals."""

from __future__ import annotations

import numpy as np

from lamp_client.envs.effects import CameraPose
from lamp_client.envs.libero_plus.names import View
from lamp_client.envs.rotations import VERTICAL, quaternion_about, quaternion_product, rotated

PIVOT = np.array([0.0, 0.0, 0.8])
"""Elevation turns about an axis through this point, and distance is measured from it, whatever the table's height [m]."""

_SIDEWAYS = np.array([0.0, 1.0, 0.0])


def viewed_from(standard: CameraPose, view: View) -> CameraPose:
    """Moves a camera. Even the standard view is rounded, by less than 0.1 mm."""
    position, quaternion = standard.position, standard.quaternion
    if view.elevation:
        upwards = quaternion_about(_SIDEWAYS, -view.elevation)
        position = _rounded(rotated(position - PIVOT, upwards) + PIVOT)
        quaternion = _rounded(quaternion_product(upwards, quaternion))
    around = quaternion_about(VERTICAL, view.azimuth)
    position, quaternion = _rounded(rotated(position, around)), _rounded(_unit(quaternion_product(around, quaternion)))
    if view.distance != 100:
        position = _rounded(PIVOT + (position - PIVOT) * view.distance / 100)
    if view.pan:
        quaternion = _rounded(_unit(quaternion_product(quaternion_about(VERTICAL, view.pan), quaternion)))
    if view.tilt:
        quaternion = _rounded(_unit(quaternion_product(quaternion_about(_SIDEWAYS, -view.tilt), quaternion)))
    return CameraPose(position=position, quaternion=quaternion, fov=standard.fov)


def _rounded(values: np.ndarray) -> np.ndarray:
    return np.round(values, 4)


def _unit(quaternion: np.ndarray) -> np.ndarray:
    return quaternion / np.linalg.norm(quaternion)
