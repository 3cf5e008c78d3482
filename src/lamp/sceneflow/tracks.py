"""Absolute paths of grid points, their increments (Section III-C), and the way back.

The store keeps `Tracks`; training sees `SceneFlow`. Retiming, holding past the end, increments and masks are made here, at
load time, so that one store serves every horizon and stride.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lamp.errors import ConfigError, MismatchError
from lamp.sceneflow.motion_mask import MOVING, leaves_start
from lamp.types import Camera, SceneFlow, Tracks


@dataclass(frozen=True, kw_only=True)
class Supervision:
    """Which steps of a scene flow supervise the Motion Expert.

    Steps that touch an unknown moment never do. Deviation: the paper does not say; its code supervises everything.
    """

    hidden_points: bool = False
    """Whether steps that begin or end hidden (occluded or outside the image) supervise as well."""


def grid_points(rows: int, columns: int) -> Float[Tensor, "k 2"]:
    """(u, v) of the centres of a rows x columns grid over the image, row by row from the top left.

    Raises:
        ConfigError: The grid is empty.
    """
    if rows < 1 or columns < 1:
        raise ConfigError(f"a {rows}x{columns} grid has no points; expected at least 1x1, such as 20x20")
    v, u = torch.meshgrid(
        (torch.arange(rows, dtype=torch.float64) + 0.5) / rows,
        (torch.arange(columns, dtype=torch.float64) + 0.5) / columns,
        indexing="ij",
    )
    return torch.stack([u, v], dim=-1).flatten(0, 1)


def grid_pixels(rows: int, columns: int, width: int, height: int) -> Int[Tensor, "k 2"]:
    """(column, row) of the pixel that holds each grid point."""
    size = torch.tensor([width, height], dtype=torch.float64)
    return (grid_points(rows, columns) * size).floor().long()


def pixel_centres(pixels: Int[Tensor, "k 2"], width: int, height: int) -> Float[Tensor, "k 2"]:
    """(u, v) of the centres of (column, row) pixels."""
    return (pixels.double() + 0.5) / torch.tensor([width, height], dtype=torch.float64)


def hold_last(points: Float[Tensor, "*b k t1 c"], valid: Bool[Tensor, "*b k t1"]) -> Float[Tensor, "*b k t1 c"]:
    """Replaces unknown positions by the last known one (by the first moment's where none is known yet)."""
    moments = torch.arange(valid.shape[-1], device=valid.device)
    latest = torch.where(valid, moments, 0).cummax(dim=-1).values
    return points.gather(-2, latest[..., None].expand(points.shape))


def retime(tracks: Tracks, *, stride: int, horizon: int) -> Tracks:
    """Keeps every `stride`-th moment of stored tracks, for `horizon` flow steps.

    Raises:
        MismatchError: The stored tracks are too short.
    """
    stored = tracks.points.shape[-2] - 1
    if stride < 1 or horizon < 1:
        raise ConfigError(f"stride {stride} and horizon {horizon} must be at least 1")
    if stride * horizon > stored:
        raise MismatchError(
            f"{horizon} flow steps of {stride} stored steps each do not fit: the scene flow holds {stored}; use a horizon "
            f"of at most {stored // stride}, a smaller stride, or `lamp flow build` with a longer horizon"
        )
    moments = slice(0, stride * horizon + 1, stride)
    return Tracks(
        points=tracks.points[..., moments, :], visible=tracks.visible[..., moments], valid=tracks.valid[..., moments]
    )


def flow_from_tracks(tracks: Tracks, camera: Camera, *, supervision: Supervision | None = None) -> SceneFlow:
    """Step-to-step increments (du, dv, dd) of tracks, zero where unknown, with the mask of what supervises.

    Unknown moments (past the episode's end, no geometry) hold the last position. A missing depth alone, NaN, masks only dd,
    so that 2-D tracks can be used as well.

    Deviation: the paper does not say what happens past the end and at lost points; the masks are ours.
    """
    points = tracks.points
    known = tracks.valid[..., None] & points.isfinite()
    held = torch.cat([hold_last(points[..., i : i + 1], known[..., i]) for i in range(3)], dim=-1)
    held = held.nan_to_num(0.0, 0.0, 0.0)
    mask = known[..., 1:, :] & known[..., :-1, :]
    if supervision is None or not supervision.hidden_points:
        mask = mask & (tracks.visible[..., 1:] & tracks.visible[..., :-1])[..., None]
    return SceneFlow(
        start=held[..., 0, :], increments=held.diff(dim=-2), visible=tracks.visible[..., 1:], mask=mask, camera=camera
    )


def integrate(start: Float[Tensor, "*b k 3"], increments: Float[Tensor, "*b k t 3"]) -> Float[Tensor, "*b k t1 3"]:
    """Absolute (u, v, d) at every moment: the start, then the running sum of the increments."""
    return torch.cat([start[..., None, :], start[..., None, :] + increments.cumsum(dim=-2)], dim=-2)


def known_steps(mask: Bool[Tensor, "*b k t 3"], *, depth: bool) -> Bool[Tensor, "*b k t"]:
    """Whether all steps up to and including this one are known, in the image or, with `depth`, in space."""
    needed = mask if depth else mask[..., :2]
    return needed.all(-1).cumprod(dim=-1).bool()


def moving_points(flow: SceneFlow, *, threshold: float = MOVING) -> Bool[Tensor, "*b k"]:
    """Which points move (`lamp.sceneflow.motion_mask`), by the steps that are known."""
    return leaves_start(flow.increments.cumsum(dim=-2), known_steps(flow.mask, depth=False), threshold)
