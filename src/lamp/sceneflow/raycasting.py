"""Rays from the reference camera to the points that something may hide, and only at what may hide them.

A ray costs microseconds for every mesh that it comes near, and a moving camera has thousands of points to ask for. So the boxes
of all geoms are compared with all points at all moments first, and a geom is asked only about points whose rays meet its box.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lamp.sceneflow.bounding_boxes import Boxes, boxes, outlines
from lamp.sceneflow.occlusion import TOLERANCE, in_image
from lamp.sceneflow.point_tracking import PointPaths
from lamp.sceneflow.rendering import BodyDepthRenderer, MjModel, View
from lamp.sceneflow.sim_states import Playback
from lamp_client.envs.rendering import import_mujoco

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


def rays_to(paths: PointPaths, view: View, *, nearest: float) -> Rays:
    """Rays from the reference camera to every point at every moment."""
    eye, depth = view.camera.world_from_cam[:3, 3].numpy(), paths.image[..., 2].numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        return Rays(eye=eye, along=paths.world.numpy() - eye, start=nearest / depth, end=1 - TOLERANCE / depth)


def seen_by_rays(
    playback: Playback, renderer: BodyDepthRenderer, view: View, paths: PointPaths
) -> Bool[Tensor, "t1 k"]:
    """Casts rays from the reference camera to the points inside its image.

    The present frame shows all points, so that a geom can hide a point later only if one of the two has moved since.
    """
    visible = (in_image(paths.image) & paths.valid).numpy()
    geoms = _drawn(playback.model, renderer.geom_groups)
    moments = paths.moments.numpy()
    around = boxes(playback.model, geoms, playback.geom_positions[moments], playback.geom_rotations[moments])
    moment, point, box = _outlined(around, view, paths, nearest=renderer.near, visible=visible)
    rays = rays_to(paths, view, nearest=renderer.near)[moment, point]
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
    around: Boxes, view: View, paths: PointPaths, *, nearest: float, visible: Bool[np.ndarray, "t1 k"]
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
