"""What a LeRobot dataset says about itself in `meta/info.json`: version, rate, cameras, depth, columns and paths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lamp.data.lerobot_format import (
    BOOKKEEPING,
    CHUNK_SIZE,
    CODEBASE_VERSION,
    DATA_PATH,
    EPISODE_DATA_PATH,
    EPISODE_VERSIONS,
    EPISODE_VIDEO_PATH,
    INFO_PATH,
    VIDEO_PATH,
    Feature,
    Slot,
    short_names,
)
from lamp.data.metadata import (
    DEPTH,
    INFO,
    PICTURES,
    DepthCode,
    DepthInfo,
    FeatureEntry,
    Info,
    MetadataError,
    Problem,
    checked,
    is_numeric,
    shown,
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
class DepthFeature(CameraFeature):
    """Where the depth maps of a camera are: no pictures, and no camera of a policy."""

    code: DepthCode | None
    """How a video's codes were made; None where the description does not say."""
    unit: float | None
    """What 1 stands for in images [m]; None: millimetres where they hold integers, metres where they hold floating point."""


@dataclass(frozen=True, kw_only=True)
class Described:
    """`meta/info.json`, checked and put in order."""

    info: dict[str, Any]
    """As it is in the file, its counts as integers."""
    version: str
    fps: float
    cameras: Mapping[str, CameraFeature]
    """By the names that a policy uses."""
    depths: Mapping[str, DepthFeature]
    """By their own short names."""
    features: Mapping[str, Feature]
    """Numbers per frame, but for the bookkeeping that every dataset has."""
    left_aside: Mapping[str, str]
    """The types of features that are neither numbers nor pictures, such as text."""
    data_path: str
    video_path: str

    @property
    def pictures(self) -> Mapping[str, CameraFeature]:
        """Cameras and depth maps."""
        return {**self.cameras, **self.depths}

    @property
    def episode_files(self) -> bool:
        """Whether each episode is a file of its own."""
        return self.version in EPISODE_VERSIONS

    @property
    def chunk_size(self) -> int:
        """Episodes a chunk, where each is a file of its own."""
        return self.info.get("chunks_size") or CHUNK_SIZE

    def data_file(self, root: Path, slot: Slot) -> Path:
        """The data file in a slot."""
        return slot.path(root, self.data_path, what="data file")

    def video_file(self, root: Path, slot: Slot, key: str) -> Path:
        """A camera's video in a slot."""
        return slot.path(root, self.video_path, key, what="video")

    @classmethod
    def read(cls, root: Path, cameras: Mapping[str, str] | None = None) -> Described:
        """Reads a dataset's description.

        Args:
            root: Its folder.
            cameras: Names of cameras to give to features of the dataset; None: all that it has, under their own short names.

        Raises:
            DataError: The folder is not a dataset, of another version, or its description is incomplete or wrong.
            ConfigError: The dataset lacks one of the cameras.
        """
        file = root / INFO_PATH
        if not file.is_file():
            raise DataError(
                f"{root} is not a LeRobot dataset: there is no {INFO_PATH}; "
                "expected a folder written by `lamp collect` or by LeRobot (v2.0, v2.1 or v3.0)"
            )
        info: Any = read_json(file, "dataset description")
        version = info.get("codebase_version") if isinstance(info, dict) else None
        if isinstance(info, dict) and version not in (CODEBASE_VERSION, *EPISODE_VERSIONS):
            raise DataError(
                f"{root} is a LeRobot {shown(version).strip(QUOTES)} dataset; expected {', '.join(EPISODE_VERSIONS)} or "
                f"{CODEBASE_VERSION}, to which LeRobot's own scripts convert older ones"
            )
        found, one = checked(INFO, info, file), version in EPISODE_VERSIONS
        counts = {
            name: getattr(found, name) for name in ("total_episodes", "total_frames", "total_tasks", "chunks_size")
        }
        pictures = _pictures(found.features, file)
        described = cls(
            info=info | {name: count for name, count in counts.items() if count is not None},
            version=str(version),
            fps=found.fps,
            cameras=_without_depth(_named(pictures, cameras, root), cameras, root),
            depths={name: one for name, one in _named(pictures, None, root).items() if isinstance(one, DepthFeature)},
            features={
                name: Feature(dtype=entry.dtype, shape=entry.shape or (1,), names=entry.names)
                for name, entry in found.features.items()
                if entry.is_numeric and name not in BOOKKEEPING
            },
            left_aside={
                name: entry.dtype
                for name, entry in found.features.items()
                if entry.dtype not in PICTURES and not is_numeric(entry.dtype)
            },
            data_path=found.data_path or (EPISODE_DATA_PATH if one else DATA_PATH),
            video_path=found.video_path or (EPISODE_VIDEO_PATH if one else VIDEO_PATH),
        )
        described._check_paths(file, found)
        return described

    def _check_paths(self, file: Path, found: Info) -> None:
        """Each episode has files of its own before v3.0, and no name of a feature leads out of the dataset."""
        in_videos = any(entry.dtype == "video" for entry in found.features.values())
        parts = {"data_path": (self.data_path, True), "video_path": (self.video_path, in_videos)}
        problems = [
            Problem(text=f"is {shown(template)}; expected {{episode_index}} in it", file=file, key=key)
            for key, (template, used) in parts.items()
            if used and self.episode_files and found.total_episodes > 1 and "{episode_index" not in template
        ]
        for name, entry in found.features.items():
            try:
                if entry.dtype == "video":
                    self.video_file(file.parents[1], Slot(chunk=0, file=0), name)
            except DataError as error:
                problems.append(Problem(text=f"is a feature's name: {error}", file=file, key=f"features.{shown(name)}"))
        if problems:
            raise MetadataError(problems)


