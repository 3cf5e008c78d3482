"""From a backbone's settings to the frozen backbone."""

from __future__ import annotations

from lamp.data.features import FeatureBackbone
from lamp.model.small import SmallBackbone, SmallBackboneConfig

BackboneConfig = SmallBackboneConfig
"""Settings of any backbone that a run can be trained on."""


def build_backbone(config: BackboneConfig) -> FeatureBackbone:
    """Loads the frozen backbone that the settings describe."""
    # The key is a cached property, which the protocol's plain property does not admit.
    return SmallBackbone(config)  # pyright: ignore[reportReturnType]
