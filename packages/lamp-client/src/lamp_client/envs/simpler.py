"""SimplerEnv's four WidowX tasks on BridgeV2, through ManiSkill3: real photographs with the robot and objects drawn over them.

`SimplerScene` is ManiSkill3's scene, rendered only when looked at; `SimplerEnv` is what a policy acts in.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lamp_client.envs import StepResult
from lamp_client.envs.rotations import (
    matrix_from_axis_angle,
    matrix_from_quaternion,
    moving_xyz_from_matrix,
    rpy_from_matrix,
)
from lamp_client.envs.simpler_expert import SimplerExpert
from lamp_client.envs.simpler_tasks import STATE_WIDTH, SimplerTask, SimplerView, action_from_policy
from lamp_client.errors import InvalidValueError, MissingSoftwareError
from lamp_client.layouts import resize
from lamp_client.types import Observation

VulkanDevice = Literal["cpu", "gpu"]
CONTROL_MODE = "arm_pd_ee_target_delta_pose_align2_gripper_pd_joint_pos"
CAMERA = "3rd_view_camera"
VULKAN = (
    "Rendering on a CPU needs Mesa 25 or newer: `make simpler-env` sees to it. By hand, on Debian 12: `echo 'deb "
    "http://deb.debian.org/debian bookworm-backports main' > /etc/apt/sources.list.d/backports.list && apt-get update && apt-get "
    "install -t bookworm-backports mesa-vulkan-drivers`; on Debian 13 or Ubuntu 25.04: `apt-get install mesa-vulkan-drivers`. "
    "A GPU needs its maker's Vulkan driver"
)
SEED = 7
"""Of ManiSkill's generators, which an arrangement with a number does not use."""

FINGERS = (0.015, 0.037)
"""Where a finger stands when closed and when open [m]."""


def import_maniskill() -> Any:
    """Imports gymnasium with ManiSkill3's environments registered.

    Raises:
        MissingSoftwareError: ManiSkill3 is not installed in this environment.
    """
    # Told to skip its questions, ManiSkill deletes what is in the folder of a download before it tries to download.
    os.environ.pop("MS_SKIP_ASSET_DOWNLOAD_PROMPT", None)
    driver = Path(sys.prefix) / "vulkan" / "lvp_icd.json"
    if driver.is_file() and not os.environ.get("VK_DRIVER_FILES"):
        os.environ.setdefault("VK_ICD_FILENAMES", str(driver))
    # Mesa's software rasteriser would otherwise start a thread per core.
    os.environ.setdefault("LP_NUM_THREADS", "1")
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            import gymnasium
            import mani_skill.envs  # noqa: F401  (registers them)  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingSoftwareError(
            f"ManiSkill3 is not installed ({error}).", hint="make simpler-env builds its environment, .venv-simpler."
        ) from error
    return gymnasium


def check_vulkan(renderer: VulkanDevice) -> None:
    """Opens the device that would render.

    Raises:
        MissingSoftwareError: Vulkan has no such device here.
    """
    import_maniskill()
    import sapien  # pyright: ignore[reportMissingImports]

    try:
        sapien.render.RenderSystem(sapien.Device("cpu" if renderer == "cpu" else "cuda"))
    except RuntimeError as error:
        raise MissingSoftwareError(
            f"Vulkan has no device to render on the {renderer} ({error}).", hint=VULKAN
        ) from error


