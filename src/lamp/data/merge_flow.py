"""`lamp flow merge A B ... --out STORE`: several scene-flow stores as one, with their datasets where they have any.

Nothing is decoded or encoded: pictures are copied as they are encoded, and scene flow is linked where the file system can. What
is made appears whole or not at all.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lamp.data.flow_from_video import ESTIMATED
from lamp.data.lerobot.format import IMAGE_PREFIX, INFO_PATH
from lamp.data.lerobot.reader import LeRobotDataset
from lamp.data.lerobot.staging import StagedEpisode, staged_names
from lamp.data.lerobot.video import cut_video
from lamp.data.lerobot.writer import Consolidation, LeRobotWriter
from lamp.errors import ConfigError, DataError, MismatchError
from lamp.files import atomic_path, locked, remove_folder
from lamp.json_files import to_line
from lamp.progress import Progress
from lamp.sceneflow.sim_states import SIMULATION_PATH
from lamp.sceneflow.store import SceneFlowStore, lock_of
from lamp.sceneflow.stores import FOLDER, settings
from lamp.sceneflow.validate import MANIFEST, find_stores, manifest_lines

CUT = ".cut"
"""Videos of single episodes, while they are merged."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One of the stores that are merged."""

    name: str
    """Unique among them."""
    store: SceneFlowStore
    dataset: LeRobotDataset | None
    """None: a store by itself, whose episodes keep their numbers."""


@dataclass(frozen=True, kw_only=True)
class MergeReport:
    """What was merged."""

    path: Path
    stores: int
    episodes: int
    query_frames: int

    def __str__(self) -> str:
        return (
            f"{self.path}: scene flow of {self.episodes} episodes ({self.query_frames} query frames), merged of "
            f"{self.stores} stores"
        )


def merge(paths: Sequence[Path], out: Path) -> MergeReport:
    """Makes one store of several.

    Stores that lie in datasets are merged with these: episodes are numbered anew, in the order of the stores. Stores by
    themselves are taken as parts of one, of different episodes, which keep their numbers.

    Raises:
        ConfigError: There is nothing to merge, or `out` is there already, or lies in one of the stores.
        DataError: A store is missing, damaged or not finished, or two have the same episode.
        MismatchError: They have different settings.
    """
    if len(paths) < 2:
        raise ConfigError(f"{len(paths)} stores to merge; expected at least two, and where to: --out STORE")
    if out.exists():
        raise ConfigError(f"{out} is there already; expected a folder that is to be made")
    parts = _parts(paths)
    for part in parts:
        root = part.store.path if part.dataset is None else part.dataset.root
        if out.resolve().is_relative_to(root.resolve()):
            raise ConfigError(f"--out {out} lies in {root}, which is merged; expected a folder of its own")
    _check_alike(parts)
    with ExitStack() as stack:
        for part in parts:
            lock = lock_of(part.store.path)
            if os.access(lock, os.W_OK):  # without one, or where nothing can be written, nobody is building
                stack.enter_context(locked(lock, f"a build is at work on {part.store.path}; wait for it"))
        staged = stack.enter_context(atomic_path(out))
        staged.mkdir()
        if parts[0].dataset is None:
            numbers = _numbers_kept(parts)
            store_path = staged
        else:
            numbers = _merge_datasets(parts, staged)
            store_path = staged / FOLDER
        store = SceneFlowStore.create(store_path, replace(parts[0].store.description, source=out.resolve().name))
        _merge_stores(parts, numbers, store)
        (store_path / MANIFEST).write_text(
            "".join(f"{to_line(line)}\n" for part in parts for line in _manifest(part, numbers[part.name])),
            encoding="utf-8",
        )
        frames = sum(map(len, store.all_frames(store.episodes)))
        report = MergeReport(path=out, stores=len(parts), episodes=len(store.episodes), query_frames=frames)
    return report


