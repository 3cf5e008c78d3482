"""From a backbone's settings to the frozen backbone, and to its features of a dataset."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lamp.data.augmentation import NO_AUGMENTATION, Augmentation
from lamp.data.feature_cache.build import BuildPlan, make_features
from lamp.data.feature_cache.cache import FeatureCache, FrozenBackbone
from lamp.data.feature_cache.encode import StorageFormat
from lamp.data.feature_cache.manifest import MANIFEST, FeatureStore, cache_folder
from lamp.data.feature_cache.shards import in_bytes
from lamp.data.feature_cache.work_sharing import BuildProgress, Workers
from lamp.data.lerobot import LeRobotDataset
from lamp.data.stored_images import OnCorrupt
from lamp.errors import ConfigError, MismatchError
from lamp.model.qwen3_vl import Qwen3VLBackboneConfig, QwenIdentity
from lamp.model.small import SmallBackboneConfig
from lamp.progress import Progress, say
from lamp_client.child_processes import available_cores

BackboneConfig = SmallBackboneConfig | Qwen3VLBackboneConfig
"""Settings of any backbone that a run can be trained on."""
RANK = "LOCAL_RANK"
"""Set where torchrun or accelerate launch have started several processes."""


def find_backbone(
    config: BackboneConfig, *, recorded: Mapping[str, Any] | None = None
) -> FrozenBackbone | QwenIdentity:
    """The backbone that the settings describe: its key, description and width, without loading gigabytes for it.

    Args:
        recorded: The description in a checkpoint: pins a revision that the settings leave open.
    """
    return config.pinned(recorded or {}).find()


def build_backbone(config: BackboneConfig) -> FrozenBackbone:
    """Loads the frozen backbone that the settings describe."""
    return load_backbone(find_backbone(config))


def load_backbone(identity: FrozenBackbone | QwenIdentity) -> FrozenBackbone:
    """Loads the weights of a backbone that was found."""
    return identity.load() if isinstance(identity, QwenIdentity) else identity


def live_backbone(config: BackboneConfig, device: str, loaded: FrozenBackbone | None = None) -> FrozenBackbone:
    """Loads a frozen backbone on the device of a training that caches no features.

    Args:
        loaded: Is taken instead, if given.
    """
    backbone = loaded or build_backbone(config)
    return backbone.to(device) if isinstance(backbone, torch.nn.Module) else backbone  # pyright: ignore[reportReturnType]


def backbone_key(config: BackboneConfig) -> str:
    """The key of the backbone that the settings describe, without loading gigabytes for it."""
    return find_backbone(config).key


@dataclass(frozen=True)
class BackboneLoader:
    """Loads a backbone in the process that encodes with it, since weights of gigabytes had better not travel."""

    config: BackboneConfig

    def __call__(self, device: str | None) -> FrozenBackbone:
        """Loads it on a device."""
        backbone = load_backbone(find_backbone(self.config))
        return backbone if device is None else backbone.to(device)  # pyright: ignore[reportAttributeAccessIssue]


@dataclass(frozen=True, kw_only=True)
class Caching:
    """How features are computed."""

    workers: Workers | None = None
    """None: the embedded backbone works in a process a core; a large one in a process a GPU, or in this one."""
    storage: StorageFormat = "default"
    on_corrupt: OnCorrupt = "refuse"
    refresh: bool = True
    """Make what there is not, and make again what is out of date. False: refuse what is out of date, as a training does."""


def ensure_features(
    data: Path | LeRobotDataset,
    config: BackboneConfig,
    *,
    token_width: int | None = None,
    on_corrupt: OnCorrupt | None = None,
    augmentation: Augmentation = NO_AUGMENTATION,
    root: Path | None = None,
    caching: Caching | None = None,
) -> None:
    """Computes what the dataset's feature cache lacks for a backbone, and prints its size and progress.

    Any number of processes and commands may do so at once: each makes the episodes that no other is making.

    Args:
        token_width: Of the model that will read the features; None: any.
        on_corrupt: What to do about pictures that cannot be read; None: as in `caching`.
        augmentation: Which views of the pictures to encode besides themselves.
        root: The folder that caches are in; None: the dataset's own.

    Raises:
        ConfigError: The backbone has adapters, with which its tokens change.
        DataError: Something of the dataset cannot be read, or what is to be made does not fit on the disk.
        MismatchError: The backbone's tokens have another width, or what is stored is out of date and not to be made again.
    """
    if config.lora is not None:
        raise ConfigError("backbone.lora is given; tokens of a backbone that is trained along cannot be cached.")
    dataset, backbone = data if isinstance(data, LeRobotDataset) else LeRobotDataset(data), find_backbone(config)
    caching = caching or Caching()
    if token_width is not None and backbone.width != token_width:
        raise MismatchError(
            f"the backbone's tokens are {backbone.width} wide, the model's token_width is {token_width}; expected the same: "
            "another backbone, or a recipe for this one."
        )
    if FeatureCache.is_complete(dataset, backbone.key, augmentation=augmentation, root=root):
        return
    folder = cache_folder(dataset, backbone.key, root)
    if not caching.refresh and (folder / MANIFEST).exists():
        FeatureStore(dataset, folder, augmentation).check(complete=False)
    build_progress = BuildProgressPrinter(f"features of {dataset.root}")
    try:
        make_features(
            dataset,
            backbone,
            BackboneLoader(config.pinned(backbone.description)),
            workers=caching.workers or default_workers(config),
            planned=build_progress.plan,
            progress=build_progress.progress,
            on_corrupt=on_corrupt or caching.on_corrupt,
            augmentation=augmentation,
            root=root,
            storage=caching.storage,
        )
        cache = FeatureCache(dataset, backbone.key, augmentation=augmentation, root=root, wanted=backbone.description)
        if cache.left_out:
            episodes = ", ".join(map(str, cache.left_out))
            build_progress.say(f"left out, since their pictures cannot be read: episodes {episodes}")
    finally:
        build_progress.close()


def default_workers(config: BackboneConfig) -> Workers:
    """The processes that encode by default."""
    if config.encodes_on_gpu:
        return gpu_workers(without=1)
    return Workers(processes=1 if RANK in os.environ else available_cores())


def gpu_workers(*, without: int) -> Workers:
    """One process per GPU, or `without` processes where there is none; under torchrun or accelerate launch, each rank its own."""
    gpus = tuple(f"cuda:{index}" for index in range(torch.cuda.device_count()))
    if RANK in os.environ:
        return Workers(devices=gpus and (gpus[int(os.environ[RANK]) % len(gpus)],))
    return Workers(processes=len(gpus) or without, devices=gpus)


class BuildProgressPrinter:
    """Prints the plan of a build, then its progress, rate and remaining time."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._line: Progress | None = None

    def __enter__(self) -> BuildProgressPrinter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def plan(self, plan: BuildPlan) -> None:
        """Prints the plan."""
        size = "of a size not known yet" if plan.size is None else f"about {in_bytes(plan.size)}"
        views = f" and {plan.views} augmented views of each" if plan.views else ""
        self.say(f"{plan.frames} frames of {plan.episodes} episodes{views}, {size}, to {plan.folder}")

    def progress(self, now: BuildProgress) -> None:
        """Updates the progress."""
        if self._line is None:
            self._line = Progress(self._name, now.of_frames, "frames")
        note = f"{now.episodes} of {now.of_episodes} episodes"
        if now.elsewhere:
            note += f"; waiting for {now.elsewhere} episodes that other processes are making"
        self._line.update(now.frames, note=note)

    def say(self, text: str) -> None:
        """Prints a message."""
        say(f"{self._name}  {text}")

    def close(self) -> None:
        """Ends the line."""
        if self._line is not None:
            self._line.close()
