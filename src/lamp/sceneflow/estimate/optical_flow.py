"""Dense optical flow between frames 1, 2, 4, 8 and 16 apart, and looking images up at tracks.

Positions are (x, y) in px with (0, 0) at the centre of the first pixel, so that u = (x + 0.5) / width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, UInt8

from lamp.errors import import_extra

LINKS = (1, 2, 4, 8, 16)
"""Frames that a flow may span."""


@lru_cache(maxsize=1)
def import_cv2() -> Any:
    """OpenCV, on one thread: the calling processes decide about parallelism.

    Raises:
        MissingDependencyError: It is not installed.
    """
    cv2 = import_extra(
        "cv2", "OpenCV is not installed ({}); scene flow from video needs it: pip install 'lamp-vla[flow]'"
    )
    cv2.setNumThreads(1)
    return cv2


def sample(image: np.ndarray, xy: Float[np.ndarray, "*b 2"]) -> np.ndarray:
    """Bilinear values of an (h, w) or (h, w, c) image at positions, those of the border outside."""
    cv2 = import_cv2()
    flat = np.ascontiguousarray(xy, np.float32).reshape(-1, 1, 2)
    if not len(flat):  # which remap refuses
        return np.empty((*xy.shape[:-1], *image.shape[2:]), image.dtype)
    if len(flat) < 30000:  # remap has no room for taller maps
        values = cv2.remap(image, flat, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    else:
        values = np.concatenate([sample(image, part) for part in np.array_split(flat, 1 + len(flat) // 20000)])
    return values.reshape(*xy.shape[:-1], *image.shape[2:])


def nearest_pixel(xy: Float[np.ndarray, "*b 2"], width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of the pixel nearest to each position."""
    finite = np.nan_to_num(xy, nan=0.0, posinf=1e6, neginf=-1e6)
    column = np.clip(np.rint(finite[..., 0]), 0, width - 1).astype(np.intp)
    row = np.clip(np.rint(finite[..., 1]), 0, height - 1).astype(np.intp)
    return row, column


def inside(xy: Float[np.ndarray, "*b 2"], width: int, height: int) -> Bool[np.ndarray, "*b"]:
    """Whether positions are in the image."""
    x, y = xy[..., 0], xy[..., 1]
    return (x >= -0.5) & (x < width - 0.5) & (y >= -0.5) & (y < height - 0.5)


def depth_at(
    depth: Float32[np.ndarray, "h w"],
    xy: Float[np.ndarray, "*b 2"],
    expected: Float[np.ndarray, "*b"],
    smooth: float = 0.03,
) -> Float[np.ndarray, "*b"]:
    """Depth at positions [m]; NaN where none of the four pixels around has one.

    Within a surface (the four differ by less than `smooth` metres) it is interpolated; at an edge, where a mean would lie on
    neither surface, it is that of the pixel nearest to what is expected.
    """
    height, width = depth.shape
    x, y = np.clip(xy[..., 0], 0, width - 1.001), np.clip(xy[..., 1], 0, height - 1.001)
    column, row = x.astype(np.intp), y.astype(np.intp)
    fx, fy = x - column, y - row
    first = row * width + column
    around = depth.reshape(-1)[np.stack([first, first + 1, first + width, first + width + 1])]
    weights = np.stack([(1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy])
    distance = np.abs(around - expected)
    if np.isnan(distance).any():
        distance = np.where(np.isnan(around), np.inf, np.where(np.isnan(expected), 1 - weights, distance))
    picked = np.take_along_axis(around, distance.argmin(axis=0)[None], axis=0)[0]
    return np.where(around.max(axis=0) - around.min(axis=0) < smooth, (around * weights).sum(axis=0), picked)


def pixel_matrix(intrinsics: Float64[np.ndarray, "3 3"], width: int, height: int) -> Float64[np.ndarray, "3 3"]:
    """The intrinsic matrix for positions in px, of one in image fractions."""
    return np.array([[width, 0, -0.5], [0, height, -0.5], [0, 0, 1]]) @ intrinsics


def unproject(
    xy: Float[np.ndarray, "*b 2"], z: Float[np.ndarray, "*b"], matrix: Float64[np.ndarray, "3 3"]
) -> Float64[np.ndarray, "*b 3"]:
    """Camera coordinates [m] of positions with depth."""
    y = (xy[..., 1] - matrix[1, 2]) / matrix[1, 1]
    x = (xy[..., 0] - matrix[0, 2] - matrix[0, 1] * y) / matrix[0, 0]
    return np.stack([x * z, y * z, z], axis=-1)


def project(points: Float[np.ndarray, "*b 3"], matrix: Float64[np.ndarray, "3 3"]) -> Float64[np.ndarray, "*b 2"]:
    """Positions of camera coordinates; NaN behind the camera."""
    z = np.where(points[..., 2] > 1e-6, points[..., 2], np.nan)
    x, y = points[..., 0] / z, points[..., 1] / z
    return np.stack([matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2], matrix[1, 1] * y + matrix[1, 2]], axis=-1)


