"""The 10,030 tasks of LIBERO-Plus: which there are, what each changes, what is missing to run it, and their simulators, taken
over from task to task.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from lamp_client.envs.libero_perturbed import Draw, PerturbedLibero
from lamp_client.envs.libero_plus.files import PlusFiles
from lamp_client.envs.libero_plus.names import (
    STANDARD_VIEW,
    SUITES,
    Added,
    CameraView,
    Lighting,
    Noise,
    PlusName,
    RobotStart,
    Surfaces,
    Wording,
    parse,
)
from lamp_client.envs.libero_plus.scenery import PlusAssets
from lamp_client.envs.libero_tasks import LIBERO_SUITES, LiberoTask
from lamp_client.envs.perturbations import (
    ArmStart,
    CameraPose,
    Effects,
    SampledPerturbation,
    StandardScene,
    corruption_numbered,
)
from lamp_client.envs.rendering import RenderQuality
from lamp_client.envs.rotations import VERTICAL, quaternion_about, quaternion_product, rotated
from lamp_client.errors import InvalidValueError, UnknownNameError

_Key = tuple[Path, int, RenderQuality, int]
"""The file that defines the scene, and how it is simulated."""

_parked: dict[_Key, PlusLibero] = {}
"""The simulator that was closed last in this process; at most one."""


class PlusLibero(PerturbedLibero):
    """A simulator that `close` only puts aside, for the next task with the same scene."""

    key: _Key

    def close(self) -> None:
        """Puts the simulator aside, and closes the one that was aside before."""
        close_parked()
        _parked[self.key] = self


def open_simulator(
    task: LiberoTask, draw: Draw, *, image_size: int = 256, render: RenderQuality = "exact", seed: int = 7
) -> PlusLibero:
    """Takes the simulator that was put aside, where the task has the same scene, or opens one (seconds)."""
    key = (task.bddl_path, image_size, render, seed)
    env = _parked.pop(key, None)
    if env is None:
        close_parked()
        env = PlusLibero(task, draw, image_size=image_size, render=render, seed=seed)
        env.key = key
    else:
        env.switch_task(task, draw)
    return env


def close_parked() -> None:
    """Closes the simulator that was put aside, if any."""
    while _parked:
        _, env = _parked.popitem()
        PerturbedLibero.close(env)


PIVOT = np.array([0.0, 0.0, 0.8])
"""Elevation turns about an axis through this point, and distance is measured from it, whatever the table's height [m]."""

_SIDEWAYS = np.array([0.0, 1.0, 0.0])


def moved_camera(standard: CameraPose, view: CameraView) -> CameraPose:
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


@dataclass(frozen=True, kw_only=True)
class PlusTask:
    """One task."""

    suite: str
    """LIBERO's suite."""
    index: int
    """Place in the suite; the benchmark's id is one more."""
    read: PlusName
    category: str
    """One of the seven dimensions."""
    level: int | None
    """Difficulty, 1 to 5; None where the copy holds no classification."""

    @property
    def id(self) -> int:
        """The benchmark's number of the task in its suite."""
        return self.index + 1


