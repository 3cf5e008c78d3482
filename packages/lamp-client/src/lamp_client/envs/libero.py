"""LIBERO: the four suites of ten tasks, on the stored initial states, with lazily rendered observations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from lamp_client.envs import StepResult, libero_simulation
from lamp_client.envs.libero_simulation import MAX_SHIFT, Placement, draw_placement, movable_objects, placement_holds
from lamp_client.envs.libero_tasks import LIBERO_SUITES, LiberoTask, load_task
from lamp_client.envs.perturbations import ArmStart
from lamp_client.envs.rendering import Renderer, RenderQuality, import_mujoco
from lamp_client.envs.rotations import axis_angle_from_quaternion
from lamp_client.errors import InvalidValueError, SimulationError, UnknownNameError
from lamp_client.types import Observation

__all__ = [
    "CAMERA_NAMES",
    "LIBERO_SUITES",
    "SETTLING_ACTION",
    "SETTLING_STEPS",
    "LiberoEnv",
    "LiberoTask",
    "Snapshot",
    "action_from_policy",
    "load_task",
]

CAMERA_NAMES = {"agentview": "agentview", "wrist": "robot0_eye_in_hand"}
"""Our camera name -> MuJoCo's; the first is the reference camera."""

SETTLING_STEPS = 10
SETTLING_ACTION = np.array([0, 0, 0, 0, 0, 0, -1], dtype=np.float32)
"""Hold still with the gripper opening."""

_PLACEMENT_ATTEMPTS = 10

