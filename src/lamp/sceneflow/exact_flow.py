"""Exact scene flow from a recorded simulation.

Each grid point of a rendered frame is attached to the body it lies on, moves with that body's recorded poses, and is projected
into the reference camera: the present frame's camera, held still over the horizon (Section III-C). Everything is computed in
float64; a body and a camera whose poses do not change give exactly zero increments.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from lamp.sceneflow.occlusion import HeldRender, Occlusion, agrees_with_depth, seen_by_rendering
from lamp.sceneflow.point_tracking import PointPaths, Sampling, track_points
from lamp.sceneflow.raycasting import seen_by_rays
from lamp.sceneflow.rendering import BodyDepthRenderer, View
from lamp.sceneflow.sim_states import Playback
from lamp.sceneflow.tracks import hold_last
from lamp.types import Camera, Tracks


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
        yield _tracks(paths, visible & paths.valid), view.camera


class _Views:
    """What a camera sees at the frames asked for, each rendered once."""

    def __init__(self, playback: Playback, renderer: BodyDepthRenderer, camera: str) -> None:
        self._playback, self._renderer, self._camera = playback, renderer, camera
        self._views: dict[int, View] = {}

    def at(self, frame: int) -> View:
        if frame not in self._views:
            self._playback.restore(frame)
            self._views[frame] = self._renderer.render(self._playback.data, self._camera)
        return self._views[frame]

    def forget(self, *, before: int) -> None:
        self._views = {frame: view for frame, view in self._views.items() if frame >= before}


def _tracks(paths: PointPaths, visible: Bool[Tensor, "t1 k"]) -> Tracks:
    valid = paths.valid.T.contiguous()
    points = torch.where(paths.image.isfinite(), paths.image, 0.0).transpose(0, 1)
    return Tracks(points=hold_last(points, valid).float(), visible=visible.T.contiguous(), valid=valid)
