"""The episodes of a LeRobot v2.0 or v2.1 dataset, where each is a data file and a video a camera: three files of JSON lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from lamp.data.description import CameraFeature
from lamp.data.episode_table import Episode, VideoSpan, distinct, in_order, sound
from lamp.data.lerobot_format import CHUNK_SIZE, EPISODE_STATISTICS_LINES, EPISODES_LINES, TASKS_LINES, Slot
from lamp.data.metadata import EPISODES, TASKS, MetadataError, Problem, by_episode, checked_rows
from lamp.data.statistics import FeatureStatistics
from lamp.errors import DataError
from lamp.files import each_line_json, read_lines_json

LINES_AT_ONCE = 512


@dataclass(frozen=True, kw_only=True)
class EpisodeLines:
    """The same questions as `EpisodeTable` answers, of an older dataset."""

    root: Path
    total: int
    cameras: Mapping[str, CameraFeature]
    chunk_size: int = CHUNK_SIZE
    """Episodes a chunk."""

    def _lines(self, name: str) -> list[Any]:
        if not (self.root / name).is_file():
            raise DataError(f"no file {self.root / name}; the dataset is incomplete")
        return read_lines_json(self.root / name)

    def files(self) -> set[Path]:
        """The files that describe the episodes."""
        return {self.root / EPISODES_LINES, self.root / TASKS_LINES}

    def read_tasks(self) -> tuple[dict[int, str], list[Problem]]:
        """The instructions by task index, and what is wrong with others."""
        good, problems = checked_rows(TASKS, self._lines(TASKS_LINES), self.root / TASKS_LINES)
        return {row["task_index"]: row["task"] for row in good.values()}, problems

    def tasks(self) -> dict[int, str]:
        """The instructions, by task index.

        Raises:
            DataError: They cannot be read, or one is no text.
        """
        return sound(*self.read_tasks())

    def read_rows(self, *, whole: bool = False) -> tuple[list[Mapping[str, Any]], list[Problem]]:
        """What every line says of an episode, in the file's order, and what is wrong with others; all is looked at."""
        good, problems = checked_rows(EPISODES, self._lines(EPISODES_LINES), self.root / EPISODES_LINES)
        return list(good.values()), problems

    def episodes(self) -> list[Episode]:
        """All episodes, by index.

        Raises:
            DataError: One is not listed, or twice, or not as it should be.
        """
        return self.placed(in_order(sound(*self.read_rows()), self.total, f"{self.root / EPISODES_LINES}"))

    def placed(self, rows: Sequence[Mapping[str, Any]]) -> list[Episode]:
        """The episodes of some lines."""
        found, start = [], 0
        for row in rows:
            slot = Slot(chunk=row["episode_index"] // self.chunk_size, file=row["episode_index"])
            span = VideoSpan(slot=slot, first=0)
            found.append(
                Episode(
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
        return found

    def recorded_statistics(self) -> dict[int, dict[str, Any]]:
        """What the dataset says of each episode's features; empty for v2.0.

        Raises:
            DataError: A line does not say which episode it is of.
        """
        path = self.root / EPISODE_STATISTICS_LINES
        if not path.is_file():
            return {}
        found = {index: row.get("stats") for index, row in by_episode(read_lines_json(path), path).items()}
        return {index: stats if isinstance(stats, dict) else {} for index, stats in found.items()}

    def each_recorded_statistics(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """The same, a line at a time: of very many episodes, the whole file takes gigabytes in memory.

        Raises:
            DataError: A line is no JSON, or does not say which episode it is of.
        """
        path = self.root / EPISODE_STATISTICS_LINES
        lines = each_line_json(path)
        while some := list(islice(lines, LINES_AT_ONCE)):
            try:
                found = by_episode(some, path)
            except MetadataError:
                self.recorded_statistics()  # says it of all lines, each by its number
                raise
            for index, row in found.items():
                stats = row.get("stats")
                yield index, stats if isinstance(stats, dict) else {}

    def statistics(self, feature: str) -> list[FeatureStatistics]:
        """A feature's statistics in each episode.

        Raises:
            DataError: The dataset lacks them, as those of v2.0 do, or they lack quantiles.
        """
        path = self.root / EPISODE_STATISTICS_LINES
        if not path.is_file():
            raise DataError(f"no file {path}; the dataset is incomplete")
        recorded = self.recorded_statistics()
        rows = in_order([{"episode_index": index} for index in recorded], self.total, str(path))
        return [
            FeatureStatistics.from_json(recorded[row["episode_index"]].get(feature, {}), where=f"{path}: {feature}")
            for row in rows
        ]
