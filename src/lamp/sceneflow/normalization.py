"""The range of increments that the Motion Expert's [-1, 1] stands for, taken from the data."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

from lamp.configuration import from_json, to_json
from lamp.errors import ConfigError
from lamp.sceneflow.tracks import moving_points
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

    def fit(self, flows: Iterable[SceneFlow]) -> MotionBounds:
        """As `BoundsRule.fit`: given bounds stay, and no scene flow is read."""
        return self

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
    """Increments of points that move by more than this count (`lamp.sceneflow.motion_mask`): less than elsewhere, since
    bounds are to hold slow points too. [fraction of the image]
    """
    smallest: float = 0.001
    """The bounds never come closer to zero than this (image fraction, or m in depth)."""

    def fit(self, flows: Iterable[SceneFlow]) -> MotionBounds:
        """Bounds of already retimed scene flow, given in batches of any size.

        Raises:
            ConfigError: The tail is not a share below one half.
        """
        if not 0 <= self.tail < 0.5 or not self.smallest > 0:
            raise ConfigError(f"tail {self.tail}, smallest {self.smallest}: expected 0 <= tail < 0.5 and smallest > 0")
        axes = [Quantiles() for _ in range(3)]
        for flow in flows:
            chosen = flow.mask & moving_points(flow, threshold=self.moving_threshold)[..., None, None]
            for axis, found in enumerate(axes):
                found.add(flow.increments[..., axis][chosen[..., axis]].float().numpy(force=True))
        du, dv, dd = (self._end(found) for found in axes)
        return MotionBounds(low=(-du, -dv, -dd), high=(du, dv, dd))

    def floored(self, bounds: MotionBounds) -> tuple[str, ...]:
        """Axes whose bounds are not the data's but `smallest`, as what moves along them moves less than that."""
        return tuple(axis for axis, high in zip(("u", "v", "depth"), bounds.high, strict=True) if high <= self.smallest)

    def _end(self, increments: Quantiles) -> float:
        if increments.count == 0:
            return self.smallest
        low, high = increments.at(self.tail), increments.at(1 - self.tail)
        return max(-low, high, self.smallest)


class Quantiles:
    """Quantiles of values that come in parts, in bounded memory, whatever the parts and their order.

    Up to `EXACT` values are kept, and their quantiles are exact. Of more than that, only how many there are of each float32
    whose mantissa is cut to 11 bits: a quantile is then off by at most `RELATIVE_ERROR` of the larger of the two values that
    it lies between.
    """

    EXACT = 1 << 25
    """128 MiB."""
    RELATIVE_ERROR = 2.0**-12
    _CUT = 12
    """Bits of the mantissa's 23 that do not count: those that stay tell 2,048 values from each other between 2^k and 2^(k+1)."""

    def __init__(self) -> None:
        self.count = 0
        self._kept: list[np.ndarray] = []
        self._counts: np.ndarray | None = None

    def add(self, values: Float32[np.ndarray, " n"]) -> None:
        """Takes in more values, all of them finite."""
        self.count += len(values)
        self._kept.append(values)
        if self._counts is None and self.count > self.EXACT:
            self._counts = np.zeros(1 << (32 - self._CUT), np.int64)
        if self._counts is not None:
            for part in self._kept:
                # The bits of a float32, read as a number, are in the order of its size; a sign in front turns that round.
                bits = part.view(np.uint32)
                places = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)) >> self._CUT
                self._counts += np.bincount(places, minlength=len(self._counts))
            self._kept.clear()

    def at(self, share: float) -> float:
        """The value that this share of all values lies below, interpolated linearly as `numpy.quantile` does."""
        if self._counts is None:
            self._kept = [np.concatenate(self._kept)]
            return float(np.quantile(self._kept[0].astype(np.float64), share))
        rank = share * (self.count - 1)
        ends = np.searchsorted(self._counts.cumsum(), [np.floor(rank), np.ceil(rank)], side="right")
        low, high = self._middles(ends)
        return float(low + (high - low) * (rank - np.floor(rank)))

    def _middles(self, places: Int64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
        """The middle of the values that were counted at a place."""
        keys = (places.astype(np.uint32)[:, None] << self._CUT) | np.array([0, (1 << self._CUT) - 1], np.uint32)
        bits = np.where(keys >> 31, keys & np.uint32((1 << 31) - 1), ~keys).astype(np.uint32)
        return bits.view(np.float32).astype(np.float64).mean(axis=1)
