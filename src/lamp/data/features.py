"""The frozen backbone's tokens, computed once per fresh frame, or apart per image and per instruction where it allows that.

A cache lives under ``features/<key>/`` in the dataset's folder, or in another that was chosen; the key identifies the backbone's
weights and settings. Augmented views of the pictures are under ``views/<key>/`` in it. Each episode is a shard, a file of its
own, written whole or not at all; shards are mapped into memory, so that the operating system keeps in RAM what fits, and shares
it between processes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from lamp.data.augmentation import NO_AUGMENTATION, Augmentation
from lamp.data.content import EpisodeContents
from lamp.data.encoding import (
    BackboneIdentity,
    FeatureBackbone,
    FrozenBackbone,
    PartlyConstant,
    SequenceBackbone,
    StorageFormat,
)
from lamp.data.feature_store import FeatureStore
from lamp.data.filling import Filled, Workers
from lamp.data.layouts import Located, Parts, Sequences, Stored
from lamp.data.lerobot_reader import LeRobotDataset
from lamp.data.making import Given, make_features
from lamp.data.manifest import MANIFEST, SEQUENCES, cache_folder, read_manifest
from lamp.data.padding import Padding
from lamp.data.stored_images import OnCorrupt
from lamp.errors import DataError
from lamp.types import Encoded

__all__ = [
    "BackboneIdentity",
    "FeatureBackbone",
    "FeatureCache",
    "Features",
    "FrameIndex",
    "FrozenBackbone",
    "PartlyConstant",
    "SequenceBackbone",
    "cache_folder",
]


@dataclass(frozen=True, kw_only=True)
class FrameIndex:
    """All fresh frames of a dataset, in order: one row of features each."""

    episode: Int64[np.ndarray, " r"]
    frame: Int64[np.ndarray, " r"]
    first: Int64[np.ndarray, " e"]
    """Each episode's first row."""
    texts: tuple[str, ...]
    """All instructions."""
    text: Int64[np.ndarray, " r"]
    """Which of them each frame has."""

    @classmethod
    def of(cls, dataset: LeRobotDataset, without: Collection[int] = ()) -> FrameIndex:
        """Lists a dataset's fresh frames, but for those of some episodes."""
        none, gone = np.zeros(0, np.int64), set(without)
        frames = [none if index in gone else np.flatnonzero(dataset.fresh(index)) for index in range(len(dataset))]
        counts = np.array([len(of_episode) for of_episode in frames])
        present = np.flatnonzero(counts).tolist()
        texts, text = dataset.instruction_index(present, [frames[index] for index in present])
        return cls(
            texts=texts,
            text=text,
            episode=np.repeat(np.arange(len(frames)), counts),
            frame=np.concatenate(frames),
            first=np.concatenate([[0], counts.cumsum()[:-1]]).astype(np.int64),
        )

    def of_episode(self, episode: int) -> range:
        """The rows of an episode."""
        last = self.first[episode + 1] if episode + 1 < len(self.first) else len(self.frame)
        return range(int(self.first[episode]), int(last))

    def rows(self, episode: int, frames: Sequence[int] | np.ndarray) -> Int64[np.ndarray, " n"]:
        """The rows of some fresh frames of an episode.

        Raises:
            DataError: One of them has no image of its own.
        """
        of = self.of_episode(episode)
        present = self.frame[of.start : of.stop]
        wanted = np.asarray(frames, np.int64)
        place = np.searchsorted(present, wanted)
        known = (place < len(present)) & (present[np.minimum(place, len(present) - 1)] == wanted)
        if not known.all():
            raise DataError(
                f"frame {wanted[~known][0]} of episode {episode} repeats an earlier image; use a fresh frame"
            )
        return of.start + place


class Features(ABC):
    """The frozen backbone's tokens of all fresh frames of a dataset, wherever they come from."""

    dataset: LeRobotDataset
    key: str
    """Of the backbone."""
    augmentation: Augmentation
    """Which views of the pictures there are besides themselves."""
    cameras: tuple[str, ...]
    width: int
    manifest: dict[str, Any]
    """Under `backbone`, what the backbone says of itself."""
    index: FrameIndex
    left_out: tuple[int, ...]
    """Episodes without features, since their pictures cannot be read: they have no rows."""
    contents: EpisodeContents
    """What identifies the episodes, as far as their features depend on them."""
    folder: Path
    """Where a cache of them is, or would be."""

    def __len__(self) -> int:
        """Number of rows: fresh frames of the dataset."""
        return len(self.index.frame)

    @property
    def kept_otherwise(self) -> tuple[str, ...]:
        """The number format that tokens are kept in, where it is another than by default."""
        return ()

    @property
    @abstractmethod
    def tokens(self) -> int | None:
        """Tokens of every observation; None where that depends on which ones are in the batch."""

    @property
    @abstractmethod
    def padding(self) -> Padding:
        """On which side of a sequence its padding is."""

    @abstractmethod
    def encoded(self, rows: Int64[np.ndarray, " b"], views: Int64[np.ndarray, " b"] | None = None) -> Encoded:
        """The tokens of some rows of `index`, in the backbone's order.

        Args:
            rows: Which.
            views: In which view each is seen: 0 for the picture itself, as all are by default.
        """

    def finished(self, encoded: Encoded) -> Encoded:
        """The tokens of what a loading worker has made of a batch; by default, they are there."""
        return encoded


