"""`lamp data check`: reads a whole dataset and reports all faults, rather than the first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

from lamp.data.check.faults import Fault, Report, of_error
from lamp.data.check.listing import Listing, check_listing
from lamp.data.check.pictures import FileOfPictures, check_pictures
from lamp.data.check.statistics import check_statistics
from lamp.data.check.values import FileOfRows, FoundRows, check_rows
from lamp.data.episode_table import Episode
from lamp.data.lerobot_format import INFO_PATH
from lamp.data.lerobot_reader import LeRobotDataset
from lamp.errors import ConfigError, DataError
from lamp.progress import Progress
from lamp_client.child_processes import ProcessPool

Unit = TypeVar("Unit")
Found = TypeVar("Found")


def check_dataset(root: Path, *, workers: int = 1, quick: bool = False) -> Report:
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
        faults = of_error(error, Path(root), INFO_PATH)
        return Report.of(faults, root=str(root), version=None, episodes=0, frames=0, pictures=0)
    listing = check_listing(dataset)
    faults = list(listing.faults)
    rows = _mapped("check numbers", check_rows, _files_of_rows(dataset, listing), workers)
    pictures = _mapped(
        "check pictures", check_pictures, _files_of_pictures(dataset, listing.episodes, decode=not quick), workers
    )
    faults += [fault for found in (*rows, *pictures) for fault in found.faults]
    faults += _copies(rows)
    faults += _strangers(dataset, listing.episodes)
    statistics = {index: of for found in rows for index, of in found.statistics.items()}
    faults += check_statistics(dataset, dict(sorted(statistics.items())), complete=len(statistics) == len(dataset))
    return Report.of(
        faults,
        root=str(dataset.root),
        version=dataset.described.version,
        episodes=len(listing.episodes),
        frames=sum(episode.length for episode in listing.episodes),
        pictures=sum(found.count for found in pictures),
    )


def _mapped(what: str, work: Callable[[Unit], Found], units: Sequence[Unit], workers: int) -> list[Found]:
    found = []
    with ExitStack() as stack:
        progress = stack.enter_context(Progress(what, len(units), "files", brief=True))
        alone = workers == 1 or len(units) < 2
        pool = None if alone else stack.enter_context(ProcessPool(min(workers, len(units))))
        for each in map(work, units) if pool is None else pool.map(work, units):
            found.append(each)
            progress.advance()
    return found


def _files_of_rows(dataset: LeRobotDataset, listing: Listing) -> list[FileOfRows]:
    return [
        FileOfRows(
            root=dataset.root,
            path=path,
            described=dataset.described,
            episodes=tuple(episodes),
            tasks=listing.tasks,
            listed=len(listing.episodes) == len(dataset),
        )
        for path, episodes in _by_path(dataset, listing.episodes, None).items()
    ]


def _files_of_pictures(dataset: LeRobotDataset, episodes: Sequence[Episode], *, decode: bool) -> list[FileOfPictures]:
    return [
        FileOfPictures(
            root=dataset.root,
            path=path,
            camera=camera,
            episodes=tuple(inside),
            firsts=tuple(one.videos[name].first if camera.in_videos else one.row for one in inside),
            fps=dataset.fps,
            whole=dataset.described.episode_files,
            decode=decode,
        )
        for name, camera in dataset.described.pictures.items()
        for path, inside in _by_path(dataset, episodes, name).items()
    ]


def _by_path(dataset: LeRobotDataset, episodes: Sequence[Episode], camera: str | None) -> dict[Path, list[Episode]]:
    """Episodes by the data file, or the camera's file, that holds them."""
    described = dataset.described
    found: dict[Path, list[Episode]] = {}
    for episode in episodes:
        if camera is None or camera not in episode.videos:
            path = described.data_file(dataset.root, episode.slot)
        else:
            key = described.pictures[camera].key
            path = described.video_file(dataset.root, episode.videos[camera].slot, key)
        found.setdefault(path, []).append(episode)
    return found


def _copies(rows: Sequence[FoundRows]) -> Iterator[Fault]:
    """Episodes whose numbers are those of an earlier one, to the bit."""
    first: dict[str, int] = {}
    content: Mapping[int, str] = {index: digest for found in rows for index, digest in found.content.items()}
    for index in sorted(content):
        earlier = first.setdefault(content[index], index)
        if earlier != index:
            yield Fault(
                problem=f"is a copy of episode {earlier}: all its numbers are the same", file="data", episode=index
            )


def _strangers(dataset: LeRobotDataset, episodes: Sequence[Episode]) -> Iterator[Fault]:
    """Data files of no listed episode, where each episode has its own: a v3.0 writer that was stopped may leave some."""
    if not dataset.described.episode_files:
        return
    known = set(_by_path(dataset, episodes, None))
    for path in sorted((dataset.root / "data").rglob("*.parquet")):
        if path not in known:
            yield Fault(problem="no listed episode refers to this file", file=str(path.relative_to(dataset.root)))
