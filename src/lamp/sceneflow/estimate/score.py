"""`lamp flow score`: a chain of estimators, and baselines beside it, against the simulator's exact scene flow.

Episodes are rendered anew from their recorded simulation, colours and depth; the chain sees what a recording of an RGB-D camera
would hold, and is compared with where the points truly went.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, UInt8

from lamp.errors import ConfigError, DataError, unknown
from lamp.geometry import apply, inverse, project
from lamp.json_files import write_json
from lamp.progress import Progress
from lamp.sceneflow.estimate.chain import BASELINES, Chain, chain_named
from lamp.sceneflow.estimate.interfaces import Clip, PointTracks
from lamp.sceneflow.estimate.settings import ChainSettings
from lamp.sceneflow.exact_flow import Sampling, agrees_with_depth, track_points
from lamp.sceneflow.rendering import BodyDepthRenderer, LoadScene, SimulationScene, load_libero_scene
from lamp.sceneflow.sim_states import Playback, read_header, read_recording, recording_paths
from lamp_client.envs.rendering import Renderer

MOVING_PX = 1.0
MOVING_M = 0.004
"""A point moves if its true path leaves its start by more than one of these."""
TAPVID_PX = (1, 2, 4, 8, 16)
"""TAPVid-3D's thresholds, scaled by depth over focal length."""


@dataclass(frozen=True, kw_only=True)
class FlowScoreConfig(ChainSettings):
    """Compares a chain that estimates scene flow from video with the exact scene flow of recorded simulations."""

    episodes: Path
    """A dataset with recorded simulation, as `lamp collect` writes it; or recordings with joint states, a URDF and a calibrated
    camera (docs/scene_flow.md), whose points on the robot are compared with its kinematics."""
    baselines: tuple[str, ...] = BASELINES
    """Chains that are measured beside it."""
    only: tuple[int, ...] = ()
    """Episodes; none given: all."""
    camera: str = "agentview"
    """Which of the dataset's cameras; `wrist` moves."""
    known_camera: bool = False
    """Give the chain the true poses of a camera that moves, instead of letting it find them."""
    grid: tuple[int, int] = (20, 20)
    """Rows and columns of points."""
    horizon: int = 32
    """Flow steps."""
    every: int = 3
    """Every n-th frame is a query frame; those with less than a quarter of the horizon before them are left out."""
    image_size: int = 256
    """Width and height of the rendered images. [px]"""
    depth_noise: float = 0.0
    """Standard deviation of added depth noise at 1 m, growing with the square of the distance [m]; with it come holes at depth
    edges and at grazing angles, and millimetre steps."""
    crf: int | None = None
    """Compress the images as H.264 with this quality before the chain sees them, such as 23."""
    without_depth: bool = False
    """Give the chain no depth: only the errors in px count then."""
    scale: str = "none"
    """How TAPVid-3D's metrics fit the depth: none, median or per_trajectory."""
    json: bool = False
    """Print everything as JSON."""
    out: Path | None = None
    """Also write it to this file."""

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise unknown("scale", self.scale, SCALES)
        if min(self.every, self.image_size, self.horizon, *self.grid) < 1 or self.depth_noise < 0:
            raise ConfigError(
                f"every {self.every}, image size {self.image_size}, horizon {self.horizon}, grid {self.grid}, depth noise "
                f"{self.depth_noise}: expected positive numbers"
            )


@dataclass(frozen=True, kw_only=True)
class TrueFlow:
    """Where the grid points of a query frame truly go, in that frame's camera."""

    points: Float64[np.ndarray, "k t1 3"]
    visible: Bool[np.ndarray, "k t1"]
    """Inside the image of the query frame's camera and seen by the camera as it is at that moment (for one that stands still,
    the same)."""
    valid: Bool[np.ndarray, "k t1"]


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
    """Colours, depth and exact scene flow of one episode in one camera.

    Raises:
        ConfigError: The scene has no such camera.
    """
    if camera not in scene.cameras:
        raise unknown("camera", camera, scene.cameras)
    name = scene.cameras[camera]
    images, views = [], []
    for frame in range(playback.length):
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


