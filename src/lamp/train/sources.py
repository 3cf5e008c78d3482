"""The data of a run: dataset, the frozen backbone's cached tokens, and which episodes are held out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lamp.data.embodiment import OWN, Embodiment
from lamp.data.features import FeatureCache
from lamp.data.lerobot import LeRobotDataset
from lamp.data.samples import EpisodeSplit, split_episodes
from lamp.errors import MismatchError
from lamp.model.qwen3_vl import QwenIdentity
from lamp.train.configs import Split
from lamp.train.description import BackboneRecord, CameraInput, DataRecord


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What both stages read."""

    dataset: LeRobotDataset
    cache: FeatureCache | None
    """The backbone's tokens; None where they change in training, so that pictures are read."""
    backbone: BackboneRecord
    frozen_key: str
    """Of the backbone without adapters."""
    split: EpisodeSplit

    @property
    def features(self) -> FeatureCache:
        """The backbone's tokens, where they do not change in training."""
        assert self.cache is not None
        return self.cache

    @classmethod
    def open(cls, data: Path, key: str, split: Split, *, token_width: int, embodiment: Embodiment = OWN) -> Sources:
        """Opens a dataset and its cached features.

        Args:
            data: The dataset's folder.
            key: Of the backbone.
            split: Which episodes to hold out.
            token_width: Of the model.
            embodiment: How the dataset records its robot.

        Raises:
            DataError: The dataset or the features are not there.
            MismatchError: The features have another width than the model's tokens.
        """
        dataset = embodiment.open(data)
        features = FeatureCache(dataset, key)
        if features.width != token_width:
            raise MismatchError(
                f"the features of {key} are {features.width} wide, the model's token_width is {token_width}; expected the same."
            )
        return cls(
            dataset=dataset,
            cache=features,
            backbone=_record(dataset, key, features.manifest["backbone"], features.cameras),
            frozen_key=key,
            split=_split(dataset, split).without(features.left_out),
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
        digest = hashlib.sha256("\n".join([self.backbone.key or "", *also]).encode())
        for episode in (*self.split.train, *self.split.validation):
            digest.update(f"\n{episode} {self.dataset.fingerprint(episode)}".encode())
        trained = {self.dataset.episodes[episode].task for episode in self.split.train}
        return DataRecord(
            name=self.dataset.root.resolve().name,
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

    def unseen_by(self, other: DataRecord) -> tuple[int, ...]:
        """Training episodes that another training, of Stage 1, did not see: all, where it had another dataset."""
        if other.dataset != self.content:
            return self.split.train
        return tuple(episode for episode in self.split.train if episode in set(other.validation_episodes))


def _split(dataset: LeRobotDataset, split: Split) -> EpisodeSplit:
    tasks = [episode.task for episode in dataset.episodes]
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
