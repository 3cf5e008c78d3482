"""Errors of estimated scene flow: px and mm, visibility, TAPVid-3D's metrics, and the camera's path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64

from lamp.sceneflow.estimate.interfaces import PointTracks
from lamp.sceneflow.estimate.rigid import inverse

MOVING_PX = 1.0
MOVING_M = 0.004
"""A point moves if its true path leaves its start by more than one of these."""
TAPVID_PX = (1, 2, 4, 8, 16)
"""TAPVid-3D's thresholds, scaled by depth over focal length."""


@dataclass(frozen=True, kw_only=True)
class TrueFlow:
    """Where the grid points of a query frame truly go, in that frame's camera."""

    points: Float64[np.ndarray, "k t1 3"]
    visible: Bool[np.ndarray, "k t1"]
    """Inside the image of the query frame's camera and seen by the camera as it is at that moment (for one that stands still,
    the same)."""
    valid: Bool[np.ndarray, "k t1"]


@dataclass(kw_only=True)
class Errors:
    """Errors of one chain, collected over query frames."""

    moving_px: list[Float[np.ndarray, " p"]] = field(default_factory=list)
    moving_mm: list[Float[np.ndarray, " p"]] = field(default_factory=list)
    static_px: list[Float[np.ndarray, " p"]] = field(default_factory=list)
    static_mm: list[Float[np.ndarray, " p"]] = field(default_factory=list)
    visibility: np.ndarray = field(default_factory=lambda: np.zeros(4, int))
    """True positives, false positives, false negatives, true negatives."""
    tapvid: list[tuple[float, float, float]] = field(default_factory=list)
    """3D-AJ, APD and OA of each query frame."""
    camera_mm: list[Float[np.ndarray, " p"]] = field(default_factory=list)
    """By how much the camera is misplaced at each moment of the horizons, seen from where it was at the query frame."""
    camera_degrees: list[Float[np.ndarray, " p"]] = field(default_factory=list)
    seconds: float = 0.0
    queries: int = 0

    def add(
        self,
        found: PointTracks,
        truth: TrueFlow,
        intrinsics: Float64[np.ndarray, "3 3"],
        size: tuple[int, int],
        scale: str = "none",
    ) -> None:
        """Adds a query frame; what the truth does not know does not count."""
        self.queries += 1
        estimated = found.points.astype(np.float64)
        px = np.linalg.norm((estimated[..., :2] - truth.points[..., :2]) * size, axis=-1)
        spatial, exact = camera_points(estimated, intrinsics), camera_points(truth.points, intrinsics)
        mm = np.linalg.norm(spatial - exact, axis=-1) * 1000
        away_px = np.linalg.norm((truth.points[..., :2] - truth.points[:, :1, :2]) * size, axis=-1)
        away_m = np.linalg.norm(exact - exact[:, :1], axis=-1)
        moving = (((away_px > MOVING_PX) | (away_m > MOVING_M)) & truth.valid).any(axis=1, keepdims=True)
        counted = truth.visible & truth.valid
        counted[:, 0] = False
        self.moving_px.append(px[counted & moving])
        self.static_px.append(px[counted & ~moving])
        self.moving_mm.append(mm[counted & moving & np.isfinite(mm)])
        self.static_mm.append(mm[counted & ~moving & np.isfinite(mm)])
        guess, true, known = found.visible[:, 1:], truth.visible[:, 1:], truth.valid[:, 1:]
        self.visibility += [(of & known).sum() for of in (guess & true, guess & ~true, ~guess & true, ~guess & ~true)]
        focal = np.abs(intrinsics[[0, 1], [0, 1]]) * size
        rows = truth.valid[:, 0] & np.isfinite(spatial[:, 0]).all(axis=-1)
        if rows.any():
            self.tapvid.append(
                tapvid_3d(
                    spatial[rows],
                    found.visible[rows],
                    exact[rows],
                    truth.visible[rows],
                    float(np.sqrt(focal[0] * focal[1])),
                    scale=scale,
                    counted=truth.valid[rows],
                )
            )

    def add_camera(
        self,
        found: Float64[np.ndarray, "t1 4 4"],
        truth: Float64[np.ndarray, "t1 4 4"],
    ) -> None:
        """Adds the ``world_from_cam`` of a horizon, the query frame first."""
        miss = inverse(inverse(truth[0]) @ truth) @ (inverse(found[0]) @ found)
        self.camera_mm.append(1000 * np.linalg.norm(miss[1:, :3, 3], axis=1))
        cosine = (np.trace(miss[1:, :3, :3], axis1=1, axis2=2) - 1) / 2
        self.camera_degrees.append(np.degrees(np.arccos(np.clip(cosine, -1, 1))))

    @property
    def brief(self) -> str:
        """A few words for the progress line."""
        return f"{_percentile(self.moving_px, 50):.2f} px, p90 {_percentile(self.moving_px, 90):.1f} px"

    @property
    def summary(self) -> dict[str, Any]:
        """All figures."""
        hits, false, missed, _ = self.visibility.tolist()
        apart = [np.nanmean(part) if self.tapvid else float("nan") for part in np.array(self.tapvid).reshape(-1, 3).T]
        values = {
            "moving_median_px": _percentile(self.moving_px, 50),
            "moving_p90_px": _percentile(self.moving_px, 90),
            "moving_median_mm": _percentile(self.moving_mm, 50),
            "moving_p90_mm": _percentile(self.moving_mm, 90),
            "moving_epe3d_mm": _mean(self.moving_mm),
            "static_p99_px": _percentile(self.static_px, 99),
            "static_epe3d_mm": _mean(self.static_mm),
            "visibility_precision": hits / (hits + false) if hits + false else float("nan"),
            "visibility_recall": hits / (hits + missed) if hits + missed else float("nan"),
            "aj_3d": float(apart[0]),
            "apd_3d": float(apart[1]),
            "oa": float(apart[2]),
            "camera_p90_mm": _percentile(self.camera_mm, 90),
            "camera_max_mm": _percentile(self.camera_mm, 100),
            "camera_p90_degrees": _percentile(self.camera_degrees, 90),
            "camera_max_degrees": _percentile(self.camera_degrees, 100),
            "query_frames_per_second": self.queries / max(self.seconds, 1e-9),
            "query_frames": self.queries,
            "moving_points": sum(map(len, self.moving_px)),
            "static_points": sum(map(len, self.static_px)),
        }
        return {
            name: None if isinstance(value, float) and not np.isfinite(value) else value
            for name, value in values.items()
        }


