"""Runs that begin with the weights of a checkpoint, and finished runs that go on with more steps."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training_fakes import PatchBackbone, loop, motion_training, policy_training, write_dataset

from lamp.data.actions import Absolute
from lamp.data.embodiment import OWN
from lamp.errors import MismatchError
from lamp.json_files import read_lines_json
from lamp.sceneflow.normalization import BoundsRule
from lamp.train.checkpoint_metadata import read_description
from lamp.train.config import PolicyTraining
from lamp.train.train_motion import train_motion
from lamp.train.train_policy import train_policy

BACKBONE = PatchBackbone()
SHORT = loop(steps=4, log_every=1, ema=None)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("finetune") / "demonstrations", episodes=4)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("finetune") / "more", episodes=6)


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A motion prior and a policy that has it."""
    folder = tmp_path_factory.mktemp("runs")
    train_motion(motion_training(loop=SHORT), data, folder / "motion", backbone=BACKBONE)
    train_policy(policy_training(loop=SHORT), data, folder / "policy", folder / "motion", backbone=BACKBONE)
    return folder


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoint/model.safetensors")


def rates(run: Path) -> list[float]:
    return [line["lr"] for line in read_lines_json(run / "metrics.jsonl") if line["kind"] == "train"]


def still(config: PolicyTraining) -> PolicyTraining:
    """A training that moves no weight, so that what it began with can be seen."""
    return replace(config, loop=replace(SHORT, steps=1, optimiser=replace(SHORT.optimiser, lr=0.0), min_lr=0.0))


@pytest.mark.parametrize("normalizers", ["keep", "refit"])
def test_a_policy_is_begun_with_and_its_origin_recorded(
    runs: Path, other: Path, tmp_path: Path, normalizers: str
) -> None:
    out = tmp_path / "tuned"
    config = still(policy_training())
    train_policy(config, other, out, backbone=BACKBONE, start=runs / "policy", normalizers=normalizers)  # pyright: ignore
    before, after = weights(runs / "policy"), weights(out)
    assert all(torch.equal(value, after[name]) for name, value in before.items()), "the Motion Expert's too"
    old, new = read_description(runs / "policy"), read_description(out)
    assert new.started_from is not None and old.policy is not None and new.policy is not None
    assert (new.started_from.weights_sha256, new.started_from.step) == (old.weights_sha256, 4)
    assert new.started_from.data == old.data and new.started_from.normalizers == normalizers
    assert new.motion_source == old.motion_source and new.flow == old.flow
    assert (new.policy.scaling == old.policy.scaling) == (normalizers == "keep")
    train_policy(
        replace(config, loop=replace(config.loop, steps=3)),
        other,
        out,
        backbone=BACKBONE,
        start=runs / "policy",
        normalizers=normalizers,  # pyright: ignore
    )
    with pytest.raises(MismatchError, match=r"was trained with (started_from|policy)"):
        longer = replace(config, loop=replace(config.loop, steps=3))
        train_policy(longer, other, out, runs / "motion", backbone=BACKBONE)


def test_a_motion_prior_is_begun_with(runs: Path, other: Path, tmp_path: Path) -> None:
    slow = replace(SHORT, steps=1, optimiser=replace(SHORT.optimiser, lr=0.0), min_lr=0.0)
    config = motion_training(loop=slow, bounds=BoundsRule(smallest=0.01))
    begin = {"backbone": BACKBONE, "start": runs / "motion"}
    train_motion(config, other, tmp_path / "kept", **begin)
    train_motion(config, other, tmp_path / "fitted", **begin, normalizers="refit")
    before, after = weights(runs / "motion"), weights(tmp_path / "kept")
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    old, kept, fitted = (read_description(path) for path in (runs / "motion", tmp_path / "kept", tmp_path / "fitted"))
    assert old.flow is not None and kept.flow is not None and fitted.flow is not None
    assert kept.flow.bounds == old.flow.bounds != fitted.flow.bounds
    assert kept.started_from is not None and kept.started_from.data.name == "demonstrations"
    with pytest.raises(MismatchError, match=r"takes 0\.05 s, one of .* 0\.1 s, .* choose --flow-stride, or"):
        config = motion_training(loop=slow, flow_stride=1)
        train_motion(config, other, tmp_path / "faster", backbone=BACKBONE, start=runs / "motion")


