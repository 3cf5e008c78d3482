"""Scene flow of one clip: its query frames, window by window, without what the filters do not believe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float64

from lamp.data.clip_sources import ClipReader
from lamp.errors import MismatchError
from lamp.sceneflow.estimate.chain import Chain
from lamp.sceneflow.estimate.interfaces import Clip, PointTracks
from lamp.sceneflow.exact_flow import Sampling
from lamp.sceneflow.motion_mask import MOVING, leaves_start
from lamp.sceneflow.store import CameraFlow
from lamp.types import Camera, Tracks

WINDOW = 96
"""Query frames that are worked on at once; as many frames and the horizon are in memory."""


@dataclass(frozen=True, kw_only=True)
class Filters:
    """What is left out of a store, and counted in its manifest."""

    moving_points: int = 4
    """A clip in none of whose query frames so many points move is left out."""
    coverage: float = 0.5
    """A query frame is, if less than this share of its points can be followed."""
    jump: float = 0.2
    """A point that moves by more than this share of the image from one flow step to the next, at twenty steps a second, is not
    known from there on."""
    depth_jump: float = 0.3
    """Likewise by so many metres in depth."""
    confidence: float = 0.2
    """A point of less confidence is not known at that moment."""


@dataclass(frozen=True, kw_only=True)
class FlowRequest:
    """Which scene flow is asked for."""

    sampling: Sampling
    every: int = 1
    """Take every n-th frame as a reference frame."""
    filters: Filters = field(default_factory=Filters)
    partial: bool = False
    """Only some points are meant to be known."""


def estimate(
    reader: ClipReader,
    chain: Chain,
    request: FlowRequest,
    counts: Counter[str],
    known: list[float],
    *,
    size: tuple[int, int],
    first: int = 0,
    last: int | None = None,
    queries: int | None = None,
) -> CameraFlow:
    """Scene flow of the query frames of a clip, or of its frames from `first` to before `last`, window by window.

    Args:
        counts: What was left out is added to it, by reason.
        known: The share of points with depth is, for each query frame.
        size: Width and height that the images must have.
        queries: How far from `first` query frames go; None: to the end.

    Raises:
        DataError: The clip cannot be used.
    """
    end = reader.length if last is None else last
    until = min(end - 1, first + (queries if queries is not None else end))
    span = request.sampling.horizon * request.sampling.stride
    kept: list[PointTracks] = []
    intrinsics: list[Float64[np.ndarray, "3 3"]] = []
    poses: list[Float64[np.ndarray, "4 4"]] = []
    anchor = np.eye(4)
    for start in range(first, until, WINDOW):
        clip = reader.window(start, min(end, start + WINDOW + span + 1))
        _check_window(clip, size)
        frames = [at for at in range(start, min(until, start + WINDOW)) if at % request.every == 0]
        cameras, tracks = chain.estimate(clip, [at - start for at in frames], request.sampling)
        for found in tracks:
            frame = found.frame + start
            known.append(float(np.isfinite(found.points[:, 0, 2]).mean()))
            filtered = apply_filters(
                found, request.filters, reader.fps / request.sampling.stride, counts, partial=request.partial
            )
            if filtered is not None:
                kept.append(replace(filtered, frame=frame - first))
                intrinsics.append(cameras.intrinsics)
                poses.append(anchor @ cameras.world_from_cam[found.frame])
        if clip.world_from_cam is None and start + WINDOW < until:
            anchor = anchor @ cameras.world_from_cam[WINDOW]
    moves = [moving(found).sum() >= request.filters.moving_points for found in kept]
    if not any(moves):
        counts["static"] += len(kept)
        kept = []
    return _camera_flow(kept, intrinsics, poses, request.sampling)


def _check_window(clip: Clip, size: tuple[int, int]) -> None:
    if clip.size != size:
        raise MismatchError(
            f"{clip.name} has images of {clip.size[0]}x{clip.size[1]} px; the others {size[0]}x{size[1]}: build it apart"
        )


def moving(found: PointTracks) -> np.ndarray:
    """Which points leave their start."""
    return leaves_start(found.points[..., :2] - found.points[:, :1, :2], found.valid, MOVING)


def apply_filters(
    found: PointTracks, filters: Filters, rate: float | int, counts: Counter[str], *, partial: bool = False
) -> PointTracks | None:
    """Tracks without what is not believed; None where too little is left.

    Args:
        rate: Flow steps a second, by which it is judged what a jump is.
        counts: What was left out is added to it.
        partial: Points that are not known at the query frame are not meant to be, and do not count as lost.
    """
    valid = found.valid & (found.confidence >= filters.confidence)
    valid[:, 0] = found.valid[:, 0]
    unsure = (found.valid & ~valid).any(axis=1)
    step = np.diff(found.points, axis=1)
    slack = max(1.0, 20 / rate)
    with np.errstate(invalid="ignore"):
        jumps = np.hypot(step[..., 0], step[..., 1]) > filters.jump * slack
        jumps |= np.abs(step[..., 2]) > filters.depth_jump * slack
    jumps &= found.valid[:, 1:] & found.valid[:, :-1]
    broken = np.concatenate([np.zeros_like(valid[:, :1]), np.cumsum(jumps, axis=1) > 0], axis=1)
    valid &= ~broken
    present = found.valid.any(axis=0)
    started = found.valid[:, 0] | (not partial)
    coverage = float(valid[started][:, present].mean()) if present.any() and started.any() else 0.0
    if coverage < filters.coverage:
        reasons = {"lost": (~found.valid[started][:, present]).sum(), "jumps": (broken & found.valid).sum()}
        reasons["low_confidence"] = (found.valid & (found.confidence < filters.confidence)).sum()
        counts[max(reasons, key=lambda name: int(reasons[name]))] += 1
        return None
    counts.update({"points_low_confidence": int(unsure.sum()), "points_jumping": int(jumps.any(axis=1).sum())})
    return replace(found, valid=valid, visible=found.visible & valid)


def _camera_flow(
    kept: Sequence[PointTracks],
    intrinsics: Sequence[Float64[np.ndarray, "3 3"]],
    poses: Sequence[Float64[np.ndarray, "4 4"]],
    sampling: Sampling,
) -> CameraFlow:
    count, points, moments = len(kept), sampling.grid[0] * sampling.grid[1], sampling.horizon + 1

    def stacked(name: str, empty: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.stack([getattr(found, name) for found in kept]) if kept else empty)

    tracks = Tracks(
        points=stacked("points", np.zeros((0, points, moments, 3), np.float32)),
        visible=stacked("visible", np.zeros((0, points, moments), bool)),
        valid=stacked("valid", np.zeros((0, points, moments), bool)),
    )
    camera = Camera(
        intrinsics=torch.from_numpy(np.array(intrinsics[:count]).reshape(-1, 3, 3)),
        world_from_cam=torch.from_numpy(np.array(poses[:count]).reshape(-1, 4, 4)),
    )
    return CameraFlow(frames=np.array([found.frame for found in kept], np.int32), tracks=tracks, camera=camera)
