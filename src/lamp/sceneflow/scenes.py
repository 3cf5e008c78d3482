"""The simulators that recordings were made in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lamp.errors import DataError
from lamp.sceneflow.rendering import MjModel


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A simulator's model and how the dataset's images show it."""

    model: MjModel
    cameras: Mapping[str, str]
    """MuJoCo's name for each of the dataset's cameras."""
    geom_groups: tuple[int, ...] = (0, 1, 2)
    """Groups of geoms that the images show."""


LoadScene = Callable[[Mapping[str, Any]], Scene]
"""Builds the simulator of a recording from its metadata."""


def load_libero_scene(metadata: Mapping[str, Any]) -> Scene:
    """The model of a LIBERO task; collision shapes (group 0) are not drawn.

    Raises:
        DataError: The metadata name no task.
        LampClientError: The task does not exist, or LIBERO is not installed.
    """
    from lamp_client.envs.libero import LiberoEnv, load_task

    if "suite" not in metadata or "task" not in metadata:
        raise DataError(
            f"a recorded simulation names no suite and task in its metadata {dict(metadata)}; collect it again"
        )
    env = LiberoEnv(load_task(metadata["suite"], metadata["task"]))
    return Scene(model=env.simulation[0], cameras=env.camera_names, geom_groups=(1, 2))
