"""How far predicted paths of points are from the true ones, in pixels and in metres.

Positions are `start + cumulative sum of increments`. A point counts at a step where all its steps up to there are known. ADE is
the mean distance over a point's known steps, FDE the distance at the last step (points known to the end only); both are then
averaged over points. Which points move is said by the truth (`lamp.sceneflow.moving`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lamp.geometry import unproject
from lamp.sceneflow.tracks import integrate, known_steps, moving_points
from lamp.types import SceneFlow

IMAGE_PX = 256
"""Pixels are those of an image of this width and height, whatever the recording's resolution."""


@dataclass(frozen=True, kw_only=True)
class PathErrors:
    """Mean errors over a group of points; None where no point has what the error needs (depth, a known last step)."""

    points: int
    ade_px: float | None
    fde_px: float | None
    ade_m: float | None
    fde_m: float | None


class PathErrorSums:
    """Adds up errors batch by batch, for any number of predictors side by side, moving and static points apart."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, bool], Tensor] = {}

    def add(self, flow: SceneFlow, predicted: Mapping[str, Float[Tensor, "b k t 3"]]) -> None:
        """Adds a batch: the truth, and each predictor's increments in the same units."""
        truth = integrate(flow.start, flow.increments)[:, :, 1:]
        moving = moving_points(flow)
        for name, increments in predicted.items():
            path = integrate(flow.start, increments)[:, :, 1:]
            pixels = torch.linalg.vector_norm((path - truth)[..., :2], dim=-1) * IMAGE_PX
            intrinsics = flow.camera.intrinsics[:, None, None]
            apart = unproject(path, intrinsics) - unproject(truth, intrinsics)
            metres = torch.linalg.vector_norm(apart, dim=-1)
            for group, chosen in ((True, moving), (False, ~moving)):
                sums = torch.cat(
                    [
                        _sums(pixels, known_steps(flow.mask, depth=False), chosen),
                        _sums(metres, known_steps(flow.mask, depth=True), chosen),
                    ]
                )
                self._sums[name, group] = self._sums.get((name, group), torch.zeros(8, dtype=torch.float64)) + sums

    def means(self, name: str, *, moving: bool) -> PathErrors:
        """Returns the mean errors of one predictor over the moving or the static points."""
        ade, n, fde, n_last, ade_m, n_m, fde_m, n_last_m = self._sums[name, moving].tolist()
        return PathErrors(
            points=round(n),
            ade_px=_mean(ade, n),
            fde_px=_mean(fde, n_last),
            ade_m=_mean(ade_m, n_m),
            fde_m=_mean(fde_m, n_last_m),
        )


def _mean(total: float, count: float) -> float | None:
    return total / count if count else None


def _sums(error: Tensor, known: Tensor, chosen: Tensor) -> Float[Tensor, " 4"]:
    """Sum of the points' mean errors, their number, sum of the last step's errors, their number."""
    error = torch.where(known, error, torch.zeros_like(error))
    steps = known.sum(-1)
    counted = chosen & (steps > 0)
    per_point = error.sum(-1) / steps.clamp(min=1)
    last = chosen & known[..., -1]
    zero = torch.zeros_like(per_point)
    values = (
        torch.where(counted, per_point, zero).sum(),
        counted.sum(),
        torch.where(last, error[..., -1], zero).sum(),
        last.sum(),
    )
    return torch.stack([value.double().cpu() for value in values])
