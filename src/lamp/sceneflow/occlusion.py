"""Whether the reference camera can see a point at a later moment."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lamp.sceneflow.point_tracking import PointPaths
from lamp.sceneflow.rendering import BodyDepthRenderer, View
from lamp.sceneflow.sim_states import Playback

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
    playback: Playback, renderer: BodyDepthRenderer, camera: str, view: View, paths: PointPaths
) -> Bool[Tensor, "t1 k"]:
    """Compares depths with renderings from the reference camera's pose at every moment."""
    depths = {paths.frame: view.depth}
    for moment in paths.moments.tolist():
        if moment not in depths:
            playback.restore(moment)
            depths[moment] = renderer.render(playback.data, camera, view.camera.world_from_cam).depth
    return agrees_with_depth(paths.image, torch.stack([depths[moment] for moment in paths.moments.tolist()]))
