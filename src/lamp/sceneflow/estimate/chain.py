"""Chains of estimators: from a clip to the tracks of its query frames.

The default chain needs no weights. For each query frame, points that stand still over the whole horizon are found first, by
depth and, where that is unknown, by the images; they do not move at all. The others are followed over links of 1 to 16 frames,
and their paths replaced by the rigid motions of their neighbourhood and of whole bodies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, UInt8

from lamp.errors import unknown
from lamp.sceneflow.estimate.cameras import RecordedCameras, moved
from lamp.sceneflow.estimate.interfaces import (
    CameraPath,
    Cameras,
    Clip,
    Depth,
    DepthMaps,
    PointTracks,
    RecordedDepth,
    Tracker,
)
from lamp.sceneflow.estimate.optical_flow import (
    LINKS,
    FlowPyramid,
    dense_positions,
    depth_at,
    forward_backward,
    grid_positions,
    import_cv2,
    inside,
    links_to,
    nearest_pixel,
    penalty,
    pixel_matrix,
    project,
    resized,
    unproject,
    working_size,
)
from lamp.sceneflow.estimate.rigid import RigidSmoothing, inverse
from lamp.sceneflow.exact_flow import Sampling


@dataclass(frozen=True, kw_only=True)
class Query:
    """A query frame's horizon within a clip."""

    rgb: np.ndarray
    depth: DepthMaps
    frame: int
    frames: Int[np.ndarray, " t1"]
    """Every frame of the horizon that there is, the query frame first."""
    matrix: Float64[np.ndarray, "3 3"]
    """Intrinsics in px."""
    now_from_query: Float64[np.ndarray, "t1 4 4"]
    """Into the camera at each of these frames, from that of the query frame."""
    fixed: bool

    @classmethod
    def of(cls, clip: Clip, depth: DepthMaps, cameras: CameraPath, frame: int, span: int) -> Query:
        frames = np.arange(frame, min(frame + span, len(clip) - 1) + 1)
        poses = cameras.world_from_cam[frames]
        step = np.tile(np.eye(4), (len(frames), 1, 1)) if cameras.fixed else inverse(poses) @ poses[0]
        matrix = pixel_matrix(cameras.intrinsics, *clip.size)
        return cls(
            rgb=clip.rgb,
            depth=depth,
            frame=frame,
            frames=frames,
            matrix=matrix,
            now_from_query=step,
            fixed=cameras.fixed,
        )

    @property
    def size(self) -> tuple[int, int]:
        return self.rgb.shape[2], self.rgb.shape[1]

    def depth_of(self, xy: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, " n"]:
        """Depth of pixels at the query frame."""
        return self.depth.metres[self.frame][nearest_pixel(xy, *self.size)].astype(np.float64)

    def held(self, xy: Float[np.ndarray, "t1 n 2"], z: Float[np.ndarray, "t1 n"]) -> tuple[np.ndarray, np.ndarray]:
        """Positions and depths at each moment, brought into the query frame's camera."""
        if self.fixed:
            return xy, z
        points = moved(inverse(self.now_from_query), unproject(xy, z, self.matrix))
        return project(points, self.matrix), points[..., 2]


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
    """

    share: float = 0.9
    noisy_share: float = 0.75
    colour: int = 24
    """of 255: a pixel that differs by more shows something else,"""
    stir: int = 8
    """and one that differs by more may do so; the flows then decide."""

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
            nearer = within & ~same & (seen < z - np.maximum(0.01, 2.5 * tolerance))
        hidden = nearer | ~within
        telling = within & ~nearer & (np.isfinite(seen) | same) & np.isfinite(z)
        telling[0] = False
        count = telling.sum(axis=0)
        share = (same & telling).sum(axis=0) / np.maximum(count, 1)
        limit = self.share if query.depth.noise < 5e-4 and query.fixed else self.noisy_share
        still = np.where(count > 0, share > limit, True)
        change = _change(query, row, column)
        changed = within & (change > self.colour)
        images = self._images(query, pyramid, xy, place)
        if query.fixed:
            clear = np.maximum((~nearer).sum(axis=0) - 1, 1)
            slides = (changed & ~nearer).sum(axis=0) > 0.7 * clear
            stirred = (change > self.stir) & ~nearer
            slides |= (images < 0) & (stirred.sum(axis=0) > 0.5 * clear)
            still &= ~(slides & (count > 0))
            blind = count < 0.25 * clear  # holes most of the time
            still = np.where(blind, still & (images >= 0) & ((changed & ~nearer).sum(axis=0) < 0.5 * clear), still)
            hidden |= changed & blind
        else:
            still &= images >= 0
        attached = np.zeros(len(xy), bool) if query.fixed else self._attached(query, xy, start, share * (count > 0))
        support = np.where(count > 0, share, 0.5)
        return Stillness(still=still & ~attached, attached=attached, hidden=hidden, support=support)

    @staticmethod
    def _images(query: Query, pyramid: FlowPyramid, xy: np.ndarray, place: np.ndarray) -> Int[np.ndarray, " n"]:
        """How many more of the flows from the query frame agree with standing still than contradict it."""
        votes = np.zeros(len(xy), int)
        for link in LINKS:
            if link >= len(query.frames):
                break
            there, miss = forward_backward(pyramid, query.frame, query.frame + link, xy)
            expected = np.linalg.norm(place[link] - xy, axis=-1)
            with np.errstate(invalid="ignore"):
                off = np.linalg.norm(there - place[link], axis=-1)
                votes += (miss < 0.7) & (off < np.maximum(0.7, 0.1 * expected))
                votes -= (miss < 0.7) & (off > np.maximum(1.0, 0.2 * expected))
        return votes

    @staticmethod
    def _attached(query: Query, xy: np.ndarray, start: np.ndarray, share: np.ndarray) -> Bool[np.ndarray, " n"]:
        """Points at which the image stays as it is although the camera moves."""
        row, column = nearest_pixel(xy, *query.size)
        seen = query.depth.metres[query.frames[:, None], row, column]
        change = _change(query, np.tile(row, (len(seen), 1)), np.tile(column, (len(seen), 1)))
        with np.errstate(invalid="ignore"):
            constant = (np.abs(seen - seen[0]) < 0.05 * seen[0]) & (change < 20)
            place = project(moved(query.now_from_query, unproject(xy, start, query.matrix)), query.matrix)
            travel = np.nan_to_num(np.linalg.norm(place - xy, axis=-1), nan=np.inf).max(axis=0)
        return (constant.mean(axis=0) > 0.9) & (travel > 2) & (share < 0.8)


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


def _change(query: Query, row: Int[np.ndarray, "t1 n"], column: Int[np.ndarray, "t1 n"]) -> UInt8[np.ndarray, "t1 n"]:
    """By how much each pixel's colours differ from the first one's, in the channel that differs most."""
    colours = np.stack([query.rgb[frame, y, x] for frame, y, x in zip(query.frames, row, column, strict=True)])
    low, high = np.minimum(colours, colours[0]), np.maximum(colours, colours[0])
    apart = high - low
    return np.maximum(np.maximum(apart[..., 0], apart[..., 1]), apart[..., 2])


def _around(maps: np.ndarray, frame: np.ndarray, row: np.ndarray, column: np.ndarray) -> Float[np.ndarray, "p 9"]:
    """The 3 x 3 values around pixels."""
    step = np.arange(-1, 2)
    rows = np.clip(row[:, None] + np.repeat(step, 3), 0, maps.shape[1] - 1)
    columns = np.clip(column[:, None] + np.tile(step, 3), 0, maps.shape[2] - 1)
    return maps[frame[:, None], rows, columns]


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
        change = _change(query, *(np.tile(at, (moments, 1)) for at in here))
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


def as_tracks(
    query: Query,
    sampling: Sampling,
    xy: Float[np.ndarray, "t1 k 2"],
    z: Float[np.ndarray, "t1 k"],
    visible: Bool[np.ndarray, "t1 k"],
    valid: Bool[np.ndarray, "t1 k"],
    confidence: Float[np.ndarray, "t1 k"],
    static: Bool[np.ndarray, " k"],
) -> PointTracks:
    """Tracks at the moments of a sampling, held past the clip's end, in image fractions."""
    wanted = sampling.stride * np.arange(sampling.horizon + 1)
    there = wanted < len(query.frames)
    taken = np.minimum(wanted, len(query.frames) - 1)
    width, height = query.size
    uv = (xy + 0.5) / [width, height]
    points = np.concatenate([uv, z[..., None]], axis=-1).astype(np.float32)[taken].swapaxes(0, 1)
    ends = there[:, None]
    seen = visible & valid & inside(xy, width, height)
    return PointTracks(
        frame=query.frame,
        points=np.ascontiguousarray(points),
        visible=np.ascontiguousarray((seen[taken] & ends).T),
        confidence=np.ascontiguousarray((confidence[taken] * ends).T.astype(np.float32)),
        valid=np.ascontiguousarray((valid[taken] & ends & np.isfinite(xy[taken]).all(axis=-1)).T),
        static=static,
    )


