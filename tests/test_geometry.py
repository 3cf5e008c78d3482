"""Geometry by hand and by its axioms."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from lamp.errors import ConfigError
from lamp.geometry import (
    apply,
    intrinsics_from_fovy,
    inverse,
    pose_from_mujoco_camera,
    project,
    rigid,
    to_image,
    to_world,
    unproject,
)
from lamp.types import Camera

seeds = st.integers(0, 2**31)


def random_poses(seed: int, count: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    quaternion = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    rotation = torch.from_numpy(Rotation.from_quat(quaternion.numpy(), scalar_first=True).as_matrix())
    return rigid(rotation, torch.randn(count, 3, generator=generator, dtype=torch.float64))


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_rigid_motions_have_inverses(seed: int) -> None:
    a, b = (random_poses(seed + i) for i in range(2))
    identity = torch.eye(4, dtype=torch.float64).expand(5, 4, 4)
    assert close(a @ inverse(a), identity) and close(inverse(a) @ a, identity)
    assert close(inverse(a @ b), inverse(b) @ inverse(a))


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_rigid_motions_keep_distances_and_act_like_matrices(seed: int) -> None:
    pose, points = random_poses(seed), torch.randn(5, 3, dtype=torch.float64)
    moved = apply(pose, points)
    assert close(moved, (pose @ torch.cat([points, torch.ones(5, 1)], dim=-1)[..., None])[..., :3, 0])
    assert close(torch.cdist(apply(pose[0], points), apply(pose[0], points)), torch.cdist(points, points))
    assert close(torch.linalg.det(pose[:, :3, :3]), torch.ones(5, dtype=torch.float64))
    assert close(apply(pose[0], apply(pose[1], points)), apply(pose[0] @ pose[1], points))


def test_projection_by_hand() -> None:
    # A 90-degree camera sees 1 m up and down at 1 m; a 2:1 image sees 2 m to either side.
    intrinsics = intrinsics_from_fovy(90.0, 200, 100)
    points = torch.tensor([[0, 0, 1], [2, 0, 1], [0, 1, 1], [-2, -1, 2]], dtype=torch.float64)
    expected = torch.tensor([[0.5, 0.5, 1], [1, 0.5, 1], [0.5, 1, 1], [0.25, 0.25, 2]], dtype=torch.float64)
    assert close(project(points, intrinsics), expected)
    mirrored = project(points, intrinsics_from_fovy(90.0, 200, 100, mirrored=True))
    assert close(mirrored, torch.cat([1 - expected[:, :1], expected[:, 1:]], dim=-1))


@settings(max_examples=30, deadline=None)
@given(seeds, st.floats(20, 120), st.booleans())
def test_unproject_inverts_project(seed: int, fovy: float, mirrored: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(7, 3, generator=generator, dtype=torch.float64) + torch.tensor([0, 0, 0.1])
    intrinsics = intrinsics_from_fovy(fovy, 320, 240, mirrored=mirrored)
    intrinsics[0, 1] = 0.05  # skew is carried along
    assert close(project(unproject(pixels, intrinsics), intrinsics), pixels)


def test_a_mujoco_camera_looks_along_minus_z_with_y_up() -> None:
    # Standing at the origin with MuJoCo's axes, it sees (0, 0, -2) in the centre at 2 m, +y above, +x to the right.
    pose = pose_from_mujoco_camera(torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64))
    camera = Camera(intrinsics=intrinsics_from_fovy(90.0, 100, 100), world_from_cam=pose)
    seen = to_image(torch.tensor([[0, 0, -2], [0, 1, -2], [1, 0, -2]], dtype=torch.float64), camera)
    assert close(seen, torch.tensor([[0.5, 0.5, 2], [0.5, 0.25, 2], [0.75, 0.5, 2]], dtype=torch.float64))


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_a_static_scene_has_no_flow_under_a_moving_camera(seed: int) -> None:
    intrinsics = intrinsics_from_fovy(60.0, 100, 100).expand(5, 3, 3)
    cameras = Camera(intrinsics=intrinsics, world_from_cam=random_poses(seed))
    reference = Camera(intrinsics=intrinsics, world_from_cam=random_poses(seed)[:1].expand(5, 4, 4))
    world = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).expand(5, 6, 3)
    seen = to_image(world, cameras)
    held = to_image(to_world(seen, cameras), reference)
    sane = (seen[..., 2].abs() > 0.05) & (held[..., 2].abs() > 0.05)
    assert (held - held[:1])[sane & sane[:1]].abs().max() < 1e-9
    assert torch.allclose(to_world(seen, cameras)[sane], world[sane], atol=1e-9)


def test_equal_inputs_give_bitwise_equal_outputs_wherever_they_stand() -> None:
    pose, point = random_poses(0, 1).expand(1001, 4, 4), torch.randn(1, 3, dtype=torch.float64).expand(1001, 3)
    moved = project(apply(pose, point), intrinsics_from_fovy(45.0, 10, 10))
    assert (moved == moved[0]).all()


@pytest.mark.parametrize("fovy, width", [(0.0, 10), (180.0, 10), (45.0, 0)])
def test_an_impossible_camera_is_refused(fovy: float, width: int) -> None:
    with pytest.raises(ConfigError, match=f"{fovy} degrees over {width}x10"):
        intrinsics_from_fovy(fovy, width, 10)
