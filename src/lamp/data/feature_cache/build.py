"""Building a feature cache: predicting its size, and encoding what its shards lack, in parallel if wished."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from lamp.configuration import to_json
from lamp.data.augmentation import NO_AUGMENTATION, Augmentation
from lamp.data.feature_cache.encode import (
    BackboneIdentity,
    FeatureBackbone,
    FrozenBackbone,
    Rounding,
    SequenceIdentity,
    Sized,
    StorageFormat,
    camera_names,
    encode_episode,
    storage_dtype,
)
from lamp.data.feature_cache.manifest import (
    VIEWS_MANIFEST,
    FeatureStore,
    cache_folder,
    read_augmentation,
    write_manifest,
)
from lamp.data.feature_cache.shards import EpisodeFingerprints, Shards, ShardState, check_space, one_error_when_full
from lamp.data.feature_cache.work_sharing import BuildProgress, ShardBuilder, Workers, build_shards
from lamp.data.lerobot.reader import LeRobotDataset
from lamp.data.observation_encoder import check_instructions
from lamp.data.stored_images import CorruptPicturesError, OnCorrupt
from lamp.errors import DataError, MismatchError
from lamp.json_files import write_json

HEADER = 1024
"""About what a shard's header takes. [bytes]"""


@runtime_checkable
class LoadBackbone(Protocol):
    """Loads a backbone in the process that is to encode with it; must be picklable."""

    def __call__(self, device: str | None) -> FrozenBackbone:
        """Loads it on a device; None: where it is best."""
        ...


@dataclass(frozen=True)
class PreloadedBackbone:
    """A backbone that is at hand, and travels as it is."""

    backbone: FrozenBackbone

    def __call__(self, device: str | None) -> FrozenBackbone:
        return self.backbone


@dataclass(kw_only=True)
class FeatureShardBuilder:
    """Encodes episodes into the shards of a cache."""

    store: FeatureStore
    load_backbone: LoadBackbone
    storage: StorageFormat
    on_corrupt: OnCorrupt = "refuse"
    backbone: FrozenBackbone = field(init=False)
    """Once it is loaded."""

    @property
    def folder(self) -> Path:
        return self.store.folder

    def load(self, device: str | None) -> None:
        self.backbone = self.load_backbone(device)

    def is_done(self, episode: int) -> bool:
        return self.store.is_current(episode)

    def make(self, episode: int) -> None:
        """Decodes an episode's pictures once, and encodes what its shards lack of them and their views."""
        dataset, pictures, views = self.store.dataset, self.store.pictures, self.store.views
        frames = np.flatnonzero(dataset.fresh(episode))
        try:
            images = {camera: dataset.frames(camera, episode, frames) for camera in camera_names(self.backbone)}
        except CorruptPicturesError as error:
            if self.on_corrupt == "refuse":
                raise
            pictures.path(episode).unlink(missing_ok=True)
            pictures.leave_out(episode, error.path, str(error))
            return
        self._write(pictures, episode, images, frames, range(1))
        if views is not None:
            self._write(views, episode, images, frames, range(1, self.store.augmentation.views + 1))

    def _write(
        self,
        shards: Shards,
        episode: int,
        images: Mapping[str, UInt8[np.ndarray, "n _ _ 3"]],
        frames: Int64[np.ndarray, " n"],
        numbers: range,
    ) -> None:
        """Encodes some views of an episode, 0 being the pictures themselves, unless that has been done."""
        if shards.state(episode) is ShardState.CURRENT:
            return
        rounding, encoded = Rounding(), dict[str, Tensor]()
        texts, text_of_frame = self.store.dataset.instructions(episode)
        instructions = [texts[place] for place in text_of_frame[frames].tolist()]
        for place, number in enumerate(numbers):
            augmented = self.store.augmentation.view(number, images, episode=episode, frames=frames)
            seen = {camera: torch.from_numpy(of_camera) for camera, of_camera in augmented.items()}
            try:
                tokens = encode_episode(self.backbone, seen, instructions, self.storage, rounding)
            except DataError as error:
                raise DataError(f"episode {episode} of {self.store.dataset.root}: {error}") from None
            for name, tensor in tokens.items():
                encoded.setdefault(name, tensor.new_empty(len(numbers), *tensor.shape))[place] = tensor
        if shards is self.store.pictures:
            encoded = {name: tensor[0] for name, tensor in encoded.items()}
        shards.write(episode, encoded, views=str(len(numbers)), **rounding.header())


@dataclass(frozen=True, kw_only=True)
class BuildPlan:
    """What is going to be made."""

    folder: Path
    episodes: int
    frames: int
    views: int
    """Of each frame, besides itself."""
    size: int | None
    """About how much will be written; None: not known before the backbone is loaded. [bytes]"""


