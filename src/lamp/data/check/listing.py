"""Faults of what a dataset says about itself: totals, tasks, and the list of episodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from lamp.data.check.faults import Fault, of_error, of_problems
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
    table = replace(dataset.table, cameras=dataset.described.pictures)
    try:
        tasks, problems = table.read_tasks()
        faults += of_problems(problems, dataset.root)
        faults += _of_tasks(tasks, dataset, tasks_file)
    except DataError as error:
        tasks = {}
        faults += of_error(error, dataset.root, tasks_file)
    try:
        rows, problems = table.read_rows(whole=True)
    except DataError as error:
        return Listing(episodes=(), tasks=tasks, faults=(*faults, *of_error(error, dataset.root, episodes_file)))
    faults += of_problems(problems, dataset.root)
    faulty = {episode for problem in problems for episode in (problem.episode, *problem.later)}
    faults += _of_numbers(rows, faulty, dataset, episodes_file)
    once = {row["episode_index"]: row for row in reversed(rows) if row["episode_index"] < len(dataset)}
    episodes = table.placed([once[index] for index in sorted(once)])
    faults += _of_episodes(episodes, tasks, dataset, episodes_file, complete=not problems)
    return Listing(episodes=tuple(episodes), tasks=tasks, faults=tuple(faults))


def _of_tasks(tasks: Mapping[int, str], dataset: LeRobotDataset, file: str) -> Iterator[Fault]:
    if not tasks and len(dataset):
        yield Fault(problem="lists no task; expected an instruction in words for each", file=file, key="task")
    for index, text in tasks.items():
        if not text.strip():
            yield Fault(problem=f"task {index} has no text; expected an instruction in words", file=file, key="task")
    for text, times in Counter(text for text in tasks.values() if text.strip()).items():
        if times > 1:
            yield Fault(problem=f"the task {text!r} is listed {times} times; expected once", file=file, key="task")
    for first, last in _runs(sorted(set(range(len(tasks))) - tasks.keys())):
        listed = f"{first} is" if first == last else f"{first} to {last} are"
        problem = f"task_index {listed} not listed; expected 0 to {len(tasks) - 1}"
        yield Fault(problem=problem, file=file, key="task_index")
    total = dataset.info.get("total_tasks", len(tasks))
    if tasks and total != len(tasks):
        yield Fault(problem=f"total_tasks is {total}; {file} lists {len(tasks)}", file=INFO_PATH, key="total_tasks")


def _of_numbers(
    rows: Sequence[Mapping[str, Any]], faulty: Collection[int | None], dataset: LeRobotDataset, file: str
) -> Iterator[Fault]:
    """Duplicates and gaps. A v3.0 table may go on after the last episode that counts: a writer was stopped there.

    Args:
        rows: What is listed.
        faulty: Episodes that are listed with a wrong value, which has been said; None among them: nobody knows which.
        dataset: The dataset.
        file: Of the list.
    """
    total = len(dataset)
    times = Counter(row["episode_index"] for row in rows)
    for index, count in sorted(times.items()):
        if count > 1 and index < total:
            yield Fault(
                problem=f"is listed {count} times; expected once", file=file, episode=index, key="episode_index"
            )
    known = sorted({*(index for index in times if index < total), *(index for index in faulty if index is not None)})
    # Between the episodes that are there, so that a count of millions takes no longer than the list itself.
    for before, after in pairwise([-1, *known, total]) if None not in faulty else ():
        if after - before > 1:
            more = f", nor are the {after - before - 2} after it up to {after - 1}" if after - before > 2 else ""
            yield Fault(
                problem=f"is not listed{more}; expected episodes 0 to {total - 1}", file=file, episode=before + 1
            )
    beyond = sorted(index for index in times if index >= total)
    if beyond and dataset.described.episode_files:
        problem = f"total_episodes is {total}; {file} also lists episode {beyond[0]}"
        yield Fault(problem=problem, file=INFO_PATH, episode=beyond[0], key="total_episodes")


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The first and last of each run of consecutive numbers."""
    start = 0
    for place in range(1, len(numbers) + 1):
        if place == len(numbers) or numbers[place] != numbers[place - 1] + 1:
            yield numbers[start], numbers[place - 1]
            start = place


def _of_episodes(
    episodes: Sequence[Episode],
    tasks: Mapping[int, str],
    dataset: LeRobotDataset,
    file: str,
    *,
    complete: bool,
) -> Iterator[Fault]:
    known, frames = set(tasks.values()), sum(episode.length for episode in episodes)
    if complete and frames != dataset.info["total_frames"]:
        problem = f"total_frames is {dataset.info['total_frames']}; the listed episodes add up to {frames}"
        yield Fault(problem=problem, file=INFO_PATH, key="total_frames")
    start = 0
    for episode in episodes:
        if episode.length < 1:
            problem = f"has a length of {episode.length}; expected at least 1"
            yield Fault(problem=problem, file=file, episode=episode.index, key="length")
        for text in episode.tasks:
            if tasks and text not in known:
                problem = f"has the task {text!r}, which is not among the dataset's tasks"
                yield Fault(problem=problem, file=file, episode=episode.index, key="tasks")
        if complete and episode.start != start:
            problem = f"starts at row {episode.start}; the episodes before it end at {start}"
            yield Fault(problem=problem, file=file, episode=episode.index, key="dataset_from_index")
        start = episode.start + episode.length