Opened = TypeVar("Opened", bound="LiberoEnv")


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The simulation at one moment: what it takes to come back to it, and where every body is."""

    state: np.ndarray
    """(n,) float64: time, joint positions, joint velocities."""
    body_poses: np.ndarray
    """(nbody, 7) float64: position in the world [m], quaternion (w, x, y, z)."""


def action_from_policy(action: np.ndarray) -> np.ndarray:
    """Converts the gripper from the datasets' 1 = open, 0 = closed to the environment's -1 = open, +1 = close."""
    converted = np.array(action, dtype=np.float32)
    converted[..., 6] = 1 - 2 * (converted[..., 6] > 0.5)
    return converted


class LiberoEnv:
    """One LIBERO task in simulation.

    `step` costs physics only; images are rendered when `observe` is called and at no other time.

    Deviation: the observation that robosuite's `step` returns was sampled one physics substep before the last and shows body
    poses another substep older, 4 ms behind in all (up to 2 mm at the gripper in full motion). Ours is of this very moment, and
    so a function of the snapshot taken with it; it equals robosuite's forced update bit for bit.

    Args:
        task: From `load_task`.
        image_size: Width and height of both images [px].
        placement_shift: Objects standing freely on the table are displaced by up to this much along x and along y [m] at
            reset. What they are to be put on or into (basket, plate), and objects on or in something, stay.
        seed: Seeds, with the initial state's index, where the fixtures are, and the displacements.

    Raises:
        MissingSoftwareError: if LIBERO or OpenGL is not installed.
    """

    cameras: tuple[str, ...] = tuple(CAMERA_NAMES)
    camera_names = CAMERA_NAMES

    variation: Mapping[str, object] = {}
    """How the scene differs from the task's standard one; here not at all."""

    def __init__(
        self,
        task: LiberoTask,
        *,
        image_size: int = 256,
        render: RenderQuality = "exact",
        placement_shift: float = 0.0,
        seed: int = 7,
    ) -> None:
        if not 0.0 <= placement_shift <= MAX_SHIFT:
            raise InvalidValueError(f"placement_shift is {placement_shift}; expected 0 to {MAX_SHIFT} metres.")
        if not 1 <= image_size <= 4096:
            raise InvalidValueError(f"image_size is {image_size}; expected 1 to 4096 px.")
        self.task = task
        self.image_size = image_size
        self.render_quality: RenderQuality = render
        self.placement_shift = placement_shift
        self.seed = seed
        self.placement: Placement = {}
        """Object -> displacement [dx, dy] in metres, applied at the last reset."""
        self.initial_state: int | None = None
        self.arm: ArmStart | None = None
        """Where the arm, or its controller, starts at resets; None: as LIBERO has it."""
        self._mujoco = import_mujoco()
        self._renderer: Renderer | None = None
        self.robosuite = libero_simulation.build(task)
        self._bodies = {name: self.robosuite.obj_body_id[name] for name in self.robosuite.objects_dict}
        self._rest: np.ndarray | None = None
        self._moved = np.zeros((len(self._bodies), 2))
        self._start_from(0)

    @property
    def instruction(self) -> str:
        return self.task.instruction

    @property
    def step_limit(self) -> int:
        return self.task.step_limit

    @property
    def facts(self) -> dict[str, object]:
        """What an episode's record should know: of each object that moved by more than a centimetre since the reset, how far it
        ever was from where it rested and how high above it [m]; and the objects that the goal is about."""
        goals = [goal[1] for goal in self.robosuite.parsed_problem["goal_state"] if len(goal) > 1]
        moved = zip(self._bodies, self._moved.tolist(), strict=True)
        return {
            "moved": {name: [round(away, 3), round(up, 3)] for name, (away, up) in moved if away > 0.01},
            "targets": [name for name in dict.fromkeys(goals) if name in self._bodies],
        }

    @property
    def simulation(self) -> tuple[Any, Any]:
        """The raw (mujoco.MjModel, mujoco.MjData)."""
        sim = self.robosuite.sim
        return sim.model._model, sim.data._data

    def reset(self, initial_state: int, placement_seed: int | None = None) -> None:
        """Goes to a stored initial state and lets everything settle; displaces objects, if so configured, and settles again.

        Args:
            placement_seed: Tells displacements of one initial state apart; None displaces nothing.

        Raises:
            UnknownNameError: for an initial state that does not exist.
            SimulationError: if no valid displacement was found.
        """
        states, self._rest = self.task.initial_states, None
        if not 0 <= initial_state < len(states):
            raise UnknownNameError(f"initial state of {self.task.name}", initial_state, [f"0 to {len(states) - 1}"])
        self.initial_state = initial_state
        if placement_seed is None or self.placement_shift == 0.0:
            self.placement = {}
            self._start_from(initial_state)
            self._settle()
            self._watch()
            return
        # Some stored states start with objects in the air or in one another, so objects are displaced once they have settled.
        self._start_from(initial_state)
        self._settle()
        settled = self.snapshot().state
        self._settle()
        undisturbed = self.snapshot().body_poses
        names = movable_objects(self.robosuite)
        suite = list(LIBERO_SUITES).index(self.task.suite)
        for attempt in range(_PLACEMENT_ATTEMPTS):
            seeds = (self.seed, suite, self.task.index, initial_state, placement_seed, attempt)
            self.restore(settled)
            self.placement = draw_placement(self.robosuite, names, self.placement_shift, np.random.default_rng(seeds))
            self._settle()
            if placement_holds(self.robosuite, self.placement, undisturbed, self.snapshot().body_poses):
                self._watch()
                return
        raise SimulationError(
            f"no valid displacement of up to {self.placement_shift} m in {_PLACEMENT_ATTEMPTS} attempts for "
            f"{self.task.name}, initial state {initial_state}, placement seed {placement_seed}.",
            hint="Use a smaller placement_shift.",
        )

    def observe(self) -> Observation:
        """Renders both cameras and reads the state: end-effector position [m] (3), its orientation as axis-angle with the
        quaternion's sign as given [rad] (3), gripper joint positions [m] (2)."""
        model, data = self.simulation
        if self._renderer is None or self._renderer.model is not model:
            if self._renderer is not None:
                self._renderer.close()
            self._renderer = Renderer(model, self.image_size, self.render_quality)
        images = {name: self._renderer.image(data, camera) for name, camera in CAMERA_NAMES.items()}
        return Observation(images=images, state=self.proprioception(), instruction=self.task.instruction)

    def proprioception(self) -> np.ndarray:
        """The 8 state values of `observe` (float32), without rendering."""
        _, data = self.simulation
        robot = self.robosuite.robots[0]
        hand = self.robosuite.sim.model.body_name2id(robot.robot_model.eef_name)
        w, x, y, z = data.xquat[hand]
        gripper = data.qpos[robot._ref_gripper_joint_pos_indexes]
        position = data.site_xpos[robot.eef_site_id]
        return np.concatenate([position, axis_angle_from_quaternion(np.array([x, y, z, w])), gripper]).astype(
            np.float32
        )

    def step(self, action: np.ndarray) -> StepResult:
        """Executes one action, 1/20 s.

        Args:
            action: (7,) position and rotation deltas in [-1, 1], gripper -1 = open, +1 = close.
        """
        values = np.asarray(action, dtype=np.float64)
        if values.shape != (7,) or not np.isfinite(values).all():
            raise InvalidValueError(f"action {values.tolist()} does not fit; expected 7 finite values.")
        success = libero_simulation.step(self.robosuite, values)
        libero_simulation.refresh(self.robosuite)
        if self._rest is not None:
            apart = self._positions() - self._rest
            away = np.stack([np.linalg.norm(apart, axis=1), apart[:, 2]], axis=1)
            self._moved = np.maximum(self._moved, away)
        return StepResult(success=success, done=success)

    def action_from_policy(self, action: np.ndarray) -> np.ndarray:
        return action_from_policy(action)

    def snapshot(self) -> Snapshot:
        """Copies the simulation's state and where every body is."""
        _, data = self.simulation
        poses = np.concatenate([data.xpos, data.xquat], axis=1)
        return Snapshot(state=self.robosuite.sim.get_state().flatten(), body_poses=poses)

    def model_poses(self) -> tuple[np.ndarray, np.ndarray]:
        """Copies every body's pose in its parent, (nbody, 3) [m] and (nbody, 4) (w, x, y, z): fixtures are placed there."""
        model, _ = self.simulation
        return model.body_pos.copy(), model.body_quat.copy()

    def restore(
        self,
        state: np.ndarray,
        model_body_pos: np.ndarray | None = None,
        model_body_quat: np.ndarray | None = None,
    ) -> None:
        """Puts the simulation into a recorded state, with the fixtures where they were then, for looking at it."""
        model, data = self.simulation
        expected = 1 + model.nq + model.nv
        if np.shape(state) != (expected,):
            raise InvalidValueError(f"state has shape {np.shape(state)}; expected ({expected},) for {self.task.name}.")
        for target, poses in ((model.body_pos, model_body_pos), (model.body_quat, model_body_quat)):
            if poses is None:
                continue
            if np.shape(poses) != target.shape:
                raise InvalidValueError(f"body poses have shape {np.shape(poses)}; expected {target.shape}.")
            target[:] = poses
        self.robosuite.sim.set_state_from_flattened(np.asarray(state, dtype=np.float64))
        self._mujoco.mj_forward(model, data)

    def copy_state(self, other: LiberoEnv) -> None:
        """Goes to the very state of another environment of the same task, reset alike: equal actions lead to equal states."""
        libero_simulation.copy_state(other.robosuite, self.robosuite)

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        self.robosuite.close()

    def __enter__(self: Opened) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _watch(self) -> None:
        """Notes from now on how far objects go."""
        self._rest, self._moved = self._positions(), np.zeros((len(self._bodies), 2))

    def _positions(self) -> np.ndarray:
        _, data = self.simulation
        return data.xpos[list(self._bodies.values())].copy()

    def _start_from(self, initial_state: int) -> None:
        # The stored states do not say where cabinets and stoves are: LIBERO draws that anew, within 2 cm, at each reset.
        state, seed = self.task.initial_states[initial_state], (self.seed, initial_state)
        libero_simulation.reset_to(self.robosuite, state, seed, self.arm)

    def _settle(self) -> None:
        for _ in range(SETTLING_STEPS):
            self.step(SETTLING_ACTION)
