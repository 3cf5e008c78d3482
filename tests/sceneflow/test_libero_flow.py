"""Scene flow of a real LIBERO task: it fits the policy's images, later depths, and a moving wrist camera."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from flow_scene import write_recording

from lamp.geometry import to_world
from lamp.sceneflow.build import FlowBuildConfig, build
from lamp.sceneflow.rendering import BodyDepthRenderer, RenderedView
from lamp.sceneflow.sim_states import Playback, Recording
from lamp.sceneflow.store import SceneFlowStore
from lamp_client.envs.libero import LiberoEnv, load_task

pytestmark = pytest.mark.sim
FRAMES = 10
TARGET = "alphabet_soup_1"


@pytest.fixture(scope="module")
def env() -> LiberoEnv:
    return LiberoEnv(load_task("libero_object", 0))


@pytest.fixture(scope="module")
def recording(env: LiberoEnv) -> Recording:
    """The arm reaches down and turns."""
    env.reset(0)
    snapshots = []
    for frame in range(FRAMES):
        snapshots.append(env.snapshot())
        env.step(np.array([0.4, 0.5, -0.6, 0.2, 0.1, 0.5 * np.sin(frame), -1], np.float32))
    positions, quaternions = env.model_poses()
    return Recording(
        states=np.stack([snapshot.state for snapshot in snapshots]),
        body_poses=np.stack([snapshot.body_poses for snapshot in snapshots]),
        model_body_pos=positions,
        model_body_quat=quaternions,
        metadata={"suite": "libero_object", "task": 0, "initial_state": 0},
    )


@pytest.fixture(scope="module")
def playback(env: LiberoEnv, recording: Recording) -> Playback:
    return Playback(env.simulation[0], recording)


@pytest.fixture(scope="module")
def renderer(playback: Playback) -> Iterator[BodyDepthRenderer]:
    with BodyDepthRenderer(playback.model, width=256, height=256, mirrored=True, geom_groups=(1, 2)) as made:
        yield made


@pytest.fixture(scope="module")
def built(recording: Recording, tmp_path_factory: pytest.TempPathFactory) -> SceneFlowStore:
    """Through the default way to a simulator, which builds the task's environment itself."""
    root: Path = tmp_path_factory.mktemp("libero")
    write_recording(root, 0, recording)
    build(FlowBuildConfig(data=root, horizon=6, every=3, cameras=("agentview", "wrist"), workers=1))
    return SceneFlowStore(root / "sceneflow")


def look(playback: Playback, renderer: BodyDepthRenderer, frame: int) -> RenderedView:
    playback.restore(frame)
    return renderer.render(playback.data, "agentview")


def test_bodies_are_where_the_policy_sees_them(
    env: LiberoEnv, recording: Recording, playback: Playback, renderer: BodyDepthRenderer
) -> None:
    model, frame = playback.model, FRAMES - 1
    target = model.body(f"{TARGET}_main")
    gone = recording.states[frame].copy()
    gone[1 + model.jnt_qposadr[target.jntadr[0]] + 2] += 5  # lifted out of sight
    env.restore(recording.states[frame])
    shown = env.observe().images["agentview"].astype(int)
    env.restore(gone)
    changed = np.abs(shown - env.observe().images["agentview"]).max(axis=-1) > 12
    found = (look(playback, renderer, frame).body == target.id).numpy()
    assert found.sum() > 50
    assert (found & changed).sum() / found.sum() > 0.9, "where the object is, its absence changes the image"
    assert (found[:, ::-1] & changed).sum() / found.sum() < 0.5


def test_still_points_are_bitwise_still_in_both_cameras(built: SceneFlowStore) -> None:
    """The table's share of both views is exactly still, though the wrist camera moves."""
    for camera, least in (("agentview", 0.7), ("wrist", 0.3)):
        tracks, reference = built.read(0, [3, 6], camera)
        still = (tracks.points[..., :4, :] == tracks.points[..., :1, :]).all(-1).all(-1)
        assert still.float().mean() > least and not still.all()
        moved = reference.world_from_cam[0] != reference.world_from_cam[1]
        assert moved.any() == (camera == "wrist")


def test_moving_points_agree_with_later_depth_images(
    playback: Playback, renderer: BodyDepthRenderer, built: SceneFlowStore
) -> None:
    tracks, reference = built.read(0, [3])
    start, end = tracks.points[0, :, 0], tracks.points[0, :, 6]
    before, after = look(playback, renderer, 3), look(playback, renderer, 9)
    (column, row), (later_column, later_row) = ((p[:, :2] * 256).long().clamp(0, 255).unbind(-1) for p in (start, end))
    moved = (end - start)[:, :2].abs().amax(-1) > 0.002
    same = before.body[row, column] == after.body[later_row, later_column]
    seen = torch.cat([end[:, :2], after.depth[later_row, later_column, None]], dim=-1)
    error = (to_world(seen[None], reference) - to_world(end[None], reference)).norm(dim=-1)[0]
    error = error[moved & same & tracks.visible[0, :, 6]]
    assert len(error) >= 15
    assert error.median() < 1e-3
