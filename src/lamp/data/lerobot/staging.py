"""One recorded episode, and the staging folder in which workers leave episodes until they are made part of the dataset.

Each staged episode is a folder of its own, which appears whole or not at all, so any number of processes can stage at once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from lamp.data.lerobot.format import BOOKKEEPING, INFO_PATH, LAMP_EPISODES_PATH
from lamp.data.lerobot.metadata import INFO, by_episode, checked
from lamp.data.lerobot.statistics import FeatureStatistics, image_statistics
from lamp.data.lerobot.video import CODEC_NAMES, encoder, write_video
from lamp.errors import ConfigError, DataError, unreadable
from lamp.files import atomic_path, is_file_name
from lamp.json_files import read_json, read_json_object, read_lines_json, to_line, write_json

STAGING = ".staging"


@dataclass(frozen=True, kw_only=True)
class EpisodeData:
    """Everything recorded in one episode of L frames."""

    frames: Mapping[str, np.ndarray]
    """Per feature (such as ``observation.state`` or ``action``) one value per frame: (L, d), or (L,) for a single value."""
    images: Mapping[str, np.ndarray]
    """Per camera, under its short name (such as ``agentview``): uint8 of shape (L, height, width, 3), which is checked."""
    task: str
    """The instruction in words; of the first frame, where it changes."""
    instructions: Sequence[str] | None = None
    """The instruction of each frame, where it changes."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """JSON values to keep about the episode: suite, initial state, seeds ..."""
    simulation: Mapping[str, np.ndarray] | None = None
    """Simulator states and poses per frame, kept beside the dataset; None where there is no simulator."""
    simulation_metadata: Mapping[str, str] = field(default_factory=dict)
    """Strings to keep in the simulation file, in addition to `extra` (each value of which is written as JSON)."""

    @property
    def length(self) -> int:
        return len(next(iter(self.frames.values())))

    def __post_init__(self) -> None:
        if not self.frames or not self.task:
            raise DataError("an episode needs at least one feature and a task; this one lacks them")
        if self.instructions is not None and not (
            len(self.instructions) == self.length and all(text.strip() for text in self.instructions)
        ):
            raise DataError(f"an episode of {self.length} frames needs an instruction for each; some are missing")
        reserved = sorted(BOOKKEEPING.keys() & self.frames.keys())
        if reserved:
            raise DataError(f"the features {', '.join(reserved)} are the writer's own; leave them out of the episode")
        lengths = {name: len(values) for name, values in {**self.frames, **self.images}.items()}
        if len(set(lengths.values())) != 1 or 0 in lengths.values():
            raise DataError(f"an episode's arrays must have one and the same length, not {lengths}")
        for name, values in self.frames.items():
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise DataError(f"{name} holds values that are not finite; expected finite numbers only")
        for camera, images in self.images.items():
            if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
                raise DataError(
                    f"camera {camera}: the images are {images.dtype} of shape {images.shape}; expected uint8 of shape (frames, "
                    "height, width, 3): repeat a gray channel three times, leave alpha out"
                )
        for text in (self.task, *(self.instructions or ())):
            if any("\ud800" <= letter <= "\udfff" for letter in text):
                raise DataError(
                    f"the instruction {text[:80]!a} holds halves of characters; expected text that UTF-8 can hold"
                )


@dataclass(frozen=True, kw_only=True)
class StagedEpisode:
    """An episode that waits in the staging folder."""

    name: str
    folder: Path
    task: str
    instructions: tuple[str, ...]
    """Of each frame."""
    length: int
    fps: float | int
    extra: Mapping[str, Any]
    image_sizes: Mapping[str, tuple[int, int]]
    """Height and width per camera."""
    image_statistics: Mapping[str, FeatureStatistics]
    codec: str

    def frames(self) -> dict[str, np.ndarray]:
        try:
            return load_file(self.folder / "frames.safetensors")
        except (SafetensorError, OSError) as error:
            damaged = f"cannot read the staged episode {self.folder} ({error}); remove it and record it again"
            raise unreadable(self.folder, error, DataError(damaged)) from None

    def video(self, camera: str) -> Path:
        return self.folder / f"{camera}.mp4"

    @property
    def simulation(self) -> Path | None:
        """The simulation file, if the episode has one."""
        path = self.folder / "simulation.safetensors"
        return path if path.exists() else None


def staged_names(root: Path) -> list[str]:
    """Names of the episodes that wait in the staging folder, sorted."""
    folder = root / STAGING
    return (
        sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
        if folder.is_dir()
        else []
    )


def recorded_names(root: Path) -> list[str]:
    """Names of the episodes that are part of the dataset already, by episode index."""
    if not (root / INFO_PATH).exists():
        return []
    total = checked(INFO, read_json(root / INFO_PATH, "dataset description"), root / INFO_PATH).total_episodes
    rows = by_episode(read_lines_json(root / LAMP_EPISODES_PATH), root / LAMP_EPISODES_PATH)
    return [row.get("name", "") for index, row in sorted(rows.items()) if index < total]


def stage_episode(root: str | os.PathLike[str], name: str, episode: EpisodeData, *, fps: float | int = 20) -> Path:
    """Writes one episode to the staging folder of the dataset at `root`, atomically; safe from any number of processes.

    Args:
        root: The dataset's folder; it need not exist.
        name: Unique in the dataset; episodes are put in the order of their names.

    Raises:
        ConfigError: The name cannot be a folder's name.
        DataError: An episode of that name is staged, or part of the dataset, already.
    """
    root = Path(root)
    if not name or name[0] == "." or "/" in name or len(name) > 200:
        raise ConfigError(f"{name!r} cannot name an episode; expected a folder name such as 'libero_object-03-0007'")
    for camera in episode.images:
        if not is_file_name(camera):
            raise ConfigError(
                f"{camera[:80]!r} cannot name a camera; expected what can be a file's name, such as 'wrist'"
            )
    folder = root / STAGING / name
    if folder.exists() or name in recorded_names(root):
        raise DataError(f"an episode named {name!r} is in {root} already; choose another name or skip it")
    with atomic_path(folder) as target:
        target.mkdir()
        save_file(
            {key: np.ascontiguousarray(values) for key, values in episode.frames.items()}, target / "frames.safetensors"
        )
        for camera, images in episode.images.items():
            write_video(target / f"{camera}.mp4", images, fps)
        if episode.simulation is not None:
            metadata = {key: to_line(value) for key, value in episode.extra.items()} | dict(episode.simulation_metadata)
            arrays = {key: np.ascontiguousarray(values) for key, values in episode.simulation.items()}
            save_file(arrays, target / "simulation.safetensors", metadata=metadata)
        write_json(target / "episode.json", _description(episode, fps))
    return folder


def _description(episode: EpisodeData, fps: float | int) -> dict[str, Any]:
    return {
        "task": episode.task,
        "instructions": None if episode.instructions is None else list(episode.instructions),
        "length": episode.length,
        "fps": fps,
        "extra": dict(episode.extra),
        "image_sizes": {camera: images.shape[1:3] for camera, images in episode.images.items()},
        "image_statistics": {camera: image_statistics(images).to_json() for camera, images in episode.images.items()},
        "codec": CODEC_NAMES[encoder()] if episode.images else "",
    }


def read_staged(root: Path, name: str) -> StagedEpisode:
    """Opens one staged episode.

    Raises:
        DataError: It is incomplete or corrupt.
    """
    folder = root / STAGING / name
    stored = read_json_object(folder / "episode.json", "staged episode's description")
    sizes = {camera: (int(height), int(width)) for camera, (height, width) in stored["image_sizes"].items()}
    where = f"statistics of the staged episode {name}"
    images = {
        camera: FeatureStatistics.from_json(stats, where=where) for camera, stats in stored["image_statistics"].items()
    }
    known = {key: stored[key] for key in ("task", "length", "fps", "extra", "codec")}
    instructions = tuple(stored.get("instructions") or (stored["task"],) * stored["length"])
    return StagedEpisode(
        instructions=instructions, name=name, folder=folder, image_sizes=sizes, image_statistics=images, **known
    )
