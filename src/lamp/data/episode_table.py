"""The episode table of a LeRobot v3.0 dataset: where each episode's rows and pictures are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lamp.data.lerobot_format import EPISODES_PATH, Slot
from lamp.data.statistics import FeatureStatistics
from lamp.errors import DataError


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
    """The instruction in words."""
    start: int
    """The dataset's number of the first frame."""
    slot: Slot
    """The data file that holds it."""
    row: int
    """Its first row in that file."""
    videos: Mapping[str, VideoSpan]
    """Per camera, under its short name."""


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Reads some columns of a file, or all.

    Raises:
        DataError: The file is missing, corrupt, or lacks a column.
    """
    if not path.is_file():
        raise DataError(f"no file {path}; the dataset is incomplete")
    try:
        with pq.ParquetFile(path) as file:
            present = file.schema_arrow.names
            missing = [name for name in columns or () if name not in present]
            if missing:
                raise DataError(f"{path} lacks the column {missing[0]}; it has {', '.join(present)}")
            return file.read(columns=list(columns) if columns is not None else None)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"cannot read {path} ({reason}); it is truncated or corrupt") from None


@dataclass(frozen=True, kw_only=True)
class EpisodeTable:
    """The first `total` rows of the table; what a killed writer may have left beyond them does not count."""

    root: Path
    total: int
    fps: float
    camera_keys: Mapping[str, str]
    """The feature of each camera, by the camera's short name."""

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

    def rows(self, columns: Sequence[str]) -> list[dict[str, Any]]:
        """Some columns of each episode, by index.

        Raises:
            DataError: A file or column is missing, or an episode is not there once.
        """
        rows = [row for path in self._paths() for row in read_parquet(path, ["episode_index", *columns]).to_pylist()]
        rows = sorted((row for row in rows if row["episode_index"] < self.total), key=lambda row: row["episode_index"])
        if [row["episode_index"] for row in rows] != list(range(self.total)):
            raise DataError(
                f"the episode table of {self.root} does not list episodes 0 to {self.total - 1} once each; "
                "a file of meta/episodes is missing"
            )
        return rows

    def episodes(self) -> list[Episode]:
        """All episodes, by index."""
        parts = ("chunk_index", "file_index", "from_timestamp")
        videos = [f"videos/{key}/{part}" for key in self.camera_keys.values() for part in parts]
        rows = self.rows(["tasks", "length", "dataset_from_index", "data/chunk_index", "data/file_index", *videos])
        found: list[Episode] = []
        next_row: dict[Slot, int] = {}
        for row in rows:
            slot = Slot(chunk=row["data/chunk_index"], file=row["data/file_index"])
            first_row = next_row.get(slot, 0)
            next_row[slot] = first_row + row["length"]
            found.append(self._episode(row, slot, first_row))
        return found

    def _episode(self, row: Mapping[str, Any], slot: Slot, first_row: int) -> Episode:
        videos = {
            camera: VideoSpan(
                slot=Slot(chunk=row[f"videos/{key}/chunk_index"], file=row[f"videos/{key}/file_index"]),
                first=round(row[f"videos/{key}/from_timestamp"] * self.fps),
            )
            for camera, key in self.camera_keys.items()
        }
        return Episode(
            index=row["episode_index"],
            length=row["length"],
            task=row["tasks"][0],
            start=row["dataset_from_index"],
            slot=slot,
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
            for row in self.rows([prefix + name for name in names])
        ]
