"""Reading LeRobot datasets, from a folder or the Hugging Face hub: the description, the frames' values, and the images."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8

from lamp.data.lerobot.episodes import EpisodeIndex, EpisodeLines, EpisodeMetadata, EpisodeTable, distinct, read_parquet
from lamp.data.lerobot.format import (
    BOOKKEEPING,
    LAMP_EPISODES_PATH,
    LAMP_PATH,
    STATISTICS_PATH,
    DatasetMetadata,
    Slot,
    from_arrow,
)
from lamp.data.lerobot.metadata import by_episode
from lamp.data.lerobot.statistics import FeatureStatistics, stored_statistics
from lamp.data.lerobot.video import VideoReaders
from lamp.data.stored_images import CorruptPicturesError, StoredImages, metres_of_codes
from lamp.errors import ConfigError, DataError, unknown
from lamp.hub import Fetch, HubId, fetch
from lamp.json_files import read_json_object, read_lines_json

FRESH = "observation.fresh"
"""False where a frame repeats the image rendered for an earlier one."""
COLUMN_BYTES = 256 << 20
"""Columns of data files that stay in memory, up to this many bytes: episodes are mostly read in their order."""
OVERRIDDEN = "action.overridden"
"""True where something else than the action with its noise was executed, such as a push."""


class LeRobotDataset:
    """A LeRobot dataset, v3.0 or v2, in a folder. Opening it reads the description only.

    Cameras go by their short names: ``agentview`` for the feature ``observation.images.agentview``.
    """

    def __init__(self, root: str | os.PathLike[str], *, cameras: Mapping[str, str] | None = None):
        """
        Args:
            root: The folder, or the id of a dataset on the Hugging Face hub, such as ``lerobot/pusht``.
            cameras: Names to give to features of the dataset; None: all of its cameras, under their own short names.

        Raises:
            DataError: The folder is not a dataset, of another version, or its description is incomplete.
            ConfigError: The dataset lacks one of the cameras.
        """
        self.root = find_dataset(root)
        self.meta = DatasetMetadata.read(self.root, cameras)
        self.info: dict[str, Any] = self.meta.info
        self.fps = self.meta.fps
        self.cameras = tuple(self.meta.cameras)
        self.image_sizes: dict[str, tuple[int, int]] = {
            name: (camera.height, camera.width) for name, camera in self.meta.cameras.items()
        }
        self.depth_cameras = tuple(self.meta.depths)  # depth maps, which are no cameras of a policy
        self.features = dict(self.meta.features)
        self._columns: OrderedDict[tuple[Slot, str], np.ndarray] = OrderedDict()
        self._column_bytes = 0
        self._videos, self._stored_images = VideoReaders(), StoredImages(self.root)
        self._depth_videos = VideoReaders(limit=2, depth=True)

    def __len__(self) -> int:
        """Number of episodes."""
        return int(self.info["total_episodes"])

    def __getstate__(self) -> dict[str, Any]:
        """Without cached values, for another process."""
        cleared = {"_columns": OrderedDict(), "_column_bytes": 0, "_stored_images": StoredImages(self.root)}
        return {**self.__dict__, **cleared}

    def check_episodes(self) -> None:
        """Refuses a dataset without episodes, by a DataError."""
        if len(self) == 0:
            raise DataError(f"{self.root} has no episodes; expected at least one")

    @cached_property
    def _tasks(self) -> dict[int, str]:
        return self.table.tasks()

    @cached_property
    def tasks(self) -> list[str]:
        """The instructions, by task index."""
        return [task for _, task in sorted(self._tasks.items())]

    @cached_property
    def table(self) -> EpisodeIndex:
        """Where the episodes are listed."""
        cameras = self.meta.cameras
        if self.meta.one_file_per_episode:
            size = self.meta.chunk_size
            return EpisodeLines(root=self.root, total=len(self), cameras=cameras, chunk_size=size)
        return EpisodeTable(root=self.root, total=len(self), fps=self.fps, cameras=cameras)

    @cached_property
    def episodes(self) -> list[EpisodeMetadata]:
        """All episodes, by index."""
        return [self._with_tasks(place) for place in self.table.episodes()]

    def _with_tasks(self, place: EpisodeMetadata) -> EpisodeMetadata:
        """An episode with its instructions in the order of its frames, where the list of episodes leaves that open."""
        if len(place.tasks) == 1:
            return place
        try:
            return replace(place, tasks=distinct(self._instructions(place)[0]))
        except DataError:
            return place  # the error is raised when its frames are read

    def instructions(self, episode: int) -> tuple[tuple[str, ...], Int64[np.ndarray, " l"]]:
        """The instructions of an episode, in the order of its frames, and which of them each frame has.

        Each frame's `task_index` decides; data without that column fall back to the list of episodes.

        Raises:
            ConfigError: There is no such episode.
            DataError: A frame's task is not among the dataset's tasks, or the data cannot be read.
        """
        return self._instructions(self.episode(episode))

    def instruction_index(
        self, episodes: Sequence[int], frames: Sequence[np.ndarray]
    ) -> tuple[tuple[str, ...], Int64[np.ndarray, " n"]]:
        """All instructions of some frames, and which of them each frame has.

        Args:
            frames: Of each episode, numbers of its frames.
        """
        known: dict[str, int] = {}
        indices = [np.zeros(0, np.int64)]
        for episode, of_episode in zip(episodes, frames, strict=True):
            texts, text_of_frame = self.instructions(episode)
            places = np.array([known.setdefault(text, len(known)) for text in texts], np.int64)
            indices.append(places[text_of_frame[of_episode]])
        return tuple(known), np.concatenate(indices)

    def instruction(self, episode: int, frame: int) -> str:
        """The instruction of one frame of an episode."""
        texts, text_of_frame = self.instructions(episode)
        return texts[text_of_frame[frame]]

    def _instructions(self, place: EpisodeMetadata) -> tuple[tuple[str, ...], Int64[np.ndarray, " l"]]:
        if place.length == 0:
            raise DataError(f"{self.root}: episode {place.index} has no frames; expected at least one: leave it out")
        try:
            indices = self._rows("task_index", place)
        except DataError:
            if len(place.tasks) != 1:
                raise
            return place.tasks, np.zeros(place.length, np.int64)
        if len(indices) and indices[0] in self._tasks and (indices == indices[0]).all():
            return (self._tasks[int(indices[0])],), np.zeros(place.length, np.int64)
        numbers, first, inverse = np.unique(indices, return_index=True, return_inverse=True)
        unlisted = [number for number in numbers.tolist() if number not in self._tasks]
        if unlisted:
            frame = int(np.isin(indices, unlisted).argmax())
            raise DataError(
                f"{self.root}: episode {place.index}, frame {frame} has the task_index {indices[frame]}, which is not among the "
                f"dataset's {len(self._tasks)} tasks; list it, or leave the episode out"
            )
        # Two indices may stand for one text.
        ordered = [self._tasks[number] for number in numbers[np.argsort(first)].tolist()]
        texts = tuple(dict.fromkeys(ordered))
        place_of = np.array([texts.index(self._tasks[number]) for number in numbers.tolist()], np.int64)
        return texts, place_of[inverse.reshape(-1)]

    def episode(self, index: int) -> EpisodeMetadata:
        """One episode.

        Raises:
            ConfigError: There is no such episode.
        """
        if not 0 <= index < len(self):
            raise unknown("episode", index, (f"0 to {len(self) - 1}",))
        return self.episodes[index]

    def column(self, name: str, episode: int) -> np.ndarray:
        """A feature's values in one episode: (L, d), or (L,) for a single value per frame.

        Raises:
            ConfigError: The dataset has no such feature.
            DataError: The data file is missing, corrupt, or lacks the column or rows.
        """
        return self._rows(name, self.episode(episode))

    def _rows(self, name: str, place: EpisodeMetadata) -> np.ndarray:
        values = self._file_column(place.slot, name)[place.row : place.row + place.length]
        if len(values) != place.length:
            path, rows = self.meta.data_file(self.root, place.slot), f"{len(values)} of {place.length}"
            raise DataError(f"{path} lacks rows of episode {place.index}: {rows}; it is incomplete")
        return values

    def all_values(self, name: str) -> np.ndarray:
        """A feature's values in all episodes, one after another."""
        self.check_episodes()
        return np.concatenate([self.column(name, index) for index in range(len(self))])

    def _file_column(self, slot: Slot, name: str) -> np.ndarray:
        """A column of a whole data file; those used last stay in memory."""
        kept = self._columns.get((slot, name))
        if kept is not None:
            self._columns.move_to_end((slot, name))
            return kept
        feature = {**self.features, **BOOKKEEPING}.get(name)
        if feature is None:
            raise unknown("feature", name, (*self.features, *BOOKKEEPING))
        path = self.meta.data_file(self.root, slot)
        values = from_arrow(read_parquet(path, [name])[name], feature, f"{name} of {path}")
        self._columns[slot, name] = values
        self._column_bytes += values.nbytes
        while self._column_bytes > COLUMN_BYTES and len(self._columns) > 1:
            self._column_bytes -= self._columns.popitem(last=False)[1].nbytes
        return values

    def fresh(self, episode: int) -> Bool[np.ndarray, " l"]:
        """Which frames have an image of their own, rather than a repetition; all, where the dataset has no such column."""
        return self._flags(FRESH, episode, default=True)

    def overridden(self, episode: int) -> Bool[np.ndarray, " l"]:
        """At which frames another action than the recorded one was executed; none, where the dataset has no such column."""
        return self._flags(OVERRIDDEN, episode, default=False)

    def _flags(self, name: str, episode: int, *, default: bool) -> Bool[np.ndarray, " l"]:
        if name not in self.features:
            return np.full(self.episode(episode).length, default)
        return self.column(name, episode).astype(bool)

    def data_path(self, episode: int) -> Path:
        """The data file that holds the episode's rows."""
        return self.meta.data_file(self.root, self.episode(episode).slot)

    def camera_key(self, camera: str) -> str:
        """The feature that holds a camera's pictures.

        Raises:
            ConfigError: The dataset has no such camera.
        """
        if camera in self.meta.depths:
            raise ConfigError(f"{camera} is a depth map of {self.root}, not a picture; read it with `depth`, in metres")
        if camera not in self.meta.cameras:
            raise unknown("camera", camera, self.cameras)
        return self.meta.cameras[camera].key

    def video_path(self, camera: str, episode: int) -> Path:
        """The file that holds the episode's pictures: a video, or the data file itself.

        Raises:
            ConfigError: The dataset has no such camera or episode.
        """
        key = self.camera_key(camera)
        if not self.meta.cameras[camera].in_videos:
            return self.data_path(episode)
        return self.meta.video_file(self.root, self.episode(episode).videos[camera].slot, key)

    def frames(
        self, camera: str, episode: int, indices: Sequence[int] | np.ndarray | None = None
    ) -> UInt8[np.ndarray, "n h w 3"]:
        """Decodes frames of one episode; `indices` are sorted frame indices within the episode, None means all.

        Raises:
            ConfigError: The dataset has no such camera, episode or frame.
            DataError: The pictures are missing, truncated or corrupt.
        """
        path, place = self.video_path(camera, episode), self.episode(episode)
        wanted = _frames_of(place, indices)
        feature = self.meta.cameras[camera]
        try:
            if feature.in_videos:
                return self._videos.read(path, wanted + place.videos[camera].first, self.fps)
            return self._stored_images.read(path, feature, wanted + place.row)
        except DataError as error:
            message = f"episode {episode}, camera {camera}: {error}"
            raise CorruptPicturesError(message, path=path, episode=episode) from None

    def depth(
        self, name: str, episode: int, indices: Sequence[int] | np.ndarray | None = None
    ) -> Float32[np.ndarray, "n h w"]:
        """Depth maps of frames of one episode [m]; NaN where the sensor saw nothing.

        Values at the end of a video's range, its `video.depth_max`, may have been any larger ones.

        Args:
            name: One of `depth_cameras`.
            indices: Sorted frame indices within the episode; None: all.

        Raises:
            ConfigError: The dataset has no such depth, episode or frame.
            DataError: They are missing, truncated or corrupt, or coloured renderings of depth, without metres.
        """
        if name not in self.meta.depths:
            raise unknown("depth", name, self.depth_cameras)
        place, feature = self.episode(episode), self.meta.depths[name]
        wanted = _frames_of(place, indices)
        path = self.data_path(episode)
        try:
            if not feature.in_videos:
                return self._stored_images.read_depth(path, feature, wanted + place.row)
            span = self._depth_places[episode].videos[name]
            path = self.meta.video_file(self.root, span.slot, feature.key)
            codes = self._depth_videos.read(path, wanted + span.first, self.fps)
            return metres_of_codes(codes, feature, self._depth_videos.reader(path, self.fps).bits, f"the video {path}")
        except DataError as error:
            message = f"episode {episode}, depth {name}: {error}"
            raise CorruptPicturesError(message, path=path, episode=episode) from None

    @cached_property
    def _depth_places(self) -> list[EpisodeMetadata]:
        """The episodes with the places of their depth maps, read only when depth is."""
        return replace(self.table, cameras=self.meta.depths).episodes()

    def statistics(self, name: str) -> FeatureStatistics:
        """A feature's statistics over the dataset; cameras go by either name.

        Numbers whose stored statistics are missing, or lack quantiles as those of v2 do, are summarised here.

        Raises:
            ConfigError: There are none of that name.
            DataError: The file is missing or lacks a quantile, of a camera's pictures.
        """
        path, key = self.root / STATISTICS_PATH, self.meta.cameras[name].key if name in self.cameras else name
        computable = key in self.features
        stored = read_json_object(path, "file of dataset statistics") if path.is_file() or not computable else {}
        if key in stored and not (computable and FeatureStatistics.lacking(stored[key])):
            return FeatureStatistics.from_json(stored[key], where=f"{path}: {key}")
        if not computable:
            raise unknown("statistics", key, stored)
        return stored_statistics(self)[key]

    @cached_property
    def lamp(self) -> dict[str, Any]:
        """How LaMP collected the data (`meta/lamp.json`); empty for datasets from elsewhere."""
        path = self.root / LAMP_PATH
        return read_json_object(path, "description of the collection") if path.exists() else {}

    @cached_property
    def _extras(self) -> dict[int, dict[str, Any]]:
        return by_episode(read_lines_json(self.root / LAMP_EPISODES_PATH), self.root / LAMP_EPISODES_PATH)

    def extra(self, episode: int) -> dict[str, Any]:
        """What the collector noted about an episode: its name, initial state, seeds."""
        return self._extras.get(self.episode(episode).index, {"episode_index": episode})

    def fingerprint(self, episode: int) -> str:
        """A hash of what an episode holds, with pictures known by their files: caches go stale when it changes."""
        place, name = self.episode(episode), self.extra(episode).get("name")
        digest = hashlib.sha256(f"{place.index} {place.length} {self.instruction_key(episode)} {name}".encode())
        for camera in self.cameras:
            path = self.video_path(camera, episode)
            size = path.stat().st_size if path.is_file() else 0
            digest.update(f"{camera} {place.videos.get(camera)} {size}".encode())
        for name in sorted(self.features):
            digest.update(np.ascontiguousarray(self.column(name, episode)).tobytes())
        return digest.hexdigest()[:16]

    @cached_property
    def content(self) -> str:
        """Content hash of the whole dataset."""
        prints = (self.fingerprint(episode) for episode in range(len(self)))
        return hashlib.sha256("\n".join(prints).encode()).hexdigest()[:32]

    def instruction_key(self, episode: int) -> str:
        """An episode's instruction as its hashes know it: the text or, where there are several, those of each frame."""
        texts, text_of_frame = self.instructions(episode)
        return texts[0] if len(texts) == 1 else f"{texts} {text_of_frame.tolist()}"

    def files(self) -> set[Path]:
        """All data, video and episode files that the dataset refers to."""
        videos = {self.video_path(camera, episode.index) for camera in self.cameras for episode in self.episodes}
        return {self.data_path(episode.index) for episode in self.episodes} | videos | self.table.files()

    def describe(self) -> dict[str, Any]:
        """A summary for people: sizes, tasks with their numbers of episodes, cameras, features, how it was collected."""
        lengths, depths = np.array([episode.length for episode in self.episodes] or [0]), self.meta.depths
        tasks = {task: sum(task in episode.tasks for episode in self.episodes) for task in self.tasks}
        return {
            "root": str(self.root),
            "format": f"LeRobot {self.meta.version}",
            "episodes": len(self),
            "frames": int(self.info["total_frames"]),
            "fresh frames": int(sum(self.fresh(index).sum() for index in range(len(self)))),
            "episode length": {"min": int(lengths.min()), "mean": float(lengths.mean()), "max": int(lengths.max())},
            "fps": self.fps,
            "tasks": {task: count for task, count in tasks.items() if count},
            "cameras": {camera: list(size) for camera, size in self.image_sizes.items()},
            **({"depth": {name: [one.height, one.width] for name, one in depths.items()}} if depths else {}),
            "features": {name: list(feature.shape) for name, feature in self.features.items()},
            "collection": self.lamp,
        }


def _frames_of(place: EpisodeMetadata, indices: Sequence[int] | np.ndarray | None) -> Int64[np.ndarray, " n"]:
    wanted = np.arange(place.length) if indices is None else np.asarray(indices, np.int64).reshape(-1)
    if len(wanted) and (wanted.min() < 0 or wanted.max() >= place.length):
        raise unknown("frame", int(wanted.max()), (f"0 to {place.length - 1} in episode {place.index}",))
    return wanted


def find_dataset(source: str | os.PathLike[str]) -> Path:
    """The folder of a dataset. One downloaded from the hub is used again without a request.

    Args:
        source: A folder, or an id such as ``lerobot/pusht`` or ``lerobot/pusht@v2.1``; a folder that exists comes first.

    Raises:
        DataError: There is no such folder, and the hub cannot be reached or has no such dataset.
        MissingDependencyError: A hub id was given, and the hub's package is not installed.
    """
    hub = None if Path(source).is_dir() else HubId.parse(os.fspath(source))
    if hub is None:
        return Path(source)
    instead = "Expected a folder with meta/info.json, or an id on a hub that can be reached."
    return fetch(hub, Fetch(kind="dataset", instead=instead, stored_first=True))
