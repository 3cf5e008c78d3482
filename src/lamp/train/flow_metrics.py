"""Errors of predicted scene flow on held-out episodes, in pixels and metres, beside predictions that need no network.

Positions are `start + cumulative sum of increments`. A point counts at a step where all its steps up to there are known. ADE is
the mean distance over a point's known steps, FDE the distance at the last step (points known to the end only); both are then
averaged over points. Which points move is decided by the truth (`lamp.sceneflow.motion_mask`). The predictions:

- `one_sample`: all solver steps from one noise.
- `mean_of_4`: the mean of four such samples (the first is `one_sample`).
- `zero_motion`: nothing moves.
- `constant_velocity`: every point keeps its velocity: the flow step that led to the present frame, of the tracked point that
  ended nearest to it. Zero where the episode has no record that early.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from typing_extensions import TypedDict

from lamp.configuration import to_json
from lamp.data.motion_dataset import AnyMotionSamples
from lamp.geometry import unproject
from lamp.json_files import read_json_as, write_json
from lamp.model.lamp import LaMP
from lamp.progress import Progress
from lamp.sceneflow.motion_mask import MOVING
from lamp.sceneflow.tracks import integrate, known_steps, moving_points
from lamp.train.config import LoopConfig
from lamp.train.motion_feature_cache import motion_noise
from lamp.types import Encoded, SceneFlow

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


FILE_NAME = "flow.json"


@dataclass(frozen=True, kw_only=True)
class FlowReport:
    """Errors of each predictor over moving points and, apart, over static ones."""

    moving: dict[str, PathErrors]
    static: dict[str, PathErrors]
    samples: int
    """Frames that were measured."""
    episodes: tuple[int, ...]
    """The episodes they are from."""
    horizon: int
    stride: int
    """Frames per flow step."""
    clamped: tuple[float, float, float]
    """Share of these episodes' true increments that the bounds clamp, per axis."""
    image_px: int = IMAGE_PX
    """Pixels are those of an image of this side."""
    moving_threshold: float = MOVING
    """A point moves when its true path leaves its start by more than this share of the image."""

    def write(self, path: Path) -> None:
        write_json(path, to_json(self))


class StoredPathErrors(TypedDict, total=False):
    """Errors of one predictor, as read from `flow.json`; None where nothing was measured."""

    ade_px: float | None
    fde_px: float | None
    ade_m: float | None


class StoredFlowReport(TypedDict):
    """`flow.json`, as it is read."""

    moving: dict[str, StoredPathErrors]
    static: dict[str, StoredPathErrors]
    episodes: NotRequired[list[int]]
    samples: NotRequired[int]
    image_px: NotRequired[int]
    moving_threshold: NotRequired[float]


def read_flow_errors(path: Path) -> StoredFlowReport:
    """Reads `flow.json`.

    Raises:
        DataError: It is missing or damaged.
    """
    return read_json_as(path, StoredFlowReport, "flow errors")


@torch.inference_mode()
def measure_flow(
    model: LaMP, data: AnyMotionSamples, indices: Int64[np.ndarray, " n"], *, loop: LoopConfig, samples: int = 4
) -> FlowReport:
    """Measures a Motion Expert on some samples, with noise that depends on the seed, episode and frame alone."""
    sums = PathErrorSums()
    names = ("one_sample", *((f"mean_of_{samples}",) if samples > 1 else ()), "zero_motion", "constant_velocity")
    with Progress("flow errors", len(indices), "samples", brief=True) as progress:
        for start in range(0, len(indices), loop.batch_size):
            part = indices[start : start + loop.batch_size]
            truth = data.flow(part)
            encoded = data.encoded(part).to(loop.device)
            drawn = [_sampled(model, data, part, encoded, draw, loop) for draw in range(samples)]
            predicted = {
                "one_sample": drawn[0],
                f"mean_of_{samples}": torch.stack(drawn).mean(0),
                "zero_motion": torch.zeros_like(truth.increments),
                "constant_velocity": constant_velocity(data, part),
            }
            sums.add(truth, {name: predicted[name] for name in names})
            progress.advance(len(part))
    return FlowReport(
        moving={name: sums.means(name, moving=True) for name in names},
        static={name: sums.means(name, moving=False) for name in names},
        samples=len(indices),
        episodes=tuple(sorted({int(episode) for episode in data.episode[indices]})),
        horizon=data.horizon,
        stride=data.frames_per_step,
        clamped=data.clamp_rate(),
    )


def _sampled(
    model: LaMP, data: AnyMotionSamples, part: np.ndarray, encoded: Encoded, draw: int, loop: LoopConfig
) -> Float[Tensor, "b k t 3"]:
    """Increments of one full sample, in image fractions and metres."""
    addresses = [(loop.seed, "flow", draw, int(data.episode[i]), int(data.frame[i])) for i in part]
    noise = torch.stack([motion_noise(model, *address) for address in addresses]).to(loop.device)
    with loop.precision.autocast(loop.device):
        values = model.foresee(encoded, noise)
    return data.bounds.denormalise(values.float().cpu())


def constant_velocity(data: AnyMotionSamples, part: Int64[np.ndarray, " b"]) -> Float[Tensor, "b k t 3"]:
    """Increments that repeat what was observed one flow step ago (see the module's text)."""
    now = data.flow(part)
    velocity = torch.zeros_like(now.start)
    earlier = data.earlier(part)
    has = np.flatnonzero(earlier >= 0)
    if len(has):
        before = data.flow(earlier[has])
        velocity[has] = _arrival_samples(before, now.start[has])
    return velocity[:, :, None].expand_as(now.increments).clone()


def _arrival_samples(before: SceneFlow, start: Float[Tensor, "b k 3"]) -> Float[Tensor, "b k 3"]:
    """The first step of the earlier record's point that ended nearest to each start; zero where none is known."""
    step = before.increments[:, :, 0]
    ended = (before.start + step)[..., :2]
    known = known_steps(before.mask[:, :, :1], depth=False)[:, :, 0]
    apart = torch.cdist(start[..., :2], ended).masked_fill(~known[:, None], torch.inf)
    nearest = apart.min(dim=2)
    taken = step.gather(1, nearest.indices[..., None].expand_as(start))
    taken = torch.where(before.mask[:, :, 0].gather(1, nearest.indices[..., None].expand_as(start)), taken, 0.0)
    return torch.where(nearest.values.isfinite()[..., None], taken, 0.0)
