"""Path errors against values worked out by hand."""

from __future__ import annotations

import pytest
import torch

from lamp.sceneflow.tracks import moving_points
from lamp.train.flow_metrics import PathErrorSums
from lamp.types import Camera, SceneFlow


def scene(increments: torch.Tensor, mask: torch.Tensor | None = None, depth: float = 2.0) -> SceneFlow:
    b, k, t, _ = increments.shape
    start = torch.full((b, k, 3), 0.5)
    start[..., 2] = depth
    intrinsics = torch.tensor([[-1.0, 0.0, 0.5], [0.0, 1.0, 0.5], [0.0, 0.0, 1.0]]).expand(b, 3, 3)
    camera = Camera(intrinsics=intrinsics, world_from_cam=torch.eye(4).expand(b, 4, 4))
    mask = torch.ones(b, k, t, 3, dtype=torch.bool) if mask is None else mask
    return SceneFlow(start=start, increments=increments, visible=mask.all(-1), mask=mask, camera=camera)


def test_errors_of_a_straight_path_by_hand() -> None:
    truth = torch.zeros(1, 2, 2, 3)
    truth[0, 0, :, 0] = 0.02  # the first point moves right, 2% of the image a step
    sums = PathErrorSums()
    sums.add(scene(truth), {"zero": torch.zeros_like(truth), "right": truth})
    zero = sums.means("zero", moving=True)
    assert zero.points == 1
    assert zero.ade_px == pytest.approx((0.02 + 0.04) / 2 * 256) and zero.fde_px == pytest.approx(0.04 * 256)
    assert zero.ade_m == pytest.approx(0.03 * 2.0) and zero.fde_m == pytest.approx(0.04 * 2.0)
    assert sums.means("right", moving=True).ade_px == pytest.approx(0.0, abs=1e-4)
    still = sums.means("zero", moving=False)
    assert still.points == 1 and still.ade_px == pytest.approx(0.0, abs=1e-4)


def test_metres_see_depth_and_pixels_do_not() -> None:
    truth = torch.zeros(1, 1, 2, 3)
    truth[..., 0] = 0.02
    predicted = truth.clone()
    predicted[0, 0, 1, 2] = 0.1
    sums = PathErrorSums()
    sums.add(scene(truth), {"deep": predicted})
    deep = sums.means("deep", moving=True)
    assert deep.fde_px == pytest.approx(0.0, abs=1e-4)
    ray = torch.tensor([-0.04, 0.0, 1.0]).norm().item()
    assert deep.fde_m == pytest.approx(0.1 * ray, rel=1e-4)


def test_steps_after_a_lost_one_do_not_count() -> None:
    truth = torch.full((1, 2, 3, 3), 0.02)
    mask = torch.ones(1, 2, 3, 3, dtype=torch.bool)
    mask[0, 0, 1] = False  # the first point is lost in the second step, so its later positions are unknown too
    sums = PathErrorSums()
    predicted = torch.full_like(truth, 0.02)
    predicted[0, 0, 1:] = 5.0
    sums.add(scene(truth, mask), {"any": predicted})
    errors = sums.means("any", moving=True)
    assert errors.points == 2
    assert errors.ade_px == pytest.approx(0.0, abs=1e-4) and errors.fde_px == pytest.approx(0.0, abs=1e-4)


def test_missing_depth_leaves_pixels_and_drops_metres() -> None:
    truth = torch.full((1, 1, 2, 3), 0.02)
    mask = torch.ones(1, 1, 2, 3, dtype=torch.bool)
    mask[..., 2] = False
    sums = PathErrorSums()
    sums.add(scene(truth, mask), {"zero": torch.zeros_like(truth)})
    errors = sums.means("zero", moving=True)
    assert errors.ade_px is not None and errors.ade_m is None and errors.fde_m is None


def test_a_point_moves_by_how_far_it_gets_not_where_it_ends() -> None:
    there_and_back = torch.zeros(1, 2, 2, 3)
    there_and_back[0, 0, 0, 1], there_and_back[0, 0, 1, 1] = 0.03, -0.03
    there_and_back[0, 1, :, 0] = 0.004
    assert moving_points(scene(there_and_back)).tolist() == [[True, False]]


def test_batches_add_up_to_the_whole() -> None:
    generator = torch.Generator().manual_seed(1)
    truth = 0.02 * torch.randn(4, 5, 3, 3, generator=generator)
    guess = 0.02 * torch.randn(4, 5, 3, 3, generator=generator)
    whole, parts = PathErrorSums(), PathErrorSums()
    whole.add(scene(truth), {"guess": guess})
    for index in range(4):
        parts.add(scene(truth[index : index + 1]), {"guess": guess[index : index + 1]})
    for moving in (True, False):
        one, other = whole.means("guess", moving=moving), parts.means("guess", moving=moving)
        assert one.points == other.points
        assert one.ade_px == (None if other.ade_px is None else pytest.approx(other.ade_px))
        assert one.fde_m == (None if other.fde_m is None else pytest.approx(other.fde_m))
