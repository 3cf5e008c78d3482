"""`lamp data check`: reads a whole dataset and reports all faults, rather than the first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

from lamp.data.check.faults import Fault, Report, of_error
from lamp.data.check.listing import Listing, check_listing
from lamp.data.check.pictures import FileOfPictures, check_pictures
from lamp.data.check.statistics import check_statistics
from lamp.data.check.values import FileOfRows, Rules, check_rows
from lamp.data.episode_table import Episode
from lamp.data.lerobot_format import INFO_PATH, Slot
from lamp.data.lerobot_reader import LeRobotDataset
from lamp.data.statistics import Moments, joined
from lamp.errors import ConfigError, DataError
from lamp.progress import Progress
from lamp_client.child_processes import ProcessPool

Unit = TypeVar("Unit")
Found = TypeVar("Found")
KEPT_APART = 256
"""Of so many files, what was found is kept apart; then it is put together, which takes less memory."""


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
    faults, content = list(listing.faults), dict[int, str]()
    statistics: dict[str, list[Moments]] = {}
    rules = Rules(
        root=dataset.root,
        described=dataset.described,
        tasks=listing.tasks,
        listed=len(listing.episodes) == len(dataset),
    )
    for found in _mapped("check numbers", check_rows, _files_of_rows(dataset, listing), workers, rules):
        faults += found.faults
        content |= found.content
        for key, of_key in found.statistics.items():
            parts = statistics.setdefault(key, [])
            parts.append(of_key)
            if len(parts) >= KEPT_APART:
                parts[:] = [joined(parts)]
    pictures = 0
    files = _files_of_pictures(dataset, listing.episodes, decode=not quick)
    for seen in _mapped("check pictures", check_pictures, files, workers):
        faults += seen.faults
        pictures += seen.count
    faults += _copies(content)
    faults += _strangers(dataset, listing.episodes)
    faults += check_statistics(dataset, {key: joined(parts) for key, parts in statistics.items()})
    return Report.of(
        faults,
        root=str(dataset.root),
        version=dataset.described.version,
        episodes=len(listing.episodes),
        frames=sum(episode.length for episode in listing.episodes),
        pictures=pictures,
    )


def _mapped(
    what: str, work: Callable[..., Found], units: Sequence[Unit], workers: int, *shared: object
) -> Iterator[Found]:
    """What a function finds in each unit, given what they share, which travels to each process once."""
    with ExitStack() as stack:
        progress = stack.enter_context(Progress(what, len(units), "files", brief=True))
        alone = workers == 1 or len(units) < 2
        if alone:
            results = (work(unit, *shared) for unit in units)
        else:
            pool = stack.enter_context(ProcessPool(min(workers, len(units)), _start, (work, shared)))
            results = pool.map(_in_worker, units, chunksize=min(32, 1 + len(units) // (8 * workers)))
        for each in results:
            yield each
            progress.advance()


_given: tuple[Callable[..., Any], tuple[object, ...]] | None = None


def _start(work: Callable[..., Any], shared: tuple[object, ...]) -> None:
    global _given
    _given = work, shared


def _in_worker(unit: Any) -> Any:
    assert _given is not None
    work, shared = _given
    return work(unit, *shared)


def _files_of_rows(dataset: LeRobotDataset, listing: Listing) -> list[FileOfRows]:
    by_path = _by_path(dataset, listing.episodes, None)
    return [FileOfRows(path=path, episodes=tuple(episodes)) for path, episodes in by_path.items()]


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
    described, by_slot = dataset.described, dict[tuple[Slot, bool], list[Episode]]()
    for episode in episodes:
        apart = camera is not None and camera in episode.videos
        slot = episode.videos[camera].slot if camera is not None and apart else episode.slot
        by_slot.setdefault((slot, apart), []).append(episode)
    found: dict[Path, list[Episode]] = {}
    for (slot, apart), inside in by_slot.items():
        key = described.pictures[camera].key if camera is not None and apart else None
        path = described.data_file(dataset.root, slot) if key is None else described.video_file(dataset.root, slot, key)
        found.setdefault(path, []).extend(inside)
    return found


def _copies(content: Mapping[int, str]) -> Iterator[Fault]:
    """Episodes whose numbers are those of an earlier one, to the bit."""
    first: dict[str, int] = {}
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
