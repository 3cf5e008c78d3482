"""Whether the reference camera can see a point at a later moment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lamp.sceneflow.following import Paths
from lamp.sceneflow.recording import Playback
from lamp.sceneflow.rendering import BodyDepthRenderer, View
from lamp_client.envs.rendering import import_mujoco

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
    playback: Playback, renderer: BodyDepthRenderer, camera: str, view: View, paths: Paths
) -> Bool[Tensor, "t1 k"]:
    """Compares depths with renderings from the reference camera's pose at every moment."""
    depths = {paths.frame: view.depth}
    for moment in paths.moments.tolist():
        if moment not in depths:
            playback.restore(moment)
            depths[moment] = renderer.render(playback.data, camera, view.camera.world_from_cam).depth
    return agrees_with_depth(paths.image, torch.stack([depths[moment] for moment in paths.moments.tolist()]))


def seen_by_rays(playback: Playback, renderer: BodyDepthRenderer, view: View, paths: Paths) -> Bool[Tensor, "t1 k"]:
    """Casts rays from the reference camera to the points.

    A point on a still body, which the present frame shows, can only be hidden by a body that moved: rays that miss the bounding
    boxes of all those are not cast.
    """
    model = playback.model
    eye = view.camera.world_from_cam[:3, 3].numpy()
    visible = (in_image(paths.image) & paths.valid).numpy()
    drawn = np.isin(model.geom_group, renderer.geom_groups)
    present = playback.world_from_body[paths.frame]
    for step, moment in enumerate(paths.moments.tolist()):
        moved = (playback.world_from_body[moment] != present).flatten(1).any(dim=1).numpy()
        if not moved.any() or not visible[step].any():
            continue
        playback.restore(moment)
        rays, depths = paths.world[step].numpy() - eye, paths.image[step, :, 2].numpy()
        suspects = visible[step] & moved[paths.body.numpy()]
        others = np.flatnonzero(visible[step] & ~suspects)
        suspects[others] = _meets_a_box(playback, drawn & moved[model.geom_bodyid], eye, rays[others])
        chosen = np.flatnonzero(suspects)
        visible[step, chosen] = ~_hidden(playback, renderer, eye, rays[chosen], depths[chosen])
    return torch.from_numpy(visible)


def _meets_a_box(playback: Playback, geoms: np.ndarray, eye: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """Whether the segments from the eye along each ray meet the bounding box of any of the geoms (slab test)."""
    rotation = playback.data.geom_xmat[geoms].reshape(-1, 3, 3)
    centre, half = np.split(playback.model.geom_aabb[geoms], 2, axis=1)
    start = np.einsum("gi,gij->gj", eye - playback.data.geom_xpos[geoms], rotation) - centre
    half = np.where(half.any(axis=1, keepdims=True), half + 1e-3, np.inf)  # planes have no box
    shape = len(rays), len(start)
    entry, leave = np.zeros(shape), np.ones(shape)
    for axis in range(3):
        with np.errstate(divide="ignore", invalid="ignore"):
            per_ray = 1 / (rays @ rotation[:, :, axis].T)
            one, other = (-half[:, axis] - start[:, axis]) * per_ray, (half[:, axis] - start[:, axis]) * per_ray
        entry = np.maximum(entry, np.fmin(one, other))
        leave = np.minimum(leave, np.fmax(one, other))
    return np.asarray((entry <= leave).any(axis=1))


def _hidden(
    playback: Playback, renderer: BodyDepthRenderer, eye: np.ndarray, rays: np.ndarray, depths: np.ndarray
) -> np.ndarray:
    """Whether each ray meets, between the near plane and its end at the given depth (m), a surface well before its end."""
    cast, model, data, geom = import_mujoco().mj_ray, playback.model, playback.data, np.empty(1, np.int32)
    starts = renderer.near / depths
    origins = eye + starts[:, None] * rays
    hits = [cast(model, data, *pair, renderer.ray_groups, True, -1, geom) for pair in zip(origins, rays, strict=True)]
    reached = np.array(hits, np.float64)
    return (reached >= 0) & ((starts + reached) * depths < depths - TOLERANCE)