def _percentile(parts: Sequence[np.ndarray], q: int) -> float:
    values = np.concatenate(parts) if parts else np.empty(0)
    return float(np.percentile(values, q)) if len(values) else float("nan")


def _mean(parts: Sequence[np.ndarray]) -> float:
    values = np.concatenate(parts) if parts else np.empty(0)
    return float(values.mean()) if len(values) else float("nan")


def camera_points(
    uvd: Float[np.ndarray, "*b 3"], intrinsics: Float64[np.ndarray, "3 3"]
) -> Float64[np.ndarray, "*b 3"]:
    """(u, v, d) as points in the camera's frame [m]."""
    y = (uvd[..., 1] - intrinsics[1, 2]) / intrinsics[1, 1]
    x = (uvd[..., 0] - intrinsics[0, 2] - intrinsics[0, 1] * y) / intrinsics[0, 0]
    return np.stack([x, y, np.ones_like(x)], axis=-1) * uvd[..., 2:]


SCALES = ("none", "median", "per_trajectory")


def tapvid_3d(
    found: Float[np.ndarray, "k t 3"],
    found_visible: Bool[np.ndarray, "k t"],
    truth: Float[np.ndarray, "k t 3"],
    visible: Bool[np.ndarray, "k t"],
    focal: float,
    *,
    scale: str = "none",
    counted: Bool[np.ndarray, "k t"] | None = None,
) -> tuple[float, float, float]:
    """TAPVid-3D's 3D-AJ, APD and OA (Koppula et al. 2024), query points included.

    Within a threshold of delta px is what is nearer to the truth than delta z / f metres. At each threshold APD is the share of
    visible points within it; 3D-AJ the number of points within it that are both visible and found visible, over the number that
    are visible or wrongly found so. Both are means over `TAPVID_PX`.

    Args:
        found: Camera coordinates. [m]
        focal: Geometric mean of the absolute focal lengths. [px]
        scale: Nothing is fitted; or one factor, the ratio of the median distances of points visible in both; or one factor a
        track,
            the ratio of depths at the first moment.
        counted: What counts at all; None: everything.
    """
    counted = np.ones(visible.shape, bool) if counted is None else counted
    visible, found_visible = visible & counted, found_visible & counted
    if scale == "median":
        both = visible & found_visible & np.isfinite(found).all(axis=-1)
        if both.any():
            norms = (np.linalg.norm(points[both], axis=-1) for points in (truth, found))
            found = found * (np.median(next(norms)) / np.median(next(norms)))
    elif scale == "per_trajectory":
        found = found * (truth[:, :1, 2:] / found[:, :1, 2:])
    miss = np.linalg.norm(found - truth, axis=-1)
    jaccard, within_share = [], []
    for delta in TAPVID_PX:
        with np.errstate(invalid="ignore"):
            within = miss < delta * truth[..., 2] / focal
        hits = (within & visible & found_visible).sum()
        false = (found_visible & ~(visible & within)).sum()
        jaccard.append(hits / max(visible.sum() + false, 1))
        within_share.append((within & visible).sum() / max(visible.sum(), 1))
    agreement = float((found_visible == visible)[counted].mean()) if counted.any() else float("nan")
    return float(np.mean(jaccard)), float(np.mean(within_share)), agreement


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures as text, a chain a line."""

    def shown(value: float | None, digits: int = 2) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    lines = [
        f"{'chain':<18} {'px median/p90':>14} {'mm median/p90':>14} {'static p99 px':>13} {'visible P/R':>12} "
        f"{'3D-AJ':>6} {'APD':>6} {'OA':>6} {'queries/s':>9}"
    ]
    for name, one in results.items():
        lines.append(
            f"{name:<18} {shown(one['moving_median_px']) + '/' + shown(one['moving_p90_px'], 1):>14} "
            f"{shown(one['moving_median_mm'], 1) + '/' + shown(one['moving_p90_mm'], 1):>14} {shown(one['static_p99_px']):>13} "
            f"{shown(one['visibility_precision'], 3) + '/' + shown(one['visibility_recall'], 3):>12} {shown(one['aj_3d']):>6} "
            f"{shown(one['apd_3d']):>6} {shown(one['oa'], 3):>6} {shown(one['query_frames_per_second'], 1):>9}"
        )
    return "\n".join(lines)
