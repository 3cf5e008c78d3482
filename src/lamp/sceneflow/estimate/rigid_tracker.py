"""The default tracker, which needs no weights.

For each query frame, points that stand still over the whole horizon are found first, by depth and, where that is unknown, by the
images; they do not move at all. The others are followed over links of 1 to 16 frames, and their paths replaced by the rigid
motions of their neighbourhood and of whole bodies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int

from lamp.sceneflow.estimate.cameras import moved
from lamp.sceneflow.estimate.interfaces import CameraPath, Clip, DepthMaps, PointTracks
from lamp.sceneflow.estimate.optical_flow import (
    FlowPyramid,
    dense_positions,
    depth_at,
    forward_backward,
    grid_positions,
    inside,
    links_to,
    nearest_pixel,
    penalty,
    project,
    unproject,
)
from lamp.sceneflow.estimate.query import Query, as_tracks, colour_change
from lamp.sceneflow.estimate.rigid import RigidSmoothing
from lamp.sceneflow.estimate.static_test import StaticTest, Stillness
from lamp.sceneflow.exact_flow import Sampling


@dataclass(frozen=True, kw_only=True)
class RigidTracker:
    """The default tracker: static test, tracks on skip links, rigid motions."""

    precise: bool = False
    """Optical flow down to single pixels: a little better, two to three times slower."""
    static: StaticTest | None = field(default_factory=StaticTest)
    rigid: RigidSmoothing | None = field(default_factory=RigidSmoothing)
    every: int = 4
    """px between the points that are followed, beside the grid, where something moves."""
    jump: float = 0.04
    """m: by more than this, and what noise explains, no depth changes from one frame to the next."""
    consistent: float = 1.0
    """px: a link whose way back misses by more is not used."""
    rest: float = 0.005
    """m: before a camera that moves, what is followed no farther from its start, beside what noise explains, stands still."""

    def track(
        self, clip: Clip, depth: DepthMaps, cameras: CameraPath, frames: Sequence[int], sampling: Sampling
    ) -> Iterator[PointTracks]:
        """Tracks of each query frame; flows are kept for one horizon only."""
        pyramid = FlowPyramid(clip.rgb, depth.metres, precise=self.precise)
        width, height = clip.size
        grid, dense = grid_positions(*sampling.grid, width, height), dense_positions(width, height, self.every)
        for frame in frames:
            pyramid.forget(before=frame)
            query = Query.of(clip, depth, cameras, frame, sampling.horizon * sampling.stride)
            yield self._query(query, pyramid, grid, dense, sampling)

    def _query(
        self, query: Query, pyramid: FlowPyramid, grid: np.ndarray, dense: np.ndarray, sampling: Sampling
    ) -> PointTracks:
        count, moments = len(grid), len(query.frames)
        everywhere = np.concatenate([grid, dense])
        if self.static is None:
            state = Stillness(
                still=np.zeros(len(everywhere), bool),
                attached=np.zeros(len(everywhere), bool),
                hidden=np.zeros((moments, len(everywhere)), bool),
                support=np.full(len(everywhere), 0.5),
            )
        else:
            state = self.static(query, pyramid, everywhere)
        start = query.depth_of(grid)
        xy, z = np.tile(grid, (moments, 1, 1)), np.tile(start, (moments, 1))
        visible, confidence = ~state.hidden[:, :count], np.tile(state.support[:count], (moments, 1))
        valid = np.ones((moments, count), bool)
        attached = np.flatnonzero(state.attached[:count])
        if len(attached):
            xy[:, attached], z[:, attached] = query.held(xy[:, attached], z[:, attached])
            visible[:, attached] = True
        doubtful = state.still & state.hidden[-1] & query.fixed
        chosen = np.flatnonzero((~state.still & ~state.attached) | doubtful)
        if not len(chosen):
            return as_tracks(query, sampling, xy, z, visible, valid, confidence, state.still[:count])
        followed = self._follow(query, pyramid, everywhere[chosen])
        moves = ~doubtful[chosen] | _came_nearer(query, followed, state.hidden[:, chosen])
        if not query.fixed:
            moves &= ~self._stood_still(query, *followed[:3])
        state.still[chosen] = ~moves
        chosen, followed = chosen[moves], tuple(values[:, moves] for values in followed)
        wanted = np.flatnonzero(chosen < count)
        if len(wanted):
            mine = chosen[wanted]
            xy[:, mine], z[:, mine], visible[:, mine], valid[:, mine], confidence[:, mine] = self._moving(
                query, wanted, *followed
            )
        return as_tracks(query, sampling, xy, z, visible, valid, confidence, state.still[:count])

    def _moving(
        self,
        query: Query,
        wanted: Int[np.ndarray, " m"],
        xy: Float[np.ndarray, "t1 n 2"],
        z: Float[np.ndarray, "t1 n"],
        seen: Bool[np.ndarray, "t1 n"],
        miss: Float[np.ndarray, "t1 n"],
    ) -> tuple[np.ndarray, ...]:
        """Positions, depths, visibility, validity and confidence of some of the points that were followed, made rigid."""
        held, held_z = query.held(xy, z)
        if not query.fixed:  # what is lost stays where it was in the world, not in the image
            held, held_z = (np.take_along_axis(values, at, axis=0) for values, at in _last_seen(held, held_z, seen))
        own = held[:, wanted], held_z[:, wanted]
        visible, confidence = seen[:, wanted], np.exp(-miss[:, wanted])
        valid = visible | (np.cumsum(visible[::-1], axis=0)[::-1] > 0)  # up to where it was seen last
        known = np.isfinite(z[0])
        if self.rigid is None or known.sum() < 8:
            return *own, visible, valid, confidence
        paths = unproject(held, held_z, query.matrix)
        rows = np.flatnonzero(known)
        fitted = np.flatnonzero(known[wanted])
        sight = seen[:, rows] & np.isfinite(held_z[:, rows])
        noise = query.depth.noise * float(np.nanmedian(np.square(z[0])))
        index = np.searchsorted(rows, wanted[fitted])
        smooth, support = self.rigid(paths[0, rows], paths[:, rows], sight, index, noise)
        smooth[0] = paths[0, wanted[fitted]]
        enough = support > 1
        place, far = project(smooth, query.matrix), smooth[..., 2]
        enough &= np.isfinite(place).all(axis=-1)
        own[0][:, fitted] = np.where(enough[..., None], place, own[0][:, fitted])
        own[1][:, fitted] = np.where(enough, far, own[1][:, fitted])
        visible[:, fitted] = np.where(enough, self._in_sight(query, smooth), visible[:, fitted])
        valid[:, fitted] |= enough
        trust = np.maximum(confidence[:, fitted], np.minimum(support / 4, 1))
        confidence[:, fitted] = np.where(enough, trust, 0.5 * confidence[:, fitted])
        return *own, visible, valid, confidence

    def _stood_still(
        self,
        query: Query,
        xy: Float[np.ndarray, "t1 n 2"],
        z: Float[np.ndarray, "t1 n"],
        seen: Bool[np.ndarray, "t1 n"],
    ) -> Bool[np.ndarray, " n"]:
        """Which points, before a camera that moves, were followed to places in the world that are all their first one."""
        held, far = query.held(xy, z)
        points = unproject(held, far, query.matrix)
        with np.errstate(invalid="ignore"):
            away = np.linalg.norm(points - points[0], axis=-1)
            near = away < self.rest + query.depth.tolerance(z[0])
        seen = seen & np.isfinite(away)
        seen[0] = True
        count = seen.sum(axis=0) - 1
        last = len(seen) - 1 - seen[::-1].argmax(axis=0)
        share = ((near & seen).sum(axis=0) - 1) / np.maximum(count, 1)
        return (count > 4) & (share > 0.8) & np.take_along_axis(near, last[None], axis=0)[0]

    def _follow(self, query: Query, pyramid: FlowPyramid, start: np.ndarray) -> tuple[np.ndarray, ...]:
        """Positions, depths, whether they were seen there, and px by which flows miss: each at every frame, in the camera of
        that frame.

        At each frame the best of the links that end there is taken: the one whose way back misses least, that stays in the
        image and on a surface, and rather a long one than many short ones.
        """
        moments, count = len(query.frames), len(start)
        width, height = query.size
        xy, z = np.tile(start, (moments, 1, 1)), np.tile(query.depth_of(start), (moments, 1))
        seen, missed = np.ones((moments, count), bool), np.zeros((moments, count))
        jump = self.jump + query.depth.tolerance(np.nan_to_num(z[0])) - 0.004
        steady = np.ones(count, bool)
        here = nearest_pixel(start, width, height)
        change = colour_change(query, *(np.tile(at, (moments, 1)) for at in here))
        everyone = np.arange(count)
        for t in range(1, moments):
            now = int(query.frames[t])
            links = links_to(t)
            found = [forward_backward(pyramid, now - link, now, xy[t - link]) for link in links]
            there, miss = (np.stack(values) for values in zip(*found, strict=True))
            depth = depth_at(query.depth.metres[now], there, np.broadcast_to(z[t - 1], miss.shape))
            lost = (
                ~inside(there, width, height) | (miss > self.consistent) | ~np.stack([seen[t - link] for link in links])
            )
            lost |= np.abs(depth - z[t - 1]) > jump
            costs = miss + np.array([penalty(link) for link in links])[:, None] + 1e3 * lost
            best = costs.argmin(axis=0), everyone
            xy[t], missed[t], seen[t] = there[best], miss[best], ~lost[best]
            z[t] = np.where(lost[best] | np.isnan(depth[best]), z[t - 1], depth[best])
            if query.fixed:  # what has not begun to move yet does not drift
                depth = query.depth.metres[now][here]
                with np.errstate(invalid="ignore"):
                    steady &= ~(np.abs(depth - z[0]) >= query.depth.tolerance(z[0]))
                steady &= change[t] < 12
                xy[t, steady], z[t, steady], seen[t, steady], missed[t, steady] = start[steady], z[0, steady], True, 0
        return xy, z, seen, missed

    @staticmethod
    def _in_sight(query: Query, points: Float[np.ndarray, "t1 n 3"]) -> Bool[np.ndarray, "t1 n"]:
        """Whether points, given in the query frame's camera, are in the image at each moment with nothing nearer before
        them."""
        now = moved(query.now_from_query, points)
        place = project(now, query.matrix)
        within = inside(place, *query.size)
        moments = zip(query.frames, place, now[..., 2], strict=True)
        seen = np.stack([depth_at(query.depth.metres[frame], np.nan_to_num(xy), z) for frame, xy, z in moments])
        slack = np.maximum(0.015, 2.5 * query.depth.tolerance(now[..., 2]))
        with np.errstate(invalid="ignore"):
            return within & ~(seen < now[..., 2] - slack)


def _last_seen(
    held: Float[np.ndarray, "t1 n 2"], z: Float[np.ndarray, "t1 n"], seen: Bool[np.ndarray, "t1 n"]
) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Positions and depths, each with the moments, not after each moment, at which they were seen last."""
    moments = np.where(seen & np.isfinite(held).all(axis=-1), np.arange(len(seen))[:, None], 0)
    last = np.maximum.accumulate(moments, axis=0)
    return (held, last[..., None]), (z, last)


def _came_nearer(
    query: Query, followed: tuple[np.ndarray, ...], hidden: Bool[np.ndarray, "t1 n"]
) -> Bool[np.ndarray, " n"]:
    """Which points that something nearer seems to hide at the end are themselves what came nearer, as a drawer does that opens.

    They can be followed, steadily nearer on one surface, all the time that they would be hidden.
    """
    xy, z, seen, _ = followed
    throughout = (seen & hidden).sum(axis=0) > 0.9 * hidden.sum(axis=0)
    with np.errstate(invalid="ignore"):
        steps = np.abs(np.diff(z, axis=0)).max(axis=0, initial=0)
        tolerance = query.depth.tolerance(z[0])
        nearer = (steps < 0.02 + tolerance) & (z[-1] < z[0] - np.maximum(0.01, 2.5 * tolerance))
    return throughout & nearer & seen[-1] & (np.linalg.norm(xy[-1] - xy[0], axis=-1) > 1.5)
