"""The policy under LeRobot itself: its abstract classes, its factories, its files, and its own commands."""

from __future__ import annotations

import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip(
    "lerobot", reason="lerobot is not installed: docs/lerobot.md says how, in an environment of its own"
)

from lerobot.configs.policies import PreTrainedConfig  # pyright: ignore[reportMissingImports]
from lerobot.datasets.lerobot_dataset import LeRobotDatasetMetadata  # pyright: ignore[reportMissingImports]
from lerobot.policies.factory import get_policy_class, make_policy, make_policy_config, make_pre_post_processors  # pyright: ignore[reportMissingImports]
from lerobot.policies.pretrained import PreTrainedPolicy  # pyright: ignore[reportMissingImports]

from lamp.errors import ConfigError, MismatchError
from lerobot_policy_lamp.configuration_lamp import LampConfig
from lerobot_policy_lamp.modeling_lamp import LampPolicy

FIXTURE = Path(__file__).parents[1] / "fixtures" / "lerobot" / "v30"
"""Written by LeRobot 0.4.4."""


@pytest.fixture(scope="module")
def meta() -> Any:
    """Of what LeRobot itself wrote, read by LeRobot."""
    return LeRobotDatasetMetadata("local/data", root=FIXTURE)


def built(meta: Any, **changes: Any) -> tuple[LampPolicy, Any, Any]:
    config = make_policy_config("lamp", device="cpu", push_to_hub=False, **changes)
    policy = make_policy(config, ds_meta=meta)
    before, after = make_pre_post_processors(policy_cfg=config, dataset_stats=meta.stats)
    return policy, before, after


def batch_of(meta: Any, size: int = 3) -> dict[str, Any]:
    """As LeRobot's loader collates it; the pictures are made up, for which codecs work depends on much else."""
    generator = torch.Generator().manual_seed(1)
    batch: dict[str, Any] = {"task": [f"task {number}" for number in range(size)]}
    for key, feature in meta.features.items():
        shape = tuple(feature["shape"])
        if feature["dtype"] in ("image", "video"):
            batch[key] = torch.rand(size, 3, *shape[:2], generator=generator)
        elif feature["dtype"] == "bool":
            batch[key] = torch.rand(size, *shape, generator=generator) < 0.5
        elif key.startswith("observation"):
            batch[key] = torch.randn(size, *shape, generator=generator)
    mean, std = (torch.as_tensor(meta.stats["action"][name]).float() for name in ("mean", "std"))
    ramp = torch.linspace(-1, 1, 12)[:, None] + torch.linspace(-1, 1, size)[:, None, None]
    batch["action"] = mean + std * ramp
    batch["action_is_pad"] = torch.arange(12).expand(size, 12) >= 10
    return batch


class TestInterface:
    """LeRobot's conventions."""

    def test_it_is_found_by_its_type(self) -> None:
        assert PreTrainedConfig.get_choice_class("lamp") is LampConfig and get_policy_class("lamp") is LampPolicy
        assert LampConfig(device="cpu").type == "lamp"

    def test_nothing_abstract_is_left(self) -> None:
        assert not LampConfig.__abstractmethods__ and not LampPolicy.__abstractmethods__

    @pytest.mark.parametrize("name", ["forward", "predict_action_chunk", "select_action", "reset", "get_optim_params"])
    def test_methods_take_what_the_abstract_ones_take(self, name: str) -> None:
        theirs = inspect.signature(getattr(PreTrainedPolicy, name)).parameters
        ours = inspect.signature(getattr(LampPolicy, name)).parameters
        assert list(ours)[: len(theirs)] == list(theirs) or [*theirs][-1] == "kwargs"
        required = {key for key, value in ours.items() if value.default is value.empty and value.kind < 3} - {*theirs}
        assert {key for key in required if ours[key].kind != inspect.Parameter.VAR_POSITIONAL} == set()

    def test_optimiser_and_schedule_are_the_recipes(self) -> None:
        config = LampConfig(device="cpu")
        optimiser, schedule = config.get_optimizer_preset(), config.get_scheduler_preset()
        assert (optimiser.lr, optimiser.betas, optimiser.grad_clip_norm) == (1.5e-3, (0.9, 0.95), 1.0)
        built = schedule.build(torch.optim.SGD([torch.zeros(1)], lr=optimiser.lr), 100)
        assert built.get_last_lr() == [1.5e-3] and schedule.decay_lr == 1e-6
        assert LampConfig(device="cpu", optimizer_lr=1e-3).get_scheduler_preset().peak_lr == 1e-3

    def test_mistakes(self) -> None:
        with pytest.raises(ConfigError, match="n_action_steps is 30; expected 1 to chunk_size, 12"):
            LampConfig(device="cpu", n_action_steps=30)
        with pytest.raises(ConfigError, match="unknown recipe 'dmo'; did you mean 'demo'"):
            LampConfig(device="cpu", recipe="dmo")
        with pytest.raises(ConfigError, match="n_obs_steps is 2"):
            LampConfig(device="cpu", n_obs_steps=2)


