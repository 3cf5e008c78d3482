"""Writing LeRobot v3.0 datasets: episodes are staged one by one, then made part of the dataset together."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lamp.data.consolidation import Consolidation, FileSizes, Wanted, keep_checksums, lamp_description
from lamp.data.episodes import (
    STAGING,
    EpisodeData,
    read_staged,
    recorded_names,
    remove_staged,
    stage_episode,
    staged_names,
)
from lamp.data.lerobot_format import INFO_PATH, LAMP_PATH, Feature
from lamp.data.lerobot_reader import LeRobotDataset
from lamp.errors import DataError
from lamp.files import locked, remove_leftovers, write_json


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
            root: The dataset's folder.
            features: What every episode's arrays must be; None: whatever the first episode's are.
            fps: Frames per second.
            robot_type: As written in the dataset's description.
            cameras: Short names of the cameras in their order; None: whatever the first episode has.
            sizes: When to start new files.
        """
        self.root = Path(root)
        self.wanted = Wanted(
            features=dict(features) if features is not None else None,
            cameras=tuple(cameras) if cameras is not None else None,
            fps=fps,
            robot_type=robot_type,
        )
        self.sizes = sizes or FileSizes()

    def add_episode(self, episode: EpisodeData, name: str | None = None) -> Path:
        """Stages an episode; without a name it comes after all that are there (one process only)."""
        if name is None:
            name = f"{len(recorded_names(self.root)) + len(staged_names(self.root)):06d}"
        return stage_episode(self.root, name, episode, fps=self.wanted.fps)

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
                Consolidation(self.root, self.wanted, old, staged, self.sizes).write(collection)
            elif collection is not None and old is not None:
                write_json(self.root / LAMP_PATH, lamp_description(old.cameras, self.wanted.fps, collection, old.info))
            for name in staged_names(self.root):
                remove_staged(self.root, name)
            remove_leftovers(self.root / STAGING)
            if not staged:
                # Also what a finalising has left that was killed between the list and the description, which is its last step.
                keep_checksums(self.root, changed=collection is not None)
            return len(staged)