def _parts(paths: Sequence[Path]) -> list[Part]:
    parts, names = [], Counter[str]()
    if len({path.resolve() for path in paths}) < len(paths):
        raise ConfigError(f"a store is named twice: {', '.join(map(str, paths))}")
    for path in paths:
        folders = find_stores(path)
        if len(folders) > 1:
            known = "; ".join(f"{folder.name} ({settings(SceneFlowStore(folder).description)})" for folder in folders)
            raise ConfigError(f"{path} has several stores, {known}; name the one that is meant, such as {folders[0]}")
        folder = folders[0].resolve()
        is_dataset = (folder.parent / INFO_PATH).is_file()
        dataset = LeRobotDataset(folder.parent) if is_dataset else None
        name = (folder.parent if is_dataset else folder).name
        names[name] += 1
        own = name if names[name] == 1 else f"{name}-{names[name]}"
        parts.append(Part(name=own, store=SceneFlowStore(folder), dataset=dataset))
    alone = [part.name for part in parts if part.dataset is None]
    if alone and len(alone) < len(parts):
        raise MismatchError(
            f"{alone[0]} is a store by itself and {next(part.name for part in parts if part.dataset)} one with a dataset; "
            "expected datasets with their stores, or stores by themselves"
        )
    return parts


def _check_alike(parts: Sequence[Part]) -> None:
    """
    Raises:
        DataError: One holds no episode, or is not finished.
        MismatchError: One differs from the first; all its differences are named.
    """
    first = parts[0]
    for part in parts:
        if not part.store.episodes:
            raise DataError(f"{part.store.path} holds no episode; expected one that `lamp flow build` finished")
        other = dict(first.store.description.differences(part.store.description))
        if first.dataset is not None and part.dataset is not None:
            _check_dataset(part.dataset)
            ours, theirs = _dataset_settings(first.dataset), _dataset_settings(part.dataset)
            other |= {name: (ours[name], theirs[name]) for name in ours if ours[name] != theirs[name]}
        if other:
            values = "; ".join(f"{name} {one} and {two}" for name, (one, two) in other.items())
            raise MismatchError(
                f"{first.name} and {part.name} cannot be one store, they differ in {values}; train on both with "
                "`lamp train motion --data ... --also ...`, or build one as the other"
            )


def _dataset_settings(dataset: LeRobotDataset) -> dict[str, Any]:
    """What episodes of one dataset have in common."""
    return {
        "frames a second": dataset.fps,
        "cameras and image sizes": dataset.image_sizes,
        "features": {name: (one.dtype, one.shape) for name, one in sorted(dataset.features.items())},
        "robot": dataset.info.get("robot_type"),
    }


def _check_dataset(dataset: LeRobotDataset) -> None:
    unfinished = [*staged_names(dataset.root), *(path.name for path in (dataset.root / ESTIMATED).glob("[!.]*"))]
    if unfinished:
        raise DataError(
            f"{dataset.root} is not finished ({len(unfinished)} episodes wait, such as {unfinished[0]}); run the command that "
            "makes it again"
        )
    pictures = [name for name, camera in dataset.meta.cameras.items() if not camera.in_videos]
    if pictures or dataset.depth_cameras:
        raise DataError(
            f"{dataset.root} has {', '.join([*pictures, *dataset.depth_cameras])} as single pictures or depth; expected "
            "cameras in videos, as `lamp flow build --out` and `lamp collect` make them"
        )


def _numbers_kept(parts: Sequence[Part]) -> dict[str, dict[int, int]]:
    """The episodes of stores by themselves, which keep their numbers.

    Raises:
        DataError: Two stores have an episode of the same number.
    """
    owner = dict[int, str]()
    for part in parts:
        for episode in part.store.episodes:
            if episode in owner:
                raise DataError(
                    f"{owner[episode]} and {part.name} both have scene flow of episode {episode}; expected stores of different "
                    "episodes of one dataset, or datasets with their stores, whose episodes are numbered anew"
                )
            owner[episode] = part.name
    return {part.name: {episode: episode for episode in part.store.episodes} for part in parts}


@dataclass(frozen=True, kw_only=True)
class _Taken(StagedEpisode):
    """An episode of another dataset on its way into this one."""

    dataset: LeRobotDataset
    index: int

    def frames(self) -> dict[str, np.ndarray]:
        return {name: self.dataset.column(name, self.index) for name in self.dataset.features}

    @property
    def simulation(self) -> Path | None:
        path = self.dataset.root / SIMULATION_PATH.format(episode_index=self.index)
        return path if path.is_file() else None


