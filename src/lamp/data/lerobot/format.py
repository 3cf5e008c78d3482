"""The layout of a LeRobot dataset: `meta/info.json` (version, rate, cameras, depth, columns), paths, columns to and from Arrow.

We write v3.0 and read v2.0 and v2.1 too."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lamp.data.lerobot.metadata import (
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
from lamp.files import path_inside
from lamp.json_files import read_json_object

CODEBASE_VERSION = "v3.0"
"""What we write: many episodes in a file."""
EPISODE_VERSIONS = ("v2.0", "v2.1")
"""An episode a file; they differ in where statistics are."""
INFO_PATH = "meta/info.json"
STATISTICS_PATH = "meta/stats.json"
TASKS_PATH = "meta/tasks.parquet"
LAMP_PATH = "meta/lamp.json"
CHECKSUMS_PATH = "meta/checksums.json"
ATTEMPTS_PATH = "meta/collection_attempts.jsonl"
LAMP_EPISODES_PATH = "meta/lamp_episodes.jsonl"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
EPISODE_DATA_PATH = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
EPISODE_VIDEO_PATH = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
EPISODES_LINES = "meta/episodes.jsonl"
EPISODE_STATISTICS_LINES = "meta/episodes_stats.jsonl"
TASKS_LINES = "meta/tasks.jsonl"
IMAGE_PREFIX = "observation.images."
CHUNK_SIZE = 1000
"""Files per chunk folder."""


@dataclass(frozen=True, kw_only=True)
class Feature:
    """What one column holds: a NumPy type name, the shape of one frame's value, and names for its entries."""

    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "shape": list(self.shape), "names": list(self.names) if self.names else None}

    @classmethod
    def of(cls, values: np.ndarray) -> Feature:
        """The feature that fits an array of one value per frame."""
        return cls(dtype=values.dtype.name, shape=values.shape[1:] or (1,))


BOOKKEEPING: Mapping[str, Feature] = {
    "timestamp": Feature(dtype="float32", shape=(1,)),
    "frame_index": Feature(dtype="int64", shape=(1,)),
    "episode_index": Feature(dtype="int64", shape=(1,)),
    "index": Feature(dtype="int64", shape=(1,)),
    "task_index": Feature(dtype="int64", shape=(1,)),
}
"""Columns that every LeRobot dataset has, in both versions of the format."""


@dataclass(frozen=True, kw_only=True, order=True)
class Slot:
    """Which chunk and which file in it."""

    chunk: int
    file: int

    def next(self) -> Slot:
        return (
            Slot(chunk=self.chunk, file=self.file + 1)
            if self.file + 1 < CHUNK_SIZE
            else Slot(chunk=self.chunk + 1, file=0)
        )

    def path(self, root: Path, template: str, video_key: str = "", *, what: str = "file") -> Path:
        """The file in this slot under one of the path templates; before v3.0 each episode is a file.

        Raises:
            DataError: It would be outside the folder.
        """
        relative = template.format(
            chunk_index=self.chunk,
            file_index=self.file,
            video_key=video_key,
            episode_chunk=self.chunk,
            episode_index=self.file,
        )
        return path_inside(root, relative, what)


def to_arrow(values: np.ndarray, feature: Feature, name: str) -> pa.Array:
    """A column: plain values for shape (1,), fixed-size lists for vectors.

    Raises:
        DataError: The values do not have the feature's shape.
    """
    flat = np.ascontiguousarray(values, dtype=feature.dtype)
    if len(feature.shape) != 1 or flat.size != len(values) * feature.shape[0]:
        raise DataError(f"{name} has shape {values.shape}; expected one vector of shape {feature.shape} per frame")
    column = pa.array(flat.ravel())
    return column if feature.shape == (1,) else pa.FixedSizeListArray.from_arrays(column, feature.shape[0])


def from_arrow(column: pa.ChunkedArray, feature: Feature, name: str) -> np.ndarray:
    """The inverse of `to_arrow`; scalar columns come back as (L,), vectors as (L, d).

    A number that is missing becomes NaN where the feature has floating point.

    Raises:
        DataError: The column holds no numbers, numbers outside of the feature's type, or rows of another size than its shape.
    """
    array, width = column.combine_chunks(), 1
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    size = math.prod(feature.shape)
    while is_list(array.type):
        lengths = pc.call_function("list_value_length", [array]).fill_null(-1).to_numpy(zero_copy_only=False)
        width *= int(lengths[0]) if len(lengths) else 1
        wrong = np.flatnonzero((lengths != lengths[:1]) | (lengths < 0))
        if len(wrong) or size % max(width, 1):
            row = int(wrong[0]) if len(wrong) else 0
            raise DataError(
                f"column {name} holds {max(int(lengths[row]), 0)} values in row {row}; expected {size} a row"
            )
        array = array.flatten()
    values = _numbers(array, feature, name)
    if len(values) != len(column) * size:
        raise DataError(f"column {name} holds {len(values)} values in {len(column)} rows; expected {size} a row")
    return values if feature.shape == (1,) else values.reshape(len(column), *feature.shape)


