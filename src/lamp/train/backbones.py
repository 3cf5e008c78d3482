"""From a backbone's settings to the frozen backbone."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lamp.data.features import FeatureCache, FrozenBackbone
from lamp.data.lerobot import LeRobotDataset
from lamp.data.stored_images import OnCorrupt
from lamp.errors import ConfigError, MismatchError
from lamp.model.qwen3_vl import Qwen3VLBackbone, Qwen3VLBackboneConfig, QwenIdentity
from lamp.model.small import SmallBackbone, SmallBackboneConfig

BackboneConfig = SmallBackboneConfig | Qwen3VLBackboneConfig
"""Settings of any backbone that a run can be trained on."""


def find_backbone(config: BackboneConfig, *, recorded: Mapping[str, Any] | None = None) -> SmallBackbone | QwenIdentity:
    """Says which backbone the settings describe: its key, description and width, without loading gigabytes for it.

    Args:
        config: The settings.
        recorded: What a checkpoint says of the backbone that it was trained on: pins a revision that the settings leave open.
    """
    if isinstance(config, SmallBackboneConfig):
        return SmallBackbone(config)
    return config.pinned(recorded or {}).find()


def build_backbone(config: BackboneConfig) -> FrozenBackbone:
    """Loads the frozen backbone that the settings describe."""
    return loaded(find_backbone(config))


def loaded(found: SmallBackbone | QwenIdentity) -> FrozenBackbone:
    """Loads the weights of a backbone that was found."""
    return found.load() if isinstance(found, QwenIdentity) else found


def backbone_key(config: BackboneConfig) -> str:
    """The key of the backbone that the settings describe, without loading gigabytes for it."""
    return find_backbone(config).key


def ensure_features(
    data: Path | LeRobotDataset,
    config: BackboneConfig,
    *,
    token_width: int | None = None,
    on_corrupt: OnCorrupt | None = None,
) -> None:
    """Computes what the dataset's feature cache lacks for a backbone, and says how far it is.

    The embedded backbone works in a process a core; a large one in this process, on the GPU where there is one.

    Args:
        data: The dataset's folder.
        config: The backbone's settings.
        token_width: Of the model that will read the features; None: it does not matter.
        on_corrupt: What to do about pictures that cannot be read; None: stop.

    Raises:
        ConfigError: The backbone has adapters, with which its tokens change.
        MismatchError: The backbone's tokens have another width.
    """
    if isinstance(config, Qwen3VLBackboneConfig) and config.lora is not None:
        raise ConfigError("backbone.lora is given; tokens of a backbone that is trained along cannot be cached.")
    dataset, found = data if isinstance(data, LeRobotDataset) else LeRobotDataset(data), find_backbone(config)
    if token_width is not None and found.width != token_width:
        raise MismatchError(
            f"the backbone's tokens are {found.width} wide, the model's token_width is {token_width}; expected the same: "
            "another backbone, or a recipe for this one."
        )
    if FeatureCache.is_complete(dataset, found.key):
        return

    def progress(done: int, total: int) -> None:
        print(f"features of {done} of {total} episodes", file=sys.stderr, flush=True)

    backbone, processes = loaded(found), os.cpu_count() or 1
    if isinstance(backbone, Qwen3VLBackbone):
        backbone, processes = backbone.to("cuda" if torch.cuda.is_available() else "cpu"), 1
    cache = FeatureCache.build(dataset, backbone, processes=processes, progress=progress, on_corrupt=on_corrupt)
    if cache.left_out:
        print(
            f"left out, since their pictures cannot be read: episodes {', '.join(map(str, cache.left_out))}",
            file=sys.stderr,
        )
