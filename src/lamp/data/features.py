"""The frozen backbone's tokens, computed once: image tokens per fresh frame and camera, text tokens per instruction.

A cache lives under ``features/<key>/`` in the dataset's folder, where the key identifies the backbone's weights and settings.
Each episode is a file of its own, written whole or not at all; files are mapped into memory, so that the operating system
keeps in RAM what fits, and shares it between processes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from lamp.data.encoding import (
    SHARED,
    FeatureBackbone,
    PartlyConstant,
    cache_folder,
    camera_names,
    encode_all,
    episode_path,
    is_stale,
    load_mapped,
    read_manifest,
    write_shared,
)
from lamp.data.lerobot_reader import LeRobotDataset
from lamp.errors import DataError, MismatchError
from lamp.types import Encoded

__all__ = ["FeatureBackbone", "FeatureCache", "FrameIndex", "PartlyConstant", "cache_folder"]


@dataclass(frozen=True, kw_only=True)
class FrameIndex:
    """All fresh frames of a dataset, in order: one row of features each."""

    episode: Int64[np.ndarray, "r"]
    frame: Int64[np.ndarray, "r"]
    first: Int64[np.ndarray, "e"]
    """Each episode's first row."""

    @classmethod
    def of(cls, dataset: LeRobotDataset) -> FrameIndex:
        """Lists a dataset's fresh frames."""
        frames = [np.flatnonzero(dataset.fresh(index)) for index in range(len(dataset))]
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
        self.manifest = read_manifest(self.folder, key)
        self.cameras: tuple[str, ...] = tuple(self.manifest["cameras"])
        self.width: int = self.manifest["width"]
        self._varying = slice(*self.manifest["varying"])
        self._check_episodes()
        self.index = FrameIndex.of(dataset)
        self._read_shared()
        self._mapped: dict[int, dict[str, Tensor]] = {}

    @classmethod
    def build(
        cls,
        dataset: LeRobotDataset,
        backbone: FeatureBackbone,
        *,
        processes: int = 1,
        progress: Callable[[int, int], None] | None = None,
    ) -> FeatureCache:
        """Computes what is missing or out of date, and opens the cache. May be interrupted and run again at any time.

        Args:
            dataset: Where the images are.
            backbone: What encodes them.
            processes: Worker processes, of one thread each; 1 works in this process.
            progress: Is told how many episodes are done, and of how many.
        """
        folder = cache_folder(dataset, backbone.key)
        missing = [camera for camera in camera_names(backbone) if camera not in dataset.cameras]
        if missing:
            raise MismatchError(f"{dataset.root} has no camera {missing[0]!r}; it has {', '.join(dataset.cameras)}")
        write_shared(dataset, backbone, folder)
        todo = [index for index in range(len(dataset)) if is_stale(dataset, folder, index)]
        done = len(dataset) - len(todo)
        for _ in encode_all(dataset, backbone, folder, todo, processes):
            done += 1
            if progress is not None:
                progress(done, len(dataset))
        return cls(dataset, backbone.key)

    def _check_episodes(self) -> None:
        total = len(self.dataset)
        missing = [index for index in range(total) if not episode_path(self.folder, index).exists()]
        if missing:
            raise DataError(
                f"{self.folder} lacks {len(missing)} of {total} episodes; "
                f"complete it with `lamp cache features {self.dataset.root}`"
            )
        for index in range(total):
            if is_stale(self.dataset, self.folder, index):
                raise MismatchError(
                    f"{episode_path(self.folder, index)} was made from other data than episode {index} now holds; "
                    f"bring it up to date with `lamp cache features {self.dataset.root}`"
                )

    def _read_shared(self) -> None:
        tensors, metadata = load_mapped(self.folder / SHARED)
        instructions = json.loads(metadata["instructions"])
        absent = [task for task in self.dataset.tasks if task not in instructions]
        if absent:
            raise MismatchError(
                f"{self.folder} lacks the instruction {absent[0]!r}; complete it with `lamp cache features {self.dataset.root}`"
            )
        self._text, self._text_mask = tensors["text"], tensors["text_mask"]
        self._constant = {camera: tensors[f"constant.{camera}"] for camera in self.cameras}
        of_episode = [instructions.index(episode.task) for episode in self.dataset.episodes]
        self._instruction = np.array(of_episode)[self.index.episode]

    @cached_property
    def tokens(self) -> int:
        """Tokens of one observation."""
        return sum(len(constant) for constant in self._constant.values()) + self._text.shape[1]

    def __len__(self) -> int:
        """Number of rows: fresh frames of the dataset."""
        return len(self.index.frame)

    def _episode(self, episode: int) -> dict[str, Tensor]:
        if episode not in self._mapped:
            self._mapped[episode] = load_mapped(episode_path(self.folder, episode))[0]
        return self._mapped[episode]

    def encoded(self, rows: Int64[np.ndarray, "b"]) -> Encoded:
        """Assembles the tokens of some rows of `index`: cameras in order, then the instruction."""
        tokens = torch.empty(len(rows), self.tokens, self.width)
        mask = torch.ones(len(rows), self.tokens, dtype=torch.bool)
        start = 0
        order = np.argsort(self.index.episode[rows], kind="stable")
        episodes, cuts = np.unique(self.index.episode[rows][order], return_index=True)
        places = np.split(order, cuts[1:])
        for camera, constant in self._constant.items():
            part = tokens[:, start : start + len(constant)]
            part[:] = constant
            for episode, place in zip(episodes.tolist(), places, strict=True):
                local = torch.from_numpy(rows[place] - self.index.first[episode])
                part[torch.from_numpy(place), :, self._varying] = self._episode(episode)[camera][local].float()
            start += len(constant)
        instruction = torch.from_numpy(self._instruction[rows])
        tokens[:, start:], mask[:, start:] = self._text[instruction], self._text_mask[instruction]
        return Encoded(tokens=tokens, mask=mask)
