"""Which points stand still in the world over a query frame's whole horizon, and which move with the camera."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from lamp.sceneflow.estimate.cameras import moved
from lamp.sceneflow.estimate.optical_flow import (
    LINKS,
    FlowPyramid,
    forward_backward,
    inside,
    nearest_pixel,
    project,
    unproject,
)
from lamp.sceneflow.estimate.query import Query, colour_change


@dataclass(frozen=True, kw_only=True)
class Stillness:
    """What the static test found about points, over the frames of a horizon."""

    still: Bool[np.ndarray, " n"]
    attached: Bool[np.ndarray, " n"]
    """Moves with the camera, such as the gripper before a wrist camera."""
    hidden: Bool[np.ndarray, "t1 n"]
    """If it stands still: something nearer is before it, or it is out of the image."""
    support: Float[np.ndarray, " n"]
    """Share of the moments that speak for standing still, where any says something; else 0.5."""


@dataclass(frozen=True, kw_only=True)
class StaticTest:
    """A point stands still if its place shows the same depth whenever nothing nearer hides it, over the whole horizon.

    The best of 3 x 3 pixels counts, for an edge next to the point moves by a pixel. A hole says nothing. Where depth says
    nothing at all, or the images contradict it (a surface that slides in its own plane), the images decide.

    Before a camera that moves, a point's place falls between pixels, so that on a slanted surface any depth between theirs is
    the same; flows contradict only what they explain better than standing still does; and moments at which the camera has
    hardly moved say nothing, since what is attached to it looks as still then.
    """

    share: float = 0.9
    noisy_share: float = 0.75
    colour: int = 24
    """of 255: a pixel that differs by more shows something else,"""
    stir: int = 8
    """and one that differs by more may do so; the flows then decide."""
    slant: float = 0.1
    """Before a camera that moves: 3 x 3 pixels are one surface if their depths differ by less than this share of them."""
    better: float = 3.0
    """of 255: a flow contradicts standing still if what it leads to resembles the point's surroundings more by this."""
    telling: int = 3
    """Moments at which depth has to say something of a point before a camera that moves; with fewer the images decide."""

    def __call__(self, query: Query, pyramid: FlowPyramid, xy: Float[np.ndarray, "n 2"]) -> Stillness:
        width, height = query.size
        start = query.depth_of(xy)
        if query.fixed:
            place, z = (
                np.broadcast_to(xy, (len(query.frames), *xy.shape)),
                np.broadcast_to(start, (len(query.frames), len(xy))),
            )
        else:
            points = moved(query.now_from_query, unproject(xy, start, query.matrix))
            place, z = project(points, query.matrix), points[..., 2]
        within = inside(place, width, height)
        row, column = nearest_pixel(place, width, height)
        moment = query.frames[:, None]
        seen = query.depth.metres[moment, row, column]
        tolerance = query.depth.tolerance(z) * (1.0 if query.fixed else 1.5)
        with np.errstate(invalid="ignore"):
            same = within & (np.abs(seen - z) < tolerance)
            open_ = np.nonzero(within & ~same & np.isfinite(z))
            around = _around(query.depth.metres, query.frames[open_[0]], row[open_], column[open_])
            same[open_] = (np.abs(around - z[open_][:, None]) < tolerance[open_][:, None]).any(axis=1)
            if not query.fixed:
                same[open_] |= self._between(around, z[open_], tolerance[open_])
            nearer = within & ~same & (seen < z - np.maximum(0.01, 2.5 * tolerance))
        hidden = nearer | ~within
        telling = within & ~nearer & (np.isfinite(seen) | same) & np.isfinite(z)
        telling[0] = False
        count = telling.sum(axis=0)
        share = (same & telling).sum(axis=0) / np.maximum(count, 1)
        limit = self.share if query.depth.noise < 5e-4 and query.fixed else self.noisy_share
        still = np.where(count > 0, share > limit, True)
        change = colour_change(query, row, column)
        changed = within & (change > self.colour)
        images = self._images(query, pyramid, xy, place, None if query.fixed else ~hidden)
        if query.fixed:
            clear = np.maximum((~nearer).sum(axis=0) - 1, 1)
            slides = (changed & ~nearer).sum(axis=0) > 0.7 * clear
            stirred = (change > self.stir) & ~nearer
            slides |= (images < 0) & (stirred.sum(axis=0) > 0.5 * clear)
            still &= ~(slides & (count > 0))
            blind = count < 0.25 * clear  # holes most of the time
            still = np.where(blind, still & (images >= 0) & ((changed & ~nearer).sum(axis=0) < 0.5 * clear), still)
            hidden |= changed & blind
            attached = np.zeros(len(xy), bool)
        else:
            with np.errstate(invalid="ignore"):
                apart = (np.linalg.norm(place - xy, axis=-1) > 2) | (np.abs(z - start) > 2 * tolerance)
            blind = (telling & apart).sum(axis=0) < self.telling
            still &= np.where(blind, images > 0, images >= 0)
            attached = self._attached(query, xy, place) & (blind | (share < 0.8))
        support = np.where(count > 0, share, 0.5)
        return Stillness(still=still & ~attached, attached=attached, hidden=hidden, support=support)

    def _between(
        self, around: Float[np.ndarray, "p 9"], z: Float[np.ndarray, " p"], tolerance: Float[np.ndarray, " p"]
    ) -> Bool[np.ndarray, " p"]:
        """Whether depths lie within those of the pixels around, which are of one surface."""
        low, high = np.fmin.reduce(around, axis=1), np.fmax.reduce(around, axis=1)
        return (z > low - tolerance) & (z < high + tolerance) & (high - low < self.slant * z)

    def _images(
        self,
        query: Query,
        pyramid: FlowPyramid,
        xy: Float[np.ndarray, "n 2"],
        place: Float[np.ndarray, "t1 n 2"],
        shown: Bool[np.ndarray, "t1 n"] | None,
    ) -> Int[np.ndarray, " n"]:
        """How many more of the flows from the query frame agree with standing still than contradict it.

        Args:
            shown: Where the camera moves: the moments at which a point that stands still would be seen; at others nothing
                contradicts. Nor does a flow that explains the images hardly better than standing still.
        """
        votes = np.zeros(len(xy), int)
        for link in LINKS:
            if link >= len(query.frames):
                break
            end = query.frame + link
            there, miss = forward_backward(pyramid, query.frame, end, xy)
            expected = np.linalg.norm(place[link] - xy, axis=-1)
            with np.errstate(invalid="ignore"):
                off = np.linalg.norm(there - place[link], axis=-1)
                votes += (miss < 0.7) & (off < np.maximum(0.7, 0.1 * expected))
                against = (miss < 0.7) & (off > np.maximum(1.0, 0.2 * expected))
            if shown is not None:
                against &= shown[link]
                asked = np.flatnonzero(against)
                still, flow = (
                    pyramid.unlike(query.frame, end, xy[asked], to[asked].astype(np.float64))
                    for to in (place[link], there)
                )
                against[asked] = still > flow + self.better
            votes -= against
        return votes

    @staticmethod
    def _attached(
        query: Query, xy: Float[np.ndarray, "n 2"], place: Float[np.ndarray, "t1 n 2"]
    ) -> Bool[np.ndarray, " n"]:
        """Points at which the image stays as it is although the camera moves."""
        row, column = nearest_pixel(xy, *query.size)
        seen = query.depth.metres[query.frames[:, None], row, column]
        change = colour_change(query, np.tile(row, (len(seen), 1)), np.tile(column, (len(seen), 1)))
        with np.errstate(invalid="ignore"):
            constant = (np.abs(seen - seen[0]) < 0.05 * seen[0]) & (change < 20)
            travel = np.nan_to_num(np.linalg.norm(place - xy, axis=-1), nan=np.inf).max(axis=0)
        return (constant.mean(axis=0) > 0.9) & (travel > 2)


def _around(maps: np.ndarray, frame: np.ndarray, row: np.ndarray, column: np.ndarray) -> Float[np.ndarray, "p 9"]:
    """The 3 x 3 values around pixels."""
    step = np.arange(-1, 2)
    rows = np.clip(row[:, None] + np.repeat(step, 3), 0, maps.shape[1] - 1)
    columns = np.clip(column[:, None] + np.tile(step, 3), 0, maps.shape[2] - 1)
    return maps[frame[:, None], rows, columns]
