"""Policies trained on several datasets, and on robots that record themselves in another way."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from training_fakes import CAMERAS, SIDE, PatchBackbone, loop, policy_training, write_dataset

from lamp.data.actions import Gripper, Relative
from lamp.data.embodiment import OWN, Embodiment
from lamp.data.feature_cache.cache import FeatureCache
from lamp.errors import ConfigError, MismatchError
from lamp.policy import LaMPPolicy
from lamp.train.checkpoint_metadata import read_description
from lamp.train.config import MixedIn, PolicyTraining
from lamp.train.datasets import dataset_names
from lamp.train.train_policy import train_policy
from lamp_client.types import Observation

FLIPPED = Embodiment(name="flipped", gripper=Gripper(opened=-1.0, closed=1.0), kind=Relative(offsets=((0, 0), (1, 1))))
"""A robot whose first two actions are targets, and whose gripper opens at -1."""


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The usual demonstrations, and fewer of them as `FLIPPED` would record them, with larger actions."""
    own = write_dataset(tmp_path_factory.mktemp("own") / "own", episodes=4)
    other = Path(shutil.copytree(own, tmp_path_factory.mktemp("other") / "other"))
    path = other / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    actions = np.stack(table["action"].to_numpy()) * 10
    actions[:, 6] = np.where(actions[:, 6] > 5, -1, 1)
    column = pa.FixedSizeListArray.from_arrays(pa.array(actions.ravel().astype(np.float32)), 7)
    pq.write_table(table.set_column(table.column_names.index("action"), "action", column), path)
    shutil.rmtree(other / "features")
    FeatureCache.build(FLIPPED.open(other), PatchBackbone())
    return own, other


def mixed(two: tuple[Path, Path], **changes: object) -> PolicyTraining:
    also = (MixedIn(data=str(two[1]), embodiment=FLIPPED),)
    return policy_training(with_motion=False, also=also, **changes)


def train(config: PolicyTraining, data: Path, out: Path) -> dict[str, torch.Tensor]:
    train_policy(config, data, out, backbone=PatchBackbone())
    return load_file(out / "checkpoint/model.safetensors")


def test_each_dataset_keeps_its_own_scaling_in_the_checkpoint(two: tuple[Path, Path], tmp_path: Path) -> None:
    train(mixed(two), two[0], tmp_path / "run")
    description = read_description(tmp_path / "run")
    record = description.policy
    assert record is not None and record.embodiment == OWN and len(record.others) == 1
    other = record.others[0]
    assert other.embodiment == FLIPPED and other.data.name == "other" and other.data.frames > 0
    own_scale, other_scale = (scaling.actions.centre_and_scale()[1] for scaling in (record.scaling, other.scaling))
    np.testing.assert_allclose(other_scale[2:6] / own_scale[2:6], 10, rtol=0.4)
    assert other.scaling.actions.binary == (6,)
    policy = LaMPPolicy.from_checkpoint(tmp_path / "run", backbone=PatchBackbone())
    state = np.random.default_rng(0).normal(size=8).astype(np.float32)
    images = {camera: np.zeros((SIDE, SIDE, 3), np.uint8) for camera in CAMERAS}
    observation = Observation(images=images, state=state, instruction="task 0")
    one = policy.act(observation, noise_seed=(1,)).actions
    acted = policy.of_dataset("other").act(observation, noise_seed=(1,)).actions
    assert np.abs(acted[:, 2:6]).mean() > 3 * np.abs(one[:, 2:6]).mean()
    with pytest.raises(ConfigError, match="unknown dataset 'third'"):
        policy.of_dataset("third")


def test_datasets_in_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    folders = [tmp_path / one / "mine" for one in ("a", "b", "c")] + [tmp_path / "other"]
    for folder in folders:
        folder.mkdir(parents=True)
    assert dataset_names(folders) == ["a/mine", "b/mine", "c/mine", "other"]
    assert dataset_names(folders[2:]) == ["mine", "other"]
    assert dataset_names([folders[0], folders[0]]) == ["mine", "mine (2)"], "one dataset, as two robots"
    with pytest.raises(ConfigError, match=r"in one folder, 'mine'; expected datasets of different names"):
        dataset_names(folders, tmp_path / "disk")


