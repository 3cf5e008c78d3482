"""The data of a run: dataset, the frozen backbone's cached tokens, and which episodes are held out."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lamp.data.augmentation import NO_AUGMENTATION, Augmentation
from lamp.data.embodiment import OWN, Embodiment
from lamp.data.features import FeatureCache, Features, FrozenBackbone
from lamp.data.hub import find_dataset
from lamp.data.lerobot import LeRobotDataset
from lamp.data.live_features import LiveFeatures
from lamp.data.samples import EpisodeSplit, split_episodes
from lamp.errors import ConfigError, MismatchError
from lamp.model.qwen3_vl import QwenIdentity
from lamp.train.configs import Split
from lamp.train.description import BackboneRecord, CameraInput, DataRecord


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What both stages read."""

    dataset: LeRobotDataset
    cache: Features | None
    """The backbone's tokens, cached or computed as they are needed; None where they change in training."""
    backbone: BackboneRecord
    frozen_key: str
    """Of the backbone without adapters."""
    split: EpisodeSplit
    name: str = ""
    """What a checkpoint calls the dataset; empty: by its folder's name."""

    @property
    def features(self) -> Features:
        """The backbone's tokens, where they do not change in training."""
        assert self.cache is not None
        return self.cache

    @classmethod
    def open(
        cls,
        data: Path,
        key: str,
        split: Split,
        *,
        token_width: int,
        embodiment: Embodiment = OWN,
        augmentation: Augmentation = NO_AUGMENTATION,
        features: Path | None = None,
        wanted: Mapping[str, Any] | None = None,
        live: FrozenBackbone | None = None,
    ) -> Sources:
        """Opens a dataset and its cached features.

        Args:
            data: The dataset's folder.
            key: Of the backbone.
            split: Which episodes to hold out.
            token_width: Of the model.
            embodiment: How the dataset records its robot.
            augmentation: Which views of the pictures there are to be besides themselves.
            features: The folder that feature caches are in; None: the dataset's own.
            wanted: What the backbone says of itself, to name how it differs from what is stored.
            live: Encodes pictures as they are needed, instead of a cache.

        Raises:
            DataError: The dataset or the features are not there.
            MismatchError: The features are others, or have another width than the model's tokens.
        """
        dataset = embodiment.open(data)
        cache: Features
        if live is not None:
            cache = LiveFeatures(dataset, live, augmentation=augmentation, root=features)
        else:
            cache = FeatureCache(dataset, key, augmentation=augmentation, root=features, wanted=wanted)
        if cache.width != token_width:
            raise MismatchError(
                f"the features of {key} are {cache.width} wide, the model's token_width is {token_width}; expected the same."
            )
        return cls(
            dataset=dataset,
            cache=cache,
            backbone=_record(dataset, key, cache.manifest["backbone"], cache.cameras),
            frozen_key=key,
            split=_split(dataset, split).without(cache.left_out),
        )

    @classmethod
    def pictured(
        cls, data: Path, identity: QwenIdentity, split: Split, *, token_width: int, embodiment: Embodiment = OWN
    ) -> Sources:
        """Opens a dataset whose pictures go through a backbone that is trained along.

        Raises:
            DataError: The dataset is not there.
            MismatchError: The backbone's tokens have another width than the model's.
        """
        dataset, frozen = embodiment.open(data), replace(identity, config=replace(identity.config, lora=None))
        if identity.width != token_width:
            raise MismatchError(
                f"the backbone's tokens are {identity.width} wide, the model's token_width is {token_width}; expected the same."
            )
        cameras = tuple(name for name, _ in identity.config.cameras)
        return cls(
            dataset=dataset,
            cache=None,
            backbone=_record(dataset, identity.key, identity.description, cameras),
            frozen_key=frozen.key,
            split=_split(dataset, split),
        )

    def record(self, *, samples: int, also: Sequence[str] = ()) -> DataRecord:
        """Describes what is trained on.

        Args:
            samples: Training samples.
            also: Further content that the run depends on, such as the scene flow's.
        """
        kept = self.cache.kept_otherwise if self.cache is not None else ()
        digest = hashlib.sha256("\n".join([self.backbone.key or "", *kept, *also]).encode())
        for episode in (*self.split.train, *self.split.validation):
            digest.update(f"\n{episode} {self.dataset.fingerprint(episode)}".encode())
        trained = {text for episode in self.split.train for text in self.dataset.instructions(episode)[0]}
        return DataRecord(
            name=self.name or self.dataset.root.resolve().name,
            fingerprint=digest.hexdigest()[:32],
            episodes=len(self.split.train),
            frames=samples,
            tasks=tuple(task for task in self.dataset.tasks if task in trained),
            validation_episodes=self.split.validation,
            dataset=self.content,
        )

    @cached_property
    def content(self) -> str:
        """Content hash of the whole dataset."""
        prints = (self.dataset.fingerprint(episode) for episode in range(len(self.dataset)))
        return hashlib.sha256("\n".join(prints).encode()).hexdigest()[:32]

    def unseen_by(self, *others: DataRecord) -> tuple[int, ...]:
        """Training episodes that another training, of Stage 1, did not see: all, where it had other datasets."""
        same = next((other for other in others if other.dataset == self.content), None)
        if same is None:
            return self.split.train
        held_out = set(same.validation_episodes)
        return tuple(episode for episode in self.split.train if episode in held_out)


def dataset_names(datasets: Sequence[str | os.PathLike[str]], features: Path | None = None) -> list[str]:
    """What a checkpoint calls its datasets: the names of their folders, with as many of those above as tell them apart.

    Args:
        datasets: Folders or hub ids.
        features: The folder that all their feature caches are in, each under its dataset's name; None: each is in its dataset.

    Raises:
        ConfigError: Two datasets would have one folder for their caches.
    """
    roots = [find_dataset(one).resolve() for one in datasets]
    names = [root.name for root in roots]
    for place, name in enumerate(names):
        other = next((root for root in roots if root.name == name and root != roots[place]), None)
        if features is not None and other is not None:
            raise ConfigError(
                f"the folder {features} would hold the caches of {roots[place]} and of {other} in one folder, {name!r}; expected "
                "datasets of different names: rename one, or keep the caches in the datasets"
            )
    depth = 1
    while len(set(names)) < len(set(roots)):
        depth += 1
        names = [
            "/".join(root.parts[-depth:]) if names.count(name) > 1 else name
            for root, name in zip(roots, names, strict=True)
        ]
    # One folder may be there twice, as two robots.
    return [
        name if name not in names[:place] else f"{name} ({names[:place].count(name) + 1})"
        for place, name in enumerate(names)
    ]


def _split(dataset: LeRobotDataset, split: Split) -> EpisodeSplit:
    dataset.check_episodes()
    # An episode of several instructions is held out among those of the same ones.
    tasks = [" / ".join(dataset.instructions(episode)[0]) for episode in range(len(dataset))]
    return split_episodes(tasks, validation_share=split.validation_share, seed=split.seed)


def _record(
    dataset: LeRobotDataset, key: str, description: Mapping[str, Any], cameras: Sequence[str]
) -> BackboneRecord:
    sizes = [dataset.image_sizes[name] for name in cameras]
    seen = tuple(
        CameraInput(name=name, height=height, width=width) for name, (height, width) in zip(cameras, sizes, strict=True)
    )
    prompt = description.get("prompt", "{instruction}")
    return BackboneRecord(key=key, description=dict(description), cameras=seen, prompt=prompt)
