from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from backbones import Compact, HiddenArray
from demonstrations import LENGTHS, episode, write
from hypothesis import given, settings
from hypothesis import strategies as st

from lamp.data.feature_cache.cache import FeatureCache
from lamp.data.lerobot import LeRobotDataset, LeRobotWriter
from lamp.data.lerobot.staging import stage_episode
from lamp.data.normalizers import ContinuousRotation, MinMax, Standardise
from lamp.data.policy_dataset import PolicySamples, PolicyScaling, split_episodes, states_and_actions
from lamp.errors import ConfigError, DataError, MismatchError

CHUNK = 6


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[LeRobotDataset, FeatureCache]:
    dataset = write(tmp_path_factory.mktemp("samples"))
    return dataset, FeatureCache.build(dataset, Compact())


@pytest.fixture(scope="module")
def scaling(data: tuple[LeRobotDataset, FeatureCache]) -> PolicyScaling:
    dataset, _ = data
    raw, recorded = states_and_actions(dataset, [0, 2], 4)
    states = ContinuousRotation().apply(raw)
    actions = MinMax.fit(recorded, binary=(-1,))
    return PolicyScaling(state_transform=ContinuousRotation(), state=Standardise.fit(states), actions=actions)


@pytest.fixture(scope="module")
def samples(data: tuple[LeRobotDataset, FeatureCache], scaling: PolicyScaling) -> PolicySamples:
    return PolicySamples(*data, episodes=(2, 0, 3), chunk=CHUNK, scaling=scaling)


def test_every_fresh_frame_is_a_sample(samples: PolicySamples) -> None:
    assert len(samples) == 17 + 10 + 1
    assert (samples.frame % 2 == 0).all() and sorted(set(samples.episode.tolist())) == [0, 2, 3]


def test_batches_hold_what_follows_each_frame(
    samples: PolicySamples, data: tuple[LeRobotDataset, FeatureCache], scaling: PolicyScaling
) -> None:
    dataset, cache = data
    indices = np.random.default_rng(0).permutation(len(samples))
    batch = samples.batch(indices)
    assert batch.motion_hidden is None
    for row, index in enumerate(indices):
        place, frame = int(samples.episode[index]), int(samples.frame[index])
        actions = dataset.column("action", place)
        steps = np.arange(frame, frame + CHUNK)
        np.testing.assert_array_equal(batch.action_mask[row].numpy(), steps < LENGTHS[place])
        expected = scaling.actions.normalise(actions[np.minimum(steps, LENGTHS[place] - 1)])
        np.testing.assert_array_equal(batch.actions[row].numpy(), expected)
        state = scaling.scaled_state(dataset.column("observation.state", place)[frame : frame + 1])
        np.testing.assert_allclose(batch.state[row].numpy(), state[0], rtol=1e-6)
        torch.testing.assert_close(batch.encoded.tokens[row], cache.encoded(cache.index.rows(place, [frame])).tokens[0])
    assert set(batch.actions[..., 6].unique().tolist()) == {-1.0, 1.0}


def test_actions_after_an_overridden_one_do_not_count(tmp_path: Path, scaling: PolicyScaling) -> None:
    recorded = episode(0, 20)
    overridden = np.zeros(20, bool)
    overridden[[6, 7, 15]] = True
    stage_episode(tmp_path, "pushed", replace(recorded, frames={**recorded.frames, "action.overridden": overridden}))
    LeRobotWriter(tmp_path).finalize({})
    dataset = LeRobotDataset(tmp_path)
    cache = FeatureCache.build(dataset, Compact())
    samples = PolicySamples(dataset, cache, episodes=(0,), chunk=CHUNK, scaling=scaling)
    _, mask = samples.chunks(np.arange(len(samples)))
    counted = dict(zip(samples.frame.tolist(), mask.sum(1).tolist(), strict=True))
    assert counted == {0: 6, 2: 5, 4: 3, 6: 1, 8: 6, 10: 6, 12: 4, 14: 2, 16: 4, 18: 2}
    assert mask[:, 0].all(), "the expert's action at the visited state itself always counts"


def test_hidden_states_take_turns_by_epoch(samples: PolicySamples) -> None:
    hidden = np.arange(len(samples) * 3, dtype=np.float16).reshape(-1, 3, 1, 1).repeat(2, 2)
    samples.motion_hidden = HiddenArray(hidden)
    try:
        indices = np.array([5, 0])
        found = [samples.batch(indices, epoch=epoch).motion_hidden for epoch in range(4)]
        assert [part[0, 0, 0].item() for part in found if part is not None] == [17, 15, 16, 17]
        assert [part[1, 1, 0].item() for part in found if part is not None] == [0, 1, 2, 0]
        with pytest.raises(MismatchError, match="cover 4 samples; expected 28"):
            samples.motion_hidden = HiddenArray(hidden[:4])
    finally:
        samples.motion_hidden = None


def test_what_does_not_work_is_refused(data: tuple[LeRobotDataset, FeatureCache], scaling: PolicyScaling) -> None:
    with pytest.raises(ConfigError, match="chunk of 0"):
        PolicySamples(*data, episodes=(0,), chunk=0, scaling=scaling)
    with pytest.raises(DataError, match="no episodes"):
        PolicySamples(*data, episodes=(), chunk=2, scaling=scaling)


@settings(max_examples=30, deadline=None)
@given(
    tasks=st.lists(st.sampled_from("abcd"), min_size=1, max_size=40), share=st.floats(0, 0.5), seed=st.integers(0, 9)
)
def test_a_split_keeps_every_task_in_training(tasks: list[str], share: float, seed: int) -> None:
    split = split_episodes(tasks, validation_share=share, seed=seed)
    assert sorted((*split.train, *split.validation)) == list(range(len(tasks)))
    assert {tasks[index] for index in split.train} == set(tasks)
    assert split == split_episodes(tasks, validation_share=share, seed=seed)
    assert len(split.validation) <= share * len(tasks) + 1


def test_a_split_is_stratified() -> None:
    tasks = ["a"] * 20 + ["b"] * 10
    split = split_episodes(tasks, validation_share=0.1, seed=3)
    assert [tasks[index] for index in split.validation] == ["a", "a", "b"]
    assert split.validation != split_episodes(tasks, validation_share=0.1, seed=4).validation
    assert len(split_episodes(["a"] * 4, validation_share=0.01).validation) == 1
    assert split_episodes(["a"] * 4, validation_share=0.0).validation == ()
    with pytest.raises(ConfigError, match="validation share of 1"):
        split_episodes(tasks, validation_share=1.0)
