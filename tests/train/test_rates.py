"""Datasets of different rates, cameras and flow steps in one training, of either stage."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training_fakes import (
    MOTION,
    PatchBackbone,
    episode,
    loop,
    motion_training,
    policy_training,
    write_dataset,
    write_flow,
)

from lamp.data.actions import Absolute
from lamp.data.embodiment import OWN
from lamp.data.feature_cache.cache import FeatureCache
from lamp.data.lerobot import LeRobotDataset, LeRobotWriter, stage_episode
from lamp.data.normalizers import MinMax, RawState, Standardise
from lamp.data.policy_dataset import PolicySamples, PolicyScaling, states_and_actions
from lamp.errors import ConfigError, MismatchError
from lamp.flow_matching import Preconditioning
from lamp.train.checkpoint_metadata import read_description
from lamp.train.config import MixedIn, MotionTraining
from lamp.train.train_motion import evaluate_flow, train_motion
from lamp.train.train_policy import train_policy

BACKBONE = PatchBackbone()
SHORT = loop(steps=3)
TARGETS = replace(OWN, kind=Absolute())


def at_rate(root: Path, fps: int) -> Path:
    """Demonstrations at another rate than the usual 20, with features and scene flow."""
    for seed in range(4):
        stage_episode(root, f"episode-{seed}", episode(seed), fps=fps)
    LeRobotWriter(root, fps=fps).finalize()
    FeatureCache.build(LeRobotDataset(root), BACKBONE)
    write_flow(LeRobotDataset(root))
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """At 20 frames a second."""
    return write_dataset(tmp_path_factory.mktemp("rates") / "own", episodes=4)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """At 20 frames a second, with more and faster episodes."""
    return write_dataset(tmp_path_factory.mktemp("rates") / "other", episodes=6)


def trained(config: MotionTraining, data: Path, out: Path) -> dict[str, torch.Tensor]:
    train_motion(config, data, out, backbone=BACKBONE)
    return load_file(out / "checkpoint/model.safetensors")


@pytest.mark.slow
def test_stage_1_is_trained_on_several_datasets_with_one_scale(data: Path, other: Path, tmp_path: Path) -> None:
    config = motion_training(loop=loop(steps=6), also=(MixedIn(data=str(other)),), weights=(1.0, 4.0))
    whole = trained(config, data, tmp_path / "whole")
    found = read_description(tmp_path / "whole")
    assert found.flow is not None and [one.name for one in found.flow.also] == ["other"]
    alone = train_motion(motion_training(loop=SHORT), other, tmp_path / "alone", backbone=BACKBONE).description
    assert alone.flow is not None and found.flow.bounds.high[0] >= alone.flow.bounds.high[0]
    assert found.data.frames > alone.data.frames and found.data.fingerprint != alone.data.fingerprint
    stopping = replace(config, loop=loop(steps=6, time_limit_s=0.0))
    for _ in range(2):
        trained(stopping, data, tmp_path / "parts")
    parts = trained(config, data, tmp_path / "parts")
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    by_length = trained(replace(config, weights=None), data, tmp_path / "by length")
    assert any(not torch.equal(value, by_length[name]) for name, value in whole.items())
    report = json.loads((tmp_path / "whole/flow.json").read_text())
    assert report["samples"] > 0
    assert evaluate_flow(tmp_path / "whole", other, [0, 1]).samples > 0
    with pytest.raises(ConfigError, match="2 datasets"):
        trained(replace(config, weights=(1.0,)), data, tmp_path / "wrong")


@pytest.mark.slow
def test_flow_steps_of_different_length_are_refused_or_brought_together(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    faster = at_rate(tmp_path / "faster", 10)  # the stored step of one frame takes 0.1 s: two of the first's
    config = motion_training(loop=SHORT, also=(MixedIn(data=str(faster)),))
    told = (
        r"faster \(10 frames a second\) takes 0\.2 s, one of the first dataset 0\.1 s; expected the same: give --rates"
    )
    with pytest.raises(MismatchError, match=told):
        trained(config, data, tmp_path / "run")
    trained(replace(config, rates="resampled"), data, tmp_path / "resampled")
    assert f"{faster} 0.1 s" in capsys.readouterr().err
    trained(replace(config, rates="recorded"), data, tmp_path / "recorded")
    assert f"{faster} 0.2 s" in capsys.readouterr().err
    odd = at_rate(tmp_path / "odd", 15)
    with pytest.raises(MismatchError, match="is not a whole number of its stored steps of 1 frames"):
        uneven = replace(config, also=(MixedIn(data=str(odd)),), rates="resampled")
        trained(uneven, data, tmp_path / "uneven")


def test_policies_on_different_rates_are_refused_or_brought_together(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = at_rate(tmp_path / "slow", 10)
    config = policy_training(
        with_motion=False, loop=SHORT, embodiment=TARGETS, also=(MixedIn(data=str(slow), embodiment=TARGETS),)
    )

    def train(out: str, **changes: object) -> Path:
        train_policy(replace(config, **changes), data, tmp_path / out, backbone=BACKBONE)
        return tmp_path / out

    told = r"own at 20 fps \(a chunk of 5 takes 0\.25 s\), .*slow at 10 fps \(a chunk of 5 takes 0\.5 s\); expected one rate"
    with pytest.raises(MismatchError, match=told):
        train("refused")
    record = read_description(train("resampled", rates="resampled")).policy
    assert record is not None and (record.fps, record.others[0].fps) == (10, 10)
    assert f"brought to 10 actions a second: every 2. action of {data}" in capsys.readouterr().err
    record = read_description(train("recorded", rates="recorded")).policy
    assert record is not None and (record.fps, record.others[0].fps) == (20, 10)
    with pytest.raises(MismatchError, match=r"own at 20 fps records deltas .* give --rates recorded"):
        train("deltas", rates="resampled", embodiment=OWN)
    odd = at_rate(tmp_path / "odd", 13)
    with pytest.raises(MismatchError, match="cannot be brought to 13 by whole numbers of frames"):
        train("odd", rates="resampled", also=(MixedIn(data=str(odd), embodiment=TARGETS),))


def test_a_chunk_at_a_lower_rate_ends_each_of_its_steps_with_the_target_given_last(data: Path) -> None:
    dataset = LeRobotDataset(data)
    states, actions = states_and_actions(dataset, [0, 1], 4, TARGETS, 3)
    scaling = PolicyScaling(state_transform=RawState(), state=Standardise.fit(states), actions=MinMax.fit(actions))
    features = FeatureCache(dataset, BACKBONE.key)
    samples = PolicySamples(dataset, features, episodes=(1, 0), chunk=4, scaling=scaling, embodiment=TARGETS, step=3)
    indices = np.arange(len(samples))
    chunks, mask = samples.chunks(indices)
    for index in indices.tolist():
        number, frame = int(samples.episode[index]), int(samples.frame[index])
        recorded, places = dataset.column("action", number), frame + np.array([2, 5, 8, 11])
        expected = scaling.actions.normalise(recorded[np.minimum(places, len(recorded) - 1)])
        np.testing.assert_array_equal(chunks[index], expected)
        np.testing.assert_array_equal(mask[index], places < len(recorded))


def test_the_spread_of_the_flow_is_the_datas_own(data: Path, tmp_path: Path) -> None:
    """Stage 1 finds it and writes it down, a continued run and Stage 2 take it from there."""
    backbone = PatchBackbone()
    scaled = replace(MOTION, preconditioning=Preconditioning(data_std=(0.08, 0.08, 0.08)))
    model = replace(motion_training().model, motion=scaled)
    config = motion_training(model=model, fit_data_std=True, loop=loop(steps=2))
    train_motion(config, data, tmp_path / "motion", backbone=backbone)

    def found(run: Path) -> tuple[float, ...]:
        expert = read_description(run).model.motion
        assert expert is not None and expert.preconditioning is not None
        return expert.preconditioning.data_std

    std = found(tmp_path / "motion")
    # Half of the points move, to the right, at three speeds; the upper bound is that of the fastest. Nothing moves up or away.
    assert 0.2 < std[0] < 1 and std[1] == std[2] == 0.01
    train_motion(replace(config, loop=loop(steps=3)), data, tmp_path / "motion", backbone=backbone, fresh=False)
    assert found(tmp_path / "motion") == std
    kept = motion_training(model=model, loop=loop(steps=1))
    train_motion(kept, data, tmp_path / "kept", backbone=backbone)
    assert found(tmp_path / "kept") == (0.08, 0.08, 0.08)
    policy = policy_training(loop=loop(steps=1))
    policy = replace(policy, model=replace(policy.model, motion=scaled))
    train_policy(policy, data, tmp_path / "policy", tmp_path / "motion", backbone=backbone)
    assert found(tmp_path / "policy") == std
    with pytest.raises(MismatchError, match="data_std"):
        train_policy(
            replace(
                policy,
                model=replace(policy.model, motion=replace(scaled, preconditioning=Preconditioning(data_std=std))),
            ),
            data,
            tmp_path / "other",
            tmp_path / "kept",
            backbone=backbone,
        )
