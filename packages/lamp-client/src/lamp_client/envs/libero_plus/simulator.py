"""Simulators of LIBERO-Plus tasks, taken over from task to task, and camera poses as LIBERO-Plus computes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lamp_client.envs.libero_perturbed import Draw, PerturbedLibero
from lamp_client.envs.libero_plus.names import View
from lamp_client.envs.libero_tasks import LiberoTask
from lamp_client.envs.perturbations import CameraPose
from lamp_client.envs.rendering import RenderQuality
from lamp_client.envs.rotations import VERTICAL, quaternion_about, quaternion_product, rotated

_Key = tuple[Path, int, RenderQuality, int]
"""The file that defines the scene, and how it is simulated."""

_parked: dict[_Key, PlusLibero] = {}
"""The simulator that was closed last in this process; at most one."""


class PlusLibero(PerturbedLibero):
    """A simulator that `close` only puts aside, for the next task with the same scene."""

    key: _Key

    def close(self) -> None:
        """Puts the simulator aside, and closes the one that was aside before."""
        forget()
        _parked[self.key] = self


def take_over(
    task: LiberoTask, draw: Draw, *, image_size: int = 256, render: RenderQuality = "exact", seed: int = 7
) -> PlusLibero:
    """Takes the simulator that was put aside, where the task has the same scene, or opens one (seconds)."""
    key = (task.bddl_path, image_size, render, seed)
    env = _parked.pop(key, None)
    if env is None:
        forget()
        env = PlusLibero(task, draw, image_size=image_size, render=render, seed=seed)
        env.key = key
    else:
        env.become(task, draw)
    return env


def forget() -> None:
    """Closes the simulator that was put aside, if any."""
    while _parked:
        _, env = _parked.popitem()
        PerturbedLibero.close(env)


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
