"""Tiny made-up demonstrations, backbone, scene flow and models for the tests of training: seconds, not minutes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from lamp.data.feature_cache.cache import FeatureCache
from lamp.data.lerobot import EpisodeData, LeRobotDataset, LeRobotWriter, stage_episode
from lamp.model.action_expert import ActionExpertConfig, Prefix
from lamp.model.guidance import GuidanceConfig
from lamp.model.lamp import LaMPConfig
from lamp.model.motion_expert import MotionExpertConfig
from lamp.sceneflow.exact_flow import Sampling
from lamp.sceneflow.store import CameraFlow, SceneFlowStore, StoreDescription
from lamp.sceneflow.tracks import grid_points
from lamp.train.config import LoopConfig, MotionTraining, PolicyTraining, Split
from lamp.train.optimizer import AdamW
from lamp.types import Camera, Tracks

CAMERAS = ("agentview", "wrist")
SIDE = 64
WIDTH = 16
GRID = (4, 4)
HORIZON, STRIDE, FRAMES_PER_STEP = 4, 2, 1


class PatchBackbone:
    """Mean colours of 16 patches and a code of the instruction: what a backbone is, for tests."""

    key = "patches-1"
    width = WIDTH
    description: dict[str, Any] = {"kind": "patches", "cameras": [[name, SIDE] for name in CAMERAS]}  # noqa: RUF012

    def image_tokens(self, camera: str, images: UInt8[Tensor, "b h w 3"]) -> Float[Tensor, "b n d"]:
        side = images.shape[1] // 4
        patches = images.float().div(255).unfold(1, side, side).unfold(2, side, side).mean((-1, -2)).flatten(1, 2)
        tokens = torch.zeros(len(images), 16, WIDTH)
        tokens[..., :3] = patches
        tokens[..., 3 + CAMERAS.index(camera)] = 1.0
        tokens[..., 5:9] = torch.eye(4).repeat(4, 1)
        return tokens

    def text_tokens(self, instructions: Sequence[str]) -> tuple[Float[Tensor, "b n d"], Bool[Tensor, "b n"]]:
        tokens = torch.zeros(len(instructions), 2, WIDTH)
        for row, text in enumerate(instructions):
            tokens[row, 0, 9 + sum(text.encode()) % 7] = 1.0
        mask = torch.tensor([[True, False]]).expand(len(instructions), 2)
        return tokens, mask


def episode(seed: int, length: int = 24) -> EpisodeData:
    """A bright square that slides over the image; actions and state follow its position and the task."""
    random = np.random.default_rng(seed)
    fresh = np.arange(length) % 2 == 0
    place = random.integers(0, 32)
    images = np.full((length, SIDE, SIDE, 3), 40, np.uint8)
    for frame in range(length):
        left = min(place + frame, SIDE - 16)
        images[frame, 16:32, left : left + 16] = 220
    images = images[np.maximum.accumulate(np.where(fresh, np.arange(length), 0))]
    state = random.normal(size=(length, 8)).astype(np.float32)
    action = np.tile(np.linspace(-1, 1, 7), (length, 1)) + 0.1 * random.normal(size=(length, 7)) + 0.3 * (seed % 2)
    action[:, 6] = np.arange(length) > length // 2
    return EpisodeData(
        frames={"observation.state": state, "action": action.astype(np.float32), "observation.fresh": fresh},
        images={camera: images for camera in CAMERAS},
        task=f"task {seed % 2}",
        extra={"task": seed % 2},
    )


def write_dataset(root: Path, episodes: int = 6, *, motion_only: bool = False) -> Path:
    """Makes a dataset with the features of `PatchBackbone` and a scene flow; where it is of motion only, without actions."""
    for seed in range(episodes):
        made = episode(seed)
        if motion_only:
            kept = {name: values for name, values in made.frames.items() if not name.startswith("action")}
            made = dataclasses.replace(made, frames=kept)
        stage_episode(root, f"episode-{seed}", made)
    LeRobotWriter(root).finalize({"suite": "made up", "render_every": 2})
    dataset = LeRobotDataset(root)
    FeatureCache.build(dataset, PatchBackbone())
    write_flow(dataset)
    return root


def write_flow(dataset: LeRobotDataset) -> None:
    """The upper half of the grid moves at a speed of its own in each episode, the lower half rests."""
    sampling = Sampling(grid=GRID, horizon=HORIZON * STRIDE, stride=FRAMES_PER_STEP)
    store = SceneFlowStore.create(
        dataset.root / "sceneflow",
        StoreDescription(
            sampling=sampling,
            cameras=("agentview",),
            image_size=(SIDE, SIDE),
            mirrored=False,
            every=1,
            estimator="made up 1",
            source=dataset.root.name,
        ),
    )
    k, moments = GRID[0] * GRID[1], HORIZON * STRIDE + 1
    intrinsics = np.array([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5], [0.0, 0.0, 1.0]])
    for item in dataset.episodes:
        frames = np.flatnonzero(dataset.fresh(item.index))
        speed = 0.004 * (1 + item.index % 3)
        points = np.zeros((len(frames), k, moments, 3), np.float32)
        points[..., :2] = grid_points(*GRID).numpy()[None, :, None]
        points[..., 2] = 1.0
        points[:, : k // 2, :, 0] += speed * np.arange(moments)
        known = (frames[:, None] + np.arange(moments))[:, None].repeat(k, 1) < item.length
        tracks = Tracks(points=torch.from_numpy(points), visible=torch.from_numpy(known), valid=torch.from_numpy(known))
        camera = Camera(
            intrinsics=torch.from_numpy(np.tile(intrinsics, (len(frames), 1, 1))),
            world_from_cam=torch.eye(4, dtype=torch.float64).expand(len(frames), 4, 4),
        )
        store.write(item.index, {"agentview": CameraFlow(frames=frames, tracks=tracks, camera=camera)})


MOTION = MotionExpertConfig(
    token_width=WIDTH, width=16, layers=2, heads=2, grid=GRID, horizon=HORIZON, frames_per_token=4, time_channels=16
)
ACTION = ActionExpertConfig(
    token_width=WIDTH,
    width=16,
    layers=2,
    heads=2,
    chunk=5,
    state_dim=11,
    attention=Prefix(),
    time_channels=8,
    positions=64,
)
GUIDANCE = GuidanceConfig(token_width=WIDTH, motion_width=16, heads=2)


def loop(**changes: Any) -> LoopConfig:
    settings: dict[str, Any] = {
        "steps": 12,
        "batch_size": 8,
        "optimiser": AdamW(lr=3e-3),
        "ema": 0.9,
        "log_every": 4,
        "checkpoint_every": 4,
        "validate_every": 6,
        "threads": 1,
    }
    return LoopConfig(**(settings | changes))


def motion_training(**changes: Any) -> MotionTraining:
    settings: dict[str, Any] = {
        "model": LaMPConfig(token_width=WIDTH, motion=MOTION, guidance=None, action=None),
        "loop": loop(),
        "flow_stride": STRIDE,
        "split": Split(validation_share=0.3),
        "validation_samples": 8,
        "final_samples": 16,
    }
    return MotionTraining(**(settings | changes))


def policy_training(*, with_motion: bool = True, **changes: Any) -> PolicyTraining:
    model = LaMPConfig(
        token_width=WIDTH,
        motion=MOTION if with_motion else None,
        guidance=GUIDANCE if with_motion else None,
        action=ACTION,
    )
    settings: dict[str, Any] = {
        "model": model,
        "loop": loop(),
        "execute": 3,
        "state_noise": 0.1,
        "split": Split(validation_share=0.3),
        "validation_samples": 16,
    }
    return PolicyTraining(**(settings | changes))
