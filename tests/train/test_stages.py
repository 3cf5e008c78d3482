"""The stages on tiny data: what is frozen, exact resume, overfitting, golden losses, a killed process."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from training_fakes import ACTION, PatchBackbone, loop, motion_training, policy_training, write_dataset

from lamp.data.check import check_dataset
from lamp.data.episode_selection import EpisodeSelection
from lamp.data.lerobot import LeRobotDataset
from lamp.data.policy_dataset import PolicySamples
from lamp.errors import ConfigError, DataError, LampError, MismatchError
from lamp.flow_matching import interpolate, velocity_target
from lamp.info import describe
from lamp.json_files import read_lines_json
from lamp.model.action_expert import RidgeBaseline
from lamp.model.lamp import kept_tokens
from lamp.model.layers import Mlp
from lamp.seeding import generator_at
from lamp.train.checkpoint import load_checkpoint
from lamp.train.checkpoint_metadata import read_description, stage_episodes
from lamp.train.config import BFloat16, LoopConfig, MotionTraining, PolicyTraining, Split, UnseenEpisodes
from lamp.train.optimizer import AdamW
from lamp.train.run_folder import TrainingResult
from lamp.train.stages import PolicyStage, with_fewer_tokens
from lamp.train.train_motion import evaluate_flow, train_motion
from lamp.train.train_policy import train_policy
from lamp.types import Encoded, PolicyBatch, TokenBatch
from lamp.view.report import ReportInputs, render

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden_losses.json"
BACKBONE = PatchBackbone()


def motion(data: Path, out: Path, config: MotionTraining | None = None, **options: Any) -> TrainingResult:
    return train_motion(config or motion_training(), data, out, backbone=BACKBONE, **options)


def policy(data: Path, out: Path, config: PolicyTraining, prior: Path | None = None, **options: Any) -> TrainingResult:
    return train_policy(config, data, out, prior, backbone=BACKBONE, **options)


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "checkpoint" / "model.safetensors")


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_lines_json(run / "metrics.jsonl") if line["kind"] == "train"]


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.fixture(scope="module")
def prior(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stage-1 run."""
    out = tmp_path_factory.mktemp("prior") / "motion"
    motion(data, out, motion_training(loop=loop(steps=4)))
    return out


def test_stage_two_leaves_the_motion_expert_alone_and_moves_the_rest(data: Path, prior: Path, tmp_path: Path) -> None:
    start, end = tmp_path / "start", tmp_path / "end"
    policy(
        data, start, policy_training(loop=loop(steps=1, optimiser=AdamW(lr=0.0, weight_decay=0.0), min_lr=0.0)), prior
    )
    policy(data, end, policy_training(loop=loop(steps=4)), prior)
    before, after, given = weights(start), weights(end), weights(prior)
    for name, value in after.items():
        if name.startswith("motion_expert."):
            assert torch.equal(value, given[name])
        elif name != "action_expert.positions":  # only as many positions as there are tokens are ever used
            assert not torch.equal(value, before[name]), name
    gates = [line["gate"] for line in read_lines_json(end / "metrics.jsonl") if line["kind"] == "train"]
    assert gates and all(0.3 < gate < 0.7 for gate in gates)


def test_the_policy_without_motion_has_no_guidance(data: Path, tmp_path: Path) -> None:
    policy(data, tmp_path, policy_training(with_motion=False, loop=loop(steps=2)))
    assert {name.split(".")[0] for name in weights(tmp_path)} == {"action_expert"}
    assert all("gate" not in line for line in read_lines_json(tmp_path / "metrics.jsonl"))


def test_hidden_tokens_are_drawn_anew_at_every_step_and_never_shown_where_there_are_none() -> None:
    real = torch.arange(1000) < 900
    batch = TokenBatch(encoded=Encoded(tokens=torch.zeros(8, 1000, 1), mask=real.expand(8, -1)))
    first, second = (
        kept_tokens(with_fewer_tokens(batch, 0.3, generator_at(0, "tokens", step))).mask for step in (1, 2)
    )
    assert not torch.equal(first, second) and not first[:, 900:].any()
    assert abs(first[:, :900].float().mean() - 0.7) < 0.02
    assert torch.equal(first, kept_tokens(with_fewer_tokens(batch, 0.3, generator_at(0, "tokens", 1))).mask)
    assert with_fewer_tokens(batch, 0.0, generator_at(0)) is batch