def is_list(kind: pa.DataType) -> bool:
    """Whether a column of this type holds a list a row."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _numbers(array: pa.Array, feature: Feature, name: str) -> np.ndarray:
    """Plain values in the feature's type, none of which is changed by that."""
    kind, dtype = array.type, np.dtype(feature.dtype)
    if pa.types.is_dictionary(kind):
        array = array.dictionary_decode()
        kind = array.type
    if pa.types.is_decimal(kind):
        array = array.cast(pa.float64())
    elif pa.types.is_null(kind):
        array = pa.nulls(len(array), pa.float64())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise DataError(f"column {name} holds {kind}; expected {feature.dtype}")
    if array.null_count and dtype.kind != "f":
        row = int(array.is_null().to_numpy(zero_copy_only=False).argmax()) // math.prod(feature.shape)
        raise DataError(f"column {name} has no value in row {row}; expected {feature.dtype}")
    values = array.to_numpy(zero_copy_only=False)
    with np.errstate(invalid="ignore", over="ignore"):
        converted = values.astype(dtype, copy=False)
        if dtype.kind == "f":
            return converted  # finiteness is checked where values are used, with their frame
        wrong = np.asarray(converted != values)
    if wrong.any():
        place = int(wrong.argmax())
        raise DataError(
            f"column {name} holds {values[place]} in row {place // math.prod(feature.shape)}; expected {feature.dtype}"
        )
    return converted


def tasks_table(tasks: Sequence[str]) -> pa.Table:
    """The task list as pandas would write it: the task string is the index, `task_index` the only column."""
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), "task": pa.array(tasks, pa.string())})
    columns = [
        {
            "name": "task_index",
            "field_name": "task_index",
            "pandas_type": "int64",
            "numpy_type": "int64",
            "metadata": None,
        },
        {"name": "task", "field_name": "task", "pandas_type": "unicode", "numpy_type": "object", "metadata": None},
    ]
    pandas = {"index_columns": ["task"], "column_indexes": [], "columns": columns, "pandas_version": "2.0.0"}
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})


def video_feature(height: int, width: int, fps: float | int, codec: str, pixels: str = "yuv420p") -> dict[str, Any]:
    """A camera's entry in `info.json`."""
    return {
        "dtype": "video",
        "shape": [height, width, 3],
        "names": ["height", "width", "channels"],
        "info": {
            "video.height": height,
            "video.width": width,
            "video.codec": codec,
            "video.pix_fmt": pixels,
            "video.is_depth_map": False,
            "video.fps": fps,
            "video.channels": 3,
            "has_audio": False,
        },
    }


def short_names(features: Iterable[str], prefixes: Sequence[str] = (IMAGE_PREFIX,)) -> dict[str, str]:
    """Features by their names without the first of the customary prefixes that they have; those that would then have one name
    keep their whole ones, so that none is lost."""
    by_name: dict[str, list[str]] = {}
    for feature in features:
        prefix = next((prefix for prefix in prefixes if feature.startswith(prefix)), "")
        by_name.setdefault(feature.removeprefix(prefix), []).append(feature)
    return {
        feature if len(alike) > 1 else name: feature
        for name, alike in by_name.items()
        for feature in dict.fromkeys(alike)
    }


