"""Faults of what a dataset says about itself: totals, tasks, and the list of episodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lamp.data.check.faults import Fault
from lamp.data.episode_lines import EpisodeLines
from lamp.data.episode_table import Episode
from lamp.data.lerobot_format import EPISODES_LINES, INFO_PATH, TASKS_LINES, TASKS_PATH
from lamp.data.lerobot_reader import LeRobotDataset
from lamp.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What could be read of a dataset's lists, faulty or not."""

    episodes: tuple[Episode, ...]
    """Every episode that is listed, once, by index."""
    tasks: Mapping[int, str]
    faults: tuple[Fault, ...]


def check_listing(dataset: LeRobotDataset) -> Listing:
    """Reads the lists of tasks and episodes."""
    one_file = dataset.described.episode_files
    tasks_file = TASKS_LINES if one_file else TASKS_PATH
    episodes_file = EPISODES_LINES if one_file else "meta/episodes"
    faults: list[Fault] = []
    try:
        tasks = dataset.table.tasks()
    except DataError as error:
        tasks = {}
        faults.append(Fault(problem=str(error), file=tasks_file))
    try:
        table = dataset.table
        rows = table.rows() if isinstance(table, EpisodeLines) else table.rows(table.columns())
    except DataError as error:
        return Listing(episodes=(), tasks=tasks, faults=(*faults, Fault(problem=str(error), file=episodes_file)))
    faults += _of_tasks(tasks, dataset, tasks_file)
    faults += _of_numbers(rows, dataset, episodes_file)
    once = {row["episode_index"]: row for row in reversed(rows) if row["episode_index"] < len(dataset)}
    episodes = dataset.table.placed([once[index] for index in sorted(once)])
    faults += _of_episodes(episodes, once, tasks, dataset, episodes_file)
    return Listing(episodes=tuple(episodes), tasks=tasks, faults=tuple(faults))


def _of_tasks(tasks: Mapping[int, str], dataset: LeRobotDataset, file: str) -> Iterator[Fault]:
    for index, text in tasks.items():
        if not text.strip():
            yield Fault(problem=f"task {index} has no text; expected an instruction in words", file=file, key="task")
    for text, times in Counter(text for text in tasks.values() if text.strip()).items():
        if times > 1:
            yield Fault(problem=f"the task {text!r} is listed {times} times; expected once", file=file, key="task")
    for index in sorted(set(range(len(tasks))) - tasks.keys()):
        yield Fault(
            problem=f"task_index {index} is not listed; expected 0 to {len(tasks) - 1}", file=file, key="task_index"
        )
    total = dataset.info.get("total_tasks", len(tasks))
    if tasks and total != len(tasks):
        yield Fault(problem=f"total_tasks is {total}; {file} lists {len(tasks)}", file=INFO_PATH, key="total_tasks")


def _of_numbers(rows: Sequence[Mapping[str, Any]], dataset: LeRobotDataset, file: str) -> Iterator[Fault]:
    """Duplicates and gaps. A v3.0 table may go on after the last episode that counts: a writer was stopped there."""
    total = len(dataset)
    times = Counter(row["episode_index"] for row in rows)
    for index, count in sorted(times.items()):
        if count > 1 and index < total:
            yield Fault(
                problem=f"is listed {count} times; expected once", file=file, episode=index, key="episode_index"
            )
    for index in range(total):
        if index not in times:
            yield Fault(problem=f"is not listed; expected episodes 0 to {total - 1}", file=file, episode=index)
    beyond = sorted(index for index in times if index >= total or index < 0)
    if beyond and dataset.described.episode_files:
        problem = f"total_episodes is {total}; {file} also lists episode {beyond[0]}"
        yield Fault(problem=problem, file=INFO_PATH, episode=beyond[0], key="total_episodes")


def _of_episodes(
    episodes: Sequence[Episode],
    rows: Mapping[int, Mapping[str, Any]],
    tasks: Mapping[int, str],
    dataset: LeRobotDataset,
    file: str,
) -> Iterator[Fault]:
    known, frames = set(tasks.values()), sum(episode.length for episode in episodes)
    if frames != dataset.info["total_frames"]:
        problem = f"total_frames is {dataset.info['total_frames']}; the listed episodes add up to {frames}"
        yield Fault(problem=problem, file=INFO_PATH, key="total_frames")
    start = 0
    for episode in episodes:
        if episode.length < 1:
            problem = f"has a length of {episode.length}; expected at least 1"
            yield Fault(problem=problem, file=file, episode=episode.index, key="length")
        if not episode.task.strip():
            problem = "has no task text; expected an instruction in words"
            yield Fault(problem=problem, file=file, episode=episode.index, key="tasks")
        for text in rows[episode.index].get("tasks") or ():
            if text and tasks and text not in known:
                problem = f"has the task {text!r}, which is not among the dataset's tasks"
                yield Fault(problem=problem, file=file, episode=episode.index, key="tasks")
        if episode.start != start:
            problem = f"starts at row {episode.start}; the episodes before it end at {start}"
            yield Fault(problem=problem, file=file, episode=episode.index, key="dataset_from_index")
        start = episode.start + episode.length