@pytest.mark.slow
def test_dropouts_are_settings_of_the_run_and_change_it(data: Path, prior: Path, tmp_path: Path) -> None:
    plain, fewer = tmp_path / "plain", tmp_path / "fewer"
    motion(data, plain, motion_training(loop=loop(steps=2)))
    motion(data, fewer, motion_training(loop=loop(steps=2), token_dropout=0.5))
    assert losses(plain) != losses(fewer)
    config = policy_training(loop=loop(steps=2))
    policy(data, tmp_path / "with", config, prior)
    policy(data, tmp_path / "seldom", replace(config, prior_dropout=0.9), prior)
    assert losses(tmp_path / "with") != losses(tmp_path / "seldom")
    with pytest.raises(ConfigError, match=r"prior_dropout is 1\.0; it must lie in"):
        replace(config, prior_dropout=1.0)
    with pytest.raises(ConfigError, match="there is no prior"):
        policy_training(with_motion=False, prior_dropout=0.5)


def test_the_prior_is_shown_only_where_stage_one_did_not_look(data: Path, tmp_path: Path) -> None:
    motion(data, tmp_path / "half", motion_training(loop=loop(steps=2), split=Split(validation_share=0.5)))
    shown: list[Tensor] = []
    take = PolicyStage.next_batch

    def next_batch(self: PolicyStage, step: int) -> PolicyBatch:
        batch = take(self, step)
        assert batch.prior_seen is not None
        shown.append(batch.prior_seen)
        return batch  # pyright: ignore[reportReturnType]

    config = policy_training(loop=loop(steps=8), prior_on=UnseenEpisodes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PolicyStage, "next_batch", next_batch)
        result = policy(data, tmp_path / "policy", config, tmp_path / "half" / "checkpoint")
    share = torch.cat(shown).float().mean()
    source = result.description.motion_source
    assert source is not None and source.data.dataset == result.description.data.dataset != ""
    held_out = set(source.data.validation_episodes) - set(result.description.data.validation_episodes)
    assert 0 < len(held_out) < result.description.data.episodes
    assert share == pytest.approx(len(held_out) / result.description.data.episodes, abs=0.2)


def test_each_stage_has_episodes_of_its_own(data: Path, tmp_path: Path) -> None:
    held_out = EpisodeSelection(episodes="4:6")
    first = Split(episodes=EpisodeSelection(episodes="0:3"), held_out=held_out)
    motion(data, tmp_path / "motion", motion_training(loop=loop(steps=2), split=first))
    second = Split(episodes=EpisodeSelection(episodes="2:4"), held_out=held_out)
    config = policy_training(loop=loop(steps=2), split=second, prior_on=UnseenEpisodes())
    policy(data, tmp_path / "policy", config, tmp_path / "motion")
    description = read_description(tmp_path / "policy" / "checkpoint")
    assert description.data.train_episodes == (2, 3) and description.data.validation_episodes == (4, 5)
    assert description.motion_source is not None
    assert description.motion_source.data.train_episodes == (0, 1, 2), "episode 3 alone is new to the prior"
    (row,) = stage_episodes(description)
    assert (row.stage_1, row.stage_2, row.in_both, row.held_out) == ((0, 1, 2), (2, 3), (2,), (4, 5))
    shown = describe(tmp_path / "policy")["checkpoint"]["episodes"]
    wanted = {"stage 1 (motion)": "3: 0-2", "stage 2 (actions)": "2: 2-3", "in both": "1: 2", "held out": "2: 4-5"}
    assert shown == [{"dataset": data.name} | wanted]
    page = render(ReportInputs(policies={"policy": tmp_path / "policy" / "metrics.jsonl"}))
    assert "Episodes of each stage" in page and "2: 2-3" in page
    with pytest.raises(ConfigError, match=r"episodes 4:6: no episode of .* meets that; it has 6, 2 of them held out"):
        policy(
            data, tmp_path / "none", replace(config, split=replace(second, episodes=EpisodeSelection(episodes="4:6")))
        )


