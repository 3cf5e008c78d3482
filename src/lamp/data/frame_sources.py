"""Where a loader's pictures come from: the videos, decoded each time, or frames that were decoded once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from lamp.data.lerobot_reader import LeRobotDataset
from lamp.errors import DataError
from lamp.files import atomic_path, read_json, safe_file_name, write_json

FRAMES = "frames"


@dataclass(frozen=True, kw_only=True)
class Videos:
    """Decodes what is asked for; what lies between two frames is passed over by keyframe."""

    dataset: LeRobotDataset

    def read(self, camera: str, episode: int, frames: Int64[np.ndarray, " n"]) -> UInt8[np.ndarray, "n h w 3"]:
        """Frames of one episode, in ascending order."""
        return self.dataset.frames(camera, episode, frames)


class DecodedFrames:
    """Frames decoded once, in files that are mapped into memory: ``frames/CAMERA/episode-000000.npy``.

    Many times the videos' size; for small datasets that are trained on with augmentation, where features cannot be cached.
    """

    def __init__(self, dataset: LeRobotDataset, folder: Path | None = None):
        self.dataset, self.folder = dataset, folder or dataset.root / FRAMES
        self._mapped: dict[Path, np.ndarray] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Another process maps the files itself."""
        return {**self.__dict__, "_mapped": {}}

    def path(self, camera: str, episode: int) -> Path:
        """The file of an episode's frames."""
        return self.folder / safe_file_name(camera) / f"episode-{episode:06d}.npy"

    def build(self, cameras: Sequence[str], episodes: Sequence[int]) -> None:
        """Decodes what is not there yet, or was decoded from other pictures."""
        for camera in cameras:
            for episode in episodes:
                mark = self.path(camera, episode).with_suffix(".json")
                made_from = {"fingerprint": self.dataset.fingerprint(episode)}
                if self._is_current(camera, episode):
                    continue
                with atomic_path(self.path(camera, episode)) as path, open(path, "wb") as file:
                    np.save(file, self.dataset.frames(camera, episode), allow_pickle=False)
                write_json(mark, made_from)

    def _is_current(self, camera: str, episode: int) -> bool:
        path = self.path(camera, episode)
        if not (path.is_file() and path.with_suffix(".json").is_file()):
            return False
        found = read_json(path.with_suffix(".json"), "mark of decoded frames")
        return found.get("fingerprint") == self.dataset.fingerprint(episode)

    def read(self, camera: str, episode: int, frames: Int64[np.ndarray, " n"]) -> UInt8[np.ndarray, "n h w 3"]:
        """Frames of one episode.

        Raises:
            DataError: They were not decoded, or from other pictures than the dataset now has.
        """
        path = self.path(camera, episode)
        if path not in self._mapped:
            if not self._is_current(camera, episode):
                raise DataError(f"{path} is missing or of other pictures; decode the frames of episode {episode} again")
            self._mapped[path] = np.load(path, mmap_mode="r", allow_pickle=False)
        return np.asarray(self._mapped[path][frames])


FrameSource = Videos | DecodedFrames
