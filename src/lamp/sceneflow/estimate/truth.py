"""Recorded simulations rendered anew: what a camera would have seen of them, and where the points truly went."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, UInt8

from lamp.errors import ConfigError, unknown
from lamp.geometry import apply, inverse, project
from lamp.sceneflow.estimate.interfaces import Clip
from lamp.sceneflow.estimate.metrics import TrueFlow
from lamp.sceneflow.exact_flow import Sampling, agrees_with_depth, track_points
from lamp.sceneflow.rendering import BodyDepthRenderer, LoadScene, SimulationScene, camera_id
from lamp.sceneflow.sim_states import Playback, read_header, read_recording
from lamp_client.envs.rendering import Renderer, import_mujoco

ORBIT = "orbit"
"""Name of a camera that no dataset has: one that stands still there, carried to and fro around what it looks at,"""
ORBIT_SWING, ORBIT_PERIOD = 20.0, 80
"""by so many degrees to each side, once in so many frames,"""
ORBIT_LIFT, ORBIT_LIFT_PERIOD = 0.05, 50
"""and up and down by so many metres."""


@dataclass(frozen=True, kw_only=True)
class TrueClip:
    """A rendered episode and its exact scene flow."""

    clip: Clip
    world_from_cam: Float64[np.ndarray, "n 4 4"]
    flows: Mapping[int, TrueFlow]
    """By query frame."""


def render_episode(
    playback: Playback,
    scene: SimulationScene,
    renderer: BodyDepthRenderer,
    colours: Renderer,
    camera: str,
    frames: Sequence[int],
    sampling: Sampling,
    *,
    fps: float | int = 20,
) -> TrueClip:
    """Colours, depth and exact scene flow of one episode in one camera, or in its first one as it orbits (`ORBIT`).

    Raises:
        ConfigError: The scene has no such camera, or the one that is to orbit does not stand still.
    """
    if camera not in (*scene.cameras, ORBIT):
        raise unknown("camera", camera, [*scene.cameras, ORBIT])
    name = scene.cameras[next(iter(scene.cameras)) if camera == ORBIT else camera]
    images, views = [], []
    with carried(playback, renderer, name) if camera == ORBIT else nullcontext() as orbit:
        for frame in range(playback.length):
            if orbit is not None:
                orbit.place(frame)
            playback.restore(frame)
            views.append(renderer.render(playback.data, name))
            images.append(colours.image(playback.data, name))
    depth = torch.stack([view.depth for view in views])
    poses = torch.stack([view.camera.world_from_cam for view in views])
    intrinsics = views[0].camera.intrinsics
    flows = {}
    for frame in frames:
        paths = track_points(playback, views[frame], frame, sampling, nearest=renderer.near)
        moments = paths.moments
        now = project(apply(inverse(poses[moments])[:, None], paths.world), intrinsics)
        held = paths.image
        within = (held[..., 0] >= 0) & (held[..., 0] < 1) & (held[..., 1] >= 0) & (held[..., 1] < 1)
        visible = agrees_with_depth(now, depth[moments]) & within & paths.valid
        flows[frame] = TrueFlow(
            points=held.transpose(0, 1).numpy(), visible=visible.T.numpy(), valid=paths.valid.T.numpy().copy()
        )
    clip = Clip(
        fixed_camera=bool((poses == poses[:1]).all()) or None,
        rgb=np.stack(images),
        fps=fps,
        depth=depth.float().numpy(),
        intrinsics=intrinsics.double().numpy(),
        name=camera,
    )
    return TrueClip(clip=clip, world_from_cam=poses.numpy(), flows=flows)


@dataclass(frozen=True, kw_only=True)
class Orbit:
    """Carries a camera of the world around the vertical axis through what it looks at."""

    model: Any
    camera: int
    target: Float64[np.ndarray, "3"]
    """m"""
    position: Float64[np.ndarray, "3"]
    """Where the camera stands in truth. [m]"""
    rotation: Float64[np.ndarray, "3 3"]

    def place(self, frame: int) -> None:
        """Puts the model's camera where it is at a frame; simulations show it there once their kinematics are computed."""
        angle = np.radians(ORBIT_SWING) * np.sin(2 * np.pi * frame / ORBIT_PERIOD)
        turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
        lift = np.array([0, 0, ORBIT_LIFT * np.sin(2 * np.pi * frame / ORBIT_LIFT_PERIOD)])
        self.model.cam_pos[self.camera] = self.target + turn @ (self.position - self.target) + lift
        import_mujoco().mju_mat2Quat(self.model.cam_quat[self.camera], (turn @ self.rotation).ravel())


