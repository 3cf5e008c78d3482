"""From a backbone's settings to the frozen backbone."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from lamp.data.features import FeatureBackbone, FeatureCache
from lamp.data.lerobot import LeRobotDataset
from lamp.errors import ConfigError, MismatchError
from lamp.model.backbone import BackboneShape
from lamp.model.small import SmallBackbone, SmallBackboneConfig

BackboneConfig = SmallBackboneConfig | BackboneShape
"""Settings of any backbone that a run can be trained on."""


def build_backbone(config: BackboneConfig | None) -> FeatureBackbone:
    """Loads the frozen backbone that the settings describe.

    Raises:
        ConfigError: They describe its shape alone.
        MismatchError: There are no settings: imported weights whose VLM this version does not build.
    """
    if config is None:
        raise MismatchError(
            "this checkpoint was imported and holds no settings of its backbone (`lamp info` says which VLM it needs); expected "
            "the backbone itself, as the argument `backbone`."
        )
    if isinstance(config, BackboneShape):
        raise ConfigError(
            f"backbone {config.name!r} is known by its shape alone and computes no tokens; "
            "expected a backbone with weights, such as the SmallBackboneConfig of the recipe demo."
        )
    return SmallBackbone(config)


def ensure_features(data: Path, config: BackboneConfig) -> None:
    """Computes what the dataset's feature cache lacks for a backbone, in a process a core, and says how far it is."""

    def progress(done: int, total: int) -> None:
        print(f"features of {done} of {total} episodes", file=sys.stderr, flush=True)

    FeatureCache.build(LeRobotDataset(data), build_backbone(config), processes=os.cpu_count() or 1, progress=progress)