def score(config: FlowScoreConfig, *, load_scene: LoadScene = load_libero_scene) -> dict[str, Any]:
    """Measures the chain and the baselines, prints what was found, and returns it.

    Raises:
        ConfigError: A chain or camera has no such name.
        DataError: There is no recorded simulation.
    """
    own = config.make_chain()
    chains = {own.name: own, **{name: chain_named(name) for name in config.baselines}}
    config.prepare()
    sampling = Sampling(grid=config.grid, horizon=config.horizon)
    found = {name: Errors() for name in chains}
    tasks, count = set[str](), 0
    recordings = recording_paths(config.episodes)
    if absent := sorted(set(config.only) - recordings.keys()):
        raise DataError(
            f"{config.episodes} has no recorded simulation of episode {absent[0]}; there are {len(recordings)}"
        )
    chosen = {number: path for number, path in recordings.items() if not config.only or number in config.only}
    with Progress("scoring", len(chosen), "episodes") as progress:
        for truth, task in _rendered(config, chosen, load_scene, sampling):
            tasks.add(task)
            clip = degraded(truth.clip, noise=config.depth_noise, crf=config.crf, seed=count)
            if config.without_depth:
                clip = replace(clip, depth=None)
            if config.known_camera:
                clip = replace(clip, world_from_cam=truth.world_from_cam)
            for name, chain in chains.items():
                measure(chain, clip, truth, sampling, found[name], scale=config.scale)
            count += 1
            progress.advance(note=f"{own.name} {found[own.name].brief}")
    return report(
        config, own.name, found, episodes=count, tasks=sorted(tasks), truth="the simulator's exact scene flow"
    )


def report(
    config: FlowScoreConfig, own: str, found: Mapping[str, Errors], *, episodes: int, tasks: Sequence[str], truth: str
) -> dict[str, Any]:
    """Prints what was found, writes it where that is asked for, and returns it.

    Args:
        own: Name of the chain that is measured; the others are baselines.
        truth: What was compared with.
    """
    result: dict[str, Any] = {
        "chain": own,
        **found[own].summary,
        "baselines": {name: found[name].summary for name in config.baselines},
        "truth": truth,
        "episodes": episodes,
        "tasks": list(tasks),
        "camera": config.camera,
        "image_size": config.image_size,
        "horizon": config.horizon,
        "depth_noise": config.depth_noise,
        "crf": config.crf,
        "scale": config.scale,
        "visibility": "as seen by the camera at each moment, inside the query frame's image",
    }
    if config.out is not None:
        write_json(config.out, result)
    print(json.dumps(result, indent=2) if config.json else table({own: result, **result["baselines"]}))
    return result


