"""Exact scene flow in a scene whose motion is known."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from flow_scene import load_scene, motion, record, write_recording

from lamp.errors import ConfigError, DataError, MismatchError
from lamp.geometry import to_image, to_world
from lamp.sceneflow.exact_flow import (
    HeldRender,
    RayCast,
    Sampling,
    agrees_with_depth,
    episode_flow,
    seen_by_rays,
    track_points,
)
from lamp.sceneflow.rendering import NO_BODY, BodyDepthRenderer, RenderedView
from lamp.sceneflow.sim_states import Playback, read_recording, recording_paths
from lamp.types import Camera, Tracks
from lamp_client.envs.rendering import import_mujoco

pytestmark = pytest.mark.sim
SAMPLING = Sampling(horizon=12)


def body_id(playback: Playback, name: str) -> int:
    return playback.model.body(name).id


def start_bodies(view: RenderedView, tracks: Tracks) -> torch.Tensor:
    height, width = view.body.shape
    u, v, _ = tracks.points[:, 0].unbind(-1)
    return view.body[(v * height).long(), (u * width).long()]


def look(playback: Playback, renderer: BodyDepthRenderer, camera: str, frame: int) -> RenderedView:
    playback.restore(frame)
    return renderer.render(playback.data, camera)


def test_one_pass_shows_the_right_body_at_the_right_depth(playback: Playback, renderer: BodyDepthRenderer) -> None:
    view = look(playback, renderer, "front", 10)
    for name in ("still", "slider", "spinner"):
        body = body_id(playback, name)
        centre = torch.from_numpy(playback.data.xpos[body].copy())[None]
        column, row = (to_image(centre, view.camera)[0, :2] * 256).long().tolist()
        assert view.body[row, column] == body
        assert view.depth[row, column].item() == pytest.approx(to_image(centre, view.camera)[0, 2].item(), abs=0.15)
    assert (view.body == NO_BODY).any(), "the table ends, behind it is no geometry"
    assert view.depth[view.body == NO_BODY].isinf().all() and view.depth[view.body != NO_BODY].isfinite().all()


def test_unprojected_table_pixels_lie_on_the_table(playback: Playback, renderer: BodyDepthRenderer) -> None:
    view = look(playback, renderer, "hand", 12)
    rows, columns = torch.nonzero(view.body == 0, as_tuple=True)
    pixels = torch.stack([(columns + 0.5) / 256, (rows + 0.5) / 256, view.depth[rows, columns]], dim=-1).double()
    assert len(pixels) > 10000
    assert to_world(pixels, view.camera)[:, 2].abs().max() < 2e-4


def test_mirrored_images_are_mirrored(playback: Playback, renderer: BodyDepthRenderer) -> None:
    with BodyDepthRenderer(playback.model, width=256, height=256, mirrored=False) as plain:
        one, other = look(playback, plain, "front", 5), look(playback, renderer, "front", 5)
    assert (one.body.flip(1) == other.body).all() and (one.depth.flip(1) == other.depth).all()
    red = body_id(playback, "still")  # at x = -0.3: on the left of an image as a person sees it
    assert (
        torch.nonzero(one.body == red)[:, 1].float().mean()
        < 128
        < torch.nonzero(other.body == red)[:, 1].float().mean()
    )


def test_bodies_are_where_the_colour_image_shows_them(playback: Playback, renderer: BodyDepthRenderer) -> None:
    mujoco = import_mujoco()
    view = look(playback, renderer, "front", 8)
    with mujoco.Renderer(playback.model, 256, 256) as colours:
        colours.update_scene(playback.data, "front")
        red, green, blue = np.moveaxis(colours.render()[:, ::-1].astype(int), -1, 0)  # upright; ours is mirrored
    for name, shown in (
        ("still", red > 2 * green + 20),
        ("slider", green > 2 * red + 20),
        ("spinner", blue > 2 * red + 20),
    ):
        found = (view.body == body_id(playback, name)).numpy()
        shown &= ~((green > 20) & (blue > 20))  # not the cyan finger
        assert (found & shown).sum() / (found | shown).sum() > 0.9, name


@pytest.mark.parametrize("camera", ["front", "hand"])
def test_still_points_are_bitwise_still(playback: Playback, renderer: BodyDepthRenderer, camera: str) -> None:
    """Also from the wrist camera, which moves: its reference camera is held."""
    tracks, _ = next(episode_flow(playback, renderer, camera, [8], SAMPLING, RayCast()))
    bodies = start_bodies(look(playback, renderer, camera, 8), tracks)
    static = (bodies == 0) | (bodies == body_id(playback, "still"))
    assert static.sum() > 100
    assert (tracks.points[static] == tracks.points[static][:, :1]).all()
    moving = (tracks.points != tracks.points[:, :1]).any(-1).any(-1)
    assert (moving == (~static & tracks.valid[:, 0])).all()


def test_points_that_rest_first_do_not_move_until_they_do(playback: Playback, renderer: BodyDepthRenderer) -> None:
    tracks, _ = next(episode_flow(playback, renderer, "front", [0], SAMPLING, RayCast()))
    assert (tracks.points[:, :5] == tracks.points[:, :1]).all()
    slider = start_bodies(look(playback, renderer, "front", 0), tracks) == body_id(playback, "slider")
    assert (tracks.points[slider, 5, 0] != tracks.points[slider, 4, 0]).all()


@pytest.mark.parametrize("camera", ["front", "hand"])
def test_a_sliding_body_moves_as_calculated_by_hand(
    playback: Playback, renderer: BodyDepthRenderer, camera: str
) -> None:
    tracks, reference = next(episode_flow(playback, renderer, camera, [6], SAMPLING, RayCast()))
    on_slider = start_bodies(look(playback, renderer, camera, 6), tracks) == body_id(playback, "slider")
    start = to_world(tracks.points[on_slider, 0].double(), reference)
    assert len(start) >= 5
    for step in (1, 5, 12):
        moved = start + torch.tensor([0.25 * step / 20, 0, 0], dtype=torch.float64)
        assert (to_image(moved, reference) - tracks.points[on_slider, step]).abs().max() < 1e-6


def test_moving_points_agree_with_later_depth_images(playback: Playback, renderer: BodyDepthRenderer) -> None:
    errors = []
    for frame, (tracks, reference) in zip(
        (4, 6, 8), episode_flow(playback, renderer, "front", (4, 6, 8), SAMPLING, RayCast()), strict=True
    ):
        body = start_bodies(look(playback, renderer, "front", frame), tracks)
        moved = (tracks.points[:, 1:] != tracks.points[:, :1]).any(-1).any(-1)
        for step in (3, 8, 12):
            view = look(playback, renderer, "front", frame + step)
            points = tracks.points[:, step].double()
            column, row = ((points[:, :2] * 256).long().clamp(0, 255)).unbind(-1)
            same = moved & tracks.visible[:, step] & (view.body[row, column] == body)
            seen = torch.cat([points[:, :2], view.depth[row, column, None]], dim=-1)
            errors.append((to_world(seen, reference) - to_world(points, reference)).norm(dim=-1)[same])
    error = torch.cat(errors)
    assert len(error) > 100
    assert error.median() < 1e-3


def test_the_curtain_hides_what_it_passes(playback: Playback, renderer: BodyDepthRenderer) -> None:
    tracks, _ = next(episode_flow(playback, renderer, "front", [4], Sampling(horizon=19), RayCast()))
    assert tracks.visible[:, 0].equal(tracks.valid[:, 0])
    curtain = body_id(playback, "curtain")
    checked = 0
    for step in (10, 19):
        view = look(playback, renderer, "front", 4 + step)
        u, v, _ = tracks.points[:, step].unbind(-1)
        still = (tracks.points[:, step] == tracks.points[:, 0]).all(-1) & tracks.valid[:, 0]
        behind = still & (view.body[(v * 256).long().clamp(0, 255), (u * 256).long().clamp(0, 255)] == curtain)
        assert not tracks.visible[behind, step].any()
        checked += int(behind.sum())
    assert checked > 20


def test_rays_agree_with_rendering_from_the_held_camera(playback: Playback, renderer: BodyDepthRenderer) -> None:
    rays, rendered = (
        list(episode_flow(playback, renderer, "hand", [4, 9], SAMPLING, occlusion))
        for occlusion in (RayCast(), HeldRender())
    )
    shares = []
    for (one, _), (other, _) in zip(rays, rendered, strict=True):
        assert (one.points == other.points).all()
        shares.append((one.visible == other.visible).float().mean().item())
        hidden = other.valid & ~other.visible
        assert hidden.any(), "a test in which nothing is hidden proves nothing"
        assert (~one.visible[hidden]).float().mean() > 0.95
    assert min(shares) > 0.99


def test_a_still_camera_gives_the_same_with_rays(playback: Playback, renderer: BodyDepthRenderer) -> None:
    """Two ways of finding occlusion, depth images and rays, on the same paths."""
    view = look(playback, renderer, "front", 4)
    paths = track_points(playback, view, 4, Sampling(horizon=19), nearest=renderer.near)
    depth = torch.stack([look(playback, renderer, "front", moment).depth for moment in paths.moments.tolist()])
    by_depth = agrees_with_depth(paths.image, depth) & paths.valid
    by_rays = seen_by_rays(playback, renderer, view, paths)
    assert (by_depth == by_rays).float().mean() > 0.99
    assert (~by_rays & paths.valid).sum() > 100


def test_past_the_end_and_no_geometry_are_not_valid(playback: Playback, renderer: BodyDepthRenderer) -> None:
    tracks, _ = next(episode_flow(playback, renderer, "front", [20], SAMPLING, RayCast()))
    on_geometry = start_bodies(look(playback, renderer, "front", 20), tracks) != NO_BODY
    assert (~on_geometry).any()
    assert (tracks.valid[:, :4] == on_geometry[:, None]).all() and not tracks.valid[:, 4:].any()
    assert not tracks.visible[~tracks.valid].any() and tracks.points.isfinite().all()
    assert (tracks.points[:, 4:] == tracks.points[:, 3:4])[on_geometry].all()


def test_a_stride_skips_frames(playback: Playback, renderer: BodyDepthRenderer) -> None:
    fine, _ = next(episode_flow(playback, renderer, "front", [5], Sampling(horizon=12), RayCast()))
    coarse, _ = next(episode_flow(playback, renderer, "front", [5], Sampling(horizon=4, stride=3), RayCast()))
    assert (coarse.points == fine.points[:, ::3]).all() and (coarse.visible == fine.visible[:, ::3]).all()


def test_a_static_scene_has_no_flow_under_a_moving_camera() -> None:
    playback = Playback(load_scene({"task": 0}).model, record(motion(12, moving_bodies=False)))
    with BodyDepthRenderer(playback.model, width=128, height=128, mirrored=True) as renderer:
        found = list(episode_flow(playback, renderer, "hand", [4, 6, 8], Sampling(horizon=4), HeldRender()))
        finger = body_id(playback, "arm")
        for frame, (tracks, _) in zip((4, 6, 8), found, strict=True):
            static = start_bodies(look(playback, renderer, "hand", frame), tracks) != finger
            assert (tracks.points[static] == tracks.points[static][:, :1]).all()
        poses = torch.stack([camera.world_from_cam for _, camera in found])
    assert (poses[0] != poses[1]).any(), "the camera does move"


def test_a_point_hides_behind_nearer_pixels_only() -> None:
    depth = torch.full((1, 4, 4), 1.0)
    depth[0, :, 2:] = 0.5  # something nearer covers the right half
    points = torch.tensor(
        [[[0.375, 0.375, 1.0], [0.875, 0.375, 1.0], [0.5, 0.375, 1.0], [0.875, 0.375, 0.5], [1.2, 0.5, 1.0]]]
    )
    assert agrees_with_depth(points, depth).tolist() == [[True, False, True, True, False]]


def test_a_recording_of_another_scene_is_refused() -> None:
    scene, recording = load_scene({"task": 0}), record(motion(6))
    with pytest.raises(MismatchError, match="states of 10 values"):
        Playback(scene.model, dataclasses.replace(recording, states=recording.states[:, :-1]))
    poses = recording.body_poses.copy()
    poses[:, 3, 0] += 0.1
    with pytest.raises(MismatchError, match=r"'spinner' 0\.100 m away"):
        Playback(scene.model, dataclasses.replace(recording, body_poses=poses))


def test_moved_fixtures_are_put_where_they_were_recorded(renderer: BodyDepthRenderer) -> None:
    recording = record(motion(4))
    moved = recording.model_body_pos.copy()
    poses = recording.body_poses.copy()
    moved[1, 0] += 0.1
    poses[:, 1, 0] += 0.1
    playback = Playback(
        load_scene({"task": 0}).model, dataclasses.replace(recording, model_body_pos=moved, body_poses=poses)
    )
    np.testing.assert_allclose(playback.world_from_body[0, 1, :3, 3].numpy(), moved[1])


def test_cameras_of_an_episode_are_put_where_they_were_recorded(tmp_path: Path) -> None:
    model, recording = load_scene({"task": 0}).model, record(motion(4))
    before, index = Playback(model, recording).camera_poses("front"), model.camera("front").id
    cameras = {name: np.array(getattr(model, name)) for name in ("cam_pos", "cam_quat", "cam_fovy")}
    cameras["cam_pos"][index] += (0.1, 0.2, 0.3)
    cameras["cam_fovy"][index] += 10
    named = {f"model_{name}": values for name, values in cameras.items()}
    write_recording(tmp_path, 0, dataclasses.replace(recording, **named))
    write_recording(tmp_path, 1, recording)
    found = read_recording(recording_paths(tmp_path)[0])
    moved = Playback(model, found).camera_poses("front")
    np.testing.assert_allclose((moved - before)[:, :3, 3].numpy(), np.tile((0.1, 0.2, 0.3), (4, 1)), atol=1e-12)
    assert model.cam_fovy[index] == cameras["cam_fovy"][index]
    assert read_recording(recording_paths(tmp_path)[1]).model_cam_pos is None


def test_broken_recordings_and_unknown_cameras_are_named(
    playback: Playback, renderer: BodyDepthRenderer, tmp_path
) -> None:
    broken = tmp_path / "episode-000000.safetensors"
    broken.write_bytes(b"\0" * 20)
    with pytest.raises(DataError, match=r"cannot read the recorded simulation .*episode-000000"):
        read_recording(broken)
    with pytest.raises(ConfigError, match=r"'side' in the simulation; known: front, hand"):
        next(episode_flow(playback, renderer, "side", [0], SAMPLING, RayCast()))


def test_the_reference_camera_is_the_present_one(playback: Playback, renderer: BodyDepthRenderer) -> None:
    _, camera = next(episode_flow(playback, renderer, "hand", [15], SAMPLING, RayCast()))
    assert isinstance(camera, Camera) and camera.intrinsics[0, 0] < 0
    assert (camera.world_from_cam == playback.camera_poses("hand")[15]).all()
