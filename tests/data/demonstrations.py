"""Small made-up demonstrations whose every image carries a number that survives video compression."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lamp.data.lerobot import EpisodeData, LeRobotDataset, LeRobotWriter, stage_episode

CAMERAS = ("agentview", "wrist")
SIDE = 64
BLOCK = SIDE // 4


def numbered(number: int) -> np.ndarray:
    """An image that shows a 16-bit number as a 4x4 board of dark and bright squares."""
    bits = (number >> np.arange(16)) & 1
    board = np.where(bits.reshape(4, 4), 200, 50).repeat(BLOCK, 0).repeat(BLOCK, 1)
    return np.stack([board, board, board], axis=-1).astype(np.uint8)


def number_in(image: np.ndarray) -> int:
    """Reads `numbered` back."""
    means = image.astype(float).mean(-1).reshape(4, BLOCK, 4, BLOCK).mean((1, 3))
    return int(((means > 125).ravel() << np.arange(16)).sum())


def image_number(seed: int, frame: int, camera: str) -> int:
    """The number in an episode's image."""
    return seed * 512 + frame * 2 + CAMERAS.index(camera)


def episode(seed: int, length: int = 20, *, render_every: int = 2, tasks: int = 2) -> EpisodeData:
    """An episode that follows from its seed; images repeat where they are not fresh."""
    random = np.random.default_rng(seed)
    fresh = np.arange(length) % render_every == 0
    shown = np.maximum.accumulate(np.where(fresh, np.arange(length), 0))
    action = random.normal(size=(length, 7)).astype(np.float32)
    action[:, 6] = random.random(length) > 0.5
    return EpisodeData(
        frames={
            "observation.state": random.normal(size=(length, 8)).astype(np.float32),
            "action": action,
            "action.executed": action + np.float32(0.1),
            "observation.fresh": fresh,
        },
        images={
            camera: np.stack([numbered(image_number(seed, frame, camera)) for frame in shown]) for camera in CAMERAS
        },
        task=f"task {seed % tasks}",
        extra={
            "suite": "libero_object",
            "task": seed % tasks,
            "initial_state": seed,
            "placement": {"bowl": [0.01, -0.02]},
        },
        simulation={"states": random.normal(size=(length, 5)), "body_poses": random.normal(size=(length, 3, 7))},
    )


LENGTHS = (20, 9, 33, 1)


def write(root: Path, lengths: tuple[int, ...] = LENGTHS) -> LeRobotDataset:
    """Makes a dataset of the episodes with seeds 0, 1, 2 ..."""
    for seed, length in enumerate(lengths):
        stage_episode(root, f"episode-{seed}", episode(seed, length))
    LeRobotWriter(root).finalize({"suite": "libero_object", "render_every": 2})
    return LeRobotDataset(root)
