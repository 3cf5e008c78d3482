"""How the stored moments of tracks become the flow steps of a sample: by time, or by how far things have come.

A demonstration that was recorded slowly, or that pauses, shows the same path as a quick one. By arc length both give the same
steps: the path of the scene is cut into pieces of one length, however long each took.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lamp.errors import ConfigError
from lamp.sceneflow.tracks import retime
from lamp.types import Camera, Tracks


@dataclass(frozen=True, kw_only=True)
class ByTime:
    """A flow step is so many stored steps, `flow_stride`."""

    def tracks(self, tracks: Tracks, camera: Camera, *, stride: int, horizon: int) -> Tracks:
        """Every `stride`-th moment of stored tracks (`lamp.sceneflow.tracks.retime`)."""
        return retime(tracks, stride=stride, horizon=horizon)


@dataclass(frozen=True, kw_only=True)
class ByArcLength:
    """A flow step is a piece of the way that what moves most has come.

    Lengths are those seen by the camera, in fractions of the image's width: sideways as in the image, and in depth by the
    relative change of distance, times the focal length, which is what as much sideways motion would look like. The scale of
    the depth does not matter therefore, and where depth is not known the image alone counts. Nothing is clipped or scaled;
    what the stored horizon does not reach is unknown.

    Deviation: TraceForge adds image fractions and metres up, has no noise floor, and clips positions to the image.
    """

    interval: float = 0.02
    """Length of a flow step. [fraction of the image's width]"""
    floor: float = 0.004
    """Less than this from where it last was is taken for noise: it may begin a step, but does not add up. [likewise]"""
    share: float = 0.02
    """The way is the mean of this share of the points, those that went farthest."""

    def __post_init__(self) -> None:
        if not 0 <= self.floor < self.interval or not 0 < self.share <= 1:
            raise ConfigError(
                f"retiming by arc length with interval {self.interval}, floor {self.floor}, share {self.share}: expected 0 <= "
                "floor < interval, and a share above 0 and up to 1"
            )

    def tracks(self, tracks: Tracks, camera: Camera, *, stride: int, horizon: int) -> Tracks:
        """Stored tracks at `horizon` equal steps of way, interpolated linearly; `stride` is not needed."""
        way = self.way(tracks, camera)
        moments = way.shape[-1]
        wanted = (torch.arange(horizon + 1, device=way.device) * self.interval).expand(*way.shape[:-1], -1).contiguous()
        after = torch.searchsorted(way.contiguous(), wanted)
        reached = after < moments
        after = after.clamp(max=moments - 1)
        before = (after - 1).clamp(min=0)
        start, end = way.gather(-1, before), way.gather(-1, after)
        weight = ((wanted - start) / (end - start).clamp(min=1e-12)).clamp(0, 1).where(after > 0, 1.0)

        def at(values: Tensor, moment: Tensor) -> Tensor:
            """Values (*b, k, t1, ...) at one moment for each step, (*b, k, t, ...)."""
            index = moment[..., None, :].expand(*values.shape[: way.ndim], -1)
            return values.gather(
                way.ndim,
                index[(..., *[None] * (values.ndim - index.ndim))].expand(*index.shape, *values.shape[index.ndim :]),
            )

        one, other = at(tracks.points, before), at(tracks.points, after)
        share = weight[..., None, :, None].to(one)
        exactly = weight[..., None, :, None] == 1  # so that what is unknown before does not count
        points = torch.where(exactly, other, one + share * (other - one))
        flags = [
            at(flag, after) & (at(flag, before) | exactly[..., 0]) & reached[..., None, :]
            for flag in (tracks.visible, tracks.valid)
        ]
        return Tracks(points=points, visible=flags[0], valid=flags[1])

    def way(self, tracks: Tracks, camera: Camera) -> Float[Tensor, "*b t1"]:
        """How far the scene has come at each stored moment, never less than before. [fraction of the image's width]

        From one place that is more than `floor` from the last such place to the next: what only trembles does not get on.
        """
        points = tracks.points.double()
        focal = camera.intrinsics.double()
        across, along = focal[..., 0, 0].abs(), focal[..., 1, 1].abs()
        count = max(1, round(self.share * points.shape[-3]))
        way = [torch.zeros_like(across)]
        base, anchor, known = way[0], points[..., 0, :], tracks.valid[..., 0]
        for moment in range(1, points.shape[-2]):
            now, valid = points[..., moment, :], tracks.valid[..., moment]
            moved = _seen_distance(anchor, now, across, along).where(valid & known, 0.0)
            farthest = moved.topk(count, dim=-1).values.mean(dim=-1)
            way.append(torch.maximum(way[-1], base + farthest))
            arrived = farthest > self.floor
            base = torch.where(arrived, way[-1], base)
            anchor = torch.where(arrived[..., None, None], now, anchor)
            known = torch.where(arrived[..., None], valid, known)
        return torch.stack(way, dim=-1)


def _seen_distance(
    one: Float[Tensor, "*b k 3"],
    other: Float[Tensor, "*b k 3"],
    across: Float[Tensor, "*b"],
    along: Float[Tensor, "*b"],
) -> Float[Tensor, "*b k"]:
    """How far points (u, v, d) lie apart as the camera sees it, in fractions of the image's width."""
    u, v = (other[..., axis] - one[..., axis] for axis in (0, 1))
    nearer = (other[..., 2] / one[..., 2]).log()
    depth = (across[..., None] * nearer).where(nearer.isfinite(), 0.0)
    return (u.square() + (v * (across / along)[..., None]).square() + depth.square()).sqrt().nan_to_num(0.0)


Retiming = ByTime | ByArcLength
