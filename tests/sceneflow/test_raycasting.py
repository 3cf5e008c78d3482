"""Leaving rays and geoms out for their bounding boxes loses nothing, in a real LIBERO scene."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from lamp.geometry import rigid
from lamp.sceneflow.exact_flow import TOLERANCE, PointPaths, Sampling, in_image, seen_by_rays, track_points
from lamp.sceneflow.rendering import BodyDepthRenderer, RenderedView
from lamp.sceneflow.sim_states import Playback, Recording
from lamp_client.envs.libero import LiberoEnv, load_task
from lamp_client.envs.rendering import import_mujoco

pytestmark = pytest.mark.sim
FRAMES = 24


@pytest.fixture(scope="module")
def env() -> LiberoEnv:
    return LiberoEnv(load_task("libero_object", 0))


@pytest.fixture(scope="module")
def libero(env: LiberoEnv) -> Playback:
    """The arm dives and turns among the objects, which pushes some of them, and opens and closes its gripper."""
    env.reset(0)
    snapshots = []
    for frame in range(FRAMES):
        snapshots.append(env.snapshot())
        for _ in range(2):
            env.step(np.array([0.5, 0.3, -0.9, 0.3, 0.2, 0.6 * np.sin(frame), np.cos(frame)], np.float32))
    positions, quaternions = env.model_poses()
    recording = Recording(
        states=np.stack([snapshot.state for snapshot in snapshots]),
        body_poses=np.stack([snapshot.body_poses for snapshot in snapshots]),
        model_body_pos=positions,
        model_body_quat=quaternions,
        metadata={},
    )
    return Playback(env.simulation[0], recording)


@pytest.fixture(scope="module")
def drawn(libero: Playback) -> Iterator[BodyDepthRenderer]:
    with BodyDepthRenderer(libero.model, width=256, height=256, mirrored=True, geom_groups=(1, 2)) as made:
        yield made


def hidden_by_brute_force(
    playback: Playback, renderer: BodyDepthRenderer, view: RenderedView, paths: PointPaths
) -> np.ndarray:
    """MuJoCo's ray to every point of the image at every moment, at all geoms drawn."""
    cast, geom = import_mujoco().mj_ray, np.empty(1, np.int32)
    eye, asked = view.camera.world_from_cam[:3, 3].numpy(), (in_image(paths.image) & paths.valid).numpy()
    hidden = np.zeros_like(asked)
    for step, point in zip(*asked.nonzero(), strict=True):
        if not hidden[step].any():
            playback.restore(int(paths.moments[step]))
        ray, depth = paths.world[step, point].numpy() - eye, float(paths.image[step, point, 2])
        start = renderer.near / depth
        met = cast(playback.model, playback.data, eye + start * ray, ray, renderer.ray_groups, True, -1, geom)
        hidden[step, point] = met >= 0 and (start + met) * depth < depth - TOLERANCE
    return hidden


@pytest.mark.parametrize("camera", ["agentview", "wrist"])
def test_what_is_hidden_is_what_rays_at_all_geoms_find(
    env: LiberoEnv, libero: Playback, drawn: BodyDepthRenderer, camera: str
) -> None:
    for frame in (0, 10):
        libero.restore(frame)
        view = drawn.render(libero.data, env.camera_names[camera])
        paths = track_points(libero, view, frame, Sampling(horizon=5, stride=2), nearest=drawn.near)
        hidden = hidden_by_brute_force(libero, drawn, view, paths)
        # On outlines a ray may miss what the pixel shows: at present, all points are seen.
        hidden &= ~hidden[0]
        seen = seen_by_rays(libero, drawn, view, paths).numpy()
        assert hidden.sum() > 20, "a test in which nothing is hidden proves nothing"
        assert (seen == ((in_image(paths.image) & paths.valid).numpy() & ~hidden)).all()


def test_geoms_outside_the_image_are_left_out_and_no_pixel_changes(
    env: LiberoEnv, libero: Playback, drawn: BodyDepthRenderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for poses in the midst of the scene, where geoms reach from behind the camera into the image."""
    poses = [libero.camera_poses(env.camera_names["wrist"])[frame] for frame in range(0, FRAMES, 2)]
    middle = libero.geom_positions[0][libero.model.geom_group == 1].mean(axis=0)
    turns = torch.randn(12, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).numpy()
    rotations = Rotation.from_quat(turns, scalar_first=True).as_matrix()
    poses += list(rigid(torch.from_numpy(rotations), torch.from_numpy(middle)))
    libero.restore(14)
    groups = libero.model.geom_group.copy()

    def look() -> tuple[list[RenderedView], list[int]]:
        views, counts = [], []
        for pose in poses:
            views.append(drawn.render(libero.data, env.camera_names["wrist"], pose))
            counts.append(drawn._scene.ngeom)
        return views, counts

    culled, fewer = look()
    assert (libero.model.geom_group == groups).all()
    monkeypatch.setattr(drawn, "_hide_outside", lambda *_: nullcontext())
    whole, all_of_them = look()
    assert min(all_of_them) - min(fewer) > 20
    for one, other in zip(culled, whole, strict=True):
        assert one.body.equal(other.body) and one.depth.equal(other.depth)
    assert sum((view.body > 0).any().item() for view in culled) > 20
