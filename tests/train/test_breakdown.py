"""Losses by flow time, axis and name; gradient norms by module; errors of drawn actions. Nothing is asked of the device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from training_fakes import PatchBackbone, loop, motion_training, policy_training

from lamp.data.actions import Absolute
from lamp.data.embodiment import OWN, Part
from lamp.data.lerobot.format import Feature
from lamp.flow_matching import PerDrawLoss
from lamp.json_files import read_lines_json
from lamp.sceneflow.normalization import MotionBounds
from lamp.train import validation
from lamp.train.breakdown import action_names, clamped, with_labels
from lamp.train.memory_estimate import BatchShape, step_memory
from lamp.train.metrics import LogInterval
from lamp.train.optimizer import Gradients
from lamp.train.train_motion import train_motion
from lamp.train.train_policy import train_policy
from lamp.types import Camera, Motion, PolicyBatch, SceneFlow


def draws(seed: int, count: int) -> PerDrawLoss:
    generator = torch.Generator().manual_seed(seed)
    loss, tau = torch.rand(count, generator=generator), torch.rand(count, generator=generator)
    return PerDrawLoss(loss=loss, tau=tau * 0.8, supervised=torch.rand(count, generator=generator) > 0.3)


def test_losses_by_flow_time_are_means_over_the_draws_of_all_steps() -> None:
    steps = [draws(1, 64), draws(2, 64), draws(3, 64)]
    interval = LogInterval()
    for step in steps:
        interval.add({"per_tau": step.by_tau()}, samples=64, waited_s=0.0)
    found = with_labels(interval.read(), {"per_tau": ("a", "b", "c", "d", "e")})["per_tau"]
    loss, tau, kept = (torch.cat([getattr(step, name) for step in steps]) for name in ("loss", "tau", "supervised"))
    assert isinstance(found, dict) and set(found) == {"a", "b", "c", "d"}  # nothing was drawn beyond 0.8
    for index, name in enumerate("abcd"):
        inside = kept & (tau >= 0.2 * index) & (tau < 0.2 * (index + 1))
        assert found[name] == pytest.approx(float(loss[inside].mean()), rel=1e-5)


def test_the_ends_of_the_flow_time_belong_to_the_first_and_the_last_part() -> None:
    found = PerDrawLoss(
        loss=torch.ones(2), tau=torch.tensor([0.0, 1.0]), supervised=torch.tensor([True, True])
    ).by_tau()
    assert found[1].tolist() == [0.5, 0, 0, 0, 0.5]


def test_the_clamp_rate_is_that_of_the_bounds() -> None:
    increments = torch.randn(3, 5, 4, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.05, 0.01, 0.2])
    mask = torch.rand(increments.shape, generator=torch.Generator().manual_seed(1)) > 0.4
    camera = Camera(intrinsics=torch.eye(3).expand(3, 3, 3), world_from_cam=torch.eye(4).expand(3, 4, 4))
    flow = SceneFlow(start=torch.zeros(3, 5, 3), increments=increments, visible=mask[..., 0], mask=mask, camera=camera)
    bounds = MotionBounds(low=(-0.05, -0.05, -0.04), high=(0.05, 0.05, 0.04))
    found = with_labels({"clamped": clamped(bounds.motion(flow)).tolist()}, {"clamped": ("u", "v", "d")})["clamped"]
    assert isinstance(found, dict)
    assert list(found.values()) == pytest.approx(list(bounds.clamp_rate(flow)))
    assert found["d"] > found["u"] > found["v"] == 0


def test_an_axis_that_is_never_supervised_has_no_clamp_rate() -> None:
    mask = torch.ones(2, 4, 3, 3, dtype=torch.bool)
    mask[..., 2] = False
    found = clamped(Motion(values=torch.zeros(2, 4, 3, 3), mask=mask)).tolist()
    assert with_labels({"clamped": found}, {"clamped": ("u", "v", "d")}) == {"clamped": {"u": 0.0, "v": 0.0}}


def test_gradients_are_cut_as_torch_cuts_them_and_their_norms_add_up() -> None:
    def network() -> nn.Module:
        torch.manual_seed(3)
        found = nn.ModuleDict({"a": nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)), "b": nn.Linear(3, 2)})
        (found["b"](found["a"](torch.ones(2, 5))).square().sum() * 100).backward()
        return found

    ours, theirs = network(), network()
    norms = Gradients(dict(ours.named_parameters())).clip(1.0)
    total = nn.utils.clip_grad_norm_(theirs.parameters(), 1.0, foreach=True)
    assert torch.equal(norms.total, total) and total > 10
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None and torch.equal(one.grad, other.grad)
    assert Gradients(dict(ours.named_parameters())).modules == ("a.0", "a.1", "b.weight", "b.bias")
    torch.testing.assert_close(norms.by_module.square().sum(), total.square())


def test_weights_without_a_gradient_have_norm_zero() -> None:
    network = nn.ModuleDict({"used": nn.Linear(2, 2), "unused": nn.Linear(2, 2)})
    network["used"](torch.ones(1, 2)).sum().backward()
    gradients = Gradients({f"{name}.x": value for name, value in network.named_parameters()})
    norms = dict(zip(gradients.modules, gradients.clip(1.0).by_module.tolist(), strict=True))
    assert norms["unused.weight"] == norms["unused.bias"] == 0 < norms["used.weight"]


def test_nothing_is_asked_of_the_device_between_two_log_lines() -> None:
    with FakeTensorMode():  # tensors without values: whoever asks for one fails
        network = nn.Linear(6, 3)
        loss = network(torch.randn(8, 6)).square().mean(1)
        drawn = PerDrawLoss(loss=loss.detach(), tau=torch.rand(8), supervised=torch.rand(8) > 0.1)
        motion = Motion(values=torch.rand(2, 4, 3, 3), mask=torch.rand(2, 4, 3, 3) > 0.5)
        loss.mean().backward()
        norms = Gradients(dict(network.named_parameters())).clip(1.0)
        values = {"loss": loss.mean(), "per_tau": drawn.by_tau(), "clamped": clamped(motion), "norm": norms.total}
        interval = LogInterval()
        for _ in range(2):
            interval.add({**values, "norms": norms.by_module}, samples=8, waited_s=0.1)
        with pytest.raises((DataDependentOutputException, RuntimeError)):
            norms.total.item()


@pytest.mark.parametrize("training", [motion_training(), policy_training()])
def test_the_losses_ask_nothing_of_the_device_either(training) -> None:
    step_memory(training, BatchShape(samples=2, tokens=6), "cpu")  # on tensors without values


@pytest.mark.parametrize(
    ("names", "kind", "width", "expected"),
    [
        (("dx", "dy", "g"), None, 3, ("dx", "dy", "g")),
        (None, None, 7, ("x", "y", "z", "rx", "ry", "rz", "gripper")),
        (None, Absolute(), 7, tuple("0123456")),
        (None, None, 3, ("0", "1", "2")),
        (("a", "a", "b"), None, 3, ("0", "1", "2")),
    ],
)
def test_action_dimensions_have_the_names_of_the_dataset(names, kind, width, expected) -> None:
    features = {"action": Feature(dtype="float32", shape=(width,), names=names)}
    embodiment = OWN if kind is None else replace(OWN, kind=kind)
    assert action_names(features, embodiment, width) == expected


def test_names_follow_the_parts_of_an_embodiment() -> None:
    features = {
        "joints": Feature(dtype="float32", shape=(3,), names=("j0", "j1", "j2")),
        "hand": Feature(dtype="float32", shape=(1,), names=("gripper",)),
    }
    embodiment = replace(OWN, action=(Part(key="joints", start=1), Part(key="hand")), kind=Absolute())
    assert action_names(features, embodiment, 3) == ("j1", "j2", "gripper")


def test_both_stages_log_all_of_it(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def off_by_one(model, batch: PolicyBatch, generator) -> torch.Tensor:
        assert batch.actions is not None and batch.action_mask is not None
        # What does not count is very wrong, so that it shows if it is counted.
        return batch.actions + torch.where(batch.action_mask[..., None], 1.0, 100.0)

    monkeypatch.setattr(validation, "_sample_actions", off_by_one)
    settings = loop(steps=2, log_every=2, validate_every=2, checkpoint_every=2, trackers=())
    train_motion(motion_training(loop=settings, final_samples=2), data, tmp_path / "motion", backbone=PatchBackbone())
    prior = tmp_path / "motion"
    result = train_policy(policy_training(loop=settings), data, tmp_path / "policy", prior, backbone=PatchBackbone())
    first, held = read_lines_json(tmp_path / "motion" / "metrics.jsonl")
    assert list(first["per_axis"]) == list(first["clamped"]) == ["u", "v", "d"]
    assert np.mean(list(first["per_axis"].values())) == pytest.approx(first["loss"], rel=0.1)
    assert "ade_px_one_sample" in held and list(held["per_axis"]) == ["u", "v", "d"]
    first, held = read_lines_json(tmp_path / "policy" / "metrics.jsonl")
    assert list(first["per_dim"]) == list(held["action_error_per_dim"]) and "gripper" in first["per_dim"]
    assert np.mean(list(first["per_dim"].values())) == pytest.approx(first["loss"], rel=1e-3)
    assert all(name.startswith(("guidance.", "action_expert.")) for name in first["grad_norms"])
    assert np.sqrt(np.square(list(first["grad_norms"].values())).sum()) == pytest.approx(first["grad_norm"], rel=0.2)
    assert result.description.policy is not None
    scales = result.description.policy.scaling.actions.centre_and_scale()[1]
    assert held["action_error"] == pytest.approx(1.0, rel=1e-5)
    assert list(held["action_error_per_dim"].values()) == pytest.approx(scales.tolist(), rel=1e-5)
    assert not (tmp_path / "policy" / "tensorboard").exists()