def versions() -> dict[str, str]:
    """The installed versions of what can change a result."""
    installed = {}
    for name in ("mani_skill", "sapien", "gymnasium", "numpy", "torch"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[name] = importlib.metadata.version(name)
    return installed


class SimplerScene:
    """A task's scene, at 5 actions and 500 physics steps a second.

    What follows a reset depends on the arrangement alone: in one process the same actions give the same poses, bit for bit.

    Raises:
        MissingSoftwareError: ManiSkill3 is not installed.
    """

    def __init__(self, task: SimplerTask, renderer: VulkanDevice = "cpu") -> None:
        gymnasium = import_maniskill()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Unwrapped: the wrapper would end the episode at its own limit.
            self.maniskill: Any = gymnasium.make(
                task.env_id,
                obs_mode="rgb+segmentation",
                control_mode=CONTROL_MODE,
                sim_backend="physx_cpu",
                render_backend=renderer,
                num_envs=1,
            ).unwrapped
        self._info: Any = None

    def reset(self, layout: int) -> None:
        """Arranges the objects and lets them settle; the robot starts where BridgeV2's did."""
        # Never reconfigured: a scene that is built anew differs from the first in the last bit.
        _, self._info = self.maniskill.reset(seed=SEED, options={"episode_id": layout})

    def step(self, command: np.ndarray) -> bool:
        """Executes one command for 1/5 s, renders nothing, and returns whether the goal holds.

        Args:
            command: (7,) delta of the hand's target in the robot's frame: position [m], angles as `moving_xyz_from_matrix`
                [rad]; gripper -1 = close, +1 = open.
        """
        # ManiSkill's own step renders every time, which costs several times the physics.
        self.maniskill._step_action(np.asarray(command, dtype=np.float32))
        self.maniskill._elapsed_steps += 1
        self._info = self.maniskill.get_info()
        return bool(self._info["success"][0])

    def image(self) -> np.ndarray:
        """Renders (480, 640, 3) uint8: the real photograph with robot and objects drawn over it."""
        observed = self.maniskill.get_obs(self._info, unflattened=True)
        return np.ascontiguousarray(observed["sensor_data"][CAMERA]["rgb"][0].cpu().numpy())

    @property
    def instruction(self) -> str:
        return self.maniskill.get_language_instruction()[0]

    @property
    def hand(self) -> tuple[np.ndarray, np.ndarray]:
        """Position [m] and rotation (3, 3) of the hand in the robot's frame."""
        return _parts(self.maniskill.agent.controller.controllers["arm"].ee_pose_at_base)

    @property
    def hand_target(self) -> tuple[np.ndarray, np.ndarray]:
        return _parts(self.maniskill.agent.controller.controllers["arm"]._target_pose)

    @property
    def opening(self) -> float:
        """How far the gripper is open, 0 to 1."""
        low, high = FINGERS
        fingers = self.maniskill.agent.robot.qpos[0, -2:].cpu().numpy()
        return float(np.clip((fingers.mean() - low) / (high - low), 0.0, 1.0))

    @property
    def source(self) -> np.ndarray:
        """(n, 3) corners of the hull of what is to be moved, in the robot's frame [m]."""
        return self._corners(self.maniskill.source_obj_name)

    @property
    def source_mass(self) -> np.ndarray:
        """(3,) centre of mass of what is to be moved, in the robot's frame [m]."""
        body, position, rotation = self._body(self.maniskill.source_obj_name)
        return rotation @ np.asarray(body.cmass_local_pose.p, np.float64) + position

    @property
    def goal(self) -> np.ndarray:
        """(n, 3) corners of the hull of where it is to go, in the robot's frame [m]."""
        return self._corners(self.maniskill.target_obj_name)

    def close(self) -> None:
        self.maniskill.close()

    def _corners(self, name: str) -> np.ndarray:
        body, position, rotation = self._body(name)
        corners = []
        for shape in body.collision_shapes:
            turned = shape.vertices * shape.scale @ matrix_from_quaternion(shape.local_pose.q).T
            corners.append(turned + np.asarray(shape.local_pose.p, np.float64))
        return np.concatenate(corners) @ rotation.T + position

    def _body(self, name: str) -> tuple[Any, np.ndarray, np.ndarray]:
        """An object's rigid body, and its position [m] and rotation in the robot's frame."""
        import sapien  # pyright: ignore[reportMissingImports]

        actor = self.maniskill.objs[name]
        body = actor._objs[0].find_component_by_type(sapien.physx.PhysxRigidDynamicComponent)
        return body, *_parts(self.maniskill.agent.robot.pose.inv() * actor.pose)


def _parts(pose: Any) -> tuple[np.ndarray, np.ndarray]:
    position, quaternion = (value[0].cpu().numpy().astype(np.float64) for value in (pose.p, pose.q))
    return position, matrix_from_quaternion(quaternion)


_BRIDGE_HAND = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
"""The hand's rotation that BridgeV2 calls none: pointing straight down."""


class SimplerEnv:
    """One WidowX task in simulation.

    Images are rendered when `observe` is called and at no other time.

    Deviation: SimplerEnv's controller reads an action's rotation as axis times angle, ManiSkill3's port of it as three angles
    about turning axes. `step` takes SimplerEnv's and gives the controller the angles of the same rotation.

    Args:
        view: What the policy is shown.
        step_limit: Actions allowed; None: the task's own, as SimplerEnv has it.
        renderer: Where Vulkan renders.

    Raises:
        MissingSoftwareError: ManiSkill3 is not installed.
    """

    def __init__(
        self,
        task: SimplerTask,
        *,
        view: SimplerView | None = None,
        step_limit: int | None = None,
        renderer: VulkanDevice = "cpu",
        scene: SimplerScene | None = None,
    ) -> None:
        if step_limit is not None and step_limit < 1:
            raise InvalidValueError(f"step_limit is {step_limit}; expected at least 1.")
        self.task = task
        self.view = view or SimplerView()
        self.step_limit = step_limit or task.step_limit
        self.scene = scene or SimplerScene(task, renderer)

    @property
    def cameras(self) -> tuple[str, ...]:
        return (self.view.camera,)

    @property
    def instruction(self) -> str:
        return self.task.instruction

    @property
    def placement(self) -> Mapping[str, Any]:
        """Nothing is displaced: the arrangements are SimplerEnv's."""
        return {}

    def reset(self, initial_state: int, placement_seed: int | None = None) -> None:
        """Arranges the objects of an episode, 0 to 23.

        Raises:
            UnknownNameError: There is no such episode.
        """
        self.scene.reset(self.task.layout(initial_state))

    def observe(self) -> Observation:
        """Renders the image at the view's size; the state is empty, or BridgeV2's (`bridge_state`)."""
        image = resize(self.scene.image(), self.view.height, self.view.width)
        state = self.bridge_state() if self.view.state_width else np.zeros(0, np.float32)
        return Observation(images={self.view.camera: image}, state=state, instruction=self.task.instruction)

    def bridge_state(self) -> np.ndarray:
        """(7,) the hand's position in the robot's frame [m], roll, pitch and yaw from pointing down [rad], gripper 1 = open."""
        position, rotation = self.scene.hand
        turned = rpy_from_matrix(rotation @ _BRIDGE_HAND.T)
        return np.concatenate([position, turned, [self.scene.opening]]).astype(np.float32)

    def step(self, action: np.ndarray) -> StepResult:
        """Executes one action, 1/5 s.

        Args:
            action: (7,) delta of position [m] and of rotation as axis times angle [rad] in the robot's frame, gripper +1 = open,
                -1 = close.
        """
        values = np.asarray(action, dtype=np.float64)
        if values.shape != (STATE_WIDTH,) or not np.isfinite(values).all():
            raise InvalidValueError(f"action {values.tolist()} does not fit; expected 7 finite values.")
        angles = moving_xyz_from_matrix(matrix_from_axis_angle(values[3:6]))
        success = self.scene.step(np.concatenate([values[:3], angles, values[6:]]))
        return StepResult(success=success, done=success)

    def action_from_policy(self, action: np.ndarray) -> np.ndarray:
        return action_from_policy(action)

    def expert(self) -> Callable[[], np.ndarray]:
        """A scripted expert for the episode that has just been reset; each call is its next action, in BridgeV2's convention."""
        return SimplerExpert(self.scene)

    def close(self) -> None:
        self.scene.close()

    def __enter__(self) -> SimplerEnv:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
