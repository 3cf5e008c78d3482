"""A loss taken apart for the log: by axis of the scene flow, by dimension of the action, by flow time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lamp.data.actions import Delta, Relative
from lamp.data.embodiment import Embodiment
from lamp.data.lerobot_reader import LeRobotDataset
from lamp.model.lamp import Draws
from lamp.train.means import Named
from lamp.types import Motion

AXES = ("u", "v", "d")
"""Of the scene flow: across, down, depth."""
TAU_BUCKETS = 5
"""Equal parts of the flow time, from noise to data."""
TAU_NAMES = tuple(f"{index / TAU_BUCKETS:.1f}-{(index + 1) / TAU_BUCKETS:.1f}" for index in range(TAU_BUCKETS))

POSE_NAMES = ("x", "y", "z", "rx", "ry", "rz", "gripper")
"""Of an action of seven values, as nearly all datasets of arms have it: position, rotation, gripper."""


@torch.no_grad()
def by_tau(draws: Draws) -> Named:
    """The mean loss of the noise draws in each part of the flow time."""
    bucket = (draws.tau * TAU_BUCKETS).long().clamp(0, TAU_BUCKETS - 1)
    inside = (bucket[:, None] == torch.arange(TAU_BUCKETS, device=bucket.device)) & draws.supervised[:, None]
    return Named(names=TAU_NAMES, sums=(inside * draws.loss[:, None]).sum(0), counts=inside.sum(0).float())


@torch.no_grad()
def clamped(motion: Motion) -> Named:
    """Share of the supervising increments that the bounds clamp, by axis: those that lie on a bound."""
    beyond = (motion.values.abs() >= 1) & motion.mask
    return Named(names=AXES, sums=beyond.sum((0, 1, 2)).float(), counts=motion.mask.sum((0, 1, 2)).float())


def by_name(values: Tensor, names: Sequence[str]) -> Named:
    """Values with a name each."""
    return Named(names=tuple(names), sums=values)


def action_names(dataset: LeRobotDataset, embodiment: Embodiment, width: int) -> tuple[str, ...]:
    """What the dataset calls the dimensions of the action that is learnt; where it does not say, `POSE_NAMES` where they fit,
    else their numbers."""
    found: list[str] = []
    for part in embodiment.action:
        found += (dataset.features[part.key].names or ())[part.start : part.stop]
    if len(found) == width == len(set(found)):
        return tuple(found)
    posed = isinstance(embodiment.kind, Delta) or (isinstance(embodiment.kind, Relative) and embodiment.kind.pose)
    return POSE_NAMES if posed and width == len(POSE_NAMES) else tuple(str(index) for index in range(width))
