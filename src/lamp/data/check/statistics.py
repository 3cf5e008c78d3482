"""Faults of stored statistics: those that are not of the numbers that the dataset holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lamp.data.check.faults import Fault
from lamp.data.episode_lines import EpisodeLines
from lamp.data.lerobot_format import EPISODE_STATISTICS_LINES, STATISTICS_PATH
from lamp.data.lerobot_reader import LeRobotDataset, read_statistics
from lamp.data.metadata import shown
from lamp.data.statistics import Moments
from lamp.errors import DataError

COMPARED = ("min", "max", "mean", "std", "count")
"""Quantiles are left out: LeRobot's own, over a dataset, are averages of the episodes'."""
TOLERANCE = 1e-3
"""Relative to the larger of the value's range and size: statistics are written in float32 by some."""


def check_statistics(dataset: LeRobotDataset, found: Mapping[str, Moments]) -> Iterator[Fault]:
    """Compares what is stored with what was found. Files that are not there are no fault: they are optional.

    Args:
        dataset: The dataset.
        found: Per feature, of the episodes where it has no fault.
    """
    try:
        if (dataset.root / STATISTICS_PATH).is_file():
            stored = read_statistics(dataset.root / STATISTICS_PATH)
            for key in dataset.features:
                if key in stored and key in found and len(found[key].episode) == len(dataset):
                    yield from _compare(stored[key], found[key].together(), 0, STATISTICS_PATH, key)
        if isinstance(dataset.table, EpisodeLines):
            rows = {
                key: (of_key, dict(zip(of_key.episode.tolist(), range(len(of_key.episode)), strict=True)))
                for key, of_key in found.items()
                if key in dataset.features
            }
            for episode, recorded in dataset.table.each_recorded_statistics():
                for key, (of_key, row) in rows.items():
                    if key in recorded and episode in row:
                        yield from _compare(recorded[key], of_key, row[episode], EPISODE_STATISTICS_LINES, key, episode)
    except DataError as error:
        yield Fault(problem=str(error), file=STATISTICS_PATH)


def _compare(stored: Any, found: Moments, row: int, file: str, key: str, episode: int | None = None) -> Iterator[Fault]:
    if not isinstance(stored, Mapping):
        problem = f"is {shown(stored)}; expected an object with the feature's statistics"
        yield Fault(problem=problem, file=file, episode=episode, key=key)
        return
    data = {name: found.of(name)[row].reshape(-1) for name in COMPARED}
    size = np.maximum(np.maximum(np.abs(data["max"]), np.abs(data["min"])), 1e-6)
    wrong = [name for name in COMPARED if name in stored and not _alike(stored[name], data[name], name, size)]
    if wrong:
        told = f"{wrong[0]} is {shown(stored[wrong[0]])}; the data's is {_short(data[wrong[0]])}"
        more = f" (and {', '.join(wrong[1:])})" if wrong[1:] else ""
        yield Fault(problem=f"the stored statistics do not match: {told}{more}", file=file, episode=episode, key=key)


def _alike(stored: Any, found: np.ndarray, name: str, size: np.ndarray) -> bool:
    try:
        given = np.asarray(stored, np.float64).reshape(-1)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return False
    if given.shape != found.shape:
        return False
    allowed = 0.5 if name == "count" else TOLERANCE * size
    return bool((np.abs(given - found) <= allowed).all())


def _short(values: np.ndarray) -> str:
    flat: Sequence[float] = values.reshape(-1).tolist()
    return f"[{', '.join(f'{value:.6g}' for value in flat[:4])}{', ...' if len(flat) > 4 else ''}]"