def _rendered(
    config: FlowScoreConfig, recordings: Mapping[int, Path], load_scene: LoadScene, sampling: Sampling
) -> Iterator[tuple[TrueClip, str]]:
    """Each episode with its task; a task's simulator is built once."""
    by_task: dict[str, list[tuple[int, Path, dict[str, Any]]]] = {}
    for number, path in recordings.items():
        metadata, _ = read_header(path)
        by_task.setdefault(f"{metadata.get('suite')}/{metadata.get('task')}", []).append((number, path, metadata))
    size = config.image_size
    for task, episodes in by_task.items():
        scene = load_scene(episodes[0][2])
        colours = Renderer(scene.model, size, "fast")
        try:
            with BodyDepthRenderer(
                scene.model, width=size, height=size, mirrored=True, geom_groups=scene.geom_groups
            ) as renderer:
                for _, path, _ in episodes:
                    playback = Playback(scene.model, read_recording(path))
                    last = playback.length - max(config.horizon // 4, 1)
                    frames = range(0, last, config.every)
                    yield render_episode(playback, scene, renderer, colours, config.camera, frames, sampling), task
        finally:
            colours.close()


def measure(
    chain: Chain, clip: Clip, truth: TrueClip, sampling: Sampling, errors: Errors, *, scale: str = "none"
) -> None:
    """Adds a clip's errors."""
    start = time.process_time()
    tracks = list(chain.estimate(clip, sorted(truth.flows), sampling)[1])
    errors.seconds += time.process_time() - start
    assert clip.intrinsics is not None
    for found in tracks:
        errors.add(found, truth.flows[found.frame], clip.intrinsics, clip.size, scale)


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


@dataclass(kw_only=True)
class Errors:
    """Errors of one chain, collected over query frames."""

    moving_px: list[Float[np.ndarray, " p"]] = field(default_factory=list)
    moving_mm: list[Float[np.ndarray, " p"]] = field(default_factory=list)
    static_px: list[Float[np.ndarray, " p"]] = field(default_factory=list)
    static_mm: list[Float[np.ndarray, " p"]] = field(default_factory=list)
    visibility: np.ndarray = field(default_factory=lambda: np.zeros(4, int))
    """True positives, false positives, false negatives, true negatives."""
    tapvid: list[tuple[float, float, float]] = field(default_factory=list)
    """3D-AJ, APD and OA of each query frame."""
    seconds: float = 0.0
    queries: int = 0

    def add(
        self,
        found: PointTracks,
        truth: TrueFlow,
        intrinsics: Float64[np.ndarray, "3 3"],
        size: tuple[int, int],
        scale: str = "none",
    ) -> None:
        """Adds a query frame; what the truth does not know does not count."""
        self.queries += 1
        estimated = found.points.astype(np.float64)
        px = np.linalg.norm((estimated[..., :2] - truth.points[..., :2]) * size, axis=-1)
        spatial, exact = camera_points(estimated, intrinsics), camera_points(truth.points, intrinsics)
        mm = np.linalg.norm(spatial - exact, axis=-1) * 1000
        away_px = np.linalg.norm((truth.points[..., :2] - truth.points[:, :1, :2]) * size, axis=-1)
        away_m = np.linalg.norm(exact - exact[:, :1], axis=-1)
        moving = (((away_px > MOVING_PX) | (away_m > MOVING_M)) & truth.valid).any(axis=1, keepdims=True)
        counted = truth.visible & truth.valid
        counted[:, 0] = False
        self.moving_px.append(px[counted & moving])
        self.static_px.append(px[counted & ~moving])
        self.moving_mm.append(mm[counted & moving & np.isfinite(mm)])
        self.static_mm.append(mm[counted & ~moving & np.isfinite(mm)])
        guess, true, known = found.visible[:, 1:], truth.visible[:, 1:], truth.valid[:, 1:]
        self.visibility += [(of & known).sum() for of in (guess & true, guess & ~true, ~guess & true, ~guess & ~true)]
        focal = np.abs(intrinsics[[0, 1], [0, 1]]) * size
        rows = truth.valid[:, 0] & np.isfinite(spatial[:, 0]).all(axis=-1)
        if rows.any():
            self.tapvid.append(
                tapvid_3d(
                    spatial[rows],
                    found.visible[rows],
                    exact[rows],
                    truth.visible[rows],
                    float(np.sqrt(focal[0] * focal[1])),
                    scale=scale,
                    counted=truth.valid[rows],
                )
            )

    @property
    def brief(self) -> str:
        """A few words for the progress line."""
        return f"{_percentile(self.moving_px, 50):.2f} px, p90 {_percentile(self.moving_px, 90):.1f} px"

    @property
    def summary(self) -> dict[str, Any]:
        """All figures."""
        hits, false, missed, _ = self.visibility.tolist()
        apart = [np.nanmean(part) if self.tapvid else float("nan") for part in np.array(self.tapvid).reshape(-1, 3).T]
        values = {
            "moving_median_px": _percentile(self.moving_px, 50),
            "moving_p90_px": _percentile(self.moving_px, 90),
            "moving_median_mm": _percentile(self.moving_mm, 50),
            "moving_p90_mm": _percentile(self.moving_mm, 90),
            "moving_epe3d_mm": _mean(self.moving_mm),
            "static_p99_px": _percentile(self.static_px, 99),
            "static_epe3d_mm": _mean(self.static_mm),
            "visibility_precision": hits / (hits + false) if hits + false else float("nan"),
            "visibility_recall": hits / (hits + missed) if hits + missed else float("nan"),
            "aj_3d": float(apart[0]),
            "apd_3d": float(apart[1]),
            "oa": float(apart[2]),
            "query_frames_per_second": self.queries / max(self.seconds, 1e-9),
            "query_frames": self.queries,
            "moving_points": sum(map(len, self.moving_px)),
            "static_points": sum(map(len, self.static_px)),
        }
        return {
            name: None if isinstance(value, float) and not np.isfinite(value) else value
            for name, value in values.items()
        }


def _percentile(parts: Sequence[np.ndarray], q: int) -> float:
    values = np.concatenate(parts) if parts else np.empty(0)
    return float(np.percentile(values, q)) if len(values) else float("nan")


def _mean(parts: Sequence[np.ndarray]) -> float:
    values = np.concatenate(parts) if parts else np.empty(0)
    return float(values.mean()) if len(values) else float("nan")


def camera_points(
    uvd: Float[np.ndarray, "*b 3"], intrinsics: Float64[np.ndarray, "3 3"]
) -> Float64[np.ndarray, "*b 3"]:
    """(u, v, d) as points in the camera's frame [m]."""
    y = (uvd[..., 1] - intrinsics[1, 2]) / intrinsics[1, 1]
    x = (uvd[..., 0] - intrinsics[0, 2] - intrinsics[0, 1] * y) / intrinsics[0, 0]
    return np.stack([x, y, np.ones_like(x)], axis=-1) * uvd[..., 2:]


SCALES = ("none", "median", "per_trajectory")


def tapvid_3d(
    found: Float[np.ndarray, "k t 3"],
    found_visible: Bool[np.ndarray, "k t"],
    truth: Float[np.ndarray, "k t 3"],
    visible: Bool[np.ndarray, "k t"],
    focal: float,
    *,
    scale: str = "none",
    counted: Bool[np.ndarray, "k t"] | None = None,
) -> tuple[float, float, float]:
    """TAPVid-3D's 3D-AJ, APD and OA (Koppula et al. 2024), query points included.

    Within a threshold of delta px is what is nearer to the truth than delta z / f metres. At each threshold APD is the share of
    visible points within it; 3D-AJ the number of points within it that are both visible and found visible, over the number that
    are visible or wrongly found so. Both are means over `TAPVID_PX`.

    Args:
        found: Camera coordinates. [m]
        focal: Geometric mean of the absolute focal lengths. [px]
        scale: Nothing is fitted; or one factor, the ratio of the median distances of points visible in both; or one factor a
        track,
            the ratio of depths at the first moment.
        counted: What counts at all; None: everything.
    """
    counted = np.ones(visible.shape, bool) if counted is None else counted
    visible, found_visible = visible & counted, found_visible & counted
    if scale == "median":
        both = visible & found_visible & np.isfinite(found).all(axis=-1)
        if both.any():
            norms = (np.linalg.norm(points[both], axis=-1) for points in (truth, found))
            found = found * (np.median(next(norms)) / np.median(next(norms)))
    elif scale == "per_trajectory":
        found = found * (truth[:, :1, 2:] / found[:, :1, 2:])
    miss = np.linalg.norm(found - truth, axis=-1)
    jaccard, within_share = [], []
    for delta in TAPVID_PX:
        with np.errstate(invalid="ignore"):
            within = miss < delta * truth[..., 2] / focal
        hits = (within & visible & found_visible).sum()
        false = (found_visible & ~(visible & within)).sum()
        jaccard.append(hits / max(visible.sum() + false, 1))
        within_share.append((within & visible).sum() / max(visible.sum(), 1))
    agreement = float((found_visible == visible)[counted].mean()) if counted.any() else float("nan")
    return float(np.mean(jaccard)), float(np.mean(within_share)), agreement


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures as text, a chain a line."""

    def shown(value: float | None, digits: int = 2) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    lines = [
        f"{'chain':<18} {'px median/p90':>14} {'mm median/p90':>14} {'static p99 px':>13} {'visible P/R':>12} "
        f"{'3D-AJ':>6} {'APD':>6} {'OA':>6} {'queries/s':>9}"
    ]
    for name, one in results.items():
        lines.append(
            f"{name:<18} {shown(one['moving_median_px']) + '/' + shown(one['moving_p90_px'], 1):>14} "
            f"{shown(one['moving_median_mm'], 1) + '/' + shown(one['moving_p90_mm'], 1):>14} {shown(one['static_p99_px']):>13} "
            f"{shown(one['visibility_precision'], 3) + '/' + shown(one['visibility_recall'], 3):>12} {shown(one['aj_3d']):>6} "
            f"{shown(one['apd_3d']):>6} {shown(one['oa'], 3):>6} {shown(one['query_frames_per_second'], 1):>9}"
        )
    return "\n".join(lines)
