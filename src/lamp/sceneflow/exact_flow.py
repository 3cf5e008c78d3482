"""Exact scene flow from a recorded simulation.

Each grid point of a rendered frame is attached to the body it lies on, moves with that body's recorded poses, and is projected
into the reference camera: the present frame's camera, held still over the horizon (Section III-C). Everything is computed in
float64; a body and a camera whose poses do not change give exactly zero increments.

A camera that stands still shows in its own later images which points are hidden. A moving one needs views that it never had:
renderings, or rays, from the reference camera. A ray costs microseconds for every mesh that it comes near, so the boxes of all
geoms are compared with all points first, and a ray is cast only where it meets the box of what may hide its point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lamp.errors import ConfigError
from lamp.geometry import apply, inverse, project, unproject
from lamp.sceneflow.rendering import NO_BODY, BodyDepthRenderer, Boxes, MjModel, RenderedView, boxes, outlines
from lamp.sceneflow.sim_states import Playback
from lamp.sceneflow.tracks import grid_pixels, hold_last, pixel_centres
from lamp.types import Camera, Tracks
from lamp_client.envs.rendering import import_mujoco


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Which points are followed, and how far."""

    grid: tuple[int, int] = (20, 20)
    """Rows and columns of keypoints over the image (K = 400 in the paper)."""
    horizon: int = 32
    """Flow steps (T in the paper)."""
    stride: int = 1
    """Frames a flow step."""

    def __post_init__(self) -> None:
        if min(*self.grid, self.horizon, self.stride) < 1:
            raise ConfigError(
                f"grid {self.grid}, horizon {self.horizon}, stride {self.stride}: expected each at least 1, "
                "such as grid (20, 20), horizon 32, stride 1"
            )


@dataclass(frozen=True, kw_only=True)
class PointPaths:
    """Where the grid points of one frame go, in float64."""

    frame: int
    world: Float[Tensor, "t1 k 3"]
    """m"""
    image: Float[Tensor, "t1 k 3"]
    """(u, v, d) in the reference camera."""
    body: Int[Tensor, " k"]
    """MuJoCo body that each point is on."""
    moments: Int[Tensor, " t1"]
    """Frame of the recording at each moment; past the end, the last one."""
    valid: Bool[Tensor, "t1 k"]


def track_points(
    playback: Playback, view: RenderedView, frame: int, sampling: Sampling, *, nearest: float
) -> PointPaths:
    """Attaches the grid points seen at `frame` to their bodies and moves them with the recording.

    Points on no geometry, moments past the end, and points nearer to the camera's plane than `nearest` (m) are not valid.
    """
    height, width = view.depth.shape
    pixels = grid_pixels(*sampling.grid, width, height)
    column, row = pixels.unbind(-1)
    body = view.body[row, column].long()
    on_body = body != NO_BODY
    depth = torch.where(on_body, view.depth[row, column].double(), 1.0)
    seen = torch.cat([pixel_centres(pixels, width, height), depth[:, None]], dim=-1)
    body = body.clamp(min=0)
    ahead = frame + sampling.stride * torch.arange(sampling.horizon + 1)
    moments = ahead.clamp(max=playback.length - 1)
    anchor = apply(view.camera.world_from_cam, unproject(seen, view.camera.intrinsics))
    local = apply(inverse(playback.world_from_body[frame, body]), anchor)
    world = apply(playback.world_from_body[moments[:, None], body], local)
    image = project(apply(inverse(view.camera.world_from_cam), world), view.camera.intrinsics)
    valid = on_body & (ahead < playback.length)[:, None] & (image[..., 2] > nearest)
    return PointPaths(frame=frame, world=world, image=image, body=body, moments=moments, valid=valid)


def episode_flow(
    playback: Playback,
    renderer: BodyDepthRenderer,
    camera: str,
    frames: Sequence[int],
    sampling: Sampling,
    occlusion: Occlusion,
) -> Iterator[tuple[Tracks, Camera]]:
    """Scene flow of each of the ascending `frames`, as float32 tracks and their reference camera.

    A camera that stands still over the episode compares depths with its own later images, which are exact and shared between
    frames. A moving one needs views it never had; `occlusion` says how to get them.

    Raises:
        ConfigError: The camera is not in the model.
    """
    poses = playback.camera_poses(camera)
    still = bool((poses == poses[0]).all())
    views = _Views(playback, renderer, camera)
    for frame in frames:
        view = views.at(frame)
        paths = track_points(playback, view, frame, sampling, nearest=renderer.near)
        if still:
            visible = agrees_with_depth(paths.image, torch.stack([views.at(m).depth for m in paths.moments.tolist()]))
        elif isinstance(occlusion, HeldRender):
            visible = seen_by_rendering(playback, renderer, camera, view, paths)
        else:
            visible = seen_by_rays(playback, renderer, view, paths)
        views.forget(before=frame)
        valid = paths.valid.T.contiguous()
        points = hold_last(torch.where(paths.image.isfinite(), paths.image, 0.0).transpose(0, 1), valid).float()
        yield Tracks(points=points, visible=(visible & paths.valid).T.contiguous(), valid=valid), view.camera


