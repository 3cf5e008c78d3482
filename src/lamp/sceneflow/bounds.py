"""The range of increments that the Motion Expert's [-1, 1] stands for, taken from the data."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lamp.configuration import from_json, to_json
from lamp.errors import ConfigError
from lamp.sceneflow.tracks import moving
from lamp.types import Motion, SceneFlow


@dataclass(frozen=True, kw_only=True)
class MotionBounds:
    """Increments (du, dv in image fractions, dd in m) that map to -1 and 1; what lies beyond is clamped.

    Deviation: the release has fixed bounds, `RELEASED_BOUNDS`; ours come from the data, for every retiming anew.
    """

    low: tuple[float, float, float]
    high: tuple[float, float, float]

    def __post_init__(self) -> None:
        if not all(math.isfinite(a) and math.isfinite(b) and a < b for a, b in zip(self.low, self.high, strict=True)):
            raise ConfigError(
                f"motion bounds {self.low} to {self.high}: expected finite numbers, low < high on each axis"
            )

    def normalise(self, increments: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 3"]:
        """Maps increments to [-1, 1], clamped; symmetric bounds keep 0 exactly 0."""
        low, high = self._ends(increments)
        return ((increments - (high + low) / 2) / ((high - low) / 2)).clamp(-1, 1)

    def denormalise(self, values: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 3"]:
        """Inverts `normalise`, except for what it clamped."""
        low, high = self._ends(values)
        return values * ((high - low) / 2) + (high + low) / 2

    def motion(self, flow: SceneFlow) -> Motion:
        """What the Motion Expert learns from a batch of scene flow; masked increments are zero."""
        return Motion(values=torch.where(flow.mask, self.normalise(flow.increments), 0.0), mask=flow.mask)

    def flow(self, motion: Motion, like: SceneFlow) -> SceneFlow:
        """Inverts `motion`; start, visibility and camera are those of `like`."""
        increments = torch.where(motion.mask, self.denormalise(motion.values), 0.0)
        return SceneFlow(
            start=like.start, increments=increments, visible=like.visible, mask=motion.mask, camera=like.camera
        )

    def clamp_rate(self, flow: SceneFlow) -> tuple[float, float, float]:
        """Share of the supervising increments that are clamped, per axis."""
        low, high = self._ends(flow.increments)
        clamped = ((flow.increments < low) | (flow.increments > high)) & flow.mask
        axes = tuple(range(clamped.ndim - 1))
        du, dv, dd = (clamped.sum(axes) / flow.mask.sum(axes).clamp(min=1)).tolist()
        return du, dv, dd

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return to_json(self)

    @classmethod
    def from_json(cls, obj: Any, *, where: str = "motion bounds") -> MotionBounds:
        """Inverts `to_json`.

        Raises:
            ConfigError: The values do not fit.
        """
        return from_json(cls, obj, where=where)

    def _ends(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return like.new_tensor(self.low), like.new_tensor(self.high)


RELEASED_BOUNDS = MotionBounds(low=(-0.05, -0.05, -0.04), high=(0.05, 0.05, 0.04))
"""The bounds of the authors' released weights."""


@dataclass(frozen=True, kw_only=True)
class BoundsRule:
    """How bounds are taken from data: symmetric, per axis, over the increments of moving points only."""

    tail: float = 0.005
    """Share of increments cut off at either end (0.5% and 99.5% quantiles)."""
    moving_threshold: float = 0.002
    """A point moves when it leaves its start by more than this within the horizon (image fraction, or m in depth)."""
    smallest: float = 0.001
    """The bounds never come closer to zero than this (image fraction, or m in depth)."""

    def fit(self, flows: Iterable[SceneFlow]) -> MotionBounds:
        """Bounds of already retimed scene flow, given in batches of any size.

        Raises:
            ConfigError: The tail is not a share below one half.
        """
        if not 0 <= self.tail < 0.5 or not self.smallest > 0:
            raise ConfigError(f"tail {self.tail}, smallest {self.smallest}: expected 0 <= tail < 0.5 and smallest > 0")
        batches = [_supervising(flow, moving(flow, threshold=self.moving_threshold)) for flow in flows]
        by_axis = [np.concatenate([np.zeros(0), *(batch[axis] for batch in batches)]) for axis in range(3)]
        du, dv, dd = (self._end(increments) for increments in by_axis)
        return MotionBounds(low=(-du, -dv, -dd), high=(du, dv, dd))

    def _end(self, increments: np.ndarray) -> float:
        if increments.size == 0:
            return self.smallest
        low, high = np.quantile(increments, [self.tail, 1 - self.tail])
        return max(float(-low), float(high), self.smallest)


def _supervising(flow: SceneFlow, points: Bool[Tensor, "*b k"]) -> list[np.ndarray]:
    chosen = flow.mask & points[..., None, None]
    return [flow.increments[..., axis][chosen[..., axis]].double().numpy(force=True) for axis in range(3)]
