"""The datasets of a run: opened with the frozen backbone's tokens, split into training and held-out episodes, and scaled."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from lamp.data.actions import Delta, Quaternion, RollPitchYaw, StateRotationFormat
from lamp.data.augmentation import NO_AUGMENTATION, Augmentation
from lamp.data.embodiment import OWN, Embodiment, StateRotation
from lamp.data.feature_cache.cache import FeatureCache, Features, FrozenBackbone
from lamp.data.image_dataset import AnyPolicySamples, ImageSamples, Videos
from lamp.data.lerobot.reader import LeRobotDataset, find_dataset
from lamp.data.live_features import LiveFeatures
from lamp.data.normalizers import ContinuousRotation, StateTransform
from lamp.data.observation_encoder import check_instructions
from lamp.data.policy_dataset import EpisodeSplit, MixedSamples, PolicySamples, PolicyScaling, states_and_actions
from lamp.errors import ConfigError, MismatchError
from lamp.model.lamp import required
from lamp.model.qwen3_vl import Qwen3VLBackbone, Qwen3VLBackboneConfig, QwenIdentity
from lamp.train.backbones import find_backbone, live_backbone
from lamp.train.checkpoint_metadata import BackboneRecord, CameraInput, DataRecord
from lamp.train.config import MixedIn, PolicyTraining, Split
from lamp.train.lora import check_adaptable

SAME_RATE = 0.01
"""Rates, and the times of steps, that differ by at most this share are the same."""
GRIPPER_MARGIN = 0.01
"""How far a gripper's values may lie outside [0, 1]: rounding."""
JOINT_NAME = re.compile(r"joint|motor|shoulder|elbow|\.pos\b", re.IGNORECASE)
"""What datasets call values of a state that are angles of joints, and no rotation of the hand."""
LEAST_STROKE = 0.5
"""Of a gripper from 0 to 1 whose convention is not given: one that is closed around something may never reach 0."""
GRIPPER_MARGIN_CALIBRATED = 0.1
"""The same where the embodiment says what is open and what closed: a gripper may reach somewhat further, in units of its own."""


@dataclass(frozen=True, kw_only=True)
class TrainingDataset:
    """One of the datasets of a run."""

    sources: Sources
    embodiment: Embodiment
    scaling: PolicyScaling
    step: int = 1
    """Frames for each action of a chunk."""

    @property
    def fps(self) -> float:
        """Actions a second."""
        return self.sources.dataset.fps / self.step

    def samples(
        self, config: PolicyTraining, episodes: Sequence[int], *, augmented: bool = False
    ) -> PolicySamples | ImageSamples:
        """Samples of some episodes, in augmented views or as they are."""
        dataset, cache = self.sources.dataset, self.sources.cache
        how: dict[str, Any] = {"chunk": config.action.chunk, "scaling": self.scaling, "embodiment": self.embodiment}
        if cache is None:
            cameras = tuple(camera.name for camera in self.sources.backbone.cameras)
            videos = Videos(dataset=dataset)
            return ImageSamples(dataset=dataset, pictures=videos, cameras=cameras, episodes=tuple(episodes), **how)
        view_seed = config.loop.seed if augmented else None
        return PolicySamples(dataset, cache, episodes=episodes, view_seed=view_seed, step=self.step, **how)


