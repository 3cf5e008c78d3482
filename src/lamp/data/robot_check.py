"""`lamp flow score` on recordings of a robot: a chain on the robot's points, against what its joint states say."""

from __future__ import annotations

from typing import Any

import numpy as np

from lamp.data.clip_sources import SourceSettings, find_source
from lamp.errors import ConfigError, DataError
from lamp.progress import Progress
from lamp.sceneflow.estimate.chain import chain_named
from lamp.sceneflow.estimate.metrics import Errors, TrueFlow
from lamp.sceneflow.estimate.robot import RobotTracker
from lamp.sceneflow.estimate.score import FlowScoreConfig, measure, report
from lamp.sceneflow.estimate.truth import TrueClip, degraded
from lamp.sceneflow.exact_flow import Sampling

LONGEST = 300
"""Frames of a recording that are looked at."""


def check_by_robot(config: FlowScoreConfig) -> dict[str, Any]:
    """Measures the chain and the baselines on the points of recordings that are on the robot.

    Raises:
        ConfigError: The chain itself uses the joint states, or has no such name.
        DataError: No recording has joint states with a URDF.
    """
    if config.robot != "no":
        raise ConfigError(f"--robot {config.robot}: a chain that uses the joint states cannot be checked by them")
    own = config.make_chain()
    chains = {own.name: own, **{name: chain_named(name) for name in config.baselines}}
    config.prepare()
    source = find_source(config.episodes, SourceSettings())
    names = [name for number, name in enumerate(source.names) if not config.only or number in config.only]
    sampling = Sampling(grid=config.grid, horizon=config.horizon)
    found = {name: Errors() for name in chains}
    tasks, count = set[str](), 0
    with Progress("scoring", len(names), "recordings") as progress:
        for name in names:
            reader = source.open(name)
            clip = reader.window(0, min(reader.length, LONGEST))
            frames = range(0, len(clip) - max(config.horizon // 4, 1), config.every)
            if clip.robot is None or not frames:
                progress.advance()
                continue
            small, depth, cameras = own.prepare(clip)
            exact = RobotTracker().track(small, depth, cameras, frames, sampling)
            flows = {
                one.frame: TrueFlow(points=one.points.astype(np.float64), visible=one.visible, valid=one.valid)
                for one in exact
            }
            truth = TrueClip(clip=clip, world_from_cam=cameras.world_from_cam, flows=flows)
            seen = degraded(clip, noise=config.depth_noise, crf=config.crf, seed=count)
            for chain_name, chain in chains.items():
                measure(chain, seen, truth, sampling, found[chain_name], scale=config.scale)
            tasks.add(reader.instruction)
            count += 1
            progress.advance(note=f"{own.name} {found[own.name].brief}")
    if not count:
        raise DataError(
            f"{config.episodes} has neither recorded simulation nor joint states with a URDF to compare with; expected a dataset "
            "of `lamp collect`, or `robot` in calibration.json (docs/scene_flow.md)"
        )
    truth_name = "the robot's kinematics, on its points alone"
    return report(config, own.name, found, episodes=count, tasks=sorted(tasks), truth=truth_name)