class _Views:
    """What a camera sees at the frames asked for, each rendered once."""

    def __init__(self, playback: Playback, renderer: BodyDepthRenderer, camera: str) -> None:
        self._playback, self._renderer, self._camera = playback, renderer, camera
        self._views: dict[int, RenderedView] = {}

    def at(self, frame: int) -> RenderedView:
        if frame not in self._views:
            self._playback.restore(frame)
            self._views[frame] = self._renderer.render(self._playback.data, self._camera)
        return self._views[frame]

    def forget(self, *, before: int) -> None:
        self._views = {frame: view for frame, view in self._views.items() if frame >= before}


TOLERANCE = 0.002
"""m: a surface hides a point only if it is nearer by more than this."""


@dataclass(frozen=True, kw_only=True)
class RayCast:
    """Cast a ray from the reference camera to each point that something may hide.

    Agrees with rendering but for pixels on outlines, at a fraction of its cost.
    """


@dataclass(frozen=True, kw_only=True)
class HeldRender:
    """Render every later moment from the reference camera's pose and compare depths: one more render a flow step."""


Occlusion = RayCast | HeldRender


def agrees_with_depth(image: Float[Tensor, "t k 3"], depth: Float[Tensor, "t h w"]) -> Bool[Tensor, "t k"]:
    """Points inside the image that no surface of the depth image at their moment hides.

    Between pixels a point counts as hidden only if all the pixels around it are nearer, so that neither slanted surfaces nor
    outlines hide themselves.
    """
    _, height, width = depth.shape
    inside = in_image(image)
    u, v, d = torch.where(inside[..., None], image, 0.5).unbind(-1)
    rounding = 1e-6
    columns = [(u * width - 0.5 + rounding).floor(), (u * width - 0.5 - rounding).ceil()]
    rows = [(v * height - 0.5 + rounding).floor(), (v * height - 0.5 - rounding).ceil()]
    moment = torch.arange(len(depth))[:, None]
    around = [
        depth[moment, row.long().clamp(0, height - 1), column.long().clamp(0, width - 1)]
        for row in rows
        for column in columns
    ]
    return inside & (d <= torch.stack(around).amax(dim=0) + TOLERANCE)


def in_image(image: Float[Tensor, "*b 3"]) -> Bool[Tensor, "*b"]:
    """Whether (u, v, d) points are in front of the camera and inside its image."""
    u, v, d = image.unbind(-1)
    return (u >= 0) & (u < 1) & (v >= 0) & (v < 1) & (d > 0)


def seen_by_rendering(
    playback: Playback, renderer: BodyDepthRenderer, camera: str, view: RenderedView, paths: PointPaths
) -> Bool[Tensor, "t1 k"]:
    """Compares depths with renderings from the reference camera's pose at every moment."""
    depths = {paths.frame: view.depth}
    for moment in paths.moments.tolist():
        if moment not in depths:
            playback.restore(moment)
            depths[moment] = renderer.render(playback.data, camera, view.camera.world_from_cam).depth
    return agrees_with_depth(paths.image, torch.stack([depths[moment] for moment in paths.moments.tolist()]))


REST = 1e-6
"""m: what has moved by no more hides, and is hidden, as before. Resting bodies tremble by some 1e-9 m in a simulation."""


@dataclass(frozen=True, kw_only=True)
class Rays:
    """From the eye to points at moments; a surface between the shares `start` and `end` of a ray hides its point."""

    eye: Float[np.ndarray, "3"]
    along: Float[np.ndarray, "*p 3"]
    """m, from the eye to the point."""
    start: Float[np.ndarray, "*p"]
    """The near plane."""
    end: Float[np.ndarray, "*p"]
    """Nearer than the point by the tolerance."""

    def __getitem__(self, chosen: Any) -> Rays:
        return Rays(eye=self.eye, along=self.along[chosen], start=self.start[chosen], end=self.end[chosen])


@dataclass(frozen=True, kw_only=True)
class OcclusionCandidates:
    """Points that a geom may hide at a moment, in the order of the moments."""

    moment: Int[np.ndarray, " p"]
    point: Int[np.ndarray, " p"]
    geom: Int[np.ndarray, " p"]
    rays: Rays


def seen_by_rays(
    playback: Playback, renderer: BodyDepthRenderer, view: RenderedView, paths: PointPaths
) -> Bool[Tensor, "t1 k"]:
    """Casts rays from the reference camera to the points inside its image.

    The present frame shows all points, so that a geom can hide a point later only if one of the two has moved since.
    """
    visible = (in_image(paths.image) & paths.valid).numpy()
    geoms = _drawn(playback.model, renderer.geom_groups)
    moments = paths.moments.numpy()
    around = boxes(playback.model, geoms, playback.geom_positions[moments], playback.geom_rotations[moments])
    moment, point, box = _outlined(around, view, paths, nearest=renderer.near, visible=visible)
    eye, depth = view.camera.world_from_cam[:3, 3].numpy(), paths.image[..., 2].numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        start, end = renderer.near / depth, 1 - TOLERANCE / depth
    rays = Rays(eye=eye, along=paths.world.numpy() - eye, start=start, end=end)[moment, point]
    meet = _meet(around, moment, box, rays)
    candidates = OcclusionCandidates(moment=moment[meet], point=point[meet], geom=geoms[box[meet]], rays=rays[meet])
    hidden = _hidden(playback, renderer, candidates, moments.tolist(), visible.shape[1])
    return torch.from_numpy(visible & ~hidden)