class TestPolicy:
    """A policy of a real dataset, on the embedded backbone."""

    def test_a_step_trains_what_stage_2_trains(self, meta: Any) -> None:
        policy, before, _ = built(meta)
        loss, told = policy.train().forward(before(batch_of(meta)))
        loss.backward()
        assert loss.ndim == 0 and loss.isfinite() and set(told) == {"loss_0", "loss_1"}
        assert all(parameter.grad is not None for parameter in policy.get_optim_params())
        assert not any("backbone" in name or "encoder" in name for name in policy.state_dict())

    def test_one_batch_is_learnt(self, meta: Any) -> None:
        torch.manual_seed(0)
        policy, before, _ = built(meta, state_noise=0.0, token_dropout=0.0)
        ready = before(batch_of(meta))
        optimiser = torch.optim.AdamW(policy.get_optim_params(), lr=2e-3)
        losses = []
        for _ in range(60):
            loss, _ = policy.train().forward(ready)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        assert sum(losses[-10:]) < 0.5 * sum(losses[:10])

    def test_saved_and_loaded_it_acts_alike(self, meta: Any, tmp_path: Path) -> None:
        policy, before, after = built(meta)
        for part in (policy, before, after):
            part.save_pretrained(tmp_path)
        assert {"config.json", "model.safetensors"} <= {path.name for path in tmp_path.iterdir()}
        config = PreTrainedConfig.from_pretrained(tmp_path)
        config.pretrained_path = tmp_path
        again = make_policy(config, ds_meta=meta)
        assert again.plan == policy.plan and again.plan.backbone_key
        ready, noise = before(batch_of(meta)), torch.randn(3, 12, 2)
        chunk = policy.predict_action_chunk(ready, noise=noise)
        assert chunk.shape == (3, 12, 2)
        assert torch.equal(again.predict_action_chunk(ready, noise=noise), chunk)
        earlier, later = make_pre_post_processors(policy_cfg=config, pretrained_path=str(tmp_path))
        assert torch.equal(earlier(batch_of(meta))["observation.state"], ready["observation.state"])
        assert torch.allclose(later(chunk[:, 0]), after(chunk[:, 0]))

    def test_another_backbone_is_refused(self, meta: Any, tmp_path: Path) -> None:
        policy, *_ = built(meta)
        policy.save_pretrained(tmp_path)
        text = (tmp_path / "config.json").read_text()
        (tmp_path / "config.json").write_text(text.replace(policy.plan.backbone_key or "", "0" * 64))
        with pytest.raises(MismatchError, match="was trained with the backbone 0000"):
            LampPolicy.from_pretrained(tmp_path)

    def test_actions_one_at_a_time(self, meta: Any) -> None:
        policy, before, after = built(meta, n_action_steps=3)
        ready, noise = before(batch_of(meta)), torch.randn(3, 12, 2)
        chunk = policy.predict_action_chunk(ready, noise=noise)
        taken = [policy.select_action(ready, noise=noise) for _ in range(4)]
        for step in range(3):
            assert torch.equal(taken[step], chunk[:, step])
        assert torch.equal(taken[3], chunk[:, 0]), "a new chunk after three"
        policy.reset()
        assert torch.equal(policy.select_action(ready, noise=noise), chunk[:, 0])
        with torch.inference_mode():
            assert after(policy.select_action(ready)).shape == (3, 2)

    def test_noise_in_training_is_new_each_time_and_the_same_after_loading(self, meta: Any, tmp_path: Path) -> None:
        torch.manual_seed(7)
        policy, before, _ = built(meta)
        ready = before(batch_of(meta))
        policy.train().forward(ready)
        policy.save_pretrained(tmp_path)
        second, third = policy.forward(ready)[0], policy.forward(ready)[0]
        assert not torch.equal(second, third)
        again = LampPolicy.from_pretrained(tmp_path).train()
        torch.rand(100)
        assert torch.equal(again.forward(ready)[0], second)

    def test_mean_only(self, meta: Any) -> None:
        policy, before, _ = built(meta)
        with pytest.raises(ConfigError, match="reduction 'none' is requested"):
            policy.forward(before(batch_of(meta)), reduction="none")