QUOTES = "'\""


def _pictures(features: Mapping[str, FeatureEntry], file: Path) -> dict[str, CameraFeature]:
    """All cameras and depth maps of a description, by their feature's name."""
    found = {}
    for key, entry in features.items():
        if entry.dtype in PICTURES:
            height, width = _size(entry)
            where = {"key": key, "height": height, "width": width, "in_videos": entry.dtype == "video"}
            found[key] = _depth(where, entry, file) if _is_depth(key, entry) else CameraFeature(**where)
    return found


def _is_depth(key: str, entry: FeatureEntry) -> bool:
    """What the description says; where it says nothing, a single channel under a name with the word."""
    said = [entry.picture_info[name] for name in ("is_depth_map", "video.is_depth_map") if name in entry.picture_info]
    return any(value is True or value == 1 for value in said) or (
        not said and 1 in entry.shape and "depth" in key.lower()
    )


def _depth(where: Mapping[str, Any], entry: FeatureEntry, file: Path) -> DepthFeature:
    try:
        found: DepthInfo = checked(DEPTH, entry.picture_info, file)
    except MetadataError as error:
        own = f"features.{where['key']}.info"
        raise MetadataError([replace(problem, key=f"{own}.{problem.key}") for problem in error.problems]) from None
    return DepthFeature(**where, code=found.code, unit=found.metres)


def _size(entry: FeatureEntry) -> tuple[int, int]:
    """Height and width, whether the channels come first or last."""
    shape, names = entry.shape, entry.names or ()
    if len(names) == 3 and "height" in names and "width" in names:
        return shape[names.index("height")], shape[names.index("width")]
    first = shape[0] in (1, 3) and shape[2] not in (1, 3)
    height, width = shape[1:] if first else shape[:2]
    return height, width


def _without_depth(
    found: Mapping[str, CameraFeature], wanted: Mapping[str, str] | None, root: Path
) -> dict[str, CameraFeature]:
    """Cameras alone.

    Raises:
        ConfigError: A depth map was asked for by name.
    """
    depth = [one.key for one in found.values() if isinstance(one, DepthFeature)]
    if wanted is not None and depth:
        raise ConfigError(
            f"{root}: {depth[0]} is a depth map, not a camera's picture; a policy sees colour: name a feature that is not depth "
            "(`LeRobotDataset.depth` reads depth in metres)"
        )
    return {name: one for name, one in found.items() if one.key not in depth}


def _named(
    present: Mapping[str, CameraFeature], wanted: Mapping[str, str] | None, root: Path
) -> dict[str, CameraFeature]:
    """Cameras under the names that are wanted, or under their own without the customary prefix where that tells them apart."""
    if wanted is None:
        return {name: present[key] for name, key in short_names(present).items()}
    for key in wanted.values():
        if key not in present:
            cameras = [name for name, one in present.items() if not isinstance(one, DepthFeature)]
            known = unknown("camera feature", key, cameras)
            raise ConfigError(f"{root}: {known}")
    return {name: present[key] for name, key in wanted.items()}
