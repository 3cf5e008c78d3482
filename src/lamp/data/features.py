"""The frozen backbone's tokens, computed once per fresh frame, or apart per image and per instruction where it allows that.

A cache lives under ``features/<key>/`` in the dataset's folder, where the key identifies the backbone's weights and settings.
Each episode is a file of its own, written whole or not at all; files are mapped into memory, so that the operating system
keeps in RAM what fits, and shares it between processes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64

from lamp.data.encoding import (
    MANIFEST,
    SEQUENCES,
    FeatureBackbone,
    FrozenBackbone,
    PartlyConstant,
    SequenceBackbone,
    cache_folder,
    camera_names,
    encode_all,
    episode_path,
    is_left_out,
    is_stale,
    left_out_path,
    read_manifest,
    write_shared,
)
from lamp.data.layouts import Located, Parts, Sequences
from lamp.data.lerobot_reader import LeRobotDataset
from lamp.data.padding import Padding
from lamp.data.stored_images import OnCorrupt, Refuse
from lamp.errors import DataError, MismatchError
from lamp.types import Encoded

__all__ = [
    "FeatureBackbone",
    "FeatureCache",
    "FrameIndex",
    "FrozenBackbone",
    "PartlyConstant",
    "SequenceBackbone",
    "cache_folder",
]


@dataclass(frozen=True, kw_only=True)
class FrameIndex:
    """All fresh frames of a dataset, in order: one row of features each."""

    episode: Int64[np.ndarray, "r"]
    frame: Int64[np.ndarray, "r"]
    first: Int64[np.ndarray, "e"]
    """Each episode's first row."""

    @classmethod
    def of(cls, dataset: LeRobotDataset, without: Collection[int] = ()) -> FrameIndex:
        """Lists a dataset's fresh frames, but for those of some episodes."""
        none = np.zeros(0, np.int64)
        frames = [none if index in without else np.flatnonzero(dataset.fresh(index)) for index in range(len(dataset))]
        counts = np.array([len(of_episode) for of_episode in frames])
        return cls(
            episode=np.repeat(np.arange(len(frames)), counts),
            frame=np.concatenate(frames),
            first=np.concatenate([[0], counts.cumsum()[:-1]]).astype(np.int64),
        )

    def rows(self, episode: int, frames: Sequence[int] | np.ndarray) -> Int64[np.ndarray, "n"]:
        """The rows of some fresh frames of an episode.

        Raises:
            DataError: One of them has no image of its own.
        """
        last = self.first[episode + 1] if episode + 1 < len(self.first) else len(self.frame)
        present = self.frame[self.first[episode] : last]
        wanted = np.asarray(frames, np.int64)
        place = np.searchsorted(present, wanted)
        known = (place < len(present)) & (present[np.minimum(place, len(present) - 1)] == wanted)
        if not known.all():
            raise DataError(
                f"frame {wanted[~known][0]} of episode {episode} repeats an earlier image; use a fresh frame"
            )
        return self.first[episode] + place


class FeatureCache:
    """A complete cache, opened for reading."""

    def __init__(self, dataset: LeRobotDataset, key: str):
        """
        Raises:
            DataError: There is no cache for this backbone, or it lacks episodes.
            MismatchError: It was made from other data, or by another backbone.
        """
        self.dataset, self.key = dataset, key
        self.folder = cache_folder(dataset, key)
        self.manifest: dict[str, Any] = read_manifest(self.folder, key)
        self.cameras: tuple[str, ...] = tuple(self.manifest["cameras"])
        self.width: int = self.manifest["width"]
        self.left_out = tuple(index for index in range(len(dataset)) if is_left_out(dataset, self.folder, index))
        """Episodes without features, since their pictures cannot be read: they have no rows."""
        self._check_episodes()
        self.index = FrameIndex.of(dataset, without=self.left_out)
        layout = Sequences if self.manifest["version"] == SEQUENCES else Parts
        self._layout = layout(self.folder, self.manifest, [episode.task for episode in dataset.episodes])

    @classmethod
    def build(
        cls,
        dataset: LeRobotDataset,
        backbone: FrozenBackbone,
        *,
        processes: int = 1,
        progress: Callable[[int, int], None] | None = None,
        on_corrupt: OnCorrupt | None = None,
    ) -> FeatureCache:
        """Computes what is missing or out of date, and opens the cache. May be interrupted and run again at any time.

        Args:
            dataset: Where the images are.
            backbone: What encodes them.
            processes: Worker processes, of one thread each; 1 works in this process.
            progress: Is told how many episodes are done, and of how many.
            on_corrupt: What to do where an episode's pictures cannot be read; by default, refuse.
        """
        folder = cache_folder(dataset, backbone.key)
        missing = [camera for camera in camera_names(backbone) if camera not in dataset.cameras]
        if missing:
            raise MismatchError(f"{dataset.root} has no camera {missing[0]!r}; it has {', '.join(dataset.cameras)}")
        write_shared(dataset, backbone, folder)
        for index in range(len(dataset)):
            if left_out_path(folder, index).exists():  # it may have been mended since
                left_out_path(folder, index).unlink()
        todo = [index for index in range(len(dataset)) if is_stale(dataset, folder, index)]
        done = len(dataset) - len(todo)
        for _ in encode_all(dataset, backbone, folder, todo, processes, on_corrupt or Refuse()):
            done += 1
            if progress is not None:
                progress(done, len(dataset))
        return cls(dataset, backbone.key)

    def _check_episodes(self) -> None:
        total = len(self.dataset)
        expected = [index for index in range(total) if index not in self.left_out]
        missing = [index for index in expected if not episode_path(self.folder, index).exists()]
        if missing:
            raise DataError(
                f"{self.folder} lacks {len(missing)} of {total} episodes; "
                f"complete it with `lamp cache features {self.dataset.root}`"
            )
        for index in expected:
            if is_stale(self.dataset, self.folder, index):
                raise MismatchError(
                    f"{episode_path(self.folder, index)} was made from other data than episode {index} now holds; "
                    f"bring it up to date with `lamp cache features {self.dataset.root}`"
                )

    @staticmethod
    def is_complete(dataset: LeRobotDataset, key: str) -> bool:
        """Whether a backbone's cache of a dataset lacks nothing and is up to date."""
        folder = cache_folder(dataset, key)
        return (folder / MANIFEST).exists() and not any(
            is_stale(dataset, folder, episode) and not is_left_out(dataset, folder, episode)
            for episode in range(len(dataset))
        )

    @property
    def tokens(self) -> int | None:
        """Tokens of every observation; None where that depends on which ones are in the batch."""
        return self._layout.tokens

    @property
    def padding(self) -> Padding:
        """On which side of a sequence its padding is."""
        return self._layout.padding

    def __len__(self) -> int:
        """Number of rows: fresh frames of the dataset."""
        return len(self.index.frame)

    def encoded(self, rows: Int64[np.ndarray, "b"]) -> Encoded:
        """The tokens of some rows of `index`, in the backbone's order."""
        order = np.argsort(self.index.episode[rows], kind="stable")
        episodes, cuts = np.unique(self.index.episode[rows][order], return_index=True)
        return self._layout.encoded(
            [
                Located(episode=episode, places=place, frames=rows[place] - self.index.first[episode])
                for episode, place in zip(episodes.tolist(), np.split(order, cuts[1:]), strict=True)
            ]
        )