def _merge_datasets(parts: Sequence[Part], root: Path) -> dict[str, dict[int, int]]:
    """Writes the merged dataset, and returns the new number of each episode."""
    numbers: dict[str, dict[int, int]] = {}
    taken: list[_Taken] = []
    names = Counter[str]()
    for part in parts:
        numbers[part.name] = {}
        for episode in _episodes(part, root / CUT):
            names[episode.name] += 1
            name = episode.name if names[episode.name] == 1 else f"{part.name}/{episode.name}"
            numbers[part.name][episode.index] = len(taken)
            taken.append(replace(episode, name=name))
    first = taken[0].dataset
    robot_type = first.info.get("robot_type") or "unknown"
    writer = LeRobotWriter(root, cameras=first.cameras, fps=first.fps, robot_type=robot_type)
    described = [part.dataset.lamp for part in parts if part.dataset is not None]
    common = {name: value for name, value in described[0].items() if all(one.get(name) == value for one in described)}
    collection = {**common, "merged_from": [part.name for part in parts]}
    Consolidation(writer, None, taken).write(collection)
    remove_folder(root / CUT)
    return numbers


def _episodes(part: Part, cut: Path) -> Iterator[_Taken]:
    """The episodes of a part's dataset, each camera's video by itself in `cut`."""
    dataset = part.dataset
    if dataset is None:
        return
    statistics = {camera: dataset.table.statistics(IMAGE_PREFIX + camera) for camera in dataset.cameras}
    with Progress(f"merging {part.name}", len(dataset), "episodes", brief=True) as progress:
        for episode in range(len(dataset)):
            place = dataset.episode(episode)
            folder = cut / part.name / f"{episode:06d}"
            folder.mkdir(parents=True)
            for camera in dataset.cameras:
                source, first = dataset.video_path(camera, episode), place.videos[camera].first
                cut_video(source, folder / f"{camera}.mp4", dataset.fps, first=first, count=place.length)
            texts, which = dataset.instructions(episode)
            extra = dict(dataset.extra(episode))
            name = str(extra.pop("name", f"{part.name}-{episode:06d}"))
            for key in ("episode_index", "length", "instruction", "instructions"):
                extra.pop(key, None)
            yield _Taken(
                name=name,
                folder=folder,
                task=texts[0],
                instructions=tuple(texts[at] for at in which.tolist()),
                length=place.length,
                fps=dataset.fps,
                extra=extra,
                image_sizes=dataset.image_sizes,
                image_statistics={camera: of_camera[episode] for camera, of_camera in statistics.items()},
                codec=_codec(dataset),
                dataset=dataset,
                index=episode,
            )
            progress.advance()


def _codec(dataset: LeRobotDataset) -> str:
    """As the description of its first camera says."""
    key = dataset.camera_key(dataset.cameras[0])
    entry = dataset.info["features"][key]
    return str((entry.get("info") or entry.get("video_info") or {}).get("video.codec", ""))


def _merge_stores(parts: Sequence[Part], numbers: Mapping[str, Mapping[int, int]], store: SceneFlowStore) -> None:
    with Progress("scene flow", sum(len(part.store.episodes) for part in parts), "episodes", brief=True) as progress:
        for part in parts:
            for episode in part.store.episodes:
                if episode not in numbers[part.name]:
                    raise DataError(
                        f"{part.store.path} has scene flow of episode {episode}, which its dataset has not; "
                        f"`lamp flow validate {part.store.path}` lists all such faults"
                    )
                # Of what was merged before, where it came from at first is kept.
                made_from = {"merged_from": {"store": part.name, "episode": episode}, **part.store.made_from(episode)}
                store.adopt(numbers[part.name][episode], part.store, episode, made_from=made_from)
                progress.advance()


def _manifest(part: Part, numbers: Mapping[int, int]) -> Iterator[dict[str, Any]]:
    """A line for each clip of a part, with where it came from and the episodes that it became."""
    lines = manifest_lines(part.store.path)
    clip_of = {episode: name for name, line in lines.items() for episode in line.get("episodes", ())}  # merged before
    episodes: dict[str, list[int]] = {}
    for episode in part.store.episodes:
        noted = part.store.made_from(episode).get("clip")
        name = noted.get("clip") if isinstance(noted, dict) else None
        episodes.setdefault(clip_of.get(episode) or str(name or f"episode-{episode:06d}"), []).append(episode)
    for name in dict.fromkeys([*lines, *episodes]):
        line, own = lines.get(name, {}), episodes.get(name, [])
        frames = sum(len(part.store.frames(episode)) for episode in own)
        yield {
            "query_frames": frames,
            **line,
            "clip": f"{part.name}/{name}",
            "episodes": [numbers[episode] for episode in own],
            "merged_from": line.get("merged_from") or {"store": part.name, "clip": name, "episodes": own},
        }
