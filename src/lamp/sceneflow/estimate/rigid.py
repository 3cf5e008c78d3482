"""Rigid motions of tracked points: of each point's neighbourhood, and of the bodies that explain whole groups over the
horizon."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int


def rotation_of(matrix: Float[np.ndarray, "*b 3 3"]) -> Float[np.ndarray, "*b 3 3"]:
    """The rotation nearest to a matrix."""
    u, _, vt = np.linalg.svd(matrix)
    u[..., :, 2] *= np.where(np.linalg.det(u @ vt) < 0, -1, 1)[..., None]
    return u @ vt


def inverse(transform: Float64[np.ndarray, "*b 4 4"]) -> Float64[np.ndarray, "*b 4 4"]:
    """The inverse of a rigid transform."""
    result = np.zeros_like(transform)
    result[..., :3, :3] = np.swapaxes(transform[..., :3, :3], -1, -2)
    result[..., :3, 3] = -(result[..., :3, :3] @ transform[..., :3, 3:])[..., 0]
    result[..., 3, 3] = 1
    return result


@dataclass(frozen=True, kw_only=True)
class RigidMotion:
    """x -> rotation x + translation."""

    rotation: Float[np.ndarray, "*b 3 3"]
    translation: Float[np.ndarray, "*b 3"]

    def __call__(self, points: Float[np.ndarray, "*#b n 3"]) -> Float[np.ndarray, "*b n 3"]:
        """Moved points."""
        return points @ np.swapaxes(self.rotation, -1, -2) + self.translation[..., None, :]


def fit(
    source: Float[np.ndarray, "*#b n 3"], target: Float[np.ndarray, "*b n 3"], weight: Float[np.ndarray, "*b n"]
) -> RigidMotion:
    """The rigid motion of the least weighted squared distance (Kabsch)."""
    share = (weight / weight.sum(axis=-1, keepdims=True))[..., None, :]
    start, end = share @ source, share @ target
    spread = (np.swapaxes(target, -1, -2) * share) @ source - np.swapaxes(end, -1, -2) @ start
    rotation = rotation_of(spread)
    translation = end - start @ np.swapaxes(rotation, -1, -2)
    return RigidMotion(rotation=rotation, translation=translation[..., 0, :])


def robust_fit(
    source: Float[np.ndarray, "*#b n 3"],
    target: Float[np.ndarray, "*b n 3"],
    weight: Float[np.ndarray, "*b n"],
    scale: float,
    rounds: int = 4,
) -> tuple[RigidMotion, Float[np.ndarray, "*b n"]]:
    """The same under Cauchy weights of `scale` metres, and these weights: a point far off counts little."""
    floor = np.float32(1e-9)
    motion, current = fit(source, target, weight + floor), weight
    for round_ in range(rounds):
        if round_:
            motion = fit(source, target, current)
        off = motion(source) - target
        miss = np.einsum("...i,...i->...", off, off)
        current = weight / (1 + miss / scale**2) + floor
    return motion, current - floor


@dataclass(frozen=True, kw_only=True)
class RigidSmoothing:
    """Replaces tracks by the rigid motions that explain them: first of each point's neighbours within `radius`, then of bodies.

    Bodies are a greedy cover: of the neighbourhoods' motions over the whole horizon, the one that explains most points not yet
    explained is fitted to these, until none explains `min_points`. What no body explains keeps the motion of its neighbourhood.
    """

    radius: float = 0.10
    """m"""
    neighbours: int = 96
    scale: float = 0.004
    """m: of the Cauchy weights, for exact depth."""
    tolerance: float = 0.012
    """m: a body explains a point by so much, for exact depth,"""
    share: float = 0.7
    """at this share of the moments at which it is seen,"""
    reach: float = 0.35
    """m: and as far from the body's middle."""
    min_points: int = 12
    max_bodies: int = 14

    def __call__(
        self,
        start: Float[np.ndarray, "n 3"],
        paths: Float[np.ndarray, "t n 3"],
        seen: Bool[np.ndarray, "t n"],
        wanted: Int[np.ndarray, " m"],
        noise: float,
    ) -> tuple[Float[np.ndarray, "t m 3"], Float[np.ndarray, "t m"]]:
        """Smoothed paths of some of the points, and how much supports each moment (0: nothing; 1 and more: enough).

        Args:
            start: Where the points are at first. [m]
            paths: Where their tracks take them.
            seen: What of that was observed.
            wanted: The points whose paths are asked for.
            noise: Standard deviation of their depth. [m]
        """
        start, paths = start.astype(np.float32), np.nan_to_num(paths).astype(np.float32)
        scale, tolerance = self.scale + noise, self.tolerance + 2 * noise
        distance = np.linalg.norm(start[wanted, None] - start[None], axis=-1)
        count = min(self.neighbours, len(start))
        near = np.argpartition(distance, count - 1, axis=1)[:, :count]
        close = np.take_along_axis(distance, near, axis=1)
        weight = (np.exp(-np.square(2 * close / self.radius)) * (close < self.radius)).astype(np.float32)
        local, used = robust_fit(start[near][None], paths[:, near], weight * seen[:, near], scale)
        own = start[wanted]
        smooth = local(own[None, :, None])[:, :, 0]
        support = used.sum(axis=-1)
        for motion, members, weights in self._bodies(start, paths, seen, local, wanted, scale, tolerance):
            mine = np.flatnonzero(members[wanted])
            if len(mine):
                smooth[:, mine] = motion(own[mine][None])
                support[:, mine] = weights.sum(axis=-1)[:, None] / 3
        return smooth, support

    def _bodies(
        self,
        start: Float[np.ndarray, "n 3"],
        paths: Float[np.ndarray, "t n 3"],
        seen: Bool[np.ndarray, "t n"],
        local: RigidMotion,
        wanted: Int[np.ndarray, " m"],
        scale: float,
        tolerance: float,
    ) -> Iterator[tuple[RigidMotion, Bool[np.ndarray, " n"], Float[np.ndarray, "t p"]]]:
        """The motion of each body over the horizon, its points, and the weights of those that it was fitted to."""
        moments = np.arange(0, len(paths), 4)[1:]
        if not len(moments):
            return
        some = RigidMotion(rotation=local.rotation[moments], translation=local.translation[moments])

        def explained(motion: RigidMotion, centre: np.ndarray) -> np.ndarray:
            """(seeds, points): which points each motion over the moments explains."""
            off = motion(start[None, None]) - paths[moments][:, None]
            miss = np.sqrt(np.einsum("...i,...i->...", off, off))
            observed = seen[moments][:, None]
            counts = observed.sum(axis=0)
            agree = ((miss < tolerance) & observed).sum(axis=0) > self.share * counts
            return agree & (counts > 1) & (np.linalg.norm(centre[:, None] - start[None], axis=-1) < self.reach)

        candidates = explained(some, start[wanted])
        free = np.ones(len(start), bool)
        for _ in range(self.max_bodies):
            gains = (candidates & free).sum(axis=1)
            best = int(gains.argmax())
            if gains[best] < self.min_points:
                return
            members = candidates[best] & free
            motion, weights = self._fitted(start, paths, seen, members, scale)
            body = RigidMotion(rotation=motion.rotation[moments, None], translation=motion.translation[moments, None])
            members = explained(body, start[members].mean(axis=0, keepdims=True))[0] & free
            if members.sum() < self.min_points:
                candidates[best] = False
                continue
            motion, weights = self._fitted(start, paths, seen, members, scale)
            free &= ~members
            yield motion, members, weights

    @staticmethod
    def _fitted(
        start: np.ndarray, paths: np.ndarray, seen: np.ndarray, members: np.ndarray, scale: float
    ) -> tuple[RigidMotion, np.ndarray]:
        return robust_fit(start[None, members], paths[:, members], seen[:, members].astype(np.float32), scale)
