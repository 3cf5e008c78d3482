"""Made-up RGB-D clips whose true motion is known."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

from lamp.sceneflow.estimate.interfaces import Clip

SIZE = (128, 96)
"""Width and height."""
INTRINSICS = np.array([[1.0, 0, 0.5], [0, 4 / 3, 0.5], [0, 0, 1]])
SQUARE = (24, 34, 28)
"""Left, top and side of the square at the first frame. [px]"""


def texture(height: int, width: int, seed: int) -> np.ndarray:
    """Colours that optical flow can hold on to."""
    random = np.random.default_rng(seed).random((height, width, 3))
    smooth = gaussian_filter(random, (1.5, 1.5, 0))
    return (255 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.float32)


def sliding_square(
    frames: int = 20,
    *,
    speed: float = 1.5,
    approach: float = 0.0,
    noise: float = 0.0,
    holes: float = 0.0,
    rest: int = 0,
    name: str = "slide",
) -> Clip:
    """A wall at 1 m and before it, at 0.8 m, a square that slides to the right by `speed` px a frame and comes nearer. [m a
    frame]"""
    width, height = SIZE
    wall, cloth = texture(height, width, 0), texture(height, width, 1)
    random = np.random.default_rng(2)
    left, top, side = SQUARE
    rgb, depth = [], []
    y, x = np.mgrid[:height, :width].astype(np.float64)
    for frame in range(frames):
        time = max(frame - rest, 0)
        at = left + speed * time
        on = (x >= at) & (x < at + side) & (y >= top) & (y < top + side)
        moved = np.stack([map_coordinates(cloth[..., c], [y, x - at], order=1, mode="reflect") for c in range(3)], -1)
        rgb.append(np.where(on[..., None], moved, wall).round().astype(np.uint8))
        z = np.where(on, 0.8 - approach * time, 1.0)
        z = z + noise * z**2 * random.standard_normal(z.shape)
        depth.append(np.where(random.random(z.shape) < holes, 0.0, z).astype(np.float32))
    return Clip(
        rgb=np.stack(rgb), depth=np.stack(depth), fps=10, intrinsics=INTRINSICS, name=name, instruction="slide it"
    )


def on_square(points: np.ndarray, margin: float = 2.0) -> np.ndarray:
    """Which (u, v) points are on the square at the first frame, away from its border."""
    left, top, side = SQUARE
    x, y = points[..., 0] * SIZE[0] - 0.5, points[..., 1] * SIZE[1] - 0.5
    return (x > left + margin) & (x < left + side - 1 - margin) & (y > top + margin) & (y < top + side - 1 - margin)


def off_square(points: np.ndarray, margin: float = 3.0) -> np.ndarray:
    """Which are on the wall, away from the square."""
    left, top, side = SQUARE
    x, y = points[..., 0] * SIZE[0] - 0.5, points[..., 1] * SIZE[1] - 0.5
    return (x < left - margin) | (x > left + side + margin) | (y < top - margin) | (y > top + side + margin)


def moving_camera(frames: int = 20, *, step: float = 0.004, turn: float = 0.003) -> tuple[Clip, np.ndarray]:
    """A camera that moves to the right and turns before two slanted walls; the clip and its true ``world_from_cam``."""
    width, height = SIZE
    paint = texture(512, 512, 3)
    matrix = np.array([[width, 0, -0.5], [0, height, -0.5], [0, 0, 1]]) @ INTRINSICS
    y, x = np.mgrid[:height, :width].astype(np.float64)
    rays = np.stack([(x - matrix[0, 2]) / matrix[0, 0], (y - matrix[1, 2]) / matrix[1, 1], np.ones_like(x)], axis=-1)
    rgb, depth, poses = [], [], []
    for frame in range(frames):
        angle = turn * frame
        pose = np.eye(4)
        pose[:3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
        pose[:3, 3] = [step * frame, 0.3 * step * frame, 0]
        world = rays @ pose[:3, :3].T
        # Walls n . X = 1, nearest first.
        reach = [(1 - pose[:3, 3] @ n) / (world @ n) for n in (np.array([0.35, 0.2, 1.0]), np.array([-0.5, 0.1, 1.1]))]
        z = np.minimum(*(np.where(r > 0, r, np.inf) for r in reach))
        hit = pose[:3, 3] + world * z[..., None]
        at = [256 + 180 * hit[..., 1], 256 + 180 * hit[..., 0]]
        rgb.append(np.stack([map_coordinates(paint[..., c], at, order=1, mode="reflect") for c in range(3)], -1))
        depth.append(z)
        poses.append(pose)
    clip = Clip(
        rgb=np.stack(rgb).round().astype(np.uint8),
        depth=np.stack(depth).astype(np.float32),
        fps=10,
        intrinsics=INTRINSICS,
    )
    return clip, np.stack(poses)