class FeatureCache(Features):
    """A complete cache, opened for reading."""

    def __init__(
        self,
        dataset: LeRobotDataset,
        key: str,
        *,
        augmentation: Augmentation = NO_AUGMENTATION,
        root: Path | None = None,
        wanted: Mapping[str, Any] | None = None,
    ):
        """
        Args:
            dataset: What it is of.
            key: Of the backbone.
            augmentation: Which views of the pictures there are to be besides themselves.
            root: The folder that caches are in; None: the dataset's own.
            wanted: What the backbone says of itself, to name how it differs from those that there are caches of.

        Raises:
            DataError: There is no cache for this backbone, or it lacks episodes or has corrupt ones.
            MismatchError: It was made from other data, or by another backbone, or with another augmentation.
        """
        dataset.check_episodes()
        self.dataset, self.key, self.augmentation = dataset, key, augmentation
        self.folder = cache_folder(dataset, key, root)
        self.manifest: dict[str, Any] = read_manifest(self.folder, key, dataset, wanted)
        self.cameras: tuple[str, ...] = tuple(self.manifest["cameras"])
        self.width: int = self.manifest["width"]
        store = FeatureStore(dataset, self.folder, augmentation)
        self.contents, self.left_out = store.contents, store.left_out()
        store.check()
        self.index = FrameIndex.of(dataset, without=self.left_out)
        layout = Sequences if self.manifest["version"] == SEQUENCES else Parts
        stored = Stored(store.pictures, store.views)
        self._layout = layout(stored, self.folder, self.manifest, self.index.texts)

    @classmethod
    def build(
        cls,
        dataset: LeRobotDataset,
        backbone: FrozenBackbone,
        *,
        processes: int = 1,
        progress: Callable[[Filled], None] | None = None,
        on_corrupt: OnCorrupt | None = None,
        augmentation: Augmentation = NO_AUGMENTATION,
        root: Path | None = None,
        storage: StorageFormat = "default",
    ) -> FeatureCache:
        """Computes what is missing or out of date, and opens the cache. May be interrupted and run again at any time.

        Other processes may do the same at the same time: each then makes a share.

        Args:
            dataset: Where the images are.
            backbone: What encodes them.
            processes: Worker processes, of one thread each; 1 works in this process.
            progress: Is told how far it is.
            on_corrupt: What to do where an episode's pictures cannot be read; by default, refuse.
            augmentation: Which views of the pictures to encode besides themselves.
            root: The folder that caches are in; None: the dataset's own.
            storage: How tokens are kept.
        """
        make_features(
            dataset,
            backbone,
            Given(backbone),
            workers=Workers(processes=processes),
            progress=progress,
            on_corrupt=on_corrupt,
            augmentation=augmentation,
            root=root,
            storage=storage,
        )
        return cls(dataset, backbone.key, augmentation=augmentation, root=root, wanted=backbone.description)

    @staticmethod
    def is_complete(
        dataset: LeRobotDataset,
        key: str,
        *,
        augmentation: Augmentation = NO_AUGMENTATION,
        root: Path | None = None,
    ) -> bool:
        """Whether a backbone's cache of a dataset lacks nothing and is up to date."""
        store = FeatureStore(dataset, cache_folder(dataset, key, root), augmentation)
        return (store.folder / MANIFEST).exists() and all(map(store.is_settled, range(len(dataset))))

    @property
    def kept_otherwise(self) -> tuple[str, ...]:
        """The number format that tokens are kept in, where it is another than by default."""
        stored = self.manifest.get("storage")
        usual = self.manifest.get("dtype", "float16") if self.manifest["version"] == SEQUENCES else "float16"
        return () if stored in (None, usual) else (stored,)

    @property
    def tokens(self) -> int | None:
        """Tokens of every observation; None where that depends on which ones are in the batch."""
        return self._layout.tokens

    @property
    def padding(self) -> Padding:
        """On which side of a sequence its padding is."""
        return self._layout.padding

    def encoded(self, rows: Int64[np.ndarray, " b"], views: Int64[np.ndarray, " b"] | None = None) -> Encoded:
        """The tokens of some rows of `index`, in the backbone's order.

        Args:
            rows: Which.
            views: In which view each is seen: 0 for the picture itself, as all are by default.
        """
        augmented = np.zeros(len(rows), bool) if views is None else views > 0
        groups = self.index.episode[rows] * 2 + augmented
        order = np.argsort(groups, kind="stable")
        taken, cuts = np.unique(groups[order], return_index=True)
        located = []
        for group, places in zip(taken.tolist(), np.split(order, cuts[1:]), strict=True):
            first = self.index.first[group // 2]
            part = Located(
                episode=group // 2, places=places, frames=rows[places] - first, texts=self.index.text[rows[places]]
            )
            located.append(replace(part, views=views[places]) if views is not None and group % 2 else part)
        return self._layout.encoded(located)