class FlowPyramid:
    """Flows between frames of a clip, each computed once and dropped when no query frame needs it any more.

    A flow over 2s frames is two over s, one after the other, corrected by the flow between the first image and the last one
    warped back. A correction counts where it explains the image no worse, is smaller than s px, and stays on the same surface.
    """

    def __init__(
        self, rgb: UInt8[np.ndarray, "n h w 3"], depth: Float32[np.ndarray, "n h w"], *, precise: bool = False
    ) -> None:
        self._cv2 = import_cv2()
        self._rgb, self._depth, self.length = rgb, depth, len(rgb)
        self._dis = self._cv2.DISOpticalFlow_create(self._cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        if precise:
            self._dis.setFinestScale(0)
        self._flows: dict[tuple[int, int], Float32[np.ndarray, "h w 2"]] = {}
        self._gray: dict[int, UInt8[np.ndarray, "h w"]] = {}
        rows, columns = np.mgrid[: rgb.shape[1], : rgb.shape[2]].astype(np.float32)
        self.pixels = np.stack([columns, rows], axis=-1)

    def gray(self, frame: int) -> UInt8[np.ndarray, "h w"]:
        """Luminance of a frame."""
        if frame not in self._gray:
            self._gray[frame] = self._cv2.cvtColor(self._rgb[frame], self._cv2.COLOR_RGB2GRAY)
        return self._gray[frame]

    def between(self, start: int, end: int) -> Float32[np.ndarray, "h w 2"]:
        """Displacement of every pixel from frame `start` to frame `end`, in px; they are a power of two apart."""
        if (start, end) not in self._flows:
            span = abs(end - start)
            if span == 1:
                flow = self._dis.calc(self.gray(start), self.gray(end), None)
            else:
                middle = (start + end) // 2
                first, second = self.between(start, middle), self.between(middle, end)
                flow = self._corrected(start, end, first + self._warp(second, self.pixels + first), span / 2)
            self._flows[start, end] = flow
        return self._flows[start, end]

    def unlike(
        self, start: int, end: int, xy: Float[np.ndarray, "n 2"], there: Float[np.ndarray, "n 2"]
    ) -> Float[np.ndarray, " n"]:
        """By how much the 5 x 5 px around positions differ between two frames, on average. [of 255]"""
        around = np.stack(np.meshgrid(np.arange(-2, 3), np.arange(-2, 3)), axis=-1).reshape(-1, 2)
        one, other = (
            sample(self.gray(frame), at[:, None] + around).astype(np.float32)
            for frame, at in ((start, xy), (end, there))
        )
        return np.abs(one - other).mean(axis=1)

    def forget(self, *, before: int) -> None:
        """Drops what starts or ends before a frame."""
        self._flows = {pair: flow for pair, flow in self._flows.items() if min(pair) >= before}
        self._gray = {frame: image for frame, image in self._gray.items() if frame >= before}

    def _corrected(
        self, start: int, end: int, flow: Float32[np.ndarray, "h w 2"], limit: float
    ) -> Float32[np.ndarray, "h w 2"]:
        place = self.pixels + flow
        warped = self._warp(self.gray(end), place)
        rest = self._dis.calc(self.gray(start), warped, None)
        better = rest + self._warp(flow, self.pixels + rest)
        again = self.pixels + better
        accepted = self._unlike(start, self._warp(self.gray(end), again)) <= self._unlike(start, warped) + 0.5
        accepted &= np.square(rest).sum(axis=-1) < (2 * limit) ** 2
        depth = self._depth[end]
        apart = np.abs(self._warp(depth, again, nearest=True) - self._warp(depth, place, nearest=True))
        accepted &= ~(apart > 0.03)  # an unknown depth, NaN, does not speak against it
        return np.where(accepted[..., None], better, flow)

    def _unlike(self, start: int, warped: UInt8[np.ndarray, "h w"]) -> np.ndarray:
        return self._cv2.blur(self._cv2.absdiff(self.gray(start), warped).astype(np.float32), (7, 7))

    def _warp(self, image: np.ndarray, xy: Float32[np.ndarray, "h w 2"], *, nearest: bool = False) -> np.ndarray:
        mode = self._cv2.INTER_NEAREST if nearest else self._cv2.INTER_LINEAR
        return self._cv2.remap(image, xy, None, mode, borderMode=self._cv2.BORDER_REPLICATE)


def forward_backward(
    pyramid: FlowPyramid, start: int, end: int, xy: Float[np.ndarray, "n 2"]
) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, " n"]]:
    """Where points go from one frame to another, and by how many px the way back misses them."""
    forth = sample(pyramid.between(start, end), xy)
    there = xy + forth
    back = sample(pyramid.between(end, start), there)
    return there, np.hypot(forth[:, 0] + back[:, 0], forth[:, 1] + back[:, 1])