def open_datasets(
    config: PolicyTraining,
    data: Path,
    backbone: FrozenBackbone | None,
    features: Path | None = None,
    scalings: Callable[[Sources, Embodiment, bool], PolicyScaling | None] = lambda sources, embodiment, own: None,
) -> list[TrainingDataset]:
    """Opens all datasets, the policy's own first, and fits the normalisers of each to its training episodes.

    Args:
        backbone: The frozen backbone, where the caller has it.
        features: The folder that feature caches are in; None: each dataset's own.
        scalings: Gives the normalisers of a dataset (whether it is the policy's own comes last) where they are not to be fitted.
    """
    datasets: list[TrainingDataset] = []
    own = MixedIn(data=str(data), embodiment=config.embodiment)
    adapted, live = adapted_backbone(config, backbone), None
    if adapted is not None:
        check_adaptable(config)
    elif not config.cache_features:
        live = live_backbone(config.backbone, config.loop.device, backbone)
    frozen = adapted or live or backbone or find_backbone(config.backbone)
    parts = [own, *config.also]
    names = dataset_names([part.data for part in parts], features)
    steps = _steps(config, parts)
    for part, name, step in zip(parts, names, steps, strict=True):
        sources = Sources.open(
            Path(part.data),
            frozen.key,
            part.split(config.split, own=part is own),
            token_width=config.model.token_width,
            name=name,
            embodiment=part.embodiment,
            augmentation=config.augmentation,
            features=features,
            wanted=frozen.description,
            live=live,
            adapted=adapted,
        )
        scaling = scalings(sources, part.embodiment, part is own)
        if scaling is None:
            scaling = fit_scaling(config, sources, part.embodiment, step)
        else:
            _check_widths(scaling, sources, part.embodiment)
        datasets.append(TrainingDataset(sources=sources, embodiment=part.embodiment, scaling=scaling, step=step))
        # Together with those before it: a policy has to tell the instructions of all its datasets apart.
        instructions = [text for one in datasets for text in one.sources.dataset.tasks]
        check_instructions(frozen, instructions, ", ".join(str(one.sources.dataset.root) for one in datasets))
    return datasets


def _steps(config: PolicyTraining, parts: Sequence[MixedIn]) -> list[int]:
    """Frames for each action of a chunk, in each of the datasets that are mixed.

    Raises:
        MismatchError: They run at different rates, and are not to be mixed so.
    """
    opened = [part.embodiment.open(Path(part.data)) for part in parts] if len(parts) > 1 else []
    rates = [dataset.fps for dataset in opened]
    if not rates or max(rates) <= min(rates) * (1 + SAME_RATE) or config.rates == "recorded":
        return [1] * len(parts)
    chunk = config.action.chunk
    listed = ", ".join(
        f"{one.root} at {one.fps:g} fps (a chunk of {chunk} takes {chunk / one.fps:.3g} s)" for one in opened
    )
    if config.rates == "equal":
        raise MismatchError(
            f"datasets of different rates are mixed: {listed}; expected one rate: give --rates resampled to bring targets to the "
            "slowest one's, or --rates recorded to mix them as they are"
        )
    steps = [round(rate / min(rates)) for rate in rates]
    for part, dataset, step in zip(parts, opened, steps, strict=True):
        if abs(dataset.fps / step - min(rates)) > SAME_RATE * min(rates):
            raise MismatchError(
                f"{dataset.root} at {dataset.fps:g} fps cannot be brought to {min(rates):g} by whole numbers of frames; "
                f"expected a multiple ({listed}): give --rates recorded, or leave it out"
            )
        if step > 1 and isinstance(part.embodiment.kind, Delta):
            raise MismatchError(
                f"{dataset.root} at {dataset.fps:g} fps records deltas (embodiment {part.embodiment.name!r}), of which none can "
                f"be left out to come to {min(rates):g} fps; expected targets (absolute or relative actions): give "
                "--rates recorded"
            )
    kept = ", ".join(f"every {step}. action of {one.root}" for one, step in zip(opened, steps, strict=True) if step > 1)
    print(f"brought to {min(rates):g} actions a second: {kept}", file=sys.stderr)
    return steps


def _check_widths(scaling: PolicyScaling, sources: Sources, embodiment: Embodiment) -> None:
    """
    Raises:
        MismatchError: The data's states or actions have other widths than normalisers that were kept.
    """
    episode, root = sources.split.train[0], sources.dataset.root
    states, actions = embodiment.states(sources.dataset, episode), embodiment.actions(sources.dataset, episode)
    transformed = scaling.state_transform.apply(states)
    for name, width, wanted in (
        ("state", transformed.shape[1], scaling.state.width),
        ("action", actions.shape[1], scaling.actions.width),
    ):
        if width != wanted:
            raise MismatchError(
                f"{root} has {name}s of {width} values (after the state transform), the checkpoint's normalisers {wanted}; "
                "expected the same robot: begin with another checkpoint, or train without --from"
            )


