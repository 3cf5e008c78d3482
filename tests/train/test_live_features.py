"""Training on a frozen backbone without a feature cache: the same as with one, for both stages and several datasets."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_fakes import PatchBackbone, loop, motion_training, policy_training, write_dataset

from lamp.data.augmentation import NO_AUGMENTATION, Augmentation
from lamp.data.feature_cache.cache import FeatureCache
from lamp.data.lerobot import LeRobotDataset
from lamp.json_files import read_lines_json
from lamp.train.config import MixedIn, MotionTraining, PolicyTraining
from lamp.train.train_motion import evaluate_flow, train_motion
from lamp.train.train_policy import train_policy

BACKBONE = PatchBackbone()
SHORT = loop(steps=4, batch_size=8)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without any features; the exact ones are in `exact` beside it."""
    root = write_dataset(tmp_path_factory.mktemp("live") / "demonstrations", episodes=4)
    shutil.rmtree(root / "features")
    return root


def exact(data: Path, augmentation: Augmentation = NO_AUGMENTATION) -> Path:
    folder = data.parent / "exact"
    FeatureCache.build(LeRobotDataset(data), BACKBONE, augmentation=augmentation, root=folder, storage="float32")
    return folder


def trained(
    config: PolicyTraining | MotionTraining, data: Path, out: Path, *, prior: Path | None = None, live: bool
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The losses and the weights of a training, with a cache or without."""
    features = None if live else exact(data, getattr(config, "augmentation", NO_AUGMENTATION))
    config = replace(config, cache_features=not live)
    if isinstance(config, PolicyTraining):
        train_policy(config, data, out, prior, backbone=BACKBONE, features=features)
    else:
        train_motion(config, data, out, backbone=BACKBONE, features=features)
    assert not live or not (data / "features").exists()
    losses = [line["loss"] for line in read_lines_json(out / "metrics.jsonl")]
    return losses, load_file(out / "checkpoint/model.safetensors")


def same(one: tuple[list[float], dict[str, torch.Tensor]], other: tuple[list[float], dict[str, torch.Tensor]]) -> None:
    assert one[0] == other[0]
    assert all(torch.equal(value, other[1][name]) for name, value in one[1].items())


@pytest.mark.long
@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_stage_1_without_a_cache_is_stage_1_with_one(data: Path, tmp_path: Path, workers: int) -> None:
    config = motion_training(loop=SHORT)
    cached = trained(config, data, tmp_path / "cached", live=False)
    live = replace(config, loop=replace(SHORT, workers=workers))
    same(trained(live, data, tmp_path / "live", live=True), cached)


@pytest.mark.long
def test_stage_2_without_a_cache_is_stage_2_with_one(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(motion_training(loop=SHORT), data, tmp_path / "prior", live=True)
    monkeypatch.setattr("lamp.train.backbones.build_backbone", lambda config: BACKBONE)
    report = evaluate_flow(tmp_path / "prior", data)
    assert report.samples > 0 and not (data / "features").exists()
    for name, augmentation, draws in (("plain", NO_AUGMENTATION, 0), ("augmented", Augmentation(views=2), 2)):
        config = policy_training(loop=SHORT, augmentation=augmentation, cached_hidden_draws=draws, token_dropout=0.2)
        cached = trained(config, data, tmp_path / f"{name} cached", prior=tmp_path / "prior", live=False)
        same(trained(config, data, tmp_path / f"{name} live", prior=tmp_path / "prior", live=True), cached)


@pytest.mark.slow
def test_several_datasets_without_caches(data: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(data, tmp_path / "other"))
    config = policy_training(with_motion=False, loop=SHORT, also=(MixedIn(data=str(other)),), weights=(1.0, 3.0))
    exact(other)
    shutil.copytree(other.parent / "exact", data.parent / "exact", dirs_exist_ok=True)
    cached = trained(config, data, tmp_path / "cached", live=False)
    for workers in (0, 2):
        live = replace(config, loop=replace(SHORT, workers=workers))
        same(trained(live, data, tmp_path / f"live {workers}", live=True), cached)
