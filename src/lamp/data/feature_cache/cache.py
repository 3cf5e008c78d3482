"""The frozen backbone's tokens, cached once per fresh frame, or apart per image and per instruction where it allows that.

A cache lives under ``features/<key>/`` in the dataset's folder, or in another that was chosen; the key identifies the backbone's
weights and settings. Augmented views of the images are under ``views/<key>/`` in it. Each episode is a shard, a file of its
own, written whole or not at all; shards are mapped into memory, so that the operating system keeps in RAM what fits, and shares
it between processes."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float16, Int64, Shaped
from torch import Tensor

from lamp.configuration import from_json
from lamp.data.augmentation import NO_AUGMENTATION, Augmentation
from lamp.data.feature_cache.build import PreloadedBackbone, make_features
from lamp.data.feature_cache.encode import (
    FORMATS,
    LENGTHS,
    TOKENS,
    BackboneIdentity,
    FeatureBackbone,
    FrozenBackbone,
    PartlyConstant,
    SequenceBackbone,
    StorageFormat,
)
from lamp.data.feature_cache.manifest import (
    HIDDEN,
    MANIFEST,
    SEQUENCES,
    SHARED,
    CacheManifest,
    FeatureStore,
    cache_folder,
    read_manifest,
)
from lamp.data.feature_cache.shards import EpisodeFingerprints, ShardState, load_mapped
from lamp.data.feature_cache.work_sharing import BuildProgress, Workers
from lamp.data.lerobot.reader import LeRobotDataset
from lamp.data.stored_images import OnCorrupt
from lamp.errors import DataError, MismatchError
from lamp.types import Encoded, Padding, RightPadding, padded

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


MAX_MAPPED = 16384
"""Shards that a process maps at most: systems limit how many files one may map, Linux to 65,530."""


@dataclass(frozen=True, kw_only=True)
class FrameIndex:
    """All fresh frames of a dataset, in order: one row of features each."""

    episode: Int64[np.ndarray, " r"]
    frame: Int64[np.ndarray, " r"]
    first: Int64[np.ndarray, " e"]
    """Each episode's first row."""
    instructions: tuple[str, ...]
    """All instructions."""
    instruction_index: Int64[np.ndarray, " r"]
    """The index of each frame's among them."""

    @classmethod
    def of(cls, dataset: LeRobotDataset, without: Collection[int] = ()) -> FrameIndex:
        """Lists a dataset's fresh frames, but for those of some episodes."""
        none, gone = np.zeros(0, np.int64), set(without)
        frames = [none if index in gone else np.flatnonzero(dataset.fresh(index)) for index in range(len(dataset))]
        counts = np.array([len(of_episode) for of_episode in frames])
        present = np.flatnonzero(counts).tolist()
        instructions, instruction_index = dataset.instruction_index(present, [frames[index] for index in present])
        return cls(
            instructions=instructions,
            instruction_index=instruction_index,
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
    description: Mapping[str, Any]
    """The backbone's own description: weights and settings."""
    index: FrameIndex
    left_out: tuple[int, ...]
    """Episodes without features, since their pictures cannot be read: they have no rows."""
    fingerprints: EpisodeFingerprints
    """What identifies the episodes, as far as their features depend on them."""
    folder: Path
    """Where a cache of them is, or would be."""

    def __len__(self) -> int:
        return len(self.index.frame)

    @property
    def backbone(self) -> FrozenBackbone | None:
        """What encodes as tokens are needed; None where they are cached."""
        return None

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
        """The tokens of some rows of `index`, in the backbone's order, each in a view: 0, the default, is the picture itself."""

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
            key: Of the backbone.
            augmentation: Which views of the pictures there are to be besides themselves.
            root: The folder that caches are in; None: the dataset's own.
            wanted: The backbone's description, to name how it differs from those that there are caches of.

        Raises:
            DataError: There is no cache for this backbone, or it lacks episodes or has corrupt ones.
            MismatchError: It was made from other data, or by another backbone, or with another augmentation.
        """
        dataset.check_episodes()
        self.dataset, self.key, self.augmentation = dataset, key, augmentation
        self.folder = cache_folder(dataset, key, root)
        self.manifest = read_manifest(self.folder, key, dataset, wanted)
        self.description = self.manifest["backbone"]
        self.cameras: tuple[str, ...] = tuple(self.manifest["cameras"])
        self.width: int = self.manifest["width"]
        store = FeatureStore(dataset, self.folder, augmentation)
        self.fingerprints, self.left_out = store.fingerprints, store.left_out()
        store.check()
        self.index = FrameIndex.of(dataset, without=self.left_out)
        layout = SequenceLayout if self.manifest["version"] == SEQUENCES else ImageTextLayout
        self._layout = layout(ShardReader(store), self.folder, self.manifest, self.index.instructions)

    @classmethod
    def build(
        cls,
        dataset: LeRobotDataset,
        backbone: FrozenBackbone,
        *,
        processes: int = 1,
        progress: Callable[[BuildProgress], None] | None = None,
        on_corrupt: OnCorrupt = "refuse",
        augmentation: Augmentation = NO_AUGMENTATION,
        root: Path | None = None,
        storage: StorageFormat = "default",
    ) -> FeatureCache:
        """Computes what is missing or out of date, and opens the cache. May be interrupted and run again at any time.

        Other processes may do the same at the same time: each then makes a share.

        Arguments are those of `make_features`; `processes` are of one thread each, and 1 works in this process.
        """
        make_features(
            dataset,
            backbone,
            PreloadedBackbone(backbone),
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
        return (store.folder / MANIFEST).exists() and all(
            store.is_current(episode) or store.pictures.state(episode) is ShardState.LEFT_OUT
            for episode in range(len(dataset))
        )

    @property
    def kept_otherwise(self) -> tuple[str, ...]:
        stored = self.manifest.get("storage")
        usual = self.manifest.get("dtype", "float16") if self.manifest["version"] == SEQUENCES else "float16"
        return () if stored in (None, usual) else (stored,)

    @property
    def tokens(self) -> int | None:
        return self._layout.tokens

    @property
    def padding(self) -> Padding:
        return self._layout.padding

    def encoded(self, rows: Int64[np.ndarray, " b"], views: Int64[np.ndarray, " b"] | None = None) -> Encoded:
        augmented = np.zeros(len(rows), bool) if views is None else views > 0
        groups = self.index.episode[rows] * 2 + augmented
        order = np.argsort(groups, kind="stable")
        taken, cuts = np.unique(groups[order], return_index=True)
        parts = []
        for group, places in zip(taken.tolist(), np.split(order, cuts[1:]), strict=True):
            first = self.index.first[group // 2]
            part = EpisodeRows(
                episode=group // 2,
                places=places,
                frames=rows[places] - first,
                instruction_index=self.index.instruction_index[rows[places]],
            )
            parts.append(replace(part, views=views[places]) if views is not None and group % 2 else part)
        return self._layout.encoded(parts)


@dataclass(frozen=True, kw_only=True)
class EpisodeRows:
    """The rows of a batch that come from one episode: all of the pictures themselves, or all of augmented views."""

    episode: int
    places: Int64[np.ndarray, " n"]
    """Their positions in the batch."""
    frames: Int64[np.ndarray, " n"]
    """Which of the episode's fresh frames they are."""
    instruction_index: Int64[np.ndarray, " n"]
    """The index of each frame's instruction."""
    views: Int64[np.ndarray, " n"] | None = None
    """The augmented view of each, from 1; None: the pictures themselves."""


class ShardReader:
    """The tensors of a store's shards. Each file is mapped into memory when it is first needed."""

    def __init__(self, store: FeatureStore) -> None:
        self._shards = {False: store.pictures} if store.views is None else {False: store.pictures, True: store.views}
        self._mapped: OrderedDict[tuple[int, bool], dict[str, Tensor]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """Another process maps the files itself."""
        return {**self.__dict__, "_mapped": OrderedDict()}

    def shard(self, episode: int, *, augmented: bool) -> dict[str, Tensor]:
        """All tensors of an episode's pictures, or of their augmented views."""
        key = episode, augmented
        if key not in self._mapped:
            self._mapped[key] = load_mapped(self._shards[augmented].path(episode))[0]
            if len(self._mapped) > MAX_MAPPED:
                self._mapped.popitem(last=False)
        self._mapped.move_to_end(key)
        return self._mapped[key]

    def rows(self, part: EpisodeRows) -> dict[str, Shaped[Tensor, "n ..."]]:
        """The rows of a batch that come from one episode, such as (row, token, channel), of each tensor in its shard."""
        shard, frames = self.shard(part.episode, augmented=part.views is not None), torch.from_numpy(part.frames)
        if part.views is None:
            return {name: stored[frames] for name, stored in shard.items()}
        views = torch.from_numpy(part.views - 1)
        return {name: stored[views, frames] for name, stored in shard.items()}


class HiddenStates:
    """z_m of some samples for several noise draws, computed ahead of Stage 2 and kept in shards beside a feature cache."""

    def __init__(
        self, store: FeatureStore, *, episode: Int64[np.ndarray, " n"], place: Int64[np.ndarray, " n"], draws: int
    ) -> None:
        """
        Args:
            store: The shards; those of these episodes must be there.
            place: Which of its episode's fresh frames each sample is.
            draws: Number of noise draws to alternate between; the shards may hold more.
        """
        self._shards = ShardReader(store)
        self._episode, self._place, self.draws = episode, place, draws

    def __len__(self) -> int:
        return len(self._episode)

    def take(
        self, samples: Int64[np.ndarray, " b"], draws: Int64[np.ndarray, " b"], views: Int64[np.ndarray, " b"] | None
    ) -> Float16[np.ndarray, "b m dm"]:
        """Reads one draw of each of some samples, in the view that it is seen in."""
        hidden = []
        for place, (sample, draw) in enumerate(zip(samples.tolist(), draws.tolist(), strict=True)):
            view = 0 if views is None else int(views[place])
            stored = self._shards.shard(int(self._episode[sample]), augmented=view > 0)[HIDDEN]
            hidden.append((stored[view - 1] if view else stored)[draw, int(self._place[sample])].numpy())
        return np.stack(hidden)


class ImageTextLayout:
    """Tokens of each camera's image, then those of the instruction: computed apart, put together here.

    Raises:
        MismatchError: The cache lacks an instruction.
    """

    def __init__(self, shards: ShardReader, folder: Path, manifest: CacheManifest, instructions: Sequence[str]) -> None:
        self._shards, self._width = shards, manifest["width"]
        self._varying = slice(*manifest.get("varying", ()))
        tensors, metadata = load_mapped(folder / SHARED)
        known = {task: place for place, task in enumerate(json.loads(metadata["instructions"]))}
        absent = [task for task in instructions if task not in known]
        if absent:
            raise MismatchError(f"{folder} lacks the instruction {absent[0]!r}; run `lamp cache features` again")
        self._text, self._text_mask = tensors["text"], tensors["text_mask"]
        self._constant = {camera: tensors[f"constant.{camera}"] for camera in manifest["cameras"]}
        self._instruction = torch.tensor([known[task] for task in instructions], dtype=torch.int64)
        self.tokens: int = sum(map(len, self._constant.values())) + self._text.shape[1]
        self.padding: Padding = RightPadding()

    def encoded(self, parts: Sequence[EpisodeRows]) -> Encoded:
        size, start = sum(len(part.places) for part in parts), 0
        tokens = torch.empty(size, self.tokens, self._width)
        mask = torch.ones(size, self.tokens, dtype=torch.bool)
        stored = [(torch.from_numpy(part.places), self._shards.rows(part)) for part in parts]
        for camera, constant in self._constant.items():
            of_camera = tokens[:, start : start + len(constant)]
            of_camera[:] = constant
            for places, rows in stored:
                of_camera[places, :, self._varying] = rows[camera].float()
            start += len(constant)
        for part in parts:
            places = torch.from_numpy(part.places)
            instruction = self._instruction[torch.from_numpy(part.instruction_index)]
            tokens[places, start:], mask[places, start:] = self._text[instruction], self._text_mask[instruction]
        return Encoded(tokens=tokens, mask=mask)


class SequenceLayout:
    """Whole sequences, stored without their padding, and given in the backbone's number format.

    The tokens of a frame contain its instruction.
    """

    def __init__(self, shards: ShardReader, folder: Path, manifest: CacheManifest, instructions: Sequence[str]) -> None:
        self._shards = shards
        self.padding: Padding = from_json(Padding, manifest.get("padding"), where=f"padding in {folder}")
        self.tokens: int | None = manifest.get("length")
        self._dtype = None if "dtype" not in manifest else FORMATS[manifest["dtype"]]

    def encoded(self, parts: Sequence[EpisodeRows]) -> Encoded:
        """Puts the sequences of a batch together and pads them as the backbone does."""
        rows: dict[int, Tensor] = {}
        for part in parts:
            shard = self._shards.rows(part)
            stored = shard[TOKENS].to(self._dtype or shard[TOKENS].dtype)
            lengths = shard[LENGTHS].tolist() if LENGTHS in shard else [stored.shape[1]] * len(stored)
            real = (tokens[:length] for tokens, length in zip(stored, lengths, strict=True))
            rows.update(zip(part.places.tolist(), real, strict=True))
        return padded([rows[place] for place in range(len(rows))], self.padding, self.tokens)
