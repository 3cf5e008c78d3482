"""Made-up data and a tiny recipe, with which the machinery of studies is tried without a simulator."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lamp.data.lerobot import EpisodeData, LeRobotDataset, LeRobotWriter, stage_episode
from lamp.model.action_expert import ActionExpertConfig, Prefix
from lamp.model.guidance import GuidanceConfig
from lamp.model.lamp import LaMPConfig
from lamp.model.motion_expert import MotionExpertConfig
from lamp.model.small import SmallBackboneConfig
from lamp.recipes import TrainingRecipe
from lamp.recipes.small import SMALL_TOKENS
from lamp.sceneflow.exact_flow import Sampling
from lamp.sceneflow.store import CameraFlow, SceneFlowStore, StoreDescription
from lamp.sceneflow.tracks import grid_points
from lamp.train.config import LoopConfig, MotionTraining, PolicyTraining
from lamp.train.optimizer import AdamW
from lamp.types import Camera, Tracks


@dataclass(frozen=True, kw_only=True)
class MadeUpData:
    """Made-up episodes of two tasks, a square that slides, for which no simulator is needed: a check of the machinery."""

    episodes: int = 12
    """Of both tasks together."""


SIDE, FRAMES = 64, 24
"""Of the made-up images [px], and frames of an episode."""
GRID, HORIZON, STRIDE = (4, 4), 4, 2
"""Of the made-up scene flow: points, the model's flow steps, and stored steps (of a frame) for each of them."""


def synthetic_recipe() -> TrainingRecipe:
    """Experts of a few thousand parameters on the embedded backbone."""
    backbone = SmallBackboneConfig(cameras=(("agentview", SIDE), ("wrist", SIDE)), text_tokens=8)
    motion = MotionExpertConfig(
        token_width=SMALL_TOKENS,
        width=16,
        layers=2,
        heads=2,
        grid=GRID,
        horizon=HORIZON,
        frames_per_token=4,
        time_channels=16,
    )
    action = ActionExpertConfig(
        token_width=SMALL_TOKENS,
        width=16,
        layers=2,
        heads=2,
        chunk=5,
        state_dim=11,
        attention=Prefix(),
        time_channels=8,
        positions=64,
    )
    loop = LoopConfig(steps=6, batch_size=4, optimiser=AdamW(lr=3e-3), log_every=2, threads=1)
    guidance = GuidanceConfig(token_width=SMALL_TOKENS, motion_width=16, heads=2)
    return TrainingRecipe(
        name="made_up",
        summary="experts of a few thousand parameters, for made-up data",
        motion=MotionTraining(
            model=LaMPConfig(token_width=SMALL_TOKENS, motion=motion, guidance=None, action=None),
            backbone=backbone,
            loop=loop,
            flow_stride=STRIDE,
            validation_samples=4,
            final_samples=8,
        ),
        policy=PolicyTraining(
            model=LaMPConfig(token_width=SMALL_TOKENS, motion=motion, guidance=guidance, action=action),
            backbone=backbone,
            loop=loop,
            execute=3,
        ),
    )


def write_synthetic_data(data: MadeUpData, root: Path) -> None:
    """Writes episodes of a square that slides to the right, with its scene flow; what is there already is left as it is."""
    if (root / "sceneflow" / "zarr.json").is_file():
        return
    writer = LeRobotWriter(root)
    for seed in range(data.episodes):
        if f"episode-{seed:03d}" not in writer.names():
            stage_episode(root, f"episode-{seed:03d}", _synthetic_episode(seed))
    writer.finalize({"suite": "made up"})
    store = SceneFlowStore.create(
        root / "sceneflow",
        StoreDescription(
            sampling=Sampling(grid=GRID, horizon=HORIZON * STRIDE, stride=1),
            cameras=("agentview",),
            image_size=(SIDE, SIDE),
            mirrored=False,
            every=1,
            estimator="made up 1",
            source=root.name,
        ),
    )
    for episode in LeRobotDataset(root).episodes:
        store.write(episode.index, {"agentview": _synthetic_flow(episode.index, episode.length)})


def _synthetic_episode(seed: int) -> EpisodeData:
    random = np.random.default_rng(seed)
    images = np.full((FRAMES, SIDE, SIDE, 3), 40, np.uint8)
    start, speed = int(random.integers(0, 16)), 1 + seed % 2
    for frame in range(FRAMES):
        left = min(start + speed * frame, SIDE - 16)
        images[frame, 16:32, left : left + 16] = 220
    action = np.tile(np.linspace(-1, 1, 7), (FRAMES, 1)) * speed + 0.1 * random.normal(size=(FRAMES, 7))
    action[:, 6] = np.arange(FRAMES) > FRAMES // 2
    return EpisodeData(
        frames={
            "observation.state": random.normal(size=(FRAMES, 8)).astype(np.float32),
            "action": action.astype(np.float32),
            "observation.fresh": np.arange(FRAMES) % 2 == 0,
        },
        images=dict.fromkeys(("agentview", "wrist"), images[np.arange(FRAMES) // 2 * 2]),
        task=f"move the square at speed {speed}",
        extra={"task": seed % 2},
    )


def _synthetic_flow(seed: int, length: int) -> CameraFlow:
    """The upper half of the points moves with the square, the lower half rests."""
    frames, moments, points = np.arange(0, length, 2), HORIZON * STRIDE + 1, GRID[0] * GRID[1]
    places = np.zeros((len(frames), points, moments, 3), np.float32)
    places[..., :2] = grid_points(*GRID).numpy()[None, :, None]
    places[..., 2] = 1.0
    places[:, : points // 2, :, 0] += (1 + seed % 2) / SIDE * np.arange(moments, dtype=np.float32)
    known = torch.from_numpy((frames[:, None] + np.arange(moments))[:, None].repeat(points, 1) < length)
    pinhole = np.array([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5], [0.0, 0.0, 1.0]])
    return CameraFlow(
        frames=frames,
        tracks=Tracks(points=torch.from_numpy(places), visible=known, valid=known),
        camera=Camera(
            intrinsics=torch.from_numpy(np.tile(pinhole, (len(frames), 1, 1))),
            world_from_cam=torch.eye(4, dtype=torch.float64).expand(len(frames), 4, 4),
        ),
    )