def test_a_baseline_is_fitted_saved_and_kept_by_a_continued_run(data: Path, tmp_path: Path) -> None:
    base = policy_training(with_motion=False)
    model = replace(base.model, action=replace(base.action, baseline=RidgeBaseline()))
    settings = loop(steps=6, checkpoint_every=3, log_every=1)
    config = replace(base, model=model, loop=settings)
    policy(data, tmp_path / "whole", config)
    stopped = replace(config, loop=replace(settings, time_limit_s=0.0))
    policy(data, tmp_path / "parts", stopped)
    policy(data, tmp_path / "parts", config)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    loaded, _ = load_checkpoint(tmp_path / "whole")
    assert loaded.action_expert is not None and (fitted := loaded.action_expert.baseline) is not None
    assert fitted.weight.abs().max() > 0 and not torch.equal(fitted.std, torch.ones_like(fitted.std))


def test_stage_one_needs_no_actions(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data", motion_only=True)
    assert not any(name.startswith("action") for name in LeRobotDataset(root).features)
    motion(root, tmp_path / "motion", motion_training(loop=loop(steps=2)))
    assert (tmp_path / "motion" / "flow.json").is_file()
    assert check_dataset(root).faults == ()
    with pytest.raises(
        DataError, match=r"has no actions; expected demonstrations with actions. `lamp train motion` can"
    ):
        policy(root, tmp_path / "policy", policy_training(loop=loop(steps=2)), tmp_path / "motion")


def test_a_prior_that_saw_every_episode_cannot_be_shown_on_unseen_ones(data: Path, tmp_path: Path) -> None:
    motion(data, tmp_path / "all", motion_training(loop=loop(steps=2), split=Split(validation_share=0.0)))
    config = policy_training(loop=loop(steps=2), prior_on=UnseenEpisodes())
    with pytest.raises(ConfigError, match="Stage 1 was trained on every episode"):
        policy(data, tmp_path / "policy", config, tmp_path / "all" / "checkpoint")


@contextmanager
def stopping_at(step: int) -> Iterator[None]:
    """Breaks a policy run off in the middle of a step."""
    take = PolicyStage.next_batch

    def next_batch(self: PolicyStage, now: int) -> PolicyBatch:
        if now == step:
            raise KeyboardInterrupt
        return take(self, now)  # pyright: ignore[reportReturnType]

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(PolicyStage, "next_batch", next_batch)
        yield


def test_a_prior_that_joins_late_leaves_the_guidance_alone_until_then(data: Path, prior: Path, tmp_path: Path) -> None:
    still = AdamW(lr=3e-3, weight_decay=0.0)
    config = policy_training(loop=loop(steps=8, optimiser=still, ema=None), prior_from=0.5, prior_dropout=0.0)
    start = policy_training(loop=loop(steps=1, optimiser=AdamW(lr=0.0, weight_decay=0.0), min_lr=0.0, ema=None))
    policy(data, tmp_path / "start", start, prior)
    before, seen = weights(tmp_path / "start"), []
    take = PolicyStage.next_batch

    def next_batch(self: PolicyStage, step: int) -> PolicyBatch:
        guidance = self.model.guidance
        assert guidance is not None
        moved = any(not torch.equal(value, before[f"guidance.{name}"]) for name, value in guidance.named_parameters())
        batch = take(self, step)
        assert batch.prior_seen is not None
        seen.append((moved, batch.prior_seen.all().item(), batch.prior_seen.any().item()))
        return batch  # pyright: ignore[reportReturnType]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PolicyStage, "next_batch", next_batch)
        policy(data, tmp_path / "late", config, prior)
    assert seen == [(False, False, False)] * 4 + [(False, True, True)] + [(True, True, True)] * 3


@pytest.mark.parametrize(("draws", "late"), [(0, 0.0), (2, 0.0), (2, 0.8)])
def test_a_broken_off_policy_run_continues_bit_for_bit(
    data: Path, prior: Path, tmp_path: Path, draws: int, late: float
) -> None:
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    config = policy_training(cached_hidden_draws=draws, prior_from=late)
    policy(data, straight, config, prior)
    with stopping_at(7):
        policy(data, stopped, config, prior)
    assert read_description(stopped).step == 4
    torch.manual_seed(5)
    assert policy(data, stopped, config, prior).outcome.finished
    assert same(weights(straight), weights(stopped))
    raw = [load_file(run / "checkpoint" / "training" / "raw.safetensors") for run in (straight, stopped)]
    assert same(*raw)
    assert losses(straight) == losses(stopped)
    assert not (stopped / "hidden").exists()


def test_cached_hidden_states_do_not_depend_on_an_interruption(
    data: Path, prior: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = policy_training(cached_hidden_draws=2)
    with stopping_at(0):
        policy(data, tmp_path / "whole", config, prior)
    monkeypatch.setattr("lamp.train.motion_feature_cache.SAMPLES_AT_ONCE", 7)
    reports = iter([None, KeyboardInterrupt()])

    def progress(self: object, now: object) -> None:
        stop = next(reports)
        if stop is not None:
            raise stop

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("lamp.train.backbones.BuildProgressPrinter.progress", progress)
        policy(data, tmp_path / "parts", config, prior)
    assert len(list((tmp_path / "parts" / "hidden").rglob("*.safetensors"))) == 2
    with stopping_at(0):
        policy(data, tmp_path / "parts", config, prior)
    one, other = (sorted((tmp_path / name / "hidden").rglob("*.safetensors")) for name in ("whole", "parts"))
    assert [path.name for path in one] == [path.name for path in other] and len(one) == 6
    shapes = []
    for path, again in zip(one, other, strict=True):
        first, second = (load_file(file)["hidden"].float() for file in (path, again))
        shapes.append(first.shape[0])
        assert first.abs().max() > 0.1
        torch.testing.assert_close(first, second, atol=2e-3, rtol=0)
    assert sorted(shapes) == [1, 1, 2, 2, 2, 2]


@pytest.mark.slow
def test_workers_reshuffle_every_epoch_and_change_nothing(data: Path, prior: Path, tmp_path: Path) -> None:
    """Three epochs and a bit with the same worker, on scene flow, and on states of the Motion Expert that are cached."""
    for workers in (0, 1):
        settings = loop(steps=22, batch_size=7, checkpoint_every=30, validate_every=30, workers=workers)
        motion(data, tmp_path / f"motion-{workers}", motion_training(loop=settings))
        config = policy_training(loop=settings, cached_hidden_draws=2)
        policy(data, tmp_path / f"policy-{workers}", config, prior)
    for stage in ("motion", "policy"):
        assert same(weights(tmp_path / f"{stage}-0"), weights(tmp_path / f"{stage}-1"))
    state = json.loads((tmp_path / "policy-1" / "checkpoint" / "training" / "state.json").read_text())
    assert state["sampler"]["epoch"] >= 3
    waiting = [
        line["data_wait_share"] for line in read_lines_json(tmp_path / "policy-1" / "metrics.jsonl") if "lr" in line
    ]
    assert all(0.0 <= share <= 1.0 for share in waiting)


def test_epochs_take_the_samples_in_another_order(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []
    collate = PolicySamples.batch

    def batch(self: PolicySamples, indices: np.ndarray, *, epoch: int = 0) -> PolicyBatch:
        seen.append(indices.tolist())
        return collate(self, indices, epoch=epoch)

    monkeypatch.setattr(PolicySamples, "batch", batch)
    settings = loop(steps=12, batch_size=8, validate_every=30)
    policy(data, tmp_path, policy_training(with_motion=False, loop=settings, split=Split(validation_share=0.0)))
    epoch = 72 // 8
    first, second = ([*chain(*seen[start : start + 3])] for start in (0, epoch))
    assert sorted(chain(*seen[:epoch])) == list(range(72)) and first != second and set(first) != set(second)


@pytest.mark.usefixtures("bfloat16")
def test_time_and_noise_are_float32_beside_bfloat16(data: Path, prior: Path, tmp_path: Path) -> None:
    """What the experts are asked with, and what their answers are compared with."""
    kinds: dict[str, set[torch.dtype]] = {"interpolate": set(), "target": set(), "mlp": set()}

    def spied(name: str, function: Any) -> Any:
        def spy(*tensors: Tensor) -> Tensor:
            kinds[name].update(tensor.dtype for tensor in tensors)
            return function(*tensors)

        return spy

    def mlp(self: Mlp, *inputs: Tensor, forward: Any = Mlp.forward) -> Tensor:
        found = forward(self, *inputs)
        kinds["mlp"].add(found.dtype)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lamp.model.lamp.interpolate", spied("interpolate", interpolate))
        patch.setattr("lamp.model.lamp.velocity_target", spied("target", velocity_target))
        patch.setattr(Mlp, "forward", mlp)
        settings = loop(steps=2, precision=BFloat16())
        motion(data, tmp_path / "motion", motion_training(loop=settings))
        policy(data, tmp_path / "policy", policy_training(loop=settings), prior)
    assert kinds["interpolate"] == kinds["target"] == {torch.float32} and kinds["mlp"] == {torch.bfloat16}
    assert all(value.dtype == torch.float32 for value in weights(tmp_path / "policy").values())


def test_a_finished_run_is_left_alone_and_fresh_starts_again(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = policy_training(with_motion=False, loop=loop(steps=4))
    policy(data, tmp_path, config)
    stamp = (tmp_path / "checkpoint" / "model.safetensors").stat().st_mtime_ns
    policy(data, tmp_path, config)
    assert (tmp_path / "checkpoint" / "model.safetensors").stat().st_mtime_ns == stamp
    assert "already finished" in capsys.readouterr().err
    (tmp_path / "notes.txt").write_text("mine")
    policy(data, tmp_path, config, fresh=True)
    assert (tmp_path / "checkpoint" / "model.safetensors").stat().st_mtime_ns != stamp
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_run_with_other_settings_is_not_continued(data: Path, tmp_path: Path) -> None:
    config = policy_training(with_motion=False, loop=loop(steps=4))
    policy(data, tmp_path, config)
    other = replace(config, state_noise=0.3)
    with pytest.raises(MismatchError, match=r"training\.state_noise = 0\.1, now it is 0\.3.*--fresh"):
        policy(data, tmp_path, other)


def test_two_processes_do_not_train_in_one_folder(data: Path, tmp_path: Path) -> None:
    with (tmp_path / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(LampError, match="another process is training in"):
            policy(data, tmp_path, policy_training(with_motion=False))


@pytest.mark.long
def test_one_batch_is_overfitted(data: Path, tmp_path: Path) -> None:
    settings = loop(steps=150, batch_size=64, ema=None, optimiser=AdamW(lr=1e-2), log_every=5, checkpoint_every=150)
    config = policy_training(
        with_motion=False,
        loop=replace(settings, validate_every=150),
        state_noise=0.0,
        noise_draws=6,
        split=Split(validation_share=0.8),
    )
    wider = replace(config.model, action=replace(ACTION, width=48))
    policy(data, tmp_path, replace(config, model=wider))
    curve = losses(tmp_path)
    assert curve[-1] < 0.2 * curve[0]


@pytest.mark.long
def test_stage_one_learns_and_measures_itself(data: Path, tmp_path: Path) -> None:
    settings = loop(steps=150, batch_size=16, optimiser=AdamW(lr=1e-2), log_every=5, checkpoint_every=150)
    motion(data, tmp_path, motion_training(loop=replace(settings, validate_every=150)))
    curve = losses(tmp_path)
    assert curve[-1] < 0.75 * curve[0]
    report = json.loads((tmp_path / "flow.json").read_text())
    moving = report["moving"]
    assert moving["one_sample"]["ade_px"] < moving["zero_motion"]["ade_px"]
    assert moving["mean_of_4"]["ade_px"] < moving["one_sample"]["ade_px"]
    assert moving["one_sample"]["points"] == moving["zero_motion"]["points"] > 0
    assert report["static"]["zero_motion"]["ade_px"] == pytest.approx(0.0, abs=1e-4)
    # A constant speed is continued exactly wherever an earlier record exists: all frames but an episode's first.
    assert moving["constant_velocity"]["ade_px"] < 0.2 * moving["zero_motion"]["ade_px"]
    again = evaluate_flow(tmp_path, data, frames=16)
    assert again.moving["one_sample"].ade_px == pytest.approx(moving["one_sample"]["ade_px"])
    everything = evaluate_flow(tmp_path, data, [0])
    assert everything.episodes == (0,) and everything.samples == 12


def test_losses_are_golden(data: Path, prior: Path, tmp_path: Path) -> None:
    """Twenty steps of each stage with a fixed seed; `LAMP_UPDATE_GOLDEN=1` writes them anew."""
    settings: LoopConfig = loop(steps=20, log_every=1, checkpoint_every=20, validate_every=20)
    motion(data, tmp_path / "motion", motion_training(loop=settings))
    policy(data, tmp_path / "guided", policy_training(loop=settings), tmp_path / "motion")
    policy(data, tmp_path / "plain", policy_training(with_motion=False, loop=settings))
    found = {name: losses(tmp_path / name) for name in ("motion", "guided", "plain")}
    if os.environ.get("LAMP_UPDATE_GOLDEN"):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    golden = json.loads(GOLDEN.read_text())
    for name, curve in golden.items():
        assert len(curve) == 20 and found[name] == pytest.approx(curve, rel=1e-3), name


CHILD = """
import sys
sys.path[:0] = sys.argv[1:2]
import time
from pathlib import Path
from training_fakes import ACTION, PatchBackbone, loop, policy_training
import lamp.train.stages as stages
from lamp.train.train_policy import train_policy

take = stages.PolicyStage.next_batch
def slowly(self, step):
    time.sleep(float(sys.argv[5]))
    return take(self, step)
stages.PolicyStage.next_batch = slowly
config = policy_training(loop=loop(steps=40, checkpoint_every=5, validate_every=20))
train_policy(config, Path(sys.argv[2]), Path(sys.argv[4]), Path(sys.argv[3]), backbone=PatchBackbone())
"""


@pytest.mark.long
def test_a_run_killed_with_kill_9_continues_bit_for_bit(data: Path, prior: Path, tmp_path: Path) -> None:
    def command(out: Path, pause: float) -> list[str]:
        return [sys.executable, "-c", CHILD, str(Path(__file__).parent), str(data), str(prior), str(out), str(pause)]

    killed, straight = tmp_path / "killed", tmp_path / "straight"
    with subprocess.Popen(command(killed, 0.05), stderr=subprocess.DEVNULL) as process:
        state = killed / "checkpoint" / "training" / "state.json"
        deadline = time.monotonic() + 300
        while not (state.exists() and json.loads(state.read_text())["step"] >= 10):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        time.sleep(0.12)  # into the steps after a checkpoint
        process.send_signal(signal.SIGKILL)
    step = json.loads(state.read_text())["step"]
    assert 10 <= step < 40 and step % 5 == 0
    subprocess.run(command(killed, 0.0), check=True, capture_output=True, timeout=300)
    policy(data, straight, policy_training(loop=loop(steps=40, checkpoint_every=5, validate_every=20)), prior)
    assert same(weights(killed), weights(straight))
    assert losses(killed) == losses(straight)
    model, description = load_checkpoint(killed)
    assert description.step == 40 and model.action_shape == (5, 7)
