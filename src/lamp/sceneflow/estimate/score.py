"""`lamp flow score`: a chain of estimators, and baselines beside it, against the simulator's exact scene flow.

Episodes are rendered anew from their recorded simulation, colours and depth; the chain sees what a recording of an RGB-D camera
would hold, and is compared with where the points truly went.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lamp.errors import ConfigError, DataError, unknown
from lamp.json_files import write_json
from lamp.progress import Progress
from lamp.sceneflow.estimate.chain import BASELINES, Chain, chain_named
from lamp.sceneflow.estimate.interfaces import Clip
from lamp.sceneflow.estimate.metrics import SCALES, Errors, table
from lamp.sceneflow.estimate.settings import ChainSettings
from lamp.sceneflow.estimate.truth import TrueClip, degraded, rendered_episodes
from lamp.sceneflow.exact_flow import Sampling
from lamp.sceneflow.rendering import LoadScene, load_libero_scene
from lamp.sceneflow.sim_states import recording_paths


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
    """Which of the dataset's cameras; `wrist` moves. `orbit` is its first one, carried to and fro by 20 degrees around
    what it looks at, and up and down by 5 cm."""
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
        for truth, task in rendered_episodes(
            chosen, load_scene, sampling, camera=config.camera, size=config.image_size, every=config.every
        ):
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


def measure(
    chain: Chain, clip: Clip, truth: TrueClip, sampling: Sampling, errors: Errors, *, scale: str = "none"
) -> None:
    """Adds a clip's errors."""
    start = time.process_time()
    cameras, found_tracks = chain.estimate(clip, sorted(truth.flows), sampling)
    tracks = list(found_tracks)
    errors.seconds += time.process_time() - start
    assert clip.intrinsics is not None
    for found in tracks:
        errors.add(found, truth.flows[found.frame], clip.intrinsics, clip.size, scale)
        if not clip.fixed_camera:
            horizon = slice(found.frame, found.frame + sampling.horizon * sampling.stride + 1)
            errors.add_camera(cameras.world_from_cam[horizon], truth.world_from_cam[horizon])
