"""What a LeRobot dataset says about itself in `meta/info.json`: version, rate, cameras, columns and paths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lamp.data.lerobot_format import (
    BOOKKEEPING,
    CODEBASE_VERSION,
    DATA_PATH,
    EPISODE_DATA_PATH,
    EPISODE_VERSIONS,
    EPISODE_VIDEO_PATH,
    INFO_PATH,
    VIDEO_PATH,
    Feature,
    short_names,
)
from lamp.errors import ConfigError, DataError, unknown
from lamp.files import read_json


@dataclass(frozen=True, kw_only=True)
class CameraFeature:
    """Where a camera's pictures are, and how large they are said to be."""

    key: str
    """The feature's name in the dataset."""
    height: int
    width: int
    in_videos: bool
    """In video files; otherwise as encoded images in the data files."""


@dataclass(frozen=True, kw_only=True)
class Described:
    """`meta/info.json`, checked and put in order."""

    info: dict[str, Any]
    """As it is in the file."""
    version: str
    fps: float
    cameras: Mapping[str, CameraFeature]
    """By the names that a policy uses."""
    features: Mapping[str, Feature]
    """Numbers per frame, but for the bookkeeping that every dataset has."""
    data_path: str
    video_path: str

    @property
    def episode_files(self) -> bool:
        """Whether each episode is a file of its own."""
        return self.version in EPISODE_VERSIONS

    @classmethod
    def read(cls, root: Path, cameras: Mapping[str, str] | None = None) -> Described:
        """Reads a dataset's description.

        Args:
            root: Its folder.
            cameras: Names of cameras to give to features of the dataset; None: all that it has, under their own short names.

        Raises:
            DataError: The folder is not a dataset, of another version, or its description is incomplete.
            ConfigError: The dataset lacks one of the cameras.
        """
        file = root / INFO_PATH
        if not file.is_file():
            raise DataError(
                f"{root} is not a LeRobot dataset: there is no {INFO_PATH}; "
                "expected a folder written by `lamp collect` or by LeRobot (v2.0, v2.1 or v3.0)"
            )
        info: dict[str, Any] = read_json(file, "dataset description")
        version = info.get("codebase_version")
        if version not in (CODEBASE_VERSION, *EPISODE_VERSIONS):
            raise DataError(
                f"{root} is a LeRobot {version} dataset; expected {', '.join(EPISODE_VERSIONS)} or {CODEBASE_VERSION}, "
                "to which LeRobot's own scripts convert older ones"
            )
        missing = [key for key in ("fps", "features", "total_episodes", "total_frames") if key not in info]
        if missing:
            raise DataError(f"{file} lacks {', '.join(missing)}; restore the file")
        if not isinstance(info["fps"], int | float) or not info["fps"] > 0:
            raise DataError(f"{file} gives fps {info['fps']!r}; expected frames per second above 0")
        one = version in EPISODE_VERSIONS
        return cls(
            info=info,
            version=version,
            fps=float(info["fps"]),
            cameras=_named(_cameras(info["features"], file), cameras, root),
            features={
                name: Feature(
                    dtype=entry["dtype"],
                    shape=tuple(entry.get("shape") or (1,)),
                    names=_names(entry.get("names")),
                )
                for name, entry in info["features"].items()
                if _is_numeric(entry.get("dtype")) and name not in BOOKKEEPING
            },
            data_path=info.get("data_path") or (EPISODE_DATA_PATH if one else DATA_PATH),
            video_path=info.get("video_path") or (EPISODE_VIDEO_PATH if one else VIDEO_PATH),
        )


def _is_numeric(dtype: object) -> bool:
    """Text, pictures and what newer versions may add are left aside."""
    try:
        return np.dtype(str(dtype)).kind in "biuf"
    except TypeError:
        return False


def _cameras(features: Mapping[str, Any], file: Path) -> dict[str, CameraFeature]:
    """All cameras of a description, by their feature's name."""
    found = {}
    for key, entry in features.items():
        if entry.get("dtype") in ("video", "image"):
            height, width = _size(entry, f"{file}: {key}")
            found[key] = CameraFeature(key=key, height=height, width=width, in_videos=entry["dtype"] == "video")
    return found


def _size(entry: Mapping[str, Any], where: str) -> tuple[int, int]:
    """Height and width, whether the channels come first or last."""
    shape, names = entry.get("shape") or (), entry.get("names")
    if len(shape) != 3:
        raise DataError(f"{where} has shape {list(shape)}; expected height, width and channels")
    ordered = [str(name) for name in names] if isinstance(names, list) and len(names) == 3 else []
    if "height" in ordered and "width" in ordered:
        return int(shape[ordered.index("height")]), int(shape[ordered.index("width")])
    first = shape[0] in (1, 3) and shape[2] not in (1, 3)
    height, width = shape[1:] if first else shape[:2]
    return int(height), int(width)


def _named(
    present: Mapping[str, CameraFeature], wanted: Mapping[str, str] | None, root: Path
) -> dict[str, CameraFeature]:
    """Cameras under the names that are wanted, or under their own without the customary prefix."""
    if wanted is None:
        return {name: present[key] for name, key in short_names(present).items()}
    for key in wanted.values():
        if key not in present:
            known = unknown("camera feature", key, present)
            raise ConfigError(f"{root}: {known}")
    return {name: present[key] for name, key in wanted.items()}


def _names(names: Any) -> tuple[str, ...] | None:
    """LeRobot gives names as a list, or as a list under some key."""
    if isinstance(names, dict):
        names = next((value for value in names.values() if isinstance(value, list)), None)
    return tuple(str(name) for name in names) if isinstance(names, list) else None
