"""Writing LeRobot v3.0 datasets: staged episodes (`lamp.data.lerobot.staging`) are made part of the dataset together.

`meta/info.json` is the commit point: it is replaced last, in one step, and readers follow it alone."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lamp.checksums import Checksum, checksum_of, checksums_of, files_in, read_checksums, write_checksums
from lamp.data.lerobot.format import (
    ATTEMPTS_PATH,
    BOOKKEEPING,
    CHECKSUMS_PATH,
    CHUNK_SIZE,
    CODEBASE_VERSION,
    DATA_PATH,
    EPISODES_PATH,
    IMAGE_PREFIX,
    INFO_PATH,
    LAMP_EPISODES_PATH,
    LAMP_PATH,
    STATISTICS_PATH,
    TASKS_PATH,
    VIDEO_PATH,
    Feature,
    Slot,
    tasks_table,
    to_arrow,
    video_feature,
)
from lamp.data.lerobot.reader import LeRobotDataset
from lamp.data.lerobot.staging import (
    STAGING,
    EpisodeData,
    StagedEpisode,
    read_staged,
    recorded_names,
    stage_episode,
    staged_names,
)
from lamp.data.lerobot.statistics import FILE_NAME as STORED_STATISTICS
from lamp.data.lerobot.statistics import FeatureStatistics, aggregate, statistics_of
from lamp.data.lerobot.video import join_videos, pixel_format, video_info
from lamp.errors import DataError, MismatchError
from lamp.files import atomic_path, atomic_write_text, link_or_copy, locked, remove_folder, remove_leftovers
from lamp.json_files import to_line, to_text, write_json
from lamp.sceneflow.sim_states import SIMULATION_PATH

MEGABYTE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class FileSizes:
    """Sizes from which on a new file is started."""

    data_mb: float = 100.0
    video_mb: float = 200.0


@dataclass(kw_only=True)
class _NewEpisode:
    """A staged episode on its way into the dataset."""

    staged: StagedEpisode
    index: int
    start: int
    columns: dict[str, np.ndarray]
    row: dict[str, Any]


class Consolidation:
    """One run of `finalize`: what there is, what is added, and the steps in between."""

    def __init__(self, writer: LeRobotWriter, old: LeRobotDataset | None, staged: Sequence[StagedEpisode]):
        self.root, self.old, self.staged = writer.root, old, staged
        self.fps, self.sizes = writer.fps, writer.sizes
        self.robot_type = writer.robot_type if old is None else old.info.get("robot_type", writer.robot_type)
        first = staged[0]
        if old is not None:
            self.features, self.cameras = dict(old.features), old.cameras
        else:
            self.features = dict(
                writer.features or {name: Feature.of(values) for name, values in sorted(first.frames().items())}
            )
            self.cameras = writer.cameras if writer.cameras is not None else tuple(first.image_sizes)
        self.image_sizes = dict(first.image_sizes) if old is None else dict(old.image_sizes)
        self.codec = first.codec
        if old is not None:
            self._check_extensible(old)
        for episode in staged:
            self._check(episode)
        self.tasks = list(old.tasks) if old is not None else []
        self.tasks = list(dict.fromkeys([*self.tasks, *(text for episode in staged for text in episode.instructions)]))

    def _check_extensible(self, old: LeRobotDataset) -> None:
        """Refuses to extend another writer's dataset: new episodes, and the new description, would lack its features."""
        if old.meta.one_file_per_episode:
            raise MismatchError(
                f"{self.root} is LeRobot {old.meta.version}; only {CODEBASE_VERSION} is extended: expected another folder"
            )
        videos = {name for name, camera in old.meta.cameras.items() if camera.in_videos}
        unwritten = [feature.key for name, feature in old.meta.pictures.items() if name not in videos]
        unwritten += [
            old.meta.cameras[name].key for name in videos if old.meta.cameras[name].key != IMAGE_PREFIX + name
        ]
        if unwritten := sorted([*unwritten, *old.meta.other_features]):
            raise MismatchError(
                f"{self.root} has {', '.join(unwritten)}; of pictures, only videos {IMAGE_PREFIX}NAME are written here, and no "
                "depth or text: expected another folder"
            )
        if old.fps != self.fps:
            raise MismatchError(f"{self.root} runs at {old.fps:g} fps, not {self.fps}; expected the same")

    def _check(self, episode: StagedEpisode) -> None:
        where = f"the staged episode {episode.name}"
        if episode.fps != self.fps:
            raise MismatchError(f"{where} runs at {episode.fps} fps; expected {self.fps}")
        sizes = {camera: episode.image_sizes.get(camera) for camera in self.cameras}
        if set(episode.image_sizes) != set(self.cameras) or any(
            sizes[c] != self.image_sizes.get(c) for c in self.cameras
        ):
            expected = {camera: self.image_sizes.get(camera) for camera in self.cameras}
            raise MismatchError(f"{where} has the cameras {dict(episode.image_sizes)}; expected {expected}")

    def write(self, collection: Mapping[str, Any] | None) -> None:
        """Runs all steps; only the last one makes them count."""
        self._remove_orphans()
        episodes = self._prepare()
        for camera in self.cameras:
            self._write_videos(camera, episodes)
        self._write_data(episodes)
        self._write_simulation(episodes)
        with atomic_path(self._next_slot("meta/episodes", EPISODES_PATH)) as path:
            pq.write_table(pa.Table.from_pylist([episode.row for episode in episodes]), path)
        with atomic_path(self.root / TASKS_PATH) as path:
            pq.write_table(tasks_table(self.tasks), path)
        write_json(self.root / STATISTICS_PATH, self._statistics(episodes))
        self._write_lamp_episodes(episodes)
        info = self._info(episodes)
        if collection is not None or self.old is None or self.old.lamp:
            kept = collection if collection is not None else (self.old.lamp if self.old is not None else {})
            write_json(self.root / LAMP_PATH, lamp_description(self.cameras, self.fps, kept, info))
        text = to_text(info)
        update_checksums(self.root, pending={INFO_PATH: text.encode()})
        atomic_write_text(self.root / INFO_PATH, text)

    def _remove_orphans(self) -> None:
        """Removes files that a killed run left and that nothing refers to."""
        known = {path.resolve() for path in self.old.files()} if self.old is not None else set()
        tables, videos = "chunk-*/file-*.parquet", "chunk-*/file-*.mp4"
        for pattern in (f"data/{tables}", f"videos/*/{videos}", f"meta/episodes/{tables}"):
            for path in self.root.glob(pattern):
                if path.resolve() not in known:
                    path.unlink()

    def _prepare(self) -> list[_NewEpisode]:
        """Numbers the new episodes and builds their columns and their rows of the episode table."""
        index, start = (len(self.old), self.old.info["total_frames"]) if self.old is not None else (0, 0)
        episodes = []
        for staged in self.staged:
            frames = staged.frames()
            if set(frames) != set(self.features):
                raise MismatchError(
                    f"the staged episode {staged.name} has the features {sorted(frames)}; expected {sorted(self.features)}"
                )
            steps, texts = np.arange(staged.length), list(dict.fromkeys(staged.instructions))
            places = {text: self.tasks.index(text) for text in texts}
            columns = {name: frames[name] for name in self.features} | {
                "timestamp": (steps / self.fps).astype(np.float32),
                "frame_index": steps,
                "episode_index": np.full(staged.length, index),
                "index": steps + start,
                "task_index": np.array([places[text] for text in staged.instructions]),
            }
            row: dict[str, Any] = {"episode_index": index, "tasks": texts, "length": staged.length}
            row |= {"dataset_from_index": start, "dataset_to_index": start + staged.length}
            statistics = {IMAGE_PREFIX + camera: staged.image_statistics[camera] for camera in self.cameras}
            statistics |= {name: statistics_of(values) for name, values in columns.items()}
            for name, of_feature in statistics.items():
                row |= {f"stats/{name}/{key}": value for key, value in of_feature.to_json().items()}
            episodes.append(_NewEpisode(staged=staged, index=index, start=start, columns=columns, row=row))
            index, start = index + 1, start + staged.length
        return episodes

    def _next_slot(self, folder: str, template: str, video_key: str = "") -> Path:
        """The first file of a kind that is not there yet."""
        slot = Slot(chunk=0, file=0)
        while (path := slot.path(self.root, template, video_key)).exists():
            slot = slot.next()
        return path

    def _write_data(self, episodes: Sequence[_NewEpisode]) -> None:
        features = {**self.features, **BOOKKEEPING}
        tables = [
            pa.table({name: to_arrow(episode.columns[name], feature, name) for name, feature in features.items()})
            for episode in episodes
        ]
        for group in _groups([table.nbytes for table in tables], self.sizes.data_mb * MEGABYTE):
            target = self._next_slot("data", DATA_PATH)
            with atomic_path(target) as path, pq.ParquetWriter(path, tables[0].schema) as parquet:
                for number in group:
                    parquet.write_table(tables[number])
            for number in group:
                episodes[number].row |= _slot_columns("data", target)
        for episode in episodes:
            episode.row |= _slot_columns("meta/episodes", self._next_slot("meta/episodes", EPISODES_PATH))

    def _write_videos(self, camera: str, episodes: Sequence[_NewEpisode]) -> None:
        sources = [episode.staged.video(camera) for episode in episodes]
        infos = [video_info(source) for source in sources]
        for episode, info in zip(episodes, infos, strict=True):
            if info.frames != episode.staged.length:
                raise DataError(
                    f"the staged video {episode.staged.video(camera)} holds {info.frames} frames; expected "
                    f"{episode.staged.length}; remove the staged episode and record it again"
                )
        key = IMAGE_PREFIX + camera
        sizes = [source.stat().st_size for source in sources]
        for group in _groups(sizes, self.sizes.video_mb * MEGABYTE, [info.extradata for info in infos]):
            target = self._next_slot(f"videos/{key}", VIDEO_PATH, key)
            with atomic_path(target) as path:
                firsts = join_videos([sources[number] for number in group], path, self.fps)
            for number, first in zip(group, firsts, strict=True):
                end = first + episodes[number].staged.length
                times = {"from_timestamp": first / self.fps, "to_timestamp": end / self.fps}
                episodes[number].row |= _slot_columns(f"videos/{key}", target)
                episodes[number].row |= {f"videos/{key}/{name}": value for name, value in times.items()}

    def _write_simulation(self, episodes: Sequence[_NewEpisode]) -> None:
        """Copies rather than moves, so that a run after a killed one finds the staged episodes whole."""
        for episode in episodes:
            source, target = episode.staged.simulation, self.root / SIMULATION_PATH.format(episode_index=episode.index)
            if source is None:
                target.unlink(missing_ok=True)
                continue
            with atomic_path(target) as path:
                link_or_copy(source, path)

    def _statistics(self, episodes: Sequence[_NewEpisode]) -> dict[str, Any]:
        """Exact statistics over all frames; for images the episodes' statistics are put together."""
        statistics: dict[str, FeatureStatistics] = {}
        for camera in self.cameras:
            key = IMAGE_PREFIX + camera
            parts = [episode.staged.image_statistics[camera] for episode in episodes]
            statistics[key] = aggregate(parts if self.old is None else [*self.old.table.statistics(key), *parts])
        for name in (*self.features, *BOOKKEEPING):
            values = [episode.columns[name] for episode in episodes]
            statistics[name] = statistics_of(
                np.concatenate(values if self.old is None else [self.old.all_values(name), *values])
            )
        return {name: of_feature.to_json() for name, of_feature in statistics.items()}

    def _write_lamp_episodes(self, episodes: Sequence[_NewEpisode]) -> None:
        lines = [self.old.extra(index) for index in range(len(self.old))] if self.old is not None else []
        for episode in episodes:
            staged = episode.staged
            own = {"episode_index": episode.index, "name": staged.name}
            line: dict[str, Any] = {**own, "length": staged.length, "instruction": staged.task}
            if len(texts := list(dict.fromkeys(staged.instructions))) > 1:
                line["instructions"] = texts
            lines.append({**line, **staged.extra, **own})
        atomic_write_text(self.root / LAMP_EPISODES_PATH, "".join(to_line(line) + "\n" for line in lines))

    def _info(self, episodes: Sequence[_NewEpisode]) -> dict[str, Any]:
        total, last = episodes[-1].index + 1, episodes[-1]
        videos = {
            IMAGE_PREFIX + camera: video_feature(
                *self.image_sizes[camera], self.fps, self.codec, pixel_format(*self.image_sizes[camera])
            )
            for camera in self.cameras
        }
        columns = {name: feature.to_json() for name, feature in {**self.features, **BOOKKEEPING}.items()}
        return {
            "codebase_version": CODEBASE_VERSION,
            "robot_type": self.robot_type,
            "total_episodes": total,
            "total_frames": last.start + last.staged.length,
            "total_tasks": len(self.tasks),
            "chunks_size": CHUNK_SIZE,
            "data_files_size_in_mb": self.sizes.data_mb,
            "video_files_size_in_mb": self.sizes.video_mb,
            "fps": self.fps,
            "splits": {"train": f"0:{total}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH if self.cameras else None,
            "features": {**videos, **columns},
        }


def lamp_description(
    cameras: Sequence[str], fps: float | int, collection: Mapping[str, Any], info: Mapping[str, Any]
) -> dict[str, Any]:
    counts = {"episodes": info["total_episodes"], "frames": info["total_frames"], "tasks": info["total_tasks"]}
    own = {"format": "lamp-dataset", "version": 1, "cameras": list(cameras), "fps": fps}
    collected = {**(collection.get("collected") or {}), **counts}
    return {**own, **collection, **own, "collected": collected}


def _slot_columns(prefix: str, path: Path) -> dict[str, int]:
    chunk, file = path.parent.name.removeprefix("chunk-"), path.stem.removeprefix("file-")
    return {f"{prefix}/chunk_index": int(chunk), f"{prefix}/file_index": int(file)}


def _groups(sizes: Sequence[int], limit: float, kinds: Sequence[object] | None = None) -> list[list[int]]:
    """Splits 0 ... n-1 into runs whose sizes add up to no more than `limit`, each of one kind."""
    groups: list[list[int]] = []
    filled = 0.0
    for number, size in enumerate(sizes):
        fits = bool(groups) and filled + size <= limit and (kinds is None or kinds[number] == kinds[groups[-1][0]])
        if not fits:
            groups.append([])
            filled = 0.0
        groups[-1].append(number)
        filled += size
    return groups


LISTED = ("data/", "images/", "meta/", "simulation/", "videos/")
"""Where the files are that a dataset consists of; caches and scene flow in its folder keep their own checksums."""
NEVER_CHANGED = ("data/", "images/", "meta/episodes/", "simulation/", "videos/")


def dataset_files(root: Path) -> list[Path]:
    """The files of a dataset that its list of checksums is of."""
    apart = (CHECKSUMS_PATH, ATTEMPTS_PATH, STORED_STATISTICS)
    files = [path for folder in LISTED for path in files_in(root / folder)]
    return [path for path in files if path.relative_to(root).as_posix() not in apart]


def update_checksums(root: Path, *, changed: bool = True, pending: Mapping[str, bytes] | None = None) -> None:
    """Writes the list of a dataset's checksums, or brings it up to date.

    A file that is listed and never changed again keeps its entry, so that damage since then is not taken for right.

    Args:
        changed: Whether descriptions may have been written since; else that is found out.
        pending: The content of files that will be written next.
    """
    path = root / CHECKSUMS_PATH
    listed = read_checksums(path) if path.is_file() else {}
    # A finalising that was killed between the description and this list.
    if not changed and listed.get(INFO_PATH) == checksum_of(root / INFO_PATH):
        return
    kept = {
        name: checksum
        for name, checksum in listed.items()
        if name.startswith(NEVER_CHANGED) and (root / name).is_file()
    }
    new = [path for path in dataset_files(root) if path.relative_to(root).as_posix() not in kept]
    expected = {
        name: Checksum(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        for name, content in (pending or {}).items()
    }
    write_checksums(path, {**kept, **checksums_of(root, new), **expected})


class LeRobotWriter:
    """Makes a LeRobot v3.0 dataset out of staged episodes, or extends one."""

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        features: Mapping[str, Feature] | None = None,
        fps: float | int = 20,
        robot_type: str = "panda",
        cameras: Sequence[str] | None = None,
        sizes: FileSizes | None = None,
    ):
        """
        Args:
            features: What every episode's arrays must be; None: whatever the first episode's are.
            cameras: Short names of the cameras in their order; None: whatever the first episode has.
            sizes: When to start new files.
        """
        self.root = Path(root)
        self.features, self.cameras = features, None if cameras is None else tuple(cameras)
        self.fps, self.robot_type = fps, robot_type
        self.sizes = sizes or FileSizes()

    def add_episode(self, episode: EpisodeData, name: str | None = None) -> Path:
        """Stages an episode; without a name it comes after all that are there (one process only)."""
        if name is None:
            name = f"{len(recorded_names(self.root)) + len(staged_names(self.root)):06d}"
        return stage_episode(self.root, name, episode, fps=self.fps)

    def names(self) -> set[str]:
        """Names of all episodes, staged or part of the dataset: those a resumed collection need not record."""
        return set(staged_names(self.root)) | set(recorded_names(self.root))

    def finalize(self, collection: Mapping[str, Any] | None = None) -> int:
        """Makes the staged episodes, in the order of their names, part of the dataset.

        May be called again at any time: after more episodes were staged it extends the dataset, otherwise it does nothing.
        If it is killed, the dataset is as it was before or as it should be after, and the next call tidies up.

        Args:
            collection: How the data was collected, for `meta/lamp.json`; None keeps what is there.

        Returns:
            How many episodes were added.

        Raises:
            DataError: There is nothing to make a dataset of, or an episode is corrupt, or another process is at it.
            MismatchError: Episodes differ in features, cameras, image sizes or frame rate.
        """
        with locked(self.root / STAGING / ".lock", f"another process is finalising {self.root}; wait for it"):
            old = LeRobotDataset(self.root) if (self.root / INFO_PATH).exists() else None
            done = set(recorded_names(self.root))
            staged = [read_staged(self.root, name) for name in staged_names(self.root) if name not in done]
            if old is None and not staged:
                raise DataError(f"no episodes are staged in {self.root}; record some before finalising")
            if staged:
                Consolidation(self, old, staged).write(collection)
            elif collection is not None and old is not None:
                write_json(self.root / LAMP_PATH, lamp_description(old.cameras, self.fps, collection, old.info))
            for name in staged_names(self.root):
                remove_folder(self.root / STAGING / name)
            remove_leftovers(self.root / STAGING)
            if not staged:
                # Also what a finalising has left that was killed between the list and the description, which is its last step.
                update_checksums(self.root, changed=collection is not None)
            return len(staged)