def make_features(
    dataset: LeRobotDataset,
    backbone: BackboneIdentity,
    load_backbone: LoadBackbone,
    *,
    workers: Workers,
    planned: Callable[[BuildPlan], None] | None = None,
    progress: Callable[[BuildProgress], None] | None = None,
    on_corrupt: OnCorrupt = "refuse",
    augmentation: Augmentation = NO_AUGMENTATION,
    root: Path | None = None,
    storage: StorageFormat = "default",
) -> None:
    """Computes what a cache lacks or what is out of date in it. Other processes may do the same at the same time.

    Args:
        load_backbone: Loads the backbone in the process that is to encode with it.
        planned: Called with what is going to be made, before it is.
        progress: Called after each episode.
        augmentation: Which views of the pictures to encode besides themselves.
        root: The folder that caches are in; None: the dataset's own.

    Raises:
        DataError: What is to be made does not fit on the disk; or something in the dataset cannot be read.
        MismatchError: The dataset lacks a camera, or the cache that is there keeps its tokens in another format.
    """
    dataset.check_episodes()
    missing = [camera for camera in camera_names(backbone) if camera not in dataset.cameras]
    if missing:
        raise MismatchError(f"{dataset.root} has no camera {missing[0]!r}; it has {', '.join(dataset.cameras)}")
    check_instructions(backbone, dataset.tasks, dataset.root)
    folder = cache_folder(dataset, backbone.key, root)
    fingerprints = EpisodeFingerprints(dataset, camera_names(backbone), folder.parent)
    store = FeatureStore(dataset, folder, augmentation, known=fingerprints)
    todo = [episode for episode in range(len(dataset)) if not store.is_current(episode)]
    frames = {episode: int(dataset.fresh(episode).sum()) for episode in range(len(dataset))}
    size = _predicted(store, backbone, {episode: frames[episode] for episode in todo}, storage)
    if planned is not None and todo:
        count = sum(frames[episode] for episode in todo)
        planned(BuildPlan(folder=store.folder, episodes=len(todo), frames=count, views=augmentation.views, size=size))
    check_space(store.folder, size or 0)
    write_manifest(dataset, backbone, store.folder, storage)
    if store.views is not None:
        path = store.views.folder / VIEWS_MANIFEST
        # An earlier build may have made more views than this one.
        most = max(augmentation.views, read_augmentation(path).views if path.exists() else 0)
        with one_error_when_full(path.parent):
            write_json(path, to_json(replace(augmentation, views=most)))
    fingerprints.find(todo)  # here, since each worker would read the files that hold many episodes
    work = FeatureShardBuilder(store=store, load_backbone=load_backbone, storage=storage, on_corrupt=on_corrupt)
    build_with_progress(work, todo, frames, workers, progress)


def build_with_progress(
    work: ShardBuilder,
    todo: Collection[int],
    frames: Mapping[int, int],
    workers: Workers,
    progress: Callable[[BuildProgress], None] | None,
) -> None:
    """Fills a store and reports progress.

    Args:
        todo: The episodes whose shards are missing.
        frames: Number of frames of every episode of the store.
    """
    total, left = sum(frames.values()), sum(frames[episode] for episode in todo)
    now = BuildProgress(episodes=len(frames) - len(todo), of_episodes=len(frames), frames=total - left, of_frames=total)
    report = progress or (lambda filled: None)

    def elsewhere(count: int) -> None:
        report(replace(now, elsewhere=count))

    for episode in build_shards(work, list(todo), workers, elsewhere):
        now = replace(now, episodes=now.episodes + 1, frames=now.frames + frames[episode])
        report(now)


def _predicted(
    store: FeatureStore, backbone: BackboneIdentity, frames: Mapping[int, int], storage: StorageFormat
) -> int | None:
    """How many bytes will be written for some episodes, given how many frames each has."""
    dtype = storage_dtype(storage, apart=isinstance(backbone, FeatureBackbone))
    values: dict[str, int | None] = {}
    total = 0
    for episode, count in frames.items():
        of_frame = 0
        for text in store.dataset.instructions(episode)[0]:
            if text not in values:
                values[text] = _values_of(store.dataset, backbone, text)
            of_text = values[text]
            if of_text is None:
                return None
            of_frame = max(of_frame, of_text)
        width = (dtype or (backbone.dtype if isinstance(backbone, SequenceIdentity) else torch.float16)).itemsize
        for shards, views in ((store.pictures, 1), (store.views, store.augmentation.views)):
            if shards is not None and shards.state(episode) is not ShardState.CURRENT:
                total += HEADER + count * of_frame * width * views
    return total


@torch.no_grad()
def _values_of(dataset: LeRobotDataset, backbone: BackboneIdentity, instruction: str) -> int | None:
    """How many numbers are kept of one observation; None where only the loaded backbone knows."""
    if isinstance(backbone, Sized):
        return backbone.values_of(instruction)
    sizes = {camera: dataset.image_sizes[camera] for camera in camera_names(backbone)}
    blank = {camera: torch.zeros(1, *size, 3, dtype=torch.uint8) for camera, size in sizes.items()}
    if not isinstance(backbone, FrozenBackbone):
        return None
    tokens = encode_episode(backbone, blank, (instruction,), "float32", Rounding())
    return sum(tensor.numel() for tensor in tokens.values())