@dataclass(frozen=True, kw_only=True)
class ZeroMotion:
    """A baseline: nothing moves."""

    def track(
        self, clip: Clip, depth: DepthMaps, cameras: CameraPath, frames: Sequence[int], sampling: Sampling
    ) -> Iterator[PointTracks]:
        """Every point stays where it is, and is seen."""
        grid = grid_positions(*sampling.grid, *clip.size)
        for frame in frames:
            query = Query.of(clip, depth, cameras, frame, sampling.horizon * sampling.stride)
            shape = (len(query.frames), len(grid))
            z = np.tile(query.depth_of(grid), (shape[0], 1))
            ones = np.ones(shape, bool)
            yield as_tracks(query, sampling, np.tile(grid, (shape[0], 1, 1)), z, ones, ones, ones * 1.0, ones[0])


@dataclass(frozen=True, kw_only=True)
class LucasKanade:
    """A baseline: sparse pyramidal Lucas-Kanade from frame to frame, with a check of the way back."""

    consistent: float = 1.0
    """px"""

    def track(
        self, clip: Clip, depth: DepthMaps, cameras: CameraPath, frames: Sequence[int], sampling: Sampling
    ) -> Iterator[PointTracks]:
        """Chained tracks; a point that is lost once stays lost."""
        cv2 = import_cv2()
        gray = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in clip.rgb]

        def step(start: int, end: int, xy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            ask = xy.astype(np.float32)[:, None]
            there, found, _ = cv2.calcOpticalFlowPyrLK(gray[start], gray[end], ask, None, winSize=(21, 21), maxLevel=3)
            back, again, _ = cv2.calcOpticalFlowPyrLK(gray[end], gray[start], there, None, winSize=(21, 21), maxLevel=3)
            ok = (found[:, 0] > 0) & (again[:, 0] > 0)
            return there[:, 0].astype(np.float64), np.where(ok, np.linalg.norm(back - ask, axis=-1)[:, 0], np.inf)

        yield from _chained(step, self.consistent, clip, depth, cameras, frames, sampling)


@dataclass(frozen=True, kw_only=True)
class ChainedFlow:
    """A baseline: dense optical flow (DIS, medium) from frame to frame, with a check of the way back."""

    consistent: float = 1.0
    """px"""

    def track(
        self, clip: Clip, depth: DepthMaps, cameras: CameraPath, frames: Sequence[int], sampling: Sampling
    ) -> Iterator[PointTracks]:
        """Chained tracks; a point that is lost once stays lost."""
        pyramid = FlowPyramid(clip.rgb, depth.metres)

        def step(start: int, end: int, xy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            pyramid.forget(before=min(frames))
            return forward_backward(pyramid, start, end, xy)

        yield from _chained(step, self.consistent, clip, depth, cameras, frames, sampling)


def _chained(
    step: Callable[[int, int, np.ndarray], tuple[np.ndarray, np.ndarray]],
    limit: float,
    clip: Clip,
    depth: DepthMaps,
    cameras: CameraPath,
    frames: Sequence[int],
    sampling: Sampling,
) -> Iterator[PointTracks]:
    grid = grid_positions(*sampling.grid, *clip.size)
    for frame in frames:
        query = Query.of(clip, depth, cameras, frame, sampling.horizon * sampling.stride)
        shape = (len(query.frames), len(grid))
        xy, z = np.tile(grid, (shape[0], 1, 1)), np.tile(query.depth_of(grid), (shape[0], 1))
        seen, missed = np.ones(shape, bool), np.zeros(shape)
        for t in range(1, shape[0]):
            start, end = int(query.frames[t - 1]), int(query.frames[t])
            xy[t], missed[t] = step(start, end, xy[t - 1])
            z[t] = depth_at(depth.metres[end], xy[t], z[t - 1])
            seen[t] = seen[t - 1] & (missed[t] < limit) & inside(xy[t], *clip.size) & ~(np.abs(z[t] - z[t - 1]) > 0.04)
            z[t] = np.where(seen[t] & np.isfinite(z[t]), z[t], z[t - 1])
        held, far = query.held(xy, z)
        valid = np.ones(shape, bool)
        yield as_tracks(query, sampling, held, far, seen, valid, np.exp(-missed), np.zeros(shape[1], bool))


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Depth, cameras and tracker, one after the other."""

    name: str
    depth: Depth = field(default_factory=RecordedDepth)
    cameras: Cameras = field(default_factory=RecordedCameras)
    tracker: Tracker = field(default_factory=RigidTracker)
    image_limit: int = 320
    """px: the longer side of the images that flows are computed in."""

    def prepare(self, clip: Clip) -> tuple[Clip, DepthMaps, CameraPath]:
        """The clip at its working size, with depth and cameras.

        Raises:
            DataError: One of the two cannot be found.
        """
        depth = self.depth.depth(clip)
        size = working_size(*clip.size, self.image_limit)
        rgb, metres = resized(clip.rgb, depth.metres, size)
        depth = replace(depth, metres=metres)
        small = replace(clip, rgb=rgb, depth=metres)
        return small, depth, self.cameras.cameras(small, depth)

    def estimate(
        self, clip: Clip, frames: Sequence[int], sampling: Sampling
    ) -> tuple[CameraPath, Iterator[PointTracks]]:
        """The camera's path, and the tracks of ascending query frames, found one by one.

        Raises:
            DataError: The clip's depth or camera cannot be found.
        """
        small, depth, cameras = self.prepare(clip)
        return cameras, self.tracker.track(small, depth, cameras, frames, sampling)


CHAINS: dict[str, Chain] = {
    chain.name: chain
    for chain in (
        Chain(name="rgbd"),
        Chain(name="rgbd_precise", tracker=RigidTracker(precise=True)),
        Chain(name="skip_links", tracker=RigidTracker(static=None, rigid=None)),
        Chain(name="skip_links_static", tracker=RigidTracker(rigid=None)),
        Chain(name="lucas_kanade", tracker=LucasKanade()),
        Chain(name="chained_dis", tracker=ChainedFlow()),
        Chain(name="zero_motion", tracker=ZeroMotion()),
    )
}
"""Chains by name. `skip_links` and `skip_links_static` are `rgbd` without its later parts, the last three are baselines."""
BASELINES = ("lucas_kanade", "chained_dis", "zero_motion")


def chain_named(name: str) -> Chain:
    """A chain by its name.

    Raises:
        ConfigError: There is none of that name.
    """
    if name not in CHAINS:
        raise unknown("chain", name, CHAINS)
    return CHAINS[name]
