"""SimplerEnv's four WidowX tasks on BridgeV2, through ManiSkill3: real photographs with the robot and objects drawn over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lamp_client.envs import StepResult
from lamp_client.envs.rotations import matrix_from_axis_angle, moving_xyz_from_matrix, rpy_from_matrix
from lamp_client.envs.simpler_expert import SimplerExpert
from lamp_client.envs.simpler_simulation import Renderer, Scene
from lamp_client.envs.simpler_tasks import SIMPLER_TASKS, STATE_WIDTH, SimplerTask, View, action_from_policy
from lamp_client.errors import InvalidValueError
from lamp_client.images import resize
from lamp_client.types import Observation

__all__ = ["SIMPLER_TASKS", "SimplerEnv", "SimplerTask", "View", "action_from_policy"]

_BRIDGE_HAND = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
"""The hand's rotation that BridgeV2 calls none: pointing straight down."""


class SimplerEnv:
    """One WidowX task in simulation.

    Images are rendered when `observe` is called and at no other time.

    Deviation: SimplerEnv's controller reads an action's rotation as axis times angle, ManiSkill3's port of it as three angles
    about turning axes. `step` takes SimplerEnv's and gives the controller the angles of the same rotation.

    Args:
        task: One of `SIMPLER_TASKS`.
        view: What the policy is shown.
        step_limit: Actions allowed; None: the task's own, as SimplerEnv has it.
        renderer: Where Vulkan renders.
        scene: The simulation; None opens it.

    Raises:
        MissingSoftwareError: ManiSkill3 is not installed.
    """

    def __init__(
        self,
        task: SimplerTask,
        *,
        view: View | None = None,
        step_limit: int | None = None,
        renderer: Renderer = "cpu",
        scene: Scene | None = None,
    ) -> None:
        if step_limit is not None and step_limit < 1:
            raise InvalidValueError(f"step_limit is {step_limit}; expected at least 1.")
        self.task = task
        self.view = view or View()
        self.step_limit = step_limit or task.step_limit
        self.scene = scene or Scene(task, renderer)

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
        """Renders the image, resized as the view says; the state is none, or BridgeV2's (`bridge_state`)."""
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
        """See the function of the same name."""
        return action_from_policy(action)

    def expert(self) -> Callable[[], np.ndarray]:
        """A scripted expert for the episode that has just been reset; each call is its next action, in BridgeV2's convention."""
        return SimplerExpert(self.scene)

    def close(self) -> None:
        """Frees the simulation."""
        self.scene.close()

    def __enter__(self) -> SimplerEnv:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
