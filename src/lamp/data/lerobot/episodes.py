"""The episodes of a LeRobot dataset, and where each one's rows and images are: v3.0's episode table, v2's files of JSON lines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from lamp.data.lerobot.format import (
    CHUNK_SIZE,
    EPISODE_STATISTICS_LINES,
    EPISODES_LINES,
    EPISODES_PATH,
    TASKS_LINES,
    TASKS_PATH,
    CameraFeature,
    Slot,
)
from lamp.data.lerobot.metadata import (
    EPISODES,
    TASKS,
    MetadataError,
    Problem,
    as_rows,
    by_episode,
    checked_rows,
    episode_rows,
)
from lamp.data.lerobot.statistics import FeatureStatistics
from lamp.errors import DataError, unreadable
from lamp.json_files import each_line_json, read_lines_json

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class VideoSpan:
    """Where an episode's frames are in a camera's video files."""

    slot: Slot
    first: int
    """Number, in the file, of the episode's first frame."""


@dataclass(frozen=True, kw_only=True)
class EpisodeMetadata:
    """One episode's place in the dataset."""

    index: int
    length: int
    tasks: tuple[str, ...]
    """Its instructions, in the order of its frames where the frames' task indices give one, otherwise as listed; empty where the
    dataset has none. `LeRobotDataset.instructions` maps frames to them."""
    start: int
    """The dataset's number of the first frame."""
    slot: Slot
    """The data file that holds it."""
    row: int
    """Its first row in that file."""
    videos: Mapping[str, VideoSpan]
    """Per camera that is in videos, under its short name."""

    def first_picture(self, camera: str) -> int:
        """The number of its first picture in the file that holds the camera's: a video, or the data file itself."""
        return self.videos[camera].first if camera in self.videos else self.row

    @property
    def task(self) -> str:
        """The first of its instructions, which is that of its first frame; empty where there is none."""
        return next(iter(self.tasks), "")


CORRUPT = (pa.ArrowException, OSError, ValueError, TypeError, KeyError, IndexError, OverflowError, MemoryError)
"""What the library raises for files that are no Parquet, or no longer."""


@contextmanager
def open_parquet(path: Path, columns: Sequence[str] = ()) -> Iterator[pq.ParquetFile]:
    """Opens a data file that must have some columns; errors of reading it inside the block name the file.

    Raises:
        DataError: The file is missing, corrupt, or lacks a column.
    """
    if not path.is_file():
        raise DataError(f"no file {path}; the dataset is incomplete")
    try:
        with pq.ParquetFile(path) as file:
            present = file.schema_arrow.names
            missing = [name for name in columns if name not in present]
            if missing:
                raise DataError(f"{path} lacks the column {missing[0]}; it has {', '.join(present)}")
            yield file
    except CORRUPT as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        damaged = DataError(f"cannot read {path} ({reason}); it is truncated or corrupt")
        raise unreadable(path, error, damaged) from None