class TestPrior:
    """With a motion prior from `lamp train motion`, on a dataset that LaMP wrote and LeRobot reads."""

    def test_it_guides_and_stays_frozen(self, demonstrations: Path, prior: Path, tmp_path: Path) -> None:
        from lamp.train.checkpoint import load_checkpoint

        meta = LeRobotDatasetMetadata("local/ours", root=demonstrations)
        policy, before, _ = built(meta, motion=str(prior), prior_dropout=0.0)
        trained, _ = load_checkpoint(prior)
        for name, value in trained.state_dict().items():
            assert torch.equal(policy.state_dict()[f"model.{name}"], value)
        loss, told = policy.train().forward(before(batch_of(meta)))
        loss.backward()
        assert "gate" in told or policy.model.gate is None
        expert = policy.model.motion_expert
        assert expert is not None and not expert.training
        assert all(parameter.grad is None for parameter in expert.parameters())
        policy.save_pretrained(tmp_path / "saved")
        shutil.move(prior, prior.parent / "elsewhere")
        try:
            again = LampPolicy.from_pretrained(tmp_path / "saved")
        finally:
            shutil.move(prior.parent / "elsewhere", prior)
        assert all(torch.equal(again.state_dict()[name], value) for name, value in policy.state_dict().items())

    def test_a_dataset_with_other_cameras(self, meta: Any, prior: Path) -> None:
        with pytest.raises(MismatchError, match="Say which image it is"):
            built(meta, motion=str(prior))


@pytest.mark.slow
def test_lerobots_own_training_resumes_to_the_same_weights(tmp_path: Path) -> None:
    settings = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    settings["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    # Of what is on the path but not installed, LeRobot finds no distribution: the package is named outright.
    train = "import lerobot_policy_lamp; from lerobot.scripts.lerobot_train import main; main()"

    def run(*flags: str) -> None:
        done = subprocess.run([sys.executable, "-c", train, *flags], env=settings, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]

    whole, half = tmp_path / "whole", tmp_path / "half"
    run(
        "--policy.type=lamp", "--policy.device=cpu", "--policy.push_to_hub=false", "--dataset.repo_id=local/data",
        f"--dataset.root={FIXTURE}", "--dataset.video_backend=pyav", "--batch_size=4", "--steps=4", "--save_freq=2",
        "--num_workers=0", "--seed=3", f"--output_dir={whole}", "--wandb.enable=false",
    )  # fmt: skip
    (half / "checkpoints").mkdir(parents=True)
    shutil.copytree(whole / "checkpoints" / "000002", half / "checkpoints" / "000002")
    (half / "checkpoints" / "last").symlink_to("000002")
    config = half / "checkpoints" / "last" / "pretrained_model" / "train_config.json"
    run(f"--config_path={config}", "--resume=true", f"--output_dir={half}")
    one, other = (
        load_file(run / "checkpoints" / "000004" / "pretrained_model" / "model.safetensors") for run in (whole, half)
    )
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
