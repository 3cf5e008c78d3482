"""`lamp data check`: reads a whole dataset and reports all faults, each with file, episode, frame and key."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from lamp.data.check.faults import DatasetFault, DatasetReport, faults_from_error, faults_from_problems
from lamp.data.check.images import PictureFile, check_pictures
from lamp.data.check.values import CheckContext, DataFile, check_rows, check_statistics
from lamp.data.lerobot.episodes import EpisodeMetadata
from lamp.data.lerobot.format import EPISODES_LINES, INFO_PATH, TASKS_LINES, TASKS_PATH, Slot
from lamp.data.lerobot.reader import LeRobotDataset
from lamp.data.lerobot.statistics import Moments, joined
from lamp.errors import ConfigError, DataError
from lamp.progress import Progress
from lamp_client.child_processes import ProcessPool

__all__ = ["DatasetFault", "DatasetReport", "check_dataset"]

Unit = TypeVar("Unit")
Result = TypeVar("Result")
KEPT_APART = 256
"""Results of this many files are kept before they are merged, which takes less memory."""


def check_dataset(root: Path, *, workers: int = 1, quick: bool = False) -> DatasetReport:
    """Reads a LeRobot dataset, v2 or v3.0, whole.

    Args:
        root: Its folder, or a hub id.
        workers: Processes, of one thread each; 1 works in this one.
        quick: Count the videos' pictures without decoding them.

    Raises:
        ConfigError: There is no such folder: nothing to check.
    """
    if workers < 1:
        raise ConfigError(f"{workers} workers are not possible; expected at least 1")
    try:
        dataset = LeRobotDataset(root)
    except DataError as error:
        if not Path(root).is_dir():
            raise
        faults = faults_from_error(error, Path(root), INFO_PATH)
        return DatasetReport.of(faults, root=str(root), version=None, episodes=0, frames=0, pictures=0)
    listing = check_listing(dataset)
    faults, content = list(listing.faults), dict[int, str]()
    statistics: dict[str, list[Moments]] = {}
    rules = CheckContext(
        root=dataset.root,
        meta=dataset.meta,
        tasks=listing.tasks,
        listed=len(listing.episodes) == len(dataset),
    )
    by_path = _by_path(dataset, listing.episodes, None)
    data = [DataFile(path=path, episodes=tuple(episodes)) for path, episodes in by_path.items()]
    for result in _mapped("check numbers", check_rows, data, workers, rules):
        faults += result.faults
        content |= result.content
        for key, of_key in result.statistics.items():
            parts = statistics.setdefault(key, [])
            parts.append(of_key)
            if len(parts) >= KEPT_APART:
                parts[:] = [joined(parts)]
    pictures = 0
    files = _files_of_pictures(dataset, listing.episodes, decode=not quick)
    for seen in _mapped("check pictures", check_pictures, files, workers):
        faults += seen.faults
        pictures += seen.count
    faults += _duplicate_episodes(content)
    faults += _unlisted_files(dataset, listing.episodes)
    faults += check_statistics(dataset, {key: joined(parts) for key, parts in statistics.items()})
    return DatasetReport.of(
        faults,
        root=str(dataset.root),
        version=dataset.meta.version,
        episodes=len(listing.episodes),
        frames=sum(episode.length for episode in listing.episodes),
        pictures=pictures,
    )


def _mapped(
    title: str, work: Callable[..., Result], units: Sequence[Unit], workers: int, *shared: object
) -> Iterator[Result]:
    """A function's result for each unit; the arguments that all share travel to each process once."""
    with ExitStack() as stack:
        progress = stack.enter_context(Progress(title, len(units), "files", brief=True))
        alone = workers == 1 or len(units) < 2
        if alone:
            results = (work(unit, *shared) for unit in units)
        else:
            pool = stack.enter_context(ProcessPool(min(workers, len(units)), _start, (work, shared)))
            results = pool.map(_in_worker, units, chunksize=min(32, 1 + len(units) // (8 * workers)))
        for each in results:
            yield each
            progress.advance()


class _CheckWorker:
    """The state of a worker process, set when it starts."""

    work: Callable[..., Any]
    shared: tuple[object, ...]


def _start(work: Callable[..., Any], shared: tuple[object, ...]) -> None:
    _CheckWorker.work, _CheckWorker.shared = work, shared


def _in_worker(unit: Any) -> Any:
    return _CheckWorker.work(unit, *_CheckWorker.shared)


def _files_of_pictures(
    dataset: LeRobotDataset, episodes: Sequence[EpisodeMetadata], *, decode: bool
) -> list[PictureFile]:
    return [
        PictureFile(
            root=dataset.root,
            path=path,
            camera=camera,
            episodes=tuple(inside),
            firsts=tuple(one.first_picture(name) for one in inside),
            fps=dataset.fps,
            whole=dataset.meta.one_file_per_episode,
            decode=decode,
        )
        for name, camera in dataset.meta.pictures.items()
        for path, inside in _by_path(dataset, episodes, name).items()
    ]


def _by_path(
    dataset: LeRobotDataset, episodes: Sequence[EpisodeMetadata], camera: str | None
) -> dict[Path, list[EpisodeMetadata]]:
    """Episodes by the data file, or the camera's file, that holds them."""
    meta, by_slot = dataset.meta, dict[tuple[Slot, bool], list[EpisodeMetadata]]()
    for episode in episodes:
        apart = camera is not None and camera in episode.videos
        slot = episode.videos[camera].slot if camera is not None and apart else episode.slot
        by_slot.setdefault((slot, apart), []).append(episode)
    by_path: dict[Path, list[EpisodeMetadata]] = {}
    for (slot, apart), inside in by_slot.items():
        key = meta.pictures[camera].key if camera is not None and apart else None
        path = meta.data_file(dataset.root, slot) if key is None else meta.video_file(dataset.root, slot, key)
        by_path.setdefault(path, []).extend(inside)
    return by_path


def _duplicate_episodes(content: Mapping[int, str]) -> Iterator[DatasetFault]:
    """Episodes whose numbers are those of an earlier one, to the bit."""
    first: dict[str, int] = {}
    for index in sorted(content):
        earlier = first.setdefault(content[index], index)
        if earlier != index:
            yield DatasetFault(
                problem=f"is a copy of episode {earlier}: all its numbers are the same", file="data", episode=index
            )


def _unlisted_files(dataset: LeRobotDataset, episodes: Sequence[EpisodeMetadata]) -> Iterator[DatasetFault]:
    """Data files of no listed episode, where each episode has its own: a v3.0 writer that was stopped may leave some."""
    if not dataset.meta.one_file_per_episode:
        return
    known = set(_by_path(dataset, episodes, None))
    for path in sorted((dataset.root / "data").rglob("*.parquet")):
        if path not in known:
            yield DatasetFault(
                problem="no listed episode refers to this file", file=str(path.relative_to(dataset.root))
            )


@dataclass(frozen=True, kw_only=True)
class EpisodeListing:
    """What could be read of a dataset's lists, faulty or not."""

    episodes: tuple[EpisodeMetadata, ...]
    """Every episode that is listed, once, by index."""
    tasks: Mapping[int, str]
    faults: tuple[DatasetFault, ...]


def check_listing(dataset: LeRobotDataset) -> EpisodeListing:
    """Reads the lists of tasks and episodes."""
    one_file = dataset.meta.one_file_per_episode
    tasks_file = TASKS_LINES if one_file else TASKS_PATH
    episodes_file = EPISODES_LINES if one_file else "meta/episodes"
    faults: list[DatasetFault] = []
    table = replace(dataset.table, cameras=dataset.meta.pictures)
    try:
        tasks, problems = table.read_tasks()
        faults += faults_from_problems(problems, dataset.root)
        faults += _check_tasks(tasks, dataset, tasks_file)
    except DataError as error:
        tasks = {}
        faults += faults_from_error(error, dataset.root, tasks_file)
    try:
        rows, problems = table.read_rows(whole=True)
    except DataError as error:
        return EpisodeListing(
            episodes=(), tasks=tasks, faults=(*faults, *faults_from_error(error, dataset.root, episodes_file))
        )
    faults += faults_from_problems(problems, dataset.root)
    faulty = {episode for problem in problems for episode in (problem.episode, *problem.later)}
    faults += _check_numbers(rows, faulty, dataset, episodes_file)
    once = {row["episode_index"]: row for row in reversed(rows) if row["episode_index"] < len(dataset)}
    episodes = table.from_rows([once[index] for index in sorted(once)])
    faults += _check_episodes(episodes, tasks, dataset, episodes_file, complete=not problems)
    return EpisodeListing(episodes=tuple(episodes), tasks=tasks, faults=tuple(faults))


def _check_tasks(tasks: Mapping[int, str], dataset: LeRobotDataset, file: str) -> Iterator[DatasetFault]:
    if not tasks and len(dataset):
        yield DatasetFault(problem="lists no task; expected an instruction in words for each", file=file, key="task")
    for index, text in tasks.items():
        if not text.strip():
            yield DatasetFault(
                problem=f"task {index} has no text; expected an instruction in words", file=file, key="task"
            )
    for text, times in Counter(text for text in tasks.values() if text.strip()).items():
        if times > 1:
            yield DatasetFault(
                problem=f"the task {text!r} is listed {times} times; expected once", file=file, key="task"
            )
    for first, last in _runs(sorted(set(range(len(tasks))) - tasks.keys())):
        listed = f"{first} is" if first == last else f"{first} to {last} are"
        problem = f"task_index {listed} not listed; expected 0 to {len(tasks) - 1}"
        yield DatasetFault(problem=problem, file=file, key="task_index")
    total = dataset.info.get("total_tasks", len(tasks))
    # A v3.0 writer that was stopped before its last step may have listed more than count.
    if tasks and (total != len(tasks) if dataset.meta.one_file_per_episode else total > len(tasks)):
        yield DatasetFault(
            problem=f"total_tasks is {total}; {file} lists {len(tasks)}", file=INFO_PATH, key="total_tasks"
        )


def _check_numbers(
    rows: Sequence[Mapping[str, Any]], faulty: Collection[int | None], dataset: LeRobotDataset, file: str
) -> Iterator[DatasetFault]:
    """Duplicates and gaps. A v3.0 table may go on after the last episode that counts: a writer was stopped there.

    Args:
        faulty: Episodes with a wrong value in the list, which has its own fault; None stands for one whose number is not known.
    """
    total = len(dataset)
    if total == 0:
        yield DatasetFault(problem="there are no episodes; expected at least one", file=INFO_PATH, key="total_episodes")
    times = Counter(row["episode_index"] for row in rows)
    for index, count in sorted(times.items()):
        if count > 1 and index < total:
            yield DatasetFault(
                problem=f"is listed {count} times; expected once", file=file, episode=index, key="episode_index"
            )
    known = sorted({*(index for index in times if index < total), *(index for index in faulty if index is not None)})
    # Between the episodes that are there, so that a count of millions takes no longer than the list itself.
    for before, after in pairwise([-1, *known, total]) if None not in faulty else ():
        if after - before > 1:
            more = f", nor are the {after - before - 2} after it up to {after - 1}" if after - before > 2 else ""
            yield DatasetFault(
                problem=f"is not listed{more}; expected episodes 0 to {total - 1}", file=file, episode=before + 1
            )
    beyond = sorted(index for index in times if index >= total)
    if beyond and dataset.meta.one_file_per_episode:
        problem = f"total_episodes is {total}; {file} also lists episode {beyond[0]}"
        yield DatasetFault(problem=problem, file=INFO_PATH, episode=beyond[0], key="total_episodes")


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The first and last of each run of consecutive numbers."""
    start = 0
    for place in range(1, len(numbers) + 1):
        if place == len(numbers) or numbers[place] != numbers[place - 1] + 1:
            yield numbers[start], numbers[place - 1]
            start = place


def _check_episodes(
    episodes: Sequence[EpisodeMetadata],
    tasks: Mapping[int, str],
    dataset: LeRobotDataset,
    file: str,
    *,
    complete: bool,
) -> Iterator[DatasetFault]:
    known, frames = set(tasks.values()), sum(episode.length for episode in episodes)
    if complete and frames != dataset.info["total_frames"]:
        problem = f"total_frames is {dataset.info['total_frames']}; the listed episodes add up to {frames}"
        yield DatasetFault(problem=problem, file=INFO_PATH, key="total_frames")
    start = 0
    for episode in episodes:
        if episode.length < 1:
            problem = f"has a length of {episode.length}; expected at least 1"
            yield DatasetFault(problem=problem, file=file, episode=episode.index, key="length")
        for text in episode.tasks:
            if tasks and text not in known:
                problem = f"has the task {text!r}, which is not among the dataset's tasks"
                yield DatasetFault(problem=problem, file=file, episode=episode.index, key="tasks")
        if complete and episode.start != start:
            problem = f"starts at row {episode.start}; the episodes before it end at {start}"
            yield DatasetFault(problem=problem, file=file, episode=episode.index, key="dataset_from_index")
        start = episode.start + episode.length
