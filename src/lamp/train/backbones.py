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
from lamp.model.backbone import BackboneShape
from lamp.model.qwen3_vl import Qwen3VLBackbone, Qwen3VLBackboneConfig
from lamp.model.small import SmallBackbone, SmallBackboneConfig

BackboneConfig = SmallBackboneConfig | Qwen3VLBackboneConfig | BackboneShape
"""Settings of any backbone that a run can be trained on."""


def build_backbone(config: BackboneConfig | None, *, recorded: Mapping[str, Any] | None = None) -> FrozenBackbone:
    """Loads the frozen backbone that the settings describe.

    Args:
        config: The settings.
        recorded: What a checkpoint says of the backbone that it was trained on: pins a revision that the settings leave open.

    Raises:
        ConfigError: The settings describe its shape alone.
        MismatchError: There are none: imported weights whose VLM is not part of the checkpoint.
    """
    if isinstance(config, SmallBackboneConfig):
        return SmallBackbone(config)
    return Qwen3VLBackbone(_with_weights(config).pinned(recorded or {}))


def backbone_key(config: BackboneConfig | None) -> str:
    """The key of the backbone that the settings describe, without loading gigabytes for it."""
    if isinstance(config, SmallBackboneConfig):
        return SmallBackbone(config).key
    return _with_weights(config).find().key


def _with_weights(config: Qwen3VLBackboneConfig | BackboneShape | None) -> Qwen3VLBackboneConfig:
    if config is None:
        raise MismatchError(
            "this checkpoint was imported and holds no settings of its backbone (`lamp info` says which VLM it needs); expected "
            "the backbone itself, as the argument `backbone`."
        )
    if isinstance(config, BackboneShape):
        raise ConfigError(
            f"backbone {config.name!r} is known by its shape alone and computes no tokens; "
            "expected a backbone with weights: a SmallBackboneConfig or a Qwen3VLBackboneConfig."
        )
    return config


def ensure_features(
    data: Path | LeRobotDataset, config: BackboneConfig, *, on_corrupt: OnCorrupt | None = None
) -> None:
    """Computes what the dataset's feature cache lacks for a backbone, and says how far it is.

    The embedded backbone works in a process a core; a large one in this process, on the GPU where there is one.
    """
    dataset = data if isinstance(data, LeRobotDataset) else LeRobotDataset(data)
    if FeatureCache.is_complete(dataset, backbone_key(config)):
        return

    def progress(done: int, total: int) -> None:
        print(f"features of {done} of {total} episodes", file=sys.stderr, flush=True)

    backbone, processes = build_backbone(config), os.cpu_count() or 1
    if isinstance(backbone, Qwen3VLBackbone):
        backbone, processes = backbone.to("cuda" if torch.cuda.is_available() else "cpu"), 1
    cache = FeatureCache.build(dataset, backbone, processes=processes, progress=progress, on_corrupt=on_corrupt)
    if cache.left_out:
        print(
            f"left out, since their pictures cannot be read: episodes {', '.join(map(str, cache.left_out))}",
            file=sys.stderr,
        )
