from __future__ import annotations

import json

import pytest
from backbones import Plain

from lamp.bench import loading
from lamp.data.features import FeatureCache
from lamp.data.lerobot import LeRobotDataset
from lamp.errors import ConfigError
from lamp.model.small import SmallBackboneConfig


def test_every_way_is_measured_and_the_ratio_is_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    def ensure(dataset: LeRobotDataset, config: SmallBackboneConfig) -> None:
        FeatureCache.build(dataset, Plain())

    monkeypatch.setattr(loading, "build_backbone", lambda config: Plain())
    monkeypatch.setattr(loading, "ensure_features", ensure)
    monkeypatch.setattr(loading, "EPISODES", 2)
    monkeypatch.setattr(loading, "FRAMES", 6)
    found = loading.measure_loading(SmallBackboneConfig(), None, workers=0, batch_size=4, seconds=0.05)
    json.dumps(found)
    rates = found["samples_per_s"]
    assert set(rates) == {"video", "video and encoding", "decoded frames", "features"} and min(rates.values()) > 0
    assert found["ratio"] == rates["features"] / rates["video and encoding"]
    assert found["machine"]["device"] == "cpu" and found["frames"] == 12
    with pytest.raises(ConfigError, match="expected both above 0"):
        loading.measure_loading(SmallBackboneConfig(), None, workers=0, batch_size=0, seconds=1.0)