class PlusTasks:
    """The tasks of a copy of LIBERO-Plus."""

    def __init__(self, files: PlusFiles) -> None:
        self.files = files

    @cached_property
    def all(self) -> tuple[PlusTask, ...]:
        classified = self.files.classification
        tasks = []
        for suite, names in self.files.names.items():
            for index, name in enumerate(names):
                read = parse(name)
                classification = classified[suite].get(name) if classified is not None else None
                if classified is not None and classification is None:
                    raise InvalidValueError(f"task_classification.json does not hold {suite} {name}.")
                if classification is None:
                    category, level = read.category, None
                else:
                    category, level = classification.category, classification.level
                tasks.append(PlusTask(suite=suite, index=index, read=read, category=category, level=level))
        return tuple(tasks)

    @property
    def source(self) -> str:
        """Where the categories come from."""
        return "file names" if self.files.classification is None else "task_classification.json"

    def task(self, suite: str, index: int) -> PlusTask:
        """One task by its place.

        Raises:
            UnknownNameError: There is no such suite or task.
        """
        if suite not in SUITES:
            raise UnknownNameError("suite", suite, SUITES)
        count = len(self.files.names[suite])
        if not 0 <= index < count:
            raise UnknownNameError(f"task of LIBERO-Plus in {suite}", index + 1, [f"1 to {count}"])
        return self.all[sum(len(self.files.names[name]) for name in list(SUITES)[: list(SUITES).index(suite)]) + index]

    def missing(self, task: PlusTask) -> tuple[Path, ...]:
        """Files that the task needs and the copy does not have."""
        return tuple(path for path in self.files.needed(task.suite, task.read) if not path.is_file())

    def load(self, task: PlusTask, *, raw_prompt: bool = False) -> LiberoTask:
        """Reads a task's definition and initial states; builds no simulation.

        Args:
            raw_prompt: Give the instruction with the perturbation's numbers in it, as the benchmark's library does.

        Raises:
            InvalidValueError: Files that it needs are missing.
        """
        missing = self.missing(task)
        if missing:
            raise InvalidValueError(
                f"{task.suite} task {task.id} of LIBERO-Plus needs {missing[0]}, which is not there.",
                hint="Unpack the benchmark's asset archive, or choose tasks that do without it (--list).",
            )
        return LiberoTask(
            suite=task.suite,
            index=task.index,
            name=task.read.name,
            instruction=self.files.instruction(task.suite, task.read, raw=raw_prompt),
            bddl_path=self.files.definition(task.suite, self._scene_of(task)),
            initial_states=self.files.initial_states(task.suite, task.read),
            step_limit=LIBERO_SUITES[task.suite],
            scene_assets=self._scene_assets(task),
        )

    def draw(self, task: PlusTask) -> Callable[[np.random.Generator, StandardScene], SampledPerturbation]:
        """What the task changes while it runs; nothing in it is random but the noise in its images."""
        joints = {}
        if isinstance(task.read.change, RobotStart):
            number = task.read.change.number
            joints = {robot: self.files.joints(robot, number) for robot in ("MountedPanda", "OnTheGroundPanda")}
        return partial(_sample_change, task, joints)

    def _scene_of(self, task: PlusTask) -> PlusName:
        """The name whose file holds the scene; another wording has a file of its own, but the standard scene."""
        if isinstance(task.read.change, Wording):
            return PlusName(name=task.read.base, base=task.read.base, change=task.read.change)
        return task.read

    def _scene_assets(self, task: PlusTask) -> PlusAssets | None:
        change, suite = task.read.change, task.suite
        if isinstance(change, Lighting | Surfaces):
            scene = self.files.scenery.scene(self.files.problem(suite, task.read))
            return PlusAssets(assets=self.files.assets, scene=scene)
        if isinstance(change, Added):
            objects, categories = self.files.scenery.objects, self.files.categories(suite, task.read)
            return PlusAssets(
                assets=self.files.assets, objects=tuple(objects[c] for c in sorted(categories & objects.keys()))
            )
        return None


def _sample_change(
    task: PlusTask, joints: dict[str, np.ndarray], generator: np.random.Generator, standard: StandardScene
) -> SampledPerturbation:
    change = task.read.change
    effects = Effects(
        camera=moved_camera(standard.camera, change if isinstance(change, CameraView) else STANDARD_VIEW),
        arm=ArmStart(joints=joints[standard.robot], moved=False) if isinstance(change, RobotStart) else None,
        corruption=corruption_numbered(change.number) if isinstance(change, Noise) else None,
    )
    numbers = {
        "benchmark": "LIBERO-Plus",
        "category": task.category,
        "level": task.level,
        "id": task.id,
        "name": task.read.name,
    }
    return SampledPerturbation(effects=effects, numbers=numbers)
