"""SimplerEnv's WidowX tasks on BridgeV2: which there are, how their episodes are numbered, what a policy is shown."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lamp_client.envs.rotations import axis_angle_from_rpy
from lamp_client.errors import InvalidValueError, UnknownNameError

EPISODES = 24
"""Episodes of a task, numbered as SimplerEnv numbers them."""

STATE_WIDTH = 7
CAMERA = "primary"
"""What the one camera is called in BridgeV2's datasets."""
HEIGHT, WIDTH = 480, 640
"""Of the rendered image [px]."""


@dataclass(frozen=True, kw_only=True)
class SimplerTask:
    """One task: objects in `EPISODES` arrangements."""

    name: str
    env_id: str
    """ManiSkill3's name of it."""
    instruction: str
    step_limit: int
    turns: tuple[int, ...]
    """Which of ManiSkill's turns of the object an episode takes, in SimplerEnv's order: episode = place * len(turns) + turn."""
    known_turns: int
    """How many turns ManiSkill has."""

    def layout(self, episode: int) -> int:
        """The number that ManiSkill gives an episode's arrangement.

        Raises:
            UnknownNameError: There is no such episode.
        """
        if not 0 <= episode < EPISODES:
            raise UnknownNameError(f"episode of {self.name}", episode, [f"0 to {EPISODES - 1}"])
        place, turn = divmod(episode, len(self.turns))
        return place * self.known_turns + self.turns[turn]


SIMPLER_TASKS = (
    SimplerTask(
        name="stack_block",
        env_id="StackGreenCubeOnYellowCubeBakedTexInScene-v1",
        instruction="stack the green block on the yellow block",
        step_limit=60,
        turns=(0,),
        known_turns=1,
    ),
    SimplerTask(
        name="put_carrot",
        env_id="PutCarrotOnPlateInScene-v1",
        instruction="put carrot on plate",
        step_limit=60,
        turns=(0, 1),
        known_turns=2,
    ),
    SimplerTask(
        name="put_spoon",
        env_id="PutSpoonOnTableClothInScene-v1",
        instruction="put the spoon on the towel",
        step_limit=60,
        turns=(0, 1),
        known_turns=2,
    ),
    # SimplerEnv has 8 places and the turns 0, 45 and -45 degrees. ManiSkill3 has the 8 places and 8 turns, of which these three
    # are its numbers 1, 2 and 0; its own first 24 arrangements would be 3 places only.
    SimplerTask(
        name="put_eggplant",
        env_id="PutEggplantInBasketScene-v1",
        instruction="put eggplant into yellow basket",
        step_limit=120,
        turns=(1, 2, 0),
        known_turns=8,
    ),
)
"""In the order of the published tables."""


@dataclass(frozen=True, kw_only=True)
class View:
    """What a policy is shown of a scene.

    Raises:
        InvalidValueError: A size below 1, or a state that is neither none nor BridgeV2's.
    """

    camera: str = CAMERA
    """What the policy calls the camera."""
    height: int = HEIGHT
    """The image is resized to this, without regard to its shape, as BridgeV2's datasets were [px]."""
    width: int = WIDTH
    state_width: int = 0
    """0: none, as in SimplerEnv's protocol. 7: BridgeV2's, for policies that were trained with it."""

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise InvalidValueError(f"images of {self.width}x{self.height}; expected at least 1x1.")
        if self.state_width not in (0, STATE_WIDTH):
            raise InvalidValueError(
                f"a state of {self.state_width} values; SimplerEnv gives none (0), or BridgeV2's position, roll-pitch-yaw and "
                f"gripper ({STATE_WIDTH})."
            )


def action_from_policy(action: np.ndarray) -> np.ndarray:
    """Converts (..., 7) from BridgeV2's convention to SimplerEnv's.

    The position's delta [m] stays; roll, pitch and yaw deltas become an axis-angle [rad]; the gripper's 1 = open, 0 = closed
    becomes +1 = open, -1 = close.
    """
    converted = np.array(action, dtype=np.float32)
    converted[..., 3:6] = axis_angle_from_rpy(converted[..., 3:6])
    converted[..., 6] = 2 * (converted[..., 6] > 0.5) - 1
    return converted
