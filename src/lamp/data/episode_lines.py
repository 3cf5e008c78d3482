"""The episodes of a LeRobot v2.0 or v2.1 dataset, where each is a data file and a video a camera: three files of JSON lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamp.data.description import CameraFeature
from lamp.data.episode_table import Episode, VideoSpan, in_order
from lamp.data.lerobot_format import CHUNK_SIZE, EPISODE_STATISTICS_LINES, EPISODES_LINES, TASKS_LINES, Slot
from lamp.data.statistics import FeatureStatistics
from lamp.errors import DataError
from lamp.files import read_lines_json


@dataclass(frozen=True, kw_only=True)
class EpisodeLines:
    """The same questions as `EpisodeTable` answers, of an older dataset."""

    root: Path
    total: int
    cameras: Mapping[str, CameraFeature]
    chunk_size: int = CHUNK_SIZE
    """Episodes a chunk."""

    def _lines(self, name: str) -> list[dict[str, Any]]:
        if not (self.root / name).is_file():
            raise DataError(f"no file {self.root / name}; the dataset is incomplete")
        return read_lines_json(self.root / name)

    def files(self) -> set[Path]:
        """The files that describe the episodes."""
        return {self.root / EPISODES_LINES, self.root / TASKS_LINES}

    def tasks(self) -> dict[int, str]:
        """The instructions, by task index."""
        try:
            return {row["task_index"]: row["task"] or "" for row in self._lines(TASKS_LINES)}
        except KeyError as lacking:
            raise DataError(
                f"a line of {self.root / TASKS_LINES} lacks {lacking}; expected task_index and task"
            ) from None

    def rows(self) -> list[dict[str, Any]]:
        """Every line of the list of episodes, in the file's order."""
        rows = self._lines(EPISODES_LINES)
        for row in rows:
            if not (isinstance(row.get("episode_index"), int) and isinstance(row.get("length"), int)):
                raise DataError(f"a line of {self.root / EPISODES_LINES} lacks episode_index or length: {row}")
        return rows

    def episodes(self) -> list[Episode]:
        """All episodes, by index."""
        return self.placed(in_order(self.rows(), self.total, f"{self.root / EPISODES_LINES}"))

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
                    task=next(iter(row.get("tasks") or ()), None) or "",
                    start=start,
                    slot=slot,
                    row=0,
                    videos={name: span for name, camera in self.cameras.items() if camera.in_videos},
                )
            )
            start += row["length"]
        return found

    def recorded_statistics(self) -> dict[int, dict[str, Any]]:
        """What the dataset says of each episode's features; empty for v2.0."""
        if not (self.root / EPISODE_STATISTICS_LINES).is_file():
            return {}
        return {
            row["episode_index"]: row.get("stats", {}) for row in read_lines_json(self.root / EPISODE_STATISTICS_LINES)
        }

    def statistics(self, feature: str) -> list[FeatureStatistics]:
        """A feature's statistics in each episode.

        Raises:
            DataError: The dataset lacks them, as those of v2.0 do, or they lack quantiles.
        """
        rows = in_order(self._lines(EPISODE_STATISTICS_LINES), self.total, f"{self.root / EPISODE_STATISTICS_LINES}")
        where = f"{self.root / EPISODE_STATISTICS_LINES}: {feature}"
        return [FeatureStatistics.from_json(row.get("stats", {}).get(feature, {}), where=where) for row in rows]
