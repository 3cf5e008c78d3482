"""`lamp bench data`: how fast each way of loading is, and what opening a dataset of very many episodes takes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from backbones import Plain

from lamp.bench import data
from lamp.bench.data import SYNTHETIC_FRAMES, measure_opening, write_synthetic_dataset
from lamp.data.feature_cache.cache import FeatureCache
from lamp.data.image_dataset import ImageSamples, Videos
from lamp.data.lerobot import LeRobotDataset, reader
from lamp.data.normalizers import MinMax, RawState, Standardise
from lamp.data.policy_dataset import PolicyScaling, states_and_actions
from lamp.errors import ConfigError
from lamp.model.small import SmallBackboneConfig


def test_opening_is_measured_and_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measure_opening(40)
    json.dumps(found)
    assert found["frames"] == 40 * SYNTHETIC_FRAMES and found["samples"] == 36 * SYNTHETIC_FRAMES
    assert found["total_s"] == pytest.approx(sum(found["seconds"].values()), abs=0.01)
    assert found["within_target"] == (found["total_s"] <= 20 and found["peak_gib"] <= 2)
    with pytest.raises(ConfigError, match="--synthetic-episodes 1 given"):
        measure_opening(1)


@pytest.mark.slow
def test_fifty_thousand_episodes_open_in_twenty_seconds_and_two_gibibytes() -> None:
    found = measure_opening(50_000)
    assert found["within_target"], found


def test_samples_are_the_same_whatever_stays_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_synthetic_dataset(tmp_path, 4500)  # three data files
    whole = LeRobotDataset(tmp_path)
    monkeypatch.setattr(reader, "COLUMN_BYTES", 1 << 20)
    bounded = LeRobotDataset(tmp_path)
    episodes = (4499, 1, 2000, 3)
    states, actions = states_and_actions(whole, episodes, 4)
    scaling = PolicyScaling(state_transform=RawState(), state=Standardise.fit(states), actions=MinMax.fit(actions))
    samples = [
        ImageSamples(
            dataset=dataset,
            pictures=Videos(dataset=dataset),
            cameras=(),
            episodes=episodes,
            chunk=4,
            scaling=scaling,
        )
        for dataset in (whole, bounded)
    ]
    indices = np.random.default_rng(0).permutation(len(samples[0]))
    one, other = (of.batch(indices) for of in samples)
    np.testing.assert_array_equal(one.actions, other.actions)
    np.testing.assert_array_equal(one.state, other.state)
    assert one.observations is not None and set(one.observations.instructions) == {
        "put object 0 in its place",
        "put object 20 in its place",
        "put object 44 in its place",
    }
    for row, index in enumerate(indices[:20]):
        episode, frame = int(samples[0].episode[index]), int(samples[0].frame[index])
        steps = np.minimum(np.arange(frame, frame + 4), SYNTHETIC_FRAMES - 1)
        np.testing.assert_array_equal(
            one.actions[row], scaling.actions.normalise(whole.column("action", episode)[steps])
        )
    held = bounded._columns
    assert sum(values.nbytes for values in held.values()) == bounded._column_bytes
    assert bounded._column_bytes <= (1 << 20) or len(held) == 1


def test_every_way_is_measured_and_the_ratio_is_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    def ensure(dataset: LeRobotDataset, config: SmallBackboneConfig) -> None:
        FeatureCache.build(dataset, Plain())

    monkeypatch.setattr(data, "build_backbone", lambda config: Plain())
    monkeypatch.setattr(data, "ensure_features", ensure)
    monkeypatch.setattr(data, "EPISODES", 2)
    monkeypatch.setattr(data, "FRAMES", 6)
    found = data.measure_loading(SmallBackboneConfig(), None, workers=0, batch_size=4, seconds=0.05)
    json.dumps(found)
    rates = found["samples_per_s"]
    assert set(rates) == {"video", "video and encoding", "decoded frames", "features"} and min(rates.values()) > 0
    assert found["ratio"] == rates["features"] / rates["video and encoding"]
    assert found["machine"]["device"] == "cpu" and found["frames"] == 12
    with pytest.raises(ConfigError, match="expected both above 0"):
        data.measure_loading(SmallBackboneConfig(), None, workers=0, batch_size=0, seconds=1.0)