def test_two_datasets_of_one_name_are_both_acted_as(two: tuple[Path, Path], tmp_path: Path) -> None:
    twin = Path(shutil.copytree(two[1], tmp_path / "twin" / two[0].name))
    also = (MixedIn(data=str(twin), embodiment=FLIPPED),)
    train(policy_training(with_motion=False, also=also), two[0], tmp_path / "run")
    description = read_description(tmp_path / "run")
    assert description.policy is not None
    assert (description.data.name, description.policy.others[0].data.name) == (
        f"{two[0].parent.name}/own",
        "twin/own",
    )
    policy = LaMPPolicy.from_checkpoint(tmp_path / "run", backbone=PatchBackbone())
    assert policy.of_dataset("twin/own").record.embodiment == FLIPPED and policy.record.embodiment == OWN


def test_relative_actions_come_back_in_the_robots_frame(two: tuple[Path, Path], tmp_path: Path) -> None:
    """Away from the origin, the same relative action leads away from there."""
    config = policy_training(with_motion=False, embodiment=FLIPPED)
    train(config, two[1], tmp_path / "run")
    policy = LaMPPolicy.from_checkpoint(tmp_path / "run", backbone=PatchBackbone())
    scaling = policy.record.scaling
    state = np.zeros(8, np.float32)
    images = {camera: np.zeros((SIDE, SIDE, 3), np.uint8) for camera in CAMERAS}
    observation = Observation(images=images, state=state + np.float32(0.5), instruction="task 0")
    acted = policy.act(observation, noise_seed=(1,)).actions
    policy.record = replace(policy.record, embodiment=replace(FLIPPED, kind=OWN.kind))
    related = policy.act(observation, noise_seed=(1,)).actions
    np.testing.assert_allclose(acted[:, :2] - related[:, :2], 0.5, atol=1e-5)
    np.testing.assert_array_equal(acted[:, 2:], related[:, 2:])
    assert scaling.actions.binary == (6,)


@pytest.mark.long
def test_weights_change_the_run_and_a_broken_off_one_continues_bit_for_bit(
    two: tuple[Path, Path], tmp_path: Path
) -> None:
    weighted = mixed(two, weights=(1.0, 5.0))
    whole = train(weighted, two[0], tmp_path / "whole")
    by_length = train(mixed(two), two[0], tmp_path / "by length")
    assert any(not torch.equal(value, by_length[name]) for name, value in whole.items())
    stopping = replace(weighted, loop=loop(time_limit_s=0.0))
    for _ in range(3):
        broken_off = train_policy(stopping, two[0], tmp_path / "parts", backbone=PatchBackbone())
        assert not broken_off.outcome.finished
    finished = train(replace(weighted, loop=loop()), two[0], tmp_path / "parts")
    assert all(torch.equal(value, finished[name]) for name, value in whole.items())


def test_weights_and_grippers_that_do_not_fit_are_refused(two: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="2 datasets"):
        train(mixed(two, weights=(1.0,)), two[0], tmp_path / "run")
    with pytest.raises(MismatchError, match="gripper, dimension 6 of the action, goes from -1 to 1; expected 0 to 1"):
        train(policy_training(with_motion=False), two[1], tmp_path / "run")


def test_the_training_says_what_it_was_trained_on(two: tuple[Path, Path], tmp_path: Path) -> None:
    train(mixed(two), two[0], tmp_path / "run")
    written = json.loads((tmp_path / "run/checkpoint/lamp.json").read_text())
    assert written["training"]["also"][0]["embodiment"]["name"] == "flipped"
    alone = train_policy(policy_training(with_motion=False), two[0], tmp_path / "alone", backbone=PatchBackbone())
    one, other = read_description(tmp_path / "run").data, read_description(alone.checkpoint).data
    assert one.fingerprint != other.fingerprint and one.dataset == other.dataset