@dataclass(frozen=True, kw_only=True)
class CameraFeature:
    """Where a camera's pictures are, and their size by the description."""

    key: str
    """The feature's name in the dataset."""
    height: int
    width: int
    in_videos: bool
    """In video files; otherwise as encoded images in the data files."""
    is_depth: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class DepthFeature(CameraFeature):
    """Where the depth maps of a camera are: no pictures, and no camera of a policy."""

    code: DepthCode | None
    """How a video's codes were made; None where the description lacks it."""
    unit: float | None
    """What 1 stands for in images [m]; None: millimetres where they hold integers, metres where they hold floating point."""
    is_depth: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class DatasetMetadata:
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
    other_features: Mapping[str, str]
    """The types of features that are neither numbers nor pictures, such as text."""
    data_path: str
    video_path: str

    @property
    def pictures(self) -> Mapping[str, CameraFeature]:
        return {**self.cameras, **self.depths}

    @property
    def one_file_per_episode(self) -> bool:
        """Whether each episode is a file of its own."""
        return self.version in EPISODE_VERSIONS

    @property
    def chunk_size(self) -> int:
        """Episodes a chunk, where each is a file of its own."""
        return self.info.get("chunks_size") or CHUNK_SIZE

    def data_file(self, root: Path, slot: Slot) -> Path:
        return slot.path(root, self.data_path, what="data file")

    def video_file(self, root: Path, slot: Slot, key: str) -> Path:
        return slot.path(root, self.video_path, key, what="video")

    @classmethod
    def read(cls, root: Path, cameras: Mapping[str, str] | None = None) -> DatasetMetadata:
        """Reads a dataset's description.

        Args:
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
        info = read_json_object(file, "dataset description")
        version = info.get("codebase_version")
        if version not in (CODEBASE_VERSION, *EPISODE_VERSIONS):
            raise DataError(
                f"{root} is a LeRobot {shown(version).strip(QUOTES)} dataset; expected {', '.join(EPISODE_VERSIONS)} or "
                f"{CODEBASE_VERSION}, to which LeRobot's own scripts convert older ones"
            )
        described: Info = checked(INFO, info, file)
        one_file = version in EPISODE_VERSIONS
        counts = {
            name: getattr(described, name) for name in ("total_episodes", "total_frames", "total_tasks", "chunks_size")
        }
        pictures = _pictures(described.features, file)
        meta = cls(
            info=info | {name: count for name, count in counts.items() if count is not None},
            version=str(version),
            fps=described.fps,
            cameras=_without_depth(_named(pictures, cameras, root), cameras, root),
            depths={name: one for name, one in _named(pictures, None, root).items() if isinstance(one, DepthFeature)},
            features={
                name: Feature(dtype=entry.dtype, shape=entry.shape or (1,), names=entry.names)
                for name, entry in described.features.items()
                if entry.is_numeric and name not in BOOKKEEPING
            },
            other_features={
                name: entry.dtype
                for name, entry in described.features.items()
                if entry.dtype not in PICTURES and not is_numeric(entry.dtype)
            },
            data_path=described.data_path or (EPISODE_DATA_PATH if one_file else DATA_PATH),
            video_path=described.video_path or (EPISODE_VIDEO_PATH if one_file else VIDEO_PATH),
        )
        meta._check_paths(file, described)
        return meta

    def _check_paths(self, file: Path, info: Info) -> None:
        """Each episode has files of its own before v3.0, and no name of a feature leads out of the dataset."""
        in_videos = any(entry.dtype == "video" for entry in info.features.values())
        parts = {"data_path": (self.data_path, True), "video_path": (self.video_path, in_videos)}
        problems = [
            Problem(text=f"is {shown(template)}; expected {{episode_index}} in it", file=file, key=key)
            for key, (template, used) in parts.items()
            if used and self.one_file_per_episode and info.total_episodes > 1 and "{episode_index" not in template
        ]
        for name, entry in info.features.items():
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
    pictures = {}
    for key, entry in features.items():
        if entry.dtype in PICTURES:
            height, width = _size(entry)
            where = {"key": key, "height": height, "width": width, "in_videos": entry.dtype == "video"}
            pictures[key] = _depth(where, entry, file) if _is_depth(key, entry) else CameraFeature(**where)
    return pictures


def _is_depth(key: str, entry: FeatureEntry) -> bool:
    """Whether the description marks depth; where it has no mark, a single channel under a name with the word."""
    marks = [entry.picture_info[name] for name in ("is_depth_map", "video.is_depth_map") if name in entry.picture_info]
    return any(value is True or value == 1 for value in marks) or (
        not marks and 1 in entry.shape and "depth" in key.lower()
    )


def _depth(where: Mapping[str, Any], entry: FeatureEntry, file: Path) -> DepthFeature:
    try:
        depth: DepthInfo = checked(DEPTH, entry.picture_info, file)
    except MetadataError as error:
        own = f"features.{where['key']}.info"
        raise MetadataError([replace(problem, key=f"{own}.{problem.key}") for problem in error.problems]) from None
    return DepthFeature(**where, code=depth.code, unit=depth.metres)


def _size(entry: FeatureEntry) -> tuple[int, int]:
    """Height and width, whether the channels come first or last."""
    shape, names = entry.shape, entry.names or ()
    if len(names) == 3 and "height" in names and "width" in names:
        return shape[names.index("height")], shape[names.index("width")]
    first = shape[0] in (1, 3) and shape[2] not in (1, 3)
    height, width = shape[1:] if first else shape[:2]
    return height, width


def _without_depth(
    cameras: Mapping[str, CameraFeature], wanted: Mapping[str, str] | None, root: Path
) -> dict[str, CameraFeature]:
    """Cameras alone.

    Raises:
        ConfigError: A depth map was given as a camera.
    """
    depth = [one.key for one in cameras.values() if one.is_depth]
    if wanted is not None and depth:
        raise ConfigError(
            f"{root}: {depth[0]} is a depth map, not a camera's picture; a policy sees colour: name a feature that is not depth "
            "(`LeRobotDataset.depth` reads depth in metres)"
        )
    return {name: one for name, one in cameras.items() if one.key not in depth}


def _named(
    present: Mapping[str, CameraFeature], wanted: Mapping[str, str] | None, root: Path
) -> dict[str, CameraFeature]:
    """Cameras under the names that are wanted, or under their own without the customary prefix where that tells them apart."""
    if wanted is None:
        return {name: present[key] for name, key in short_names(present).items()}
    for key in wanted.values():
        if key not in present:
            cameras = [name for name, one in present.items() if not one.is_depth]
            known = unknown("camera feature", key, cameras)
            raise ConfigError(f"{root}: {known}")
    return {name: present[key] for name, key in wanted.items()}