def working_size(width: int, height: int, limit: int) -> tuple[int, int]:
    """Width and height, the longer one at most `limit` px."""
    factor = min(1.0, limit / max(width, height))
    return max(round(width * factor), 16), max(round(height * factor), 16)


def resized(
    rgb: UInt8[np.ndarray, "n h w 3"], depth: Float32[np.ndarray, "n h w"], size: tuple[int, int]
) -> tuple[UInt8[np.ndarray, "n h2 w2 3"], Float32[np.ndarray, "n h2 w2"]]:
    """Images averaged, and depth picked, which no mean over an edge would be right for."""
    cv2 = import_cv2()
    if (rgb.shape[2], rgb.shape[1]) == size:
        return rgb, depth
    images = np.stack([cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in rgb])
    maps = np.stack([cv2.resize(one, size, interpolation=cv2.INTER_NEAREST_EXACT) for one in depth])
    return images, maps


def links_to(span: int) -> Sequence[int]:
    """The links that are no longer than a span."""
    return [link for link in LINKS if link <= span]


def penalty(link: int) -> float:
    """px: what a link costs beside its own error, since errors of many short ones add up."""
    return 0.8 / link if link < 16 else 0.0


def grid_positions(rows: int, columns: int, width: int, height: int) -> Float64[np.ndarray, "k 2"]:
    """The centres of the pixels that hold the points of a grid."""
    y = np.floor((np.arange(rows) + 0.5) / rows * height)
    x = np.floor((np.arange(columns) + 0.5) / columns * width)
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)


def dense_positions(width: int, height: int, every: int) -> Float64[np.ndarray, "n 2"]:
    """Every so many px, each way."""
    start = math.floor(every / 2)
    y, x = np.mgrid[start:height:every, start:width:every]
    return np.stack([x, y], axis=-1).reshape(-1, 2).astype(np.float64)