def test_what_does_not_fit_is_named(runs: Path, data: Path, tmp_path: Path) -> None:
    config = still(policy_training())
    assert config.model.action is not None

    def begin(changed: PolicyTraining, start: Path = runs / "policy", motion: Path | None = None) -> None:
        train_policy(changed, data, tmp_path / "out", motion, backbone=BACKBONE, start=start)

    wider = replace(config.model, action=replace(config.model.action, width=32))
    with pytest.raises(
        MismatchError, match=r"has model\.action\.width = 16, the recipe asks for 32; expected the same"
    ):
        begin(replace(config, model=wider))
    with pytest.raises(MismatchError, match="has kind 'motion'; expected 'policy'"):
        begin(config, runs / "motion")
    with pytest.raises(MismatchError, match=r"embodiment 'lamp' has kind .* give --normalizers refit"):
        begin(replace(config, embodiment=replace(OWN, kind=Absolute())))
    train_motion(motion_training(loop=replace(SHORT, steps=5)), data, tmp_path / "motion", backbone=BACKBONE)
    with pytest.raises(MismatchError, match="has another Motion Expert than"):
        begin(config, motion=tmp_path / "motion")
    assert not (tmp_path / "out" / "checkpoint").exists()


def test_a_finished_run_goes_on_with_more_steps(data: Path, tmp_path: Path) -> None:
    def train(out: str, steps: int, **changes: object) -> Path:
        config = policy_training(with_motion=False, loop=replace(SHORT, steps=steps, checkpoint_every=2, **changes))
        train_policy(config, data, tmp_path / out, backbone=BACKBONE)
        return tmp_path / out

    train("run", 4)
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    at_once = weights(train("run", 10))
    assert read_description(tmp_path / "run").step == 10
    found = rates(tmp_path / "run")
    expected = [1e-6 + 0.5 * (3e-3 - 1e-6) * (1 + math.cos(math.pi * step / 10)) for step in (5, 6, 9)]
    assert [found[step] for step in (5, 6, 9)] == pytest.approx(expected), "the cosine over ten steps, from there on"
    train("again", 10, time_limit_s=1e-6)  # stops after a step
    stopped = read_description(tmp_path / "again").step
    assert 4 <= stopped < 10
    resumed = weights(train("again", 10))
    assert all(torch.equal(value, resumed[name]) for name, value in at_once.items())
    with pytest.raises(MismatchError, match=r"steps = 10, now it is 6"):
        train("run", 6)


def test_an_unfinished_run_is_finished_before_it_gets_longer(data: Path, tmp_path: Path) -> None:
    config = policy_training(with_motion=False, loop=replace(SHORT, steps=40, time_limit_s=1e-6))
    train_policy(config, data, tmp_path / "run", backbone=BACKBONE)
    with pytest.raises(MismatchError, match=r"is unfinished, at step .* finish it first with the length it had"):
        longer = replace(config, loop=replace(config.loop, steps=50))
        train_policy(longer, data, tmp_path / "run", backbone=BACKBONE)


def test_a_finished_motion_prior_that_goes_on_is_measured_again(data: Path, tmp_path: Path) -> None:
    for steps in (2, 4):
        train_motion(motion_training(loop=replace(SHORT, steps=steps)), data, tmp_path / "run", backbone=BACKBONE)
        found = (tmp_path / "run/flow.json").read_text()
        (tmp_path / f"{steps}.json").write_text(found)
    assert (tmp_path / "2.json").read_text() != (tmp_path / "4.json").read_text()
    assert np.isfinite(rates(tmp_path / "run")).all()
