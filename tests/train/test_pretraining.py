"""Motion Experts that others start from: how one is made and passed on, and those that come with LaMP."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_fakes import PatchBackbone, loop, motion_training, policy_training

from lamp.errors import ConfigError
from lamp.pretraining import pass_on, pretrain
from lamp.recipes import pretraining, training
from lamp.train.checkpoint import load_checkpoint
from lamp.train.flow_metrics import read_flow_errors
from lamp.train.publishing import SHIPPED, find_checkpoint, shipped_checkpoints
from lamp.train.train_motion import evaluate_flow, train_motion
from lamp.train.train_policy import train_policy


def test_what_is_passed_on_is_half_as_large_and_trains_a_policy(data: Path, tmp_path: Path) -> None:
    short = loop(steps=2)
    train_motion(motion_training(loop=short), data, tmp_path / "motion", backbone=PatchBackbone())
    pass_on(tmp_path / "motion", tmp_path / "small")
    assert sorted(path.name for path in (tmp_path / "small").iterdir()) == [
        "README.md",
        "lamp.json",
        "model.safetensors",
    ]
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("motion/checkpoint", "small")]
    assert 0.49 < sizes[1] / sizes[0] < 0.6
    (whole, described), (half, again) = (load_checkpoint(tmp_path / name) for name in ("motion", "small"))
    assert replace(again, weights_sha256=described.weights_sha256) == described
    for name, value in whole.state_dict().items():
        assert half.state_dict()[name].dtype == torch.float32
        torch.testing.assert_close(half.state_dict()[name], value, rtol=1e-3, atol=1e-6)
    result = train_policy(
        policy_training(loop=short), data, tmp_path / "policy", tmp_path / "small", backbone=PatchBackbone()
    )
    trained, _ = load_checkpoint(result.checkpoint)
    assert all(torch.equal(value, trained.state_dict()[name]) for name, value in half.state_dict().items())


def test_each_that_comes_with_lamp_is_small_known_and_fits_the_small_recipes() -> None:
    assert shipped_checkpoints() == ["pretrained/libero_object"]
    for name in shipped_checkpoints():
        folder = find_checkpoint(name)
        assert folder.parent == SHIPPED and sum(file.stat().st_size for file in folder.iterdir()) < 12e6
        _, found = load_checkpoint(folder)
        errors = json.loads((folder / "flow.json").read_text())["moving"]
        assert errors["one_sample"]["ade_px"] < 0.6 * errors["zero_motion"]["ade_px"]
        made = pretraining("libero_object_motion")
        assert found.training == made.motion and found.model == made.motion.model
        assert "/" not in found.data.name and (folder / "README.md").is_file()
        fitting = [training(name) for name in ("demo", "small_gated", "small_path", "libero_object_small")]
        assert all(one.policy.model.motion == found.model.motion for one in fitting)


@pytest.mark.parametrize("wrong", ["pretrained/libero_objekt", "pretrained/.."])
def test_one_that_does_not_come_with_lamp_is_told(wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"Known: pretrained/libero_object"):
        find_checkpoint(wrong)


def test_a_folder_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pretrained" / "mine").mkdir(parents=True)
    assert find_checkpoint("pretrained/mine") == Path("pretrained/mine")


@pytest.mark.slow
@pytest.mark.sim
def test_from_nothing_to_what_is_passed_on_and_only_once(tmp_path: Path) -> None:
    made = pretraining("libero_object_motion")
    short = replace(
        made.motion.loop, steps=4, batch_size=4, log_every=2, checkpoint_every=2, validate_every=4, threads=1
    )
    tiny = replace(
        made,
        collect=replace(made.collect, task=(0,), episodes=2, render_every=8, workers=2),
        flow=replace(made.flow, every=4, workers=1),
        motion=replace(made.motion, loop=short, validation_samples=2, final_samples=4),
    )
    out = pretrain(tiny, tmp_path / "run")
    _, described = load_checkpoint(out)
    assert described.step == 4 and described.data.validation_episodes
    errors = evaluate_flow(out, tmp_path / "run/data", frames=4)
    assert errors.moving.keys() == read_flow_errors(out / "flow.json")["moving"].keys()
    before = (
        (out / "model.safetensors").stat().st_mtime_ns,
        (tmp_path / "run/motion/checkpoint/lamp.json").stat().st_mtime_ns,
    )
    pretrain(tiny, tmp_path / "run")
    after = (
        (out / "model.safetensors").stat().st_mtime_ns,
        (tmp_path / "run/motion/checkpoint/lamp.json").stat().st_mtime_ns,
    )
    assert after == before
