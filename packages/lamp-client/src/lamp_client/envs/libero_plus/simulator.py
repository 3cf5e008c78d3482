"""Simulators of LIBERO-Plus tasks, taken over from task to task: most differ in what is changed while the scene runs."""

from __future__ import annotations

from pathlib import Path

from lamp_client.envs.libero_perturbed import Draw, PerturbedLibero
from lamp_client.envs.libero_tasks import LiberoTask
from lamp_client.envs.rendering import RenderQuality

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