@contextmanager
def carried(playback: Playback, renderer: BodyDepthRenderer, name: str) -> Iterator[Orbit]:
    """The orbit of a camera; afterwards it is back in its place."""
    model, index = playback.model, camera_id(playback.model, name)
    if model.cam_bodyid[index] != 0 or model.cam_mode[index] != 0:
        raise ConfigError(f"the camera {name!r} does not stand still; expected one that does, to carry it around")
    before = model.cam_pos[index].copy(), model.cam_quat[index].copy()
    playback.restore(0)
    view = renderer.render(playback.data, name)
    pose = view.camera.world_from_cam.numpy()
    distance = float(view.depth[renderer.height // 2, renderer.width // 2])
    try:
        yield Orbit(
            model=model,
            camera=index,
            target=pose[:3, 3] + distance * pose[:3, 2],
            position=playback.data.cam_xpos[index].copy(),
            rotation=playback.data.cam_xmat[index].reshape(3, 3).copy(),
        )
    finally:
        model.cam_pos[index], model.cam_quat[index] = before


def degraded(clip: Clip, *, noise: float = 0.0, crf: int | None = None, seed: int = 0) -> Clip:
    """The clip as a sensor and a codec would leave it."""
    depth, rgb = clip.depth, clip.rgb
    if noise > 0 and depth is not None:
        generator = np.random.default_rng(seed)
        with np.errstate(invalid="ignore"):
            step = np.maximum(
                np.abs(np.diff(depth, axis=1, prepend=depth[:, :1])),
                np.abs(np.diff(depth, axis=2, prepend=depth[..., :1])),
            )
            holes = (step > 0.03) | (generator.random(depth.shape) < 0.02)
            holes |= generator.random(depth.shape) < np.clip((step / depth - 0.005) * 20, 0, 0.5)
            noisy = depth + noise * np.square(depth) * generator.standard_normal(depth.shape)
        depth = np.where(holes | ~np.isfinite(noisy), 0, np.rint(noisy * 1000) / 1000).astype(np.float32)
    if crf is not None:
        rgb = _h264(rgb, crf, clip.fps)
    return replace(clip, depth=depth, rgb=rgb)


def _h264(rgb: UInt8[np.ndarray, "n h w 3"], crf: int, fps: float | int) -> UInt8[np.ndarray, "n h w 3"]:
    import io

    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=round(fps), options={"crf": str(crf)})
        stream.width, stream.height, stream.pix_fmt = rgb.shape[2], rgb.shape[1], "yuv420p"
        for image in rgb:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        container.mux(stream.encode(None))
    buffer.seek(0)
    with av.open(buffer, "r") as coded:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in coded.decode(video=0)])


def rendered_episodes(
    recordings: Mapping[int, Path],
    load_scene: LoadScene,
    sampling: Sampling,
    *,
    camera: str,
    size: int,
    every: int,
) -> Iterator[tuple[TrueClip, str]]:
    """Each episode with its task; a task's simulator is built once.

    Args:
        size: Width and height of the images. [px]
        every: Every n-th frame is a query frame; those with less than a quarter of the horizon before them are left out.

    Raises:
        ConfigError: The scene has no such camera.
    """
    by_task: dict[str, list[tuple[int, Path, dict[str, Any]]]] = {}
    for number, path in recordings.items():
        metadata, _ = read_header(path)
        by_task.setdefault(f"{metadata.get('suite')}/{metadata.get('task')}", []).append((number, path, metadata))
    for task, episodes in by_task.items():
        scene = load_scene(episodes[0][2])
        colours = Renderer(scene.model, size, "fast")
        try:
            with BodyDepthRenderer(
                scene.model, width=size, height=size, mirrored=True, geom_groups=scene.geom_groups
            ) as renderer:
                for _, path, _ in episodes:
                    playback = Playback(scene.model, read_recording(path))
                    last = playback.length - max(sampling.horizon // 4, 1)
                    frames = range(0, last, every)
                    yield render_episode(playback, scene, renderer, colours, camera, frames, sampling), task
        finally:
            colours.close()