def adapted_backbone(config: PolicyTraining, backbone: FrozenBackbone | None) -> QwenIdentity | None:
    """The backbone whose adapters are trained along (LoRA); None where it is frozen."""
    settings = config.backbone
    if not isinstance(settings, Qwen3VLBackboneConfig) or settings.lora is None:
        return None
    return backbone.identity if isinstance(backbone, Qwen3VLBackbone) else settings.find()


def mixed(parts: Sequence[PolicySamples | ImageSamples]) -> AnyPolicySamples:
    """The samples of several datasets as one; those of a single one as they are."""
    return parts[0] if len(parts) == 1 else MixedSamples([one for part in parts for one in part.cached])


def is_open_or_closed(values: Float[np.ndarray, " n"]) -> bool:
    """Whether a gripper is only ever open or closed, 1 or 0."""
    return bool((np.minimum(np.abs(values), np.abs(values - 1)) <= GRIPPER_MARGIN).all())


def check_rotation(transform: StateTransform, embodiment: Embodiment, dataset: LeRobotDataset) -> None:
    """
    Raises:
        MismatchError: Values are taken for a rotation that are none, or for another kind of one.
    """
    if not isinstance(transform, ContinuousRotation):
        return
    wanted = StateRotation(start=transform.start, rotation=transform.rotation)
    if embodiment.rotations is None:
        called = embodiment.state_names(dataset)[transform.start : transform.start + transform.rotation.SIZE]
        if not any(JOINT_NAME.search(name) for name in called):
            return
        have = f"{', '.join(called)} there"
    elif wanted in embodiment.rotations:
        return
    else:
        rotations = [f"{_describe_rotation(one.rotation)} at {one.start}" for one in embodiment.rotations]
        have = " and ".join(rotations) or "no rotation, but joint angles"
    named = "" if embodiment.rotations is None else f" --embodiment {embodiment.name}"
    raise MismatchError(
        f"{dataset.root}: the recipe takes values {wanted.start} to {wanted.start + wanted.rotation.SIZE - 1} of the state "
        f"for {_describe_rotation(wanted.rotation)}; the state of the embodiment {embodiment.name!r} has {have}. Expected the "
        f"same: make a recipe with `lamp recipe fit {dataset.root}{named}`"
    )


def _describe_rotation(rotation: StateRotationFormat) -> str:
    if isinstance(rotation, Quaternion):
        return f"a quaternion {rotation.order}"
    name = "roll, pitch and yaw" if isinstance(rotation, RollPitchYaw) else "an axis-angle"
    return f"{name} in {'degrees' if rotation.degrees else 'radians'}"


