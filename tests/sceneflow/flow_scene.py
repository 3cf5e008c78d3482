"""A small MuJoCo scene with known motion, and datasets recorded in it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save_file

from lamp.sceneflow import store
from lamp.sceneflow.rendering import SimulationScene
from lamp.sceneflow.sim_states import Recording
from lamp_client.envs.rendering import import_mujoco

mujoco: Any = import_mujoco()
CAMERAS = {"agentview": "front", "wrist": "hand"}
FPS = 20
KILL = "LAMP_TEST_KILL"
XML = """
<mujoco>
  <visual><map znear="0.005" zfar="20"/></visual>
  <worldbody>
    <light pos="0 0 3"/>
    <camera name="front" pos="0 -1.2 0.6" xyaxes="1 0 0 0 0.45 0.9" fovy="45"/>
    <geom name="table" type="plane" size="0.7 0.7 0.01" rgba="0.5 0.4 0.3 1"/>
    <body name="still" pos="-0.3 0.2 0.05"><geom type="box" size="0.05 0.05 0.05" rgba="1 0 0 1"/></body>
    <body name="slider" pos="0 0 0.1">
      <joint name="slide" type="slide" axis="1 0 0"/>
      <geom type="box" size="0.12 0.06 0.1" rgba="0 1 0 1"/>
    </body>
    <body name="spinner" pos="0.3 0.25 0.1">
      <joint name="spin" type="hinge" axis="0 0 1"/>
      <geom type="box" size="0.12 0.05 0.1" rgba="0 0 1 1"/>
    </body>
    <body name="curtain" pos="-0.9 -0.45 0.2">
      <joint name="draw" type="slide" axis="1 0 0"/>
      <geom type="box" size="0.1 0.01 0.2" rgba="1 1 0 1"/>
      <geom type="box" size="0.2 0.2 0.5" group="3" rgba="0 0 0 1"/>
    </body>
    <body name="arm" pos="0 -0.3 0.7">
      <joint name="x" type="slide" axis="1 0 0"/>
      <joint name="tilt" type="hinge" axis="1 0 0"/>
      <camera name="hand" pos="0 0 0" xyaxes="1 0 0 0 0.9 0.45" fovy="60"/>
      <geom name="finger" type="capsule" fromto="0.1 0.05 -0.1 0.1 0.15 -0.25" size="0.02" rgba="0 1 1 1"/>
    </body>
  </worldbody>
</mujoco>
"""


PAINT = """
  <default><geom group="1" material="paint"/></default>
  <asset>
    <texture name="paint" type="cube" builtin="checker" mark="random" random="0.2" rgb1="1 1 1" rgb2="0.4 0.4 0.4" markrgb="0 0 0"
      width="64" height="64"/>
    <material name="paint" texture="paint"/>
    <texture name="board" type="2d" builtin="checker" mark="random" random="0.2" rgb1="1 1 1" rgb2="0.4 0.4 0.4" markrgb="0 0 0"
      width="64" height="64"/>
    <material name="board" texture="board" texrepeat="4 4" texuniform="true"/>
  </asset>
  <worldbody>"""


def load_painted_scene(metadata: Mapping[str, Any]) -> SimulationScene:
    """The same with a pattern on everything, so that its images show what moves."""
    painted = XML.replace("<worldbody>", PAINT).replace('name="table"', 'name="table" material="board"')
    model = mujoco.MjModel.from_xml_string(painted)
    return SimulationScene(model=model, cameras=CAMERAS, geom_groups=(1,))


def load_scene(metadata: Mapping[str, Any]) -> SimulationScene:
    """The scene; writing the episode of the task that the environment names ("task:dataset") kills the process halfway.

    What temporary folders there were is left in the dataset's `killed`: another worker may remove them at once.
    """
    task, _, dataset = os.environ.get(KILL, "").partition(":")

    def killed() -> None:
        (Path(dataset) / "killed").write_text("\n".join(map(str, Path(dataset).glob("sceneflow/.tmp-*"))))
        os.kill(os.getpid(), signal.SIGKILL)

    if task == str(metadata["task"]):
        store.Crc32cCodec = killed  # pyright: ignore[reportAttributeAccessIssue]
    return SimulationScene(model=mujoco.MjModel.from_xml_string(XML), cameras=CAMERAS)


def motion(length: int, *, moving_arm: bool = True, moving_bodies: bool = True) -> np.ndarray:
    """Joint positions (slide, spin, draw, x, tilt) of every frame: the objects rest for four frames, then move."""
    t = np.maximum(np.arange(length) - 4, 0) / FPS
    bodies, arm = float(moving_bodies), float(moving_arm)
    moved = [0.25 * t * bodies, 1.2 * t * bodies, 0.7 * t * bodies, 0.1 * np.sin(2 * t) * arm, 0.2 * np.sin(t) * arm]
    return np.stack(moved, axis=1)


def record(qpos: np.ndarray, **metadata: Any) -> Recording:
    """What a simulation that goes through these joint positions leaves behind."""
    model = mujoco.MjModel.from_xml_string(XML)
    data = mujoco.MjData(model)
    poses = []
    for positions in qpos:
        data.qpos[:] = positions
        mujoco.mj_kinematics(model, data)
        poses.append(np.concatenate([data.xpos, data.xquat], axis=1))
    time = np.arange(len(qpos))[:, None] / FPS
    return Recording(
        states=np.concatenate([time, qpos, np.zeros((len(qpos), model.nv))], axis=1),
        body_poses=np.array(poses),
        model_body_pos=model.body_pos.copy(),
        model_body_quat=model.body_quat.copy(),
        metadata={"suite": "test", "task": 0, **metadata},
    )


def write_recording(root: Path, episode: int, recording: Recording) -> None:
    """Writes a recording as a dataset holds it."""
    path = root / "simulation" / f"episode-{episode:06d}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [name for name, value in vars(recording).items() if isinstance(value, np.ndarray)]
    metadata = {name: json.dumps(value) for name, value in recording.metadata.items()}
    save_file({name: getattr(recording, name) for name in names}, path, metadata=metadata)


def write_dataset(root: Path, episodes: int, *, length: int = 12, render_every: int = 1) -> None:
    """A dataset of this scene, one task an episode, with the columns that the build reads."""
    columns: dict[str, list[Any]] = {"episode_index": [], "frame_index": [], "observation.fresh": []}
    for episode in range(episodes):
        write_recording(root, episode, record(motion(length + episode), task=episode))
        frames = list(range(length + episode))
        columns["episode_index"] += [episode] * len(frames)
        columns["frame_index"] += frames
        columns["observation.fresh"] += [[frame % render_every == 0] for frame in frames]
    path = root / "data/chunk-000/file-000.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
