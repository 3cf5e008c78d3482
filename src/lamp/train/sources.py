"""The data of a run: dataset, the frozen backbone's cached tokens, and which episodes are held out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lamp.data.augmentation import NO_AUGMENTATION, Augmentation
from lamp.data.embodiment import OWN, Embodiment
from lamp.data.features import FeatureCache
from lamp.data.lerobot import LeRobotDataset
from lamp.data.samples import EpisodeSplit, split_episodes
from lamp.errors import MismatchError
from lamp.train.configs import Split
from lamp.train.description import BackboneRecord, CameraInput, DataRecord


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What both stages read."""

    dataset: LeRobotDataset
    features: FeatureCache
    backbone: BackboneRecord
    split: EpisodeSplit

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

        Raises:
            DataError: The dataset or the features are not there.
            MismatchError: The features are others, or have another width than the model's tokens.
        """
        dataset = embodiment.open(data)
        cache = FeatureCache(dataset, key, augmentation=augmentation, root=features, wanted=wanted)
        if cache.width != token_width:
            raise MismatchError(
                f"the features of {key} are {cache.width} wide, the model's token_width is {token_width}; expected the same."
            )
        sizes = [dataset.image_sizes[name] for name in cache.cameras]
        cameras = tuple(
            CameraInput(name=name, height=height, width=width)
            for name, (height, width) in zip(cache.cameras, sizes, strict=True)
        )
        description = cache.manifest["backbone"]
        prompt = description.get("prompt", "{instruction}")
        record = BackboneRecord(key=key, description=description, cameras=cameras, prompt=prompt)
        tasks = [episode.task for episode in dataset.episodes]
        chosen = split_episodes(tasks, validation_share=split.validation_share, seed=split.seed)
        chosen = chosen.without(cache.left_out)
        return cls(dataset=dataset, features=cache, backbone=record, split=chosen)

    def record(self, *, samples: int, also: Sequence[str] = ()) -> DataRecord:
        """Describes what is trained on.

        Args:
            samples: Training samples.
            also: Further content that the run depends on, such as the scene flow's.
        """
        digest = hashlib.sha256("\n".join([self.features.key, *self.features.kept_otherwise, *also]).encode())
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