def fit_scaling(config: PolicyTraining, sources: Sources, embodiment: Embodiment = OWN, step: int = 1) -> PolicyScaling:
    """Fits the normalisers to the training episodes.

    Raises:
        MismatchError: The data's state or action width is not the model's, or its gripper is not 0 to 1.
    """
    action, root = config.action, sources.dataset.root
    check_rotation(config.state_transform, embodiment, sources.dataset)
    raw, actions = states_and_actions(sources.dataset, sources.split.train, action.chunk, embodiment, step)
    states = config.state_transform.apply(raw)
    for name, values_of, wanted in (("state", states, action.state_dim), ("action", actions, action.action_dim)):
        if values_of.shape[1] != wanted:
            raise MismatchError(
                f"{root} has {name}s of {values_of.shape[1]} values (after the state transform); "
                f"the model's {name}_dim is {wanted}: expected the same. Make a recipe that fits with `lamp recipe fit {root}`, "
                f"or give --model.action.{name}-dim {values_of.shape[1]}."
            )
    binary = config.gripper_dims(actions.shape[1])
    known = [one.dim % actions.shape[1] for one in embodiment.grippers]
    for dimension in binary:
        values = actions[:, dimension] if dimension < actions.shape[1] else actions[:0, 0]
        low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
        margin = GRIPPER_MARGIN_CALIBRATED if dimension in known else GRIPPER_MARGIN
        if not -margin <= low <= high <= 1 + margin:
            raise MismatchError(
                f"{root}: the gripper, dimension {dimension} of the action, goes from {low:g} to {high:g}; expected 0 to 1. "
                "Give the embodiment its convention, or set gripper to None to learn it as any other dimension."
            )
        if dimension not in known and high - low < LEAST_STROKE and not is_open_or_closed(values):
            raise MismatchError(
                f"{root}: the gripper, dimension {dimension} of the action, goes from {low:g} to {high:g}, as one in units "
                "of its own does, such as metres; expected 0 to 1. Give the embodiment its convention (`lamp recipe fit "
                "--gripper OPEN CLOSED`), or set gripper to None (--gripper None) to learn it as any other dimension."
            )
    missing = sorted({*known} - {*binary})
    if missing and binary:
        raise MismatchError(
            f"{root}: the embodiment {embodiment.name!r} has grippers at {sorted(known)} of the action, the recipe's gripper is "
            f"{sorted(binary)}; expected the same: --gripper {' '.join(map(str, sorted(known)))}, or a recipe of "
            f"`lamp recipe fit {root}`"
        )
    return PolicyScaling(
        state_transform=config.state_transform,
        state=config.state_fit.fit(states),
        actions=config.action_fit.fit(actions, binary=binary),
    )


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
        return required(self.cache, "the cache of the backbone's tokens")

    @classmethod
    def open(
        cls,
        data: Path,
        key: str,
        split: Split,
        *,
        token_width: int,
        name: str = "",
        embodiment: Embodiment = OWN,
        augmentation: Augmentation = NO_AUGMENTATION,
        features: Path | None = None,
        wanted: Mapping[str, Any] | None = None,
        live: FrozenBackbone | None = None,
        adapted: QwenIdentity | None = None,
        pictures_only: bool = False,
    ) -> Sources:
        """Opens a dataset and its cached features.

        Args:
            key: Of the backbone.
            token_width: Of the model.
            name: What a checkpoint calls the dataset.
            augmentation: Which views of the pictures there are to be besides themselves.
            features: The folder that feature caches are in; None: the dataset's own.
            wanted: The backbone's description, to name how it differs from what is stored.
            live: Encodes pictures as they are needed, instead of a cache.
            adapted: The backbone, where it is trained along; no tokens are cached then.
            pictures_only: States and actions are not read (Stage 1).

        Raises:
            DataError: The dataset or the features are not there.
            MismatchError: The features are others, or have another width than the model's tokens.
        """
        dataset = embodiment.open(data, pictures_only=pictures_only)
        if adapted is not None:
            cache, left_out = None, ()
            frozen_key = replace(adapted, config=replace(adapted.config, lora=None)).key
            width, description = adapted.width, adapted.description
            cameras = tuple(camera for camera, _ in adapted.config.cameras)
        else:
            how: dict[str, Any] = {"augmentation": augmentation, "root": features}
            cache = (
                LiveFeatures(dataset, live, **how)
                if live is not None
                else FeatureCache(dataset, key, wanted=wanted, **how)
            )
            frozen_key, left_out = key, cache.left_out
            width, description, cameras = cache.width, cache.description, cache.cameras
        if width != token_width:
            raise MismatchError(
                f"the backbone's tokens are {width} wide, the model's token_width is {token_width}; expected the same."
            )
        sizes = ((camera, *dataset.image_sizes[camera]) for camera in cameras)
        record = BackboneRecord(
            key=key,
            description=dict(description),
            cameras=tuple(CameraInput(name=camera, height=rows, width=columns) for camera, rows, columns in sizes),
            prompt=description.get("prompt", "{instruction}"),
        )
        parts = split.of(dataset).without(left_out)
        return cls(dataset=dataset, cache=cache, backbone=record, frozen_key=frozen_key, split=parts, name=name)

    def record(self, *, samples: int, also: Sequence[str] = ()) -> DataRecord:
        """Describes what is trained on.

        Args:
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
            train_episodes=self.split.train,
            dataset=self.content,
        )

    @property
    def content(self) -> str:
        """Content hash of the whole dataset."""
        return self.dataset.content

    def unseen_by(self, *others: DataRecord) -> tuple[int, ...]:
        """Training episodes that another training, of Stage 1, did not see: all, where it had other datasets."""
        same = next((other for other in others if other.dataset == self.content), None)
        if same is None:
            return self.split.train
        if same.train_episodes is not None:
            return tuple(episode for episode in self.split.train if episode not in same.train_episodes)
        return tuple(episode for episode in self.split.train if episode in same.validation_episodes)


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
