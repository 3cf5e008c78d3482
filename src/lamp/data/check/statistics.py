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
from lamp.data.statistics import FeatureStatistics, aggregate
from lamp.errors import DataError

COMPARED = ("min", "max", "mean", "std", "count")
"""Quantiles are left out: LeRobot's own, over a dataset, are averages of the episodes'."""
TOLERANCE = 1e-3
"""Relative to the larger of the value's range and size: statistics are written in float32 by some."""


def check_statistics(
    dataset: LeRobotDataset, found: Mapping[int, Mapping[str, FeatureStatistics]], complete: bool
) -> Iterator[Fault]:
    """Compares what is stored with what was found. Files that are not there are no fault: they are optional.

    Args:
        dataset: The dataset.
        found: Per episode and feature.
        complete: Whether every episode's numbers could be read.
    """
    try:
        if (dataset.root / STATISTICS_PATH).is_file() and complete:
            stored = read_statistics(dataset.root / STATISTICS_PATH)
            for key in dataset.features:
                parts = [of_episode[key] for of_episode in found.values() if key in of_episode]
                if key in stored and len(parts) == len(found) > 0:
                    yield from _compare(stored[key], aggregate(parts), STATISTICS_PATH, key)
        if isinstance(dataset.table, EpisodeLines):
            recorded = dataset.table.recorded_statistics()
            for episode, of_episode in found.items():
                for key in of_episode.keys() & recorded.get(episode, {}).keys() & dataset.features.keys():
                    yield from _compare(recorded[episode][key], of_episode[key], EPISODE_STATISTICS_LINES, key, episode)
    except DataError as error:
        yield Fault(problem=str(error), file=STATISTICS_PATH)


def _compare(stored: Any, found: FeatureStatistics, file: str, key: str, episode: int | None = None) -> Iterator[Fault]:
    if not isinstance(stored, Mapping):
        problem = f"is {shown(stored)}; expected an object with the feature's statistics"
        yield Fault(problem=problem, file=file, episode=episode, key=key)
        return
    wrong = [name for name in COMPARED if name in stored and not _alike(stored[name], getattr(found, name), found)]
    if wrong:
        told = f"{wrong[0]} is {shown(stored[wrong[0]])}; the data's is {_short(getattr(found, wrong[0]))}"
        more = f" (and {', '.join(wrong[1:])})" if wrong[1:] else ""
        yield Fault(problem=f"the stored statistics do not match: {told}{more}", file=file, episode=episode, key=key)


def _alike(stored: Any, found: np.ndarray, scale: FeatureStatistics) -> bool:
    try:
        given = np.asarray(stored, np.float64).reshape(-1)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return False
    if given.shape != found.reshape(-1).shape:
        return False
    size = np.maximum(np.maximum(np.abs(scale.max), np.abs(scale.min)), 1e-6).reshape(-1)
    allowed = TOLERANCE * size if given.shape == size.shape and found is not scale.count else 0.5
    return bool((np.abs(given - found.reshape(-1)) <= allowed).all())


def _short(values: np.ndarray) -> str:
    flat: Sequence[float] = values.reshape(-1).tolist()
    return f"[{', '.join(f'{value:.6g}' for value in flat[:4])}{', ...' if len(flat) > 4 else ''}]"