def column_names(path: Path) -> list[str]:
    """The columns of a file.

    Raises:
        DataError: The file is missing or corrupt.
    """
    with open_parquet(path) as file:
        return list(file.schema_arrow.names)


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Reads some columns of a file, or all.

    Raises:
        DataError: The file is missing, corrupt, or lacks a column.
    """
    with open_parquet(path, columns or ()) as file:
        return file.read(columns=list(columns) if columns is not None else None)


def _in_order(rows: Sequence[Mapping[str, Any]], total: int, where: str) -> list[Mapping[str, Any]]:
    """The rows of episodes 0 to total - 1, sorted; rows beyond do not count.

    Raises:
        DataError: An episode is not there, or twice.
    """
    counted = sorted((row for row in rows if row["episode_index"] < total), key=lambda row: row["episode_index"])
    place = next((place for place, row in enumerate(counted) if row["episode_index"] != place), len(counted))
    if len(counted) != total or place < total:
        again = place > 0 and place < len(counted) and counted[place]["episode_index"] == place - 1
        wrong = place - 1 if again else place
        times = sum(row["episode_index"] == wrong for row in counted)
        raise DataError(
            f"{where} lists episode {wrong} {times} times; expected episodes 0 to {total - 1} once each "
            "(`lamp data check` lists all faults)"
        )
    return counted


@dataclass(frozen=True, kw_only=True)
class EpisodeIndex(ABC):
    """Where a dataset lists its tasks and its episodes."""

    root: Path
    total: int
    cameras: Mapping[str, CameraFeature]

    @property
    @abstractmethod
    def source(self) -> str:
        """Where the episodes are listed, in words."""

    @abstractmethod
    def files(self) -> set[Path]:
        """The files that describe the episodes."""

    @abstractmethod
    def read_tasks(self) -> tuple[dict[int, str], list[Problem]]:
        """The instructions by task index, and the problems of other entries."""

    @abstractmethod
    def read_rows(self, *, whole: bool = False) -> tuple[list[Mapping[str, Any]], list[Problem]]:
        """The rows of all episodes, in the files' order, and the problems of other rows.

        Args:
            whole: Check columns too that only other programs need.
        """

    @abstractmethod
    def from_rows(self, rows: Sequence[Mapping[str, Any]]) -> list[EpisodeMetadata]:
        """The episodes of some rows."""

    @abstractmethod
    def _statistics(self, feature: str) -> tuple[str, Mapping[int, Any]]:
        """Where a feature's statistics are, in words, and what is there of each episode."""

    def statistics(self, feature: str) -> list[FeatureStatistics]:
        """A feature's statistics in each episode.

        Raises:
            DataError: The dataset lacks them, as those of v2.0 do, or they lack quantiles.
        """
        where, stored = self._statistics(feature)
        listed = _in_order([{"episode_index": index} for index in stored], self.total, where)
        return [
            FeatureStatistics.from_json(stored[row["episode_index"]], where=f"{where}: {feature}") for row in listed
        ]

    def tasks(self) -> dict[int, str]:
        """The instructions, by task index.

        Raises:
            DataError: They cannot be read, or one is no text.
        """
        return _without_problems(*self.read_tasks())

    def episodes(self) -> list[EpisodeMetadata]:
        """All episodes, by index.

        Raises:
            DataError: One is not listed, or twice, or not as it should be.
        """
        return self.from_rows(_in_order(_without_problems(*self.read_rows()), self.total, self.source))

    def each_recorded_statistics(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """The statistics of all features, episode by episode, where a file of its own holds them.

        Raises:
            DataError: A line is no JSON, or lacks its episode index.
        """
        return iter(())


@dataclass(frozen=True, kw_only=True)
class EpisodeTable(EpisodeIndex):
    """v3.0's table, of which the first `total` rows count: a killed writer may have left others beyond them."""

    fps: float

    @property
    def source(self) -> str:
        return f"the episode table of {self.root}"

    def _paths(self) -> list[Path]:
        files = sorted((self.root / "meta/episodes").glob("chunk-*/file-*.parquet"))
        if not files:
            first = EPISODES_PATH.format(chunk_index=0, file_index=0)
            raise DataError(f"{self.root} has no episode table; expected {first}")
        return files

    def files(self) -> set[Path]:
        indices = {
            path: by_episode(as_rows(read_parquet(path, ["episode_index"]), path), path) for path in self._paths()
        }
        return {path for path, rows in indices.items() if min(rows, default=self.total) < self.total}

    def read_tasks(self) -> tuple[dict[int, str], list[Problem]]:
        path = self.root / TASKS_PATH
        table = read_parquet(path)
        names = [name for name in ("task", "__index_level_0__", *table.column_names) if name in table.column_names]
        text = next((name for name in names if name != "task_index"), None)
        if text is None or "task_index" not in table.column_names:
            raise DataError(f"{path} has the columns {table.column_names}; expected task and task_index")
        rows = as_rows(table.select(["task_index", text]).rename_columns(["task_index", "task"]), path)
        good, problems = checked_rows(TASKS, rows, path)
        return {row["task_index"]: row["task"] for _, row in sorted(good.items())}, problems

    def read_rows(self, *, whole: bool = False) -> tuple[list[Mapping[str, Any]], list[Problem]]:
        rows, problems = list[Mapping[str, Any]](), list[Problem]()
        row = episode_rows(tuple(f"videos/{camera.key}" for camera in self.cameras.values() if camera.in_videos))
        wanted = self.columns()
        if whole:
            ends = [f"videos/{camera.key}/to_timestamp" for camera in self.cameras.values() if camera.in_videos]
            wanted += ["dataset_to_index", "meta/episodes/chunk_index", "meta/episodes/file_index", *ends]
        for path in self._paths():
            present = column_names(path)
            read = as_rows(read_parquet(path, [name for name in wanted if name in present]), path)
            good, wrong = checked_rows(row, read, path)
            rows += good.values()
            problems += wrong
        return rows, [one for one in problems if any(e is None or e < self.total for e in (one.episode, *one.later))]

    def columns(self) -> list[str]:
        """The columns with the places, lengths and tasks of episodes, of which `tasks` may be missing."""
        parts = ("chunk_index", "file_index", "from_timestamp")
        videos = [
            f"videos/{camera.key}/{part}" for camera in self.cameras.values() if camera.in_videos for part in parts
        ]
        places = ["length", "dataset_from_index", "data/chunk_index", "data/file_index"]
        return ["episode_index", "tasks", *places, *videos]

    def from_rows(self, rows: Sequence[Mapping[str, Any]]) -> list[EpisodeMetadata]:
        first: dict[Slot, int] = {}
        for row in rows:
            slot = _slot(row, "data")
            first[slot] = min(first.get(slot, row["dataset_from_index"]), row["dataset_from_index"])
        return [self._episode(row, row["dataset_from_index"] - first[_slot(row, "data")]) for row in rows]

    def _episode(self, row: Mapping[str, Any], first_row: int) -> EpisodeMetadata:
        videos = {
            name: VideoSpan(
                slot=_slot(row, f"videos/{camera.key}"),
                first=round(row[f"videos/{camera.key}/from_timestamp"] * self.fps),
            )
            for name, camera in self.cameras.items()
            if camera.in_videos
        }
        return EpisodeMetadata(
            index=row["episode_index"],
            length=row["length"],
            tasks=distinct(row.get("tasks", ())),
            start=row["dataset_from_index"],
            slot=_slot(row, "data"),
            row=first_row,
            videos=videos,
        )

    def _statistics(self, feature: str) -> tuple[str, Mapping[int, Any]]:
        names = [field.name for field in fields(FeatureStatistics)]
        stored = dict[int, Any]()
        for path in self._paths():
            columns = ["episode_index", *(f"stats/{feature}/{name}" for name in names)]
            rows = by_episode(as_rows(read_parquet(path, columns), path), path)
            stored |= {index: {name: row[f"stats/{feature}/{name}"] for name in names} for index, row in rows.items()}
        return self.source, stored


def _without_problems(value: Value, problems: Sequence[Problem]) -> Value:
    if problems:
        raise MetadataError(problems)
    return value


def distinct(texts: Sequence[str]) -> tuple[str, ...]:
    """Each text once, in order; what is blank is none."""
    return tuple(dict.fromkeys(text for text in texts if text.strip()))


def _slot(row: Mapping[str, Any], prefix: str) -> Slot:
    return Slot(chunk=row[f"{prefix}/chunk_index"], file=row[f"{prefix}/file_index"])


def _object(value: Any) -> dict[str, Any]:
    """A value where it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


LINES_AT_ONCE = 512


@dataclass(frozen=True, kw_only=True)
class EpisodeLines(EpisodeIndex):
    """v2's files of JSON lines."""

    chunk_size: int = CHUNK_SIZE
    """Episodes a chunk."""

    @property
    def source(self) -> str:
        return str(self.root / EPISODES_LINES)

    def _lines(self, name: str) -> list[Any]:
        if not (self.root / name).is_file():
            raise DataError(f"no file {self.root / name}; the dataset is incomplete")
        return read_lines_json(self.root / name)

    def files(self) -> set[Path]:
        return {self.root / EPISODES_LINES, self.root / TASKS_LINES}

    def read_tasks(self) -> tuple[dict[int, str], list[Problem]]:
        good, problems = checked_rows(TASKS, self._lines(TASKS_LINES), self.root / TASKS_LINES)
        return {row["task_index"]: row["task"] for row in good.values()}, problems

    def read_rows(self, *, whole: bool = False) -> tuple[list[Mapping[str, Any]], list[Problem]]:
        """The lines of all episodes, in the file's order, and the problems of other lines; all columns are checked."""
        good, problems = checked_rows(EPISODES, self._lines(EPISODES_LINES), self.root / EPISODES_LINES)
        return list(good.values()), problems

    def from_rows(self, rows: Sequence[Mapping[str, Any]]) -> list[EpisodeMetadata]:
        episodes, start = [], 0
        for row in rows:
            slot = Slot(chunk=row["episode_index"] // self.chunk_size, file=row["episode_index"])
            span = VideoSpan(slot=slot, first=0)
            episodes.append(
                EpisodeMetadata(
                    index=row["episode_index"],
                    length=row["length"],
                    tasks=distinct(row.get("tasks", ())),
                    start=start,
                    slot=slot,
                    row=0,
                    videos={name: span for name, camera in self.cameras.items() if camera.in_videos},
                )
            )
            start += row["length"]
        return episodes

    def recorded_statistics(self) -> dict[int, dict[str, Any]]:
        """Each episode's stored statistics, by feature; empty for v2.0.

        Raises:
            DataError: A line lacks its episode index.
        """
        path = self.root / EPISODE_STATISTICS_LINES
        if not path.is_file():
            return {}
        return {index: _object(row.get("stats")) for index, row in by_episode(read_lines_json(path), path).items()}

    def each_recorded_statistics(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """A line at a time: of very many episodes, the whole file takes gigabytes in memory."""
        path = self.root / EPISODE_STATISTICS_LINES
        lines = each_line_json(path)
        while some := list(islice(lines, LINES_AT_ONCE)):
            try:
                rows = by_episode(some, path)
            except MetadataError:
                self.recorded_statistics()  # its error lists the faulty lines of the whole file by number
                raise
            yield from ((index, _object(row.get("stats"))) for index, row in rows.items())

    def _statistics(self, feature: str) -> tuple[str, Mapping[int, Any]]:
        path = self.root / EPISODE_STATISTICS_LINES
        if not path.is_file():
            raise DataError(f"no file {path}; the dataset is incomplete")
        return str(path), {index: stats.get(feature, {}) for index, stats in self.recorded_statistics().items()}
