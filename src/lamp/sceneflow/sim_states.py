"""What a recorded episode of simulation holds, and putting the simulator back to any of its frames."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lamp.errors import DataError, MismatchError, missing, unreadable
from lamp.geometry import pose_from_mujoco_camera, rigid
from lamp.sceneflow.rendering import MjModel, camera_id
from lamp_client.envs.rendering import import_mujoco

SIMULATION_PATH = "simulation/episode-{episode_index:06d}.safetensors"
"""An episode's file in its dataset's folder."""
CAMERAS = ("model_cam_pos", "model_cam_quat", "model_cam_fovy")
AGREEMENT = 0.02
"""m: bodies may be this far from where they were recorded (a fast body moves some mm between a state and its image)."""


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One episode's simulation, at the moment of each frame."""

    states: Float[np.ndarray, "l n"]
    """Flattened MuJoCo states: time, qpos, qvel."""
    body_poses: Float[np.ndarray, "l nbody 7"]
    """World position (m) and quaternion (w, x, y, z) of every body."""
    model_body_pos: Float[np.ndarray, "nbody 3"]
    """The model's own body offsets, which a reset may change (fixtures)."""
    model_body_quat: Float[np.ndarray, "nbody 4"]
    metadata: dict[str, Any]
    """Names the task and its initial state."""
    model_cam_pos: Float[np.ndarray, "ncam 3"] | None = None
    """The model's cameras, where the episode has its own; None: as they are."""
    model_cam_quat: Float[np.ndarray, "ncam 4"] | None = None
    model_cam_fovy: Float[np.ndarray, " ncam"] | None = None
    """Vertical fields of view, degrees."""


def recording_paths(root: Path) -> dict[int, Path]:
    """Files of the recorded episodes of a dataset, by episode index.

    Raises:
        DataError: There are none.
    """
    if not root.is_dir():
        raise missing(root, "dataset", "a dataset's folder, as `lamp collect` writes it", folder=True)
    folder = root / "simulation"
    found = sorted(folder.glob("episode-[0-9]*.safetensors"))
    paths = {int(path.stem.removeprefix("episode-")): path for path in found}
    if not paths:
        raise DataError(
            f"no recorded simulation at {folder}/episode-*.safetensors; expected a dataset written by `lamp collect` "
            "(`lamp flow build SOURCE --out STORE` estimates scene flow from video, docs/scene_flow.md, and "
            "`lamp train policy --recipe small_no_motion` trains without)"
        )
    return paths


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Metadata and number of frames of a recorded episode, without reading it.

    Raises:
        DataError: The file is missing, corrupt or incomplete.
    """
    with _readable(path), safe_open(path, framework="np") as file:
        return _metadata(file), file.get_slice("states").get_shape()[0]


def read_recording(path: Path) -> Recording:
    """Reads one recorded episode.

    Raises:
        DataError: The file is missing, corrupt or incomplete.
    """
    with _readable(path), safe_open(path, framework="np") as file:
        names = ("states", "body_poses", "model_body_pos", "model_body_quat")
        cameras = [name for name in CAMERAS if name in file.keys()]  # noqa: SIM118  (not a dictionary)
        arrays = {name: file.get_tensor(name).astype(np.float64) for name in (*names, *cameras)}
        return Recording(**arrays, metadata=_metadata(file))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        damaged = DataError(f"cannot read the recorded simulation {path} ({error}); collect the episode again")
        raise unreadable(path, error, damaged) from None


def _metadata(file: Any) -> dict[str, Any]:
    return {name: _plain(text) for name, text in (file.metadata() or {}).items()}


def _plain(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


class Playback:
    """A recording in its simulator: the poses of all bodies at all frames, and the simulator put back to any of them.

    All poses come from the recorded states, as the renderer's do, so that points and depth images agree exactly.
    """

    def __init__(self, model: MjModel, recording: Recording) -> None:
        """Replays the kinematics of every frame.

        Raises:
            MismatchError: The recording is of another model.
        """
        mujoco = self._mujoco = import_mujoco()
        _check(model, recording)
        self.model, self.data = model, mujoco.MjData(model)
        model.body_pos[:], model.body_quat[:] = recording.model_body_pos, recording.model_body_quat
        for name in CAMERAS:
            if (values := getattr(recording, name)) is not None:
                getattr(model, name.removeprefix("model_"))[:] = values
        self._qpos = recording.states[:, 1 : 1 + model.nq]
        self.length = len(recording.states)
        positions = np.empty((self.length, model.nbody, 3))
        rotations = np.empty((self.length, model.nbody, 9))
        self.geom_positions: Float[np.ndarray, "l ngeom 3"] = np.empty((self.length, model.ngeom, 3))
        self.geom_rotations: Float[np.ndarray, "l ngeom 9"] = np.empty((self.length, model.ngeom, 9))
        eyes, turns = np.empty((self.length, model.ncam, 3)), np.empty((self.length, model.ncam, 9))
        for frame in range(self.length):
            self.restore(frame)
            positions[frame], rotations[frame] = self.data.xpos, self.data.xmat
            self.geom_positions[frame], self.geom_rotations[frame] = self.data.geom_xpos, self.data.geom_xmat
            eyes[frame], turns[frame] = self.data.cam_xpos, self.data.cam_xmat
        _check_poses(model, positions, recording)
        self.world_from_body: Float[Tensor, "l nbody 4 4"] = rigid(_matrices(rotations), torch.from_numpy(positions))
        self._cameras = pose_from_mujoco_camera(torch.from_numpy(eyes), _matrices(turns))

    def restore(self, frame: int) -> None:
        """Puts the bodies, cameras and lights of `data` where they were at `frame`."""
        self.data.qpos[:] = self._qpos[frame]
        self._mujoco.mj_kinematics(self.model, self.data)
        self._mujoco.mj_comPos(self.model, self.data)
        self._mujoco.mj_camlight(self.model, self.data)

    def place_geoms(self, frame: int) -> None:
        """Puts only the geoms where they were at `frame`, which is all that rays ask for."""
        self.data.geom_xpos[:], self.data.geom_xmat[:] = self.geom_positions[frame], self.geom_rotations[frame]

    def camera_poses(self, camera: str) -> Float[Tensor, "l 4 4"]:
        """``world_from_cam`` of a MuJoCo camera at every frame."""
        return self._cameras[:, camera_id(self.model, camera)]


def _matrices(flat: np.ndarray) -> Tensor:
    return torch.from_numpy(flat).unflatten(-1, (3, 3))


def _check(model: MjModel, recording: Recording) -> None:
    expected = 1 + model.nq + model.nv
    if recording.states.shape[1] != expected or recording.model_body_pos.shape[0] != model.nbody:
        raise MismatchError(
            f"the recording {recording.metadata} has states of {recording.states.shape[1]} values and "
            f"{recording.model_body_pos.shape[0]} bodies, but the simulation has {expected} and {model.nbody}; "
            "expected the task, and the versions of the simulator's packages, that it was collected with"
        )


def _check_poses(model: MjModel, positions: np.ndarray, recording: Recording) -> None:
    off = np.abs(positions - recording.body_poses[..., :3]).max(axis=(0, 2))
    if (worst := int(off.argmax())) and off[worst] > AGREEMENT:
        raise MismatchError(
            f"restoring the recording {recording.metadata} puts body {model.body(worst).name!r} {off[worst]:.3f} m away "
            f"from where it was recorded (at most {AGREEMENT} m expected); expected the task, and the versions of the "
            "simulator's packages, that it was collected with"
        )
