"""The episode table of a LeRobot v3.0 dataset: where each episode's rows and pictures are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lamp.data.description import CameraFeature
from lamp.data.lerobot_format import EPISODES_PATH, TASKS_PATH, Slot
from lamp.data.statistics import FeatureStatistics
from lamp.errors import DataError, unreadable


@dataclass(frozen=True, kw_only=True)
class VideoSpan:
    """Where an episode's frames are in a camera's video files."""

    slot: Slot
    first: int
    """Number, in the file, of the episode's first frame."""


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One episode's place in the dataset."""

    index: int
    length: int
    task: str
    """The instruction in words; empty where the dataset has none."""
    start: int
    """The dataset's number of the first frame."""
    slot: Slot
    """The data file that holds it."""
    row: int
    """Its first row in that file."""
    videos: Mapping[str, VideoSpan]
    """Per camera that is in videos, under its short name."""


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    if not path.is_file():
        raise DataError(f"no file {path}; the dataset is incomplete")
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        damaged = DataError(f"cannot read {path} ({reason}); it is truncated or corrupt")
        raise unreadable(path, error, damaged) from None


def column_names(path: Path) -> list[str]:
    """The columns of a file.

    Raises:
        DataError: The file is missing or corrupt.
    """
    with _opened(path) as file:
        return list(file.schema_arrow.names)


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Reads some columns of a file, or all.

    Raises:
        DataError: The file is missing, corrupt, or lacks a column.
    """
    with _opened(path) as file:
        present = file.schema_arrow.names
        missing = [name for name in columns or () if name not in present]
        if missing:
            raise DataError(f"{path} lacks the column {missing[0]}; it has {', '.join(present)}")
        return file.read(columns=list(columns) if columns is not None else None)


def in_order(rows: Sequence[dict[str, Any]], total: int, where: str) -> list[dict[str, Any]]:
    """The rows of episodes 0 to total - 1, sorted; rows beyond do not count.

    Raises:
        DataError: An episode is not there, or twice.
    """
    counted = sorted((row for row in rows if row["episode_index"] < total), key=lambda row: row["episode_index"])
    indices = [row["episode_index"] for row in counted]
    if indices != list(range(total)):
        times = Counter(indices)
        wrong = next(index for index in (*indices, *range(total)) if times[index] != 1)
        raise DataError(
            f"{where} lists episode {wrong} {times[wrong]} times; expected episodes 0 to {total - 1} once each "
            "(`lamp data check` lists all faults)"
        )
    return counted


@dataclass(frozen=True, kw_only=True)
class EpisodeTable:
    """The first `total` rows of the table; what a killed writer may have left beyond them does not count."""

    root: Path
    total: int
    fps: float
    cameras: Mapping[str, CameraFeature]

    def _paths(self) -> list[Path]:
        files = sorted((self.root / "meta/episodes").glob("chunk-*/file-*.parquet"))
        if not files:
            first = EPISODES_PATH.format(chunk_index=0, file_index=0)
            raise DataError(f"{self.root} has no episode table; expected {first}")
        return files

    def files(self) -> set[Path]:
        """The table's files."""
        return {
            path
            for path in self._paths()
            if min(read_parquet(path, ["episode_index"])["episode_index"].to_pylist(), default=self.total) < self.total
        }

    def tasks(self) -> dict[int, str]:
        """The instructions, by task index."""
        table = read_parquet(self.root / TASKS_PATH)
        text = next((name for name in table.column_names if name != "task_index"), None)
        if text is None or "task_index" not in table.column_names:
            raise DataError(
                f"{self.root / TASKS_PATH} has the columns {table.column_names}; expected task and task_index"
            )
        pairs = zip(table["task_index"].to_pylist(), table[text].to_pylist(), strict=True)
        return {index: task or "" for index, task in sorted(pairs)}

    def rows(self, columns: Sequence[str] = ()) -> list[dict[str, Any]]:
        """Some columns of every row, in the files' order."""
        return [row for path in self._paths() for row in read_parquet(path, ["episode_index", *columns]).to_pylist()]

    def _in_order(self, columns: Sequence[str]) -> list[dict[str, Any]]:
        return in_order(self.rows(columns), self.total, f"the episode table of {self.root}")

    def columns(self) -> list[str]:
        """The columns that tell where episodes are."""
        parts = ("chunk_index", "file_index", "from_timestamp")
        videos = [
            f"videos/{camera.key}/{part}" for camera in self.cameras.values() if camera.in_videos for part in parts
        ]
        return ["tasks", "length", "dataset_from_index", "data/chunk_index", "data/file_index", *videos]

    def episodes(self) -> list[Episode]:
        """All episodes, by index."""
        return self.placed(self._in_order(self.columns()))

    def placed(self, rows: Sequence[Mapping[str, Any]]) -> list[Episode]:
        """The episodes of some rows with `columns`."""
        first: dict[Slot, int] = {}
        for row in rows:
            slot = _slot(row, "data")
            first[slot] = min(first.get(slot, row["dataset_from_index"]), row["dataset_from_index"])
        return [self._episode(row, row["dataset_from_index"] - first[_slot(row, "data")]) for row in rows]

    def _episode(self, row: Mapping[str, Any], first_row: int) -> Episode:
        videos = {
            name: VideoSpan(
                slot=_slot(row, f"videos/{camera.key}"),
                first=round(row[f"videos/{camera.key}/from_timestamp"] * self.fps),
            )
            for name, camera in self.cameras.items()
            if camera.in_videos
        }
        return Episode(
            index=row["episode_index"],
            length=row["length"],
            task=next(iter(row["tasks"] or ()), None) or "",
            start=row["dataset_from_index"],
            slot=_slot(row, "data"),
            row=first_row,
            videos=videos,
        )

    def statistics(self, feature: str) -> list[FeatureStatistics]:
        """A feature's statistics in each episode.

        Raises:
            DataError: The table lacks them.
        """
        prefix = f"stats/{feature}/"
        names = [field.name for field in fields(FeatureStatistics)]
        where = f"the episode table of {self.root}: {feature}"
        return [
            FeatureStatistics.from_json({name: row[prefix + name] for name in names}, where=where)
            for row in self._in_order([prefix + name for name in names])
        ]


def _slot(row: Mapping[str, Any], prefix: str) -> Slot:
    return Slot(chunk=row[f"{prefix}/chunk_index"], file=row[f"{prefix}/file_index"])
