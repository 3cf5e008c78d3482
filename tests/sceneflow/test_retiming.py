"""Retiming by arc length: the same path gives the same steps, however fast it was, and whatever the depth's scale."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lamp.configuration import from_json, to_json
from lamp.errors import ConfigError
from lamp.sceneflow.retiming import ByArcLength, ByTime
from lamp.sceneflow.tracks import flow_from_tracks, retime
from lamp.types import Camera, Tracks

CAMERA = Camera(
    intrinsics=torch.tensor([[[-1.2, 0, 0.5], [0, 1.6, 0.5], [0, 0, 1]]]), world_from_cam=torch.eye(4)[None]
)
ARC = ByArcLength(interval=0.02, floor=0.004, share=0.25)


def along(way: Tensor, *, noise: float = 0.0) -> Tracks:
    """Eight points; two of them come `way` far on a curve that also leads away from the camera, the others stay."""
    angle = 4 * way
    path = torch.stack([0.3 + angle.sin() / 4, 0.5 + (1 - angle.cos()) / 4, 0.8 + 0.3 * way], dim=-1)
    points = torch.tensor([0.2, 0.3, 1.0]).expand(8, len(way), 3).clone()
    points[0], points[1] = path, path + torch.tensor([0.05, 0.0, 0.0])
    points += noise * torch.randn(points.shape, generator=torch.Generator().manual_seed(0))
    flags = torch.ones(1, 8, len(way), dtype=torch.bool)
    return Tracks(points=points[None].double(), visible=flags, valid=flags.clone())


def retimed(tracks: Tracks, horizon: int = 10, arc: ByArcLength = ARC) -> Tracks:
    return arc.tracks(tracks, CAMERA, stride=1, horizon=horizon)


def test_steps_do_not_depend_on_speed_or_pauses() -> None:
    quick = retimed(along(torch.linspace(0, 0.4, 33)))
    assert quick.valid.all() and quick.points.shape == (1, 8, 11, 3)
    slow = retimed(along(torch.linspace(0, 0.4, 129)))
    uneven = retimed(along(0.4 * torch.linspace(0, 1, 65).square()))
    pause = torch.cat([torch.linspace(0, 0.15, 20), torch.full((30,), 0.15), torch.linspace(0.15, 0.4, 30)])
    for other in (slow, uneven, retimed(along(pause)), retimed(along(pause, noise=3e-4))):
        assert (other.points - quick.points)[..., :2].abs().max() < 0.05 * ARC.interval + 6e-4
    by_time = retime(along(torch.linspace(0, 0.4, 129)), stride=4, horizon=10)
    assert (by_time.points - retimed(along(0.4 * torch.linspace(0, 1, 65).square())).points).abs().max() > 0.02


def test_steps_are_equally_long_as_the_camera_sees_them() -> None:
    found = retimed(along(torch.linspace(0, 0.4, 129))).points[0, 0]
    step = found.diff(dim=0)
    nearer = 1.2 * (found[1:, 2] / found[:-1, 2]).log()
    length = (step[:, 0].square() + (step[:, 1] * 1.2 / 1.6).square() + nearer.square()).sqrt()
    torch.testing.assert_close(length, torch.full_like(length, 0.02), rtol=0.03, atol=0)


@pytest.mark.parametrize("scale", [0.25, 3.7])
def test_steps_do_not_depend_on_the_scale_of_depth(scale: float) -> None:
    tracks = along(torch.linspace(0, 0.4, 50))
    other = replace(tracks, points=tracks.points * torch.tensor([1.0, 1.0, scale]))
    one, two = retimed(tracks), retimed(other)
    torch.testing.assert_close(two.points, one.points * torch.tensor([1.0, 1.0, scale]), rtol=1e-9, atol=0)
    assert two.valid.equal(one.valid)


def test_what_only_trembles_does_not_get_on() -> None:
    tracks = along(torch.zeros(200), noise=5e-4)
    assert ARC.way(tracks, CAMERA).max() < ARC.floor
    found = retimed(tracks)
    assert found.valid[..., 0].all() and not found.valid[..., 1:].any()
    assert ByArcLength(interval=0.02, floor=0.0, share=0.25).way(tracks, CAMERA)[0, -1] > 0.1, (
        "without a floor it adds up"
    )


def test_nothing_is_clipped_and_what_is_not_reached_is_unknown() -> None:
    tracks = along(torch.linspace(0, 0.2, 33))
    tracks.points[..., 0] += 0.9  # leaves the image
    found = retimed(tracks, horizon=40)
    assert found.points[..., 0].max() > 1.0 and found.points.isfinite().all()
    steps = int(ARC.way(tracks, CAMERA)[0, -1] / ARC.interval)
    assert found.valid[0, 0].tolist() == [True] * (steps + 1) + [False] * (40 - steps)
    flow = flow_from_tracks(found, CAMERA)
    assert not flow.mask[..., steps:, :].any() and (flow.increments[..., steps:, :] == 0).all()


def test_tracks_without_depth_and_lost_points() -> None:
    tracks = along(torch.linspace(0, 0.4, 50))
    tracks.points[..., 2] = torch.nan
    tracks.valid[0, 1, 20:] = False
    tracks.points[0, 1, 20:] = torch.nan
    found = retimed(tracks, horizon=12)
    assert found.points[0, 0, :, :2].isfinite().all() and found.points[0, 0, :, 2].isnan().all()
    assert found.valid[0, 0].all() and found.valid[0, 1, 0] and not found.valid[0, 1].all()


def test_settings() -> None:
    for retiming in (ByTime(), ByArcLength(interval=0.05)):
        assert from_json(type(retiming), to_json(retiming), where="retiming") == retiming
    with pytest.raises(ConfigError, match=r"expected 0 <= floor < interval"):
        ByArcLength(interval=0.004)