def _drawn(model: MjModel, groups: tuple[int, ...]) -> Int[np.ndarray, " g"]:
    """Geoms that a ray can meet: those of the groups drawn that are not fully transparent."""
    opacity, painted = model.geom_rgba[:, 3].copy(), model.geom_matid >= 0
    opacity[painted] = model.mat_rgba[model.geom_matid[painted], 3]
    return np.flatnonzero(np.isin(model.geom_group, groups) & (opacity > 0))


def _outlined(
    around: Boxes, view: RenderedView, paths: PointPaths, *, nearest: float, visible: Bool[np.ndarray, "t1 k"]
) -> tuple[np.ndarray, ...]:
    """Moment, point and box wherever a visible point is within or behind the box's outline and one of the two has moved."""
    corners, world, image = around.corners, paths.world.numpy(), paths.image.numpy()
    outline = outlines(corners, view.camera, nearest=nearest)
    some = np.flatnonzero(outline.in_image.any(axis=0))
    low, high = outline.low[:, None, some], outline.high[:, None, some]
    found = (np.abs(world - world[:1]).max(axis=2) > REST)[..., None] | (
        np.abs(corners[:, some] - corners[:1, some]).max(axis=(2, 3)) > REST
    )[:, None]
    found &= visible[..., None]
    for axis in range(3):
        value = image[..., axis, None]
        found &= value >= low[..., axis]
        if axis < 2:
            found &= value <= high[..., axis]
    moment, point, index = found.nonzero()
    return moment, point, some[index]


def _meet(around: Boxes, moment: np.ndarray, box: np.ndarray, rays: Rays) -> Bool[np.ndarray, " p"]:
    """Whether each ray meets its box where a surface would hide its point (slab test)."""
    rotation, half = around.rotation[moment, box], around.half[box]
    along = np.einsum("pi,pij->pj", rays.along, rotation)
    eye = np.einsum("pi,pij->pj", rays.eye - around.position[moment, box], rotation) - around.centre[box]
    with np.errstate(divide="ignore", invalid="ignore"):
        one, other = (-half - eye) / along, (half - eye) / along
    entry = np.fmax(np.fmin(one, other).max(axis=1), rays.start)
    leave = np.fmin(np.fmax(one, other).min(axis=1), rays.end)
    return np.asarray(entry <= leave)


def _hidden(
    playback: Playback, renderer: BodyDepthRenderer, candidates: OcclusionCandidates, moments: list[int], points: int
) -> Bool[np.ndarray, "t1 k"]:
    """Which points a geom does hide at each moment, asking first the one that hid the point at the moment before."""
    hidden, last = np.zeros((len(moments), points), bool), np.full(points, -1)
    stopped = _stopping(playback, renderer, candidates)
    bounds = np.searchsorted(candidates.moment, np.arange(len(moments) + 1)).tolist()
    for moment, row, low, high in zip(moments, hidden, bounds, bounds[1:], strict=False):
        if low == high:
            continue
        playback.place_geoms(moment)
        point, geom = candidates.point[low:high], candidates.geom[low:high]
        for index in np.argsort(last[point] != geom, kind="stable").tolist():
            if not row[point[index]] and stopped(low + index):
                row[point[index]], last[point[index]] = True, geom[index]
    return hidden


def _stopping(
    playback: Playback, renderer: BodyDepthRenderer, candidates: OcclusionCandidates
) -> Callable[[int], bool]:
    """Asks whether a suspect geom, where it is now, stops its ray.

    Meshes are asked from the point back to the eye: MuJoCo searches them along the whole endless ray, on which the point's own
    surface is then behind. Of other shapes, planes have only one side, and MuJoCo is asked about all geoms.
    """
    mujoco, model, data = import_mujoco(), playback.model, playback.data
    rays, geoms = candidates.rays, candidates.geom.tolist()
    starts, ends = (list(rays.eye + share[:, None] * rays.along) for share in (rays.start, rays.end))
    forth, back, reach = list(rays.along), list(-rays.along), (rays.end - rays.start).tolist()
    is_mesh = (model.geom_type[candidates.geom] == mujoco.mjtGeom.mjGEOM_MESH).tolist()
    nearest = np.empty(1, np.int32)

    def stopped(index: int) -> bool:
        if is_mesh[index]:
            met = mujoco.mj_rayMesh(model, data, geoms[index], ends[index], back[index])
        else:
            met = mujoco.mj_ray(model, data, starts[index], forth[index], renderer.ray_groups, True, -1, nearest)
        return 0 <= met < reach[index]

    return stopped
