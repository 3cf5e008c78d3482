"""Tracks, scene flow and motion: the ways there and back, masks and retiming."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lamp.errors import ConfigError, MismatchError
from lamp.sceneflow.motion_mask import MOVING
from lamp.sceneflow.normalization import RELEASED_BOUNDS, BoundsRule, MotionBounds, Quantiles
from lamp.sceneflow.tracks import (
    Supervision,
    flow_from_tracks,
    grid_pixels,
    grid_points,
    hold_last,
    integrate,
    moving_points,
    pixel_centres,
    retime,
)
from lamp.train.flow_metrics import FlowReport
from lamp.types import Camera, Tracks
from lamp.view import overlay
from lamp.view.overlay import OverlayStyle

ALL = Supervision(hidden_points=True)
CAMERA = Camera(intrinsics=torch.eye(3).expand(2, 3, 3), world_from_cam=torch.eye(4).expand(2, 4, 4))


def random_tracks(seed: int, *, step: float = 0.01, points: int = 4, moments: int = 9) -> Tracks:
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand(2, points, 1, 3, generator=generator)
    steps = step * torch.randn(2, points, moments - 1, 3, generator=generator)
    paths = torch.cat([start, start + steps.cumsum(2)], dim=2)
    seen = torch.rand(2, points, moments, generator=generator) > 0.2
    return Tracks(points=paths, visible=seen, valid=torch.ones_like(seen))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31))
def test_tracks_flow_and_motion_round_trip(seed: int) -> None:
    tracks = random_tracks(seed)
    flow = flow_from_tracks(tracks, CAMERA, supervision=ALL)
    assert flow.mask.all()
    torch.testing.assert_close(integrate(flow.start, flow.increments), tracks.points, atol=1e-6, rtol=0)
    torch.testing.assert_close(integrate(flow.start, flow.increments), tracks.points, atol=1e-6, rtol=0)
    wide = MotionBounds(low=(-0.2, -0.1, -0.3), high=(0.2, 0.3, 0.3))
    back = wide.flow(wide.motion(flow), flow)
    torch.testing.assert_close(back.increments, flow.increments, atol=1e-6, rtol=0)


def test_motion_is_clamped_and_still_points_are_exactly_zero() -> None:
    tracks = Tracks(
        points=torch.tensor([[[[0.5, 0.5, 1.0], [0.6, 0.5, 0.98]], [[0.1, 0.1, 2.0], [0.1, 0.1, 2.0]]]]),
        visible=torch.ones(1, 2, 2, dtype=torch.bool),
        valid=torch.ones(1, 2, 2, dtype=torch.bool),
    )
    camera = Camera(intrinsics=torch.eye(3)[None], world_from_cam=torch.eye(4)[None])
    flow = flow_from_tracks(tracks, camera)
    values = RELEASED_BOUNDS.motion(flow).values
    torch.testing.assert_close(values[0, 0, 0], torch.tensor([1.0, 0.0, -0.5]), atol=1e-5, rtol=0)
    assert (values[0, 1] == 0).all()
    assert RELEASED_BOUNDS.clamp_rate(flow) == (0.5, 0.0, 0.0)
    assert moving_points(flow).tolist() == [[True, False]]


def test_unknown_moments_hold_the_last_position_and_do_not_supervise() -> None:
    tracks = random_tracks(3)
    valid = tracks.valid.clone()
    valid[:, :, 6:] = False  # past the end
    valid[0, 0, 3] = False  # lost for a moment
    valid[1, 1] = False  # never known
    flow = flow_from_tracks(Tracks(points=tracks.points, visible=tracks.visible, valid=valid), CAMERA, supervision=ALL)
    assert (flow.increments[:, :, 5:] == 0).all() and not flow.mask[:, :, 5:].any()
    assert (flow.increments[0, 0, 2] == 0).all() and not flow.mask[0, 0, 2:4].any()
    torch.testing.assert_close(flow.increments[0, 0, 3], tracks.points[0, 0, 4] - tracks.points[0, 0, 2])
    assert not flow.mask[1, 1].any() and (flow.increments[1, 1] == 0).all()
    held = hold_last(tracks.points, valid)
    assert (held[:, :, 6:] == held[:, :, 5:6])[torch.tensor([[True] * 4, [True, False, True, True]])].all()


def test_hidden_points_supervise_only_when_asked() -> None:
    tracks = random_tracks(4)
    expected = tracks.visible[..., 1:] & tracks.visible[..., :-1]
    assert (flow_from_tracks(tracks, CAMERA).mask == expected[..., None]).all()
    assert flow_from_tracks(tracks, CAMERA, supervision=ALL).mask.all()


def test_a_missing_depth_masks_only_the_depth() -> None:
    tracks = random_tracks(5)
    points = tracks.points.clone()
    points[0, :, 4, 2] = torch.nan
    points[1, :, :, 2] = torch.nan
    flow = flow_from_tracks(Tracks(points=points, visible=tracks.visible, valid=tracks.valid), CAMERA, supervision=ALL)
    assert flow.increments.isfinite().all() and flow.start.isfinite().all()
    assert flow.mask[..., :2].all()
    assert not flow.mask[0, :, 3:5, 2].any() and flow.mask[0, :, :3, 2].all() and not flow.mask[1, ..., 2].any()


@pytest.mark.parametrize("stride, horizon", [(1, 8), (2, 4), (4, 2), (3, 2)])
def test_retiming_keeps_every_nth_moment(stride: int, horizon: int) -> None:
    tracks = random_tracks(6)
    kept = retime(tracks, stride=stride, horizon=horizon)
    moments = [stride * step for step in range(horizon + 1)]
    assert (kept.points == tracks.points[:, :, moments]).all() and (kept.visible == tracks.visible[..., moments]).all()
    fine, coarse = (flow_from_tracks(t, CAMERA, supervision=ALL).increments for t in (tracks, kept))
    torch.testing.assert_close(coarse.sum(2), fine[:, :, : stride * horizon].sum(2), atol=1e-6, rtol=0)


def test_too_long_a_horizon_is_refused() -> None:
    with pytest.raises(MismatchError, match=r"5 flow steps of 2 .* holds 8; use a horizon of at most 4"):
        retime(random_tracks(0), stride=2, horizon=5)


def test_the_grid_covers_the_image_evenly_on_pixel_centres() -> None:
    grid = grid_points(2, 4)
    assert grid[:5].tolist() == [[0.125, 0.25], [0.375, 0.25], [0.625, 0.25], [0.875, 0.25], [0.125, 0.75]]
    pixels = grid_pixels(20, 20, 256, 256)
    assert pixels[0].tolist() == [6, 6] and pixels[1].tolist() == [19, 6] and pixels[-1].tolist() == [249, 249]
    assert (pixel_centres(pixels, 256, 256) - grid_points(20, 20)).abs().max() <= 0.5 / 256
    with pytest.raises(ConfigError, match="0x20"):
        grid_points(0, 20)


def test_bounds_are_symmetric_quantiles_of_moving_points() -> None:
    tracks = random_tracks(7, points=2000)
    still = tracks.points[:, :, :1].expand_as(tracks.points)
    both = Tracks(
        points=torch.cat([tracks.points, still], dim=1),
        visible=torch.ones(2, 4000, 9, dtype=torch.bool),
        valid=torch.ones(2, 4000, 9, dtype=torch.bool),
    )
    flow = flow_from_tracks(both, CAMERA)
    bounds = BoundsRule(tail=0.05).fit([flow])
    assert bounds.high == pytest.approx((0.01645,) * 3, rel=0.05) and bounds.low == tuple(-end for end in bounds.high)
    assert bounds.clamp_rate(flow) == pytest.approx((0.05,) * 3, abs=0.005)  # 10% of the moving half
    assert BoundsRule().fit([flow]).high > bounds.high
    assert MotionBounds.from_json(bounds.to_json()) == bounds


def test_bounds_never_degenerate() -> None:
    tracks = random_tracks(8, step=0.0)
    assert BoundsRule().fit([flow_from_tracks(tracks, CAMERA)]).high == (0.001,) * 3
    assert BoundsRule().fit([]).high == (0.001,) * 3
    # What is floored is known by its axis, to be said.
    assert BoundsRule().floored(BoundsRule().fit([])) == ("u", "v", "depth")
    assert BoundsRule().floored(MotionBounds(low=(-0.02, -0.03, -0.001), high=(0.02, 0.03, 0.001))) == ("depth",)
    assert BoundsRule(smallest=1e-4).floored(MotionBounds(low=(-0.02, -0.03, -0.001), high=(0.02, 0.03, 0.001))) == ()
    for low, high in [((0.0, 0.0, 0.0), (0.0, 1.0, 1.0)), ((-1.0, -1.0, -1.0), (1.0, 1.0, float("inf")))]:
        with pytest.raises(ConfigError, match="finite numbers"):
            MotionBounds(low=low, high=high)


@pytest.mark.parametrize("distribution", ["normal", "heavy tails", "one sign", "few values"])
@pytest.mark.parametrize("parts", [1, 7])
def test_quantiles_of_more_than_fits_are_within_their_error(
    distribution: str, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(3)
    values = {
        "normal": random.normal(0, 0.01, 20_000),
        "heavy tails": random.standard_cauchy(20_000),
        "one sign": -random.exponential(1e-4, 20_000),
        "few values": random.choice([0.0, 0.25, -0.5], 20_000),
    }[distribution].astype(np.float32)
    exact, streamed, turned = Quantiles(), Quantiles(), Quantiles()
    exact.add(values)
    monkeypatch.setattr(Quantiles, "EXACT", 1000)
    for part in np.array_split(values, parts):
        streamed.add(part)
    for part in np.array_split(values[::-1].copy(), 5):
        turned.add(part)
    for share in (0.0, 0.001, 0.005, 0.3, 0.5, 0.995, 1.0):
        expected = np.quantile(values.astype(np.float64), share)
        assert exact.at(share) == expected
        ends = [np.quantile(values.astype(np.float64), share, method=kind) for kind in ("lower", "higher")]
        assert abs(streamed.at(share) - expected) <= Quantiles.RELATIVE_ERROR * np.abs(ends).max() + 1e-38
        assert turned.at(share) == streamed.at(share), "the order of the parts does not matter"


def test_streamed_bounds_are_near_the_exact_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.Generator().manual_seed(1)
    points = torch.randn(8, 50, 9, 3, generator=random).mul(0.01).cumsum(2) + 0.5
    known = torch.ones(8, 50, 9, dtype=torch.bool)
    camera = Camera(intrinsics=torch.eye(3).repeat(8, 1, 1), world_from_cam=torch.eye(4).repeat(8, 1, 1))
    flow = flow_from_tracks(Tracks(points=points, visible=known, valid=known), camera)
    exact = BoundsRule().fit([flow])
    monkeypatch.setattr(Quantiles, "EXACT", 100)
    streamed = BoundsRule().fit([flow])
    assert streamed != exact
    np.testing.assert_allclose(streamed.high, exact.high, rtol=Quantiles.RELATIVE_ERROR)


def test_errors_bounds_and_pictures_mean_the_same_by_moving() -> None:
    """Beyond 1% of the image counts, exactly there does not; neither does depth, nor what is not known."""
    assert MOVING == OverlayStyle().moving == FlowReport.moving_threshold == 0.01
    still = Camera(intrinsics=torch.eye(3)[None], world_from_cam=torch.eye(4)[None])
    ends = torch.tensor(
        [
            [0.0, 0.0, 0.0],
            [0.0078125, 0.0, 0.0],
            [0.012, 0.0, 0.0],
            [0.008, 0.007, 0.0],
            [0.0, 0.0, 0.5],
            [0.5, 0.0, 0.0],
        ]
    )
    points = torch.stack([torch.zeros(6, 3), ends], dim=1)[None] + torch.tensor([0.25, 0.25, 1.0])
    valid = torch.ones(1, 6, 2, dtype=torch.bool)
    valid[0, 5, 1] = False
    flow = flow_from_tracks(Tracks(points=points, visible=torch.ones_like(valid), valid=valid), still)
    expected = [False, False, True, True, False, False]
    assert moving_points(flow).tolist() == [expected]
    drawn = points[0].numpy().astype(np.float64)
    drawn[5, 1] = np.nan
    assert overlay.moving_points(drawn, MOVING).tolist() == expected
    assert moving_points(flow, threshold=0.0078125).tolist() == [expected], "a threshold itself is not beyond it"
