"""SimplerEnv's WidowX tasks on BridgeV2: which there are, how their episodes are numbered, what a policy is shown, and
the files that their scenes are made of.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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
class SimplerView:
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


SCENES = Path("tasks/bridge_v2_real2sim_dataset")
ROBOT = Path("robots/widowx/wx250s.urdf")
STAND_INS = "STAND_INS"
"""A file in the folder of the assets, a line for each that is not the original: results then bear another name."""

_MODELS = (
    "baked_green_cube_3cm",
    "baked_yellow_cube_3cm",
    "bridge_carrot_generated_modified",
    "bridge_plate_objaverse_larger",
    "bridge_spoon_generated_modified",
    "table_cloth_generated_shorter",
    "eggplant",
    "dummy_sink_target_plane",
    "sink",
)
_OTHERS = (
    "custom/info_bridge_custom_v0.json",
    "custom/info_bridge_custom_baked_tex_v0.json",
    "real_inpainting/bridge_real_eval_1.png",
    "real_inpainting/bridge_sink.png",
)
_STAGES = ("stages/bridge_table_1_v1.glb", "stages/bridge_table_1_v2.glb")
_VISUALS = ("textured.obj", "textured.dae", "textured.glb")
_SCANNED_BYTES = 100_000
"""The original stages are scanned rooms of many megabytes; less than this is a box."""


def asset_folder(chosen: Path | None = None) -> Path:
    """Where ManiSkill looks for its data: `data` in the chosen folder, in `$MS_ASSET_DIR`, or in `~/.maniskill`."""
    root = chosen or Path(os.environ.get("MS_ASSET_DIR") or Path.home() / ".maniskill")
    return root / "data"


def missing_assets(data: Path) -> dict[str, list[str]]:
    """Returns what is missing under ManiSkill's `data` folder: the name of each download -> its missing files."""
    missing = {
        "bridge_v2_real2sim": [str(path) for path in _scene_files(data) if not (data / path).is_file()],
        "widowx250s": [str(path) for path in _robot_files(data) if not (data / path).is_file()],
    }
    return {download: files for download, files in missing.items() if files}


def stand_in_assets(data: Path) -> list[str]:
    """Names known replacements of the original assets: those that the folder declares, and stages that are no scans."""
    listed = data / STAND_INS
    names = [line.strip() for line in listed.read_text().splitlines() if line.strip()] if listed.is_file() else []
    boxes = [str(SCENES / stage) for stage in _STAGES if (data / SCENES / stage).stat().st_size < _SCANNED_BYTES]
    return sorted({*names, *boxes})


def assets_fingerprint(data: Path) -> str:
    """Returns 16 hexadecimal digits that name the content of all files that the scenes are made of."""
    digest = hashlib.sha256()
    for path in sorted({*_scene_files(data), *_robot_files(data)}):
        digest.update(f"{path}\0".encode())
        digest.update(hashlib.sha256((data / path).read_bytes()).digest())
    return digest.hexdigest()[:16]


def _scene_files(data: Path) -> Iterator[Path]:
    for name in (*_OTHERS, *_STAGES):
        yield SCENES / name
    for model in _MODELS:
        place = SCENES / "custom" / "models" / model
        yield place / "collision.obj"
        yield next((place / name for name in _VISUALS if (data / place / name).is_file()), place / _VISUALS[0])


def _robot_files(data: Path) -> Iterator[Path]:
    yield ROBOT
    if (data / ROBOT).is_file():
        text = re.sub(r"<!--.*?-->", "", (data / ROBOT).read_text(errors="replace"), flags=re.DOTALL)
        for name in sorted(set(re.findall(r'<mesh[^>]*\bfilename="([^"]+)"', text))):
            yield ROBOT.parent / name.removeprefix("package://")
