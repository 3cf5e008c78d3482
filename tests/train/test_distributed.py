"""Several processes train what one does, in whatever way their weights lie, and go on after any of them was killed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launched import Launch, Launcher, Run, exact_motion, exact_policy, settings
from safetensors.torch import load_file
from tiny_qwen import WIDTH
from torch import Tensor
from training_fakes import ACTION

from lamp.json_files import read_lines_json
from lamp.model.qwen3_vl import Qwen3VLBackboneConfig
from lamp.model.qwen_lora import LoRA
from lamp.seeding import PerSample
from lamp.train.checkpoint import ADAPTER_WEIGHTS, load_checkpoint
from lamp.train.config import FullySharded

pytestmark = pytest.mark.long

WAYS: dict[str, dict[str, Any]] = {
    "replicated": {},
    "replicated_in_parts": {"accumulate": 3, "recompute": True},
    "sharded": {"sharding": FullySharded()},
    "sharded_in_parts": {"sharding": FullySharded(reshard=False), "accumulate": 2, "recompute": True},
}


LOGGED = {"loss", "grad_norm", "grad_norms", "lr", "per_axis", "per_dim", "per_tau", "clamped"}


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "checkpoint" / "model.safetensors")


def curve(run: Path) -> list[dict[str, Any]]:
    return [line for line in read_lines_json(run / "metrics.jsonl") if line["kind"] == "train"]


def gap(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def alike(one: Path, other: Path) -> None:
    """Weights and logged losses are the same, but for rounding."""
    assert gap(weights(one), weights(other)) < 1e-6
    first, second = curve(one), curve(other)
    assert len(first) == len(second) > 2
    for before, after in zip(first, second, strict=True):
        told = LOGGED & before.keys()
        assert told >= {"loss", "grad_norms", "per_tau"} and told == LOGGED & after.keys()
        for name in told:
            assert after[name] == pytest.approx(before[name], rel=1e-5, abs=1e-6), (before["step"], name)
    measured = [
        [line for line in read_lines_json(run / "metrics.jsonl") if line["kind"] == "validation"]
        for run in (one, other)
    ]
    for before, after in zip(*measured, strict=True):
        for name in before.keys() & {"loss", "action_error", "action_error_per_dim", "ade_px_one_sample"}:
            assert after[name] == pytest.approx(before[name], rel=1e-4, abs=1e-5), (before["step"], name)


@pytest.fixture(scope="module")
def launcher() -> Iterator[Launcher]:
    made = Launcher()
    yield made
    made.close()


@pytest.fixture(scope="module")
def prior(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A motion checkpoint to train policies on."""
    out = tmp_path_factory.mktemp("prior")
    Run(config=exact_motion(config=settings(steps=4)), data=data, out=out).train()
    return out


@pytest.fixture(scope="module")
def runs(
    launcher: Launcher, data: Path, prior: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Both stages in a way, on two processes, or "alone" on one: trained when first asked for."""
    root = tmp_path_factory.mktemp("runs")

    def train(way: str) -> Path:
        if not (root / way).exists():
            config = settings(**WAYS.get(way, {}))
            motion = Run(config=exact_motion(config=config), data=data, out=root / way / "motion")
            policy = exact_policy(config=config, prior_dropout=0.6)
            both = [motion, Run(config=policy, data=data, out=root / way / "policy", motion=prior)]
            if way == "alone":
                for run in both:
                    run.train()
            else:
                launcher.start(both).wait()
        return root / way

    return train


# In parts: that holds what the plain ways do, and that parts change nothing. Sharded: a run that goes on is, below.
@pytest.mark.parametrize(
    "way", [name if name == "replicated_in_parts" else pytest.param(name, marks=pytest.mark.slow) for name in WAYS]
)
@pytest.mark.parametrize("stage", [pytest.param("motion", marks=pytest.mark.slow), "policy"])
def test_two_processes_train_what_one_does(runs: Callable[[str], Path], stage: str, way: str) -> None:
    alike(runs("alone") / stage, runs(way) / stage)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["replicated", "sharded"])
def test_gradients_are_exchanged_once_a_step_however_many_parts_it_has(
    launcher: Launcher, data: Path, prior: Path, tmp_path: Path, way: str
) -> None:
    """Gloo scatters sums by way of summing them everywhere."""
    talks = {}
    for parts in (1, 3):
        config = exact_policy(config=settings(steps=2, accumulate=parts, **WAYS[way]))
        run = Run(config=config, data=data, out=tmp_path / f"parts-{parts}", motion=prior, count=True)
        launcher.start([run]).wait()
        talks[parts] = json.loads((run.out / "talks.json").read_text())
    sums = {parts: {part: found.get("gloo:all_reduce", 0) for part, found in of.items()} for parts, of in talks.items()}
    assert sums[1]["last"] >= 2 and sums[3]["last"] >= 2 and sums[3]["others"] == 0
    assert way == "sharded" or sums[3] == sums[1] == {"last": 2, "others": 0}


def test_only_the_main_process_says_something(runs: Callable[[str], Path]) -> None:
    main, other = (runs("replicated_in_parts") / f"log-{rank}.txt" for rank in (0, 1))
    assert "policy  10/10 steps" in main.read_text()
    told = [
        line for line in other.read_text().splitlines() if "steps" in line or "continuing" in line or "saved" in line
    ]
    assert told == []


@pytest.mark.slow
def test_several_processes_plan_together(launcher: Launcher, data: Path, prior: Path, tmp_path: Path) -> None:
    """Held-out samples and motion hidden states are measured while weights are shared out."""
    made = []
    for way in ("replicated", "sharded_in_parts"):
        config = exact_policy(config=settings(**WAYS[way]), cached_hidden_draws=2)
        made.append(Run(config=config, data=data, out=tmp_path / way, motion=prior, plan=True))
        made.append(Run(config=exact_motion(config=config.loop), data=data, out=tmp_path / f"{way}-motion", plan=True))
    launch = launcher.start(made)
    launch.wait()
    assert (said := launch.said()).count("7 over 2 processes") == said.count("exchange") == len(made)
    assert said.count("4 samples at once") == said.count("2 samples at once") == 2
    assert said.count("median of 7") == said.count("validation  ") == len(made)
    assert not any(run.out.exists() for run in made)


def test_a_run_goes_on_with_other_processes_at_the_same_sample(
    launcher: Launcher, data: Path, prior: Path, tmp_path: Path
) -> None:
    """Sharded on two, then on one, then replicated on three; each process but the main one is asked to stop."""
    config = exact_policy(config=settings(steps=12, log_every=1), prior_dropout=0.6)
    alone = Run(config=config, data=data, out=tmp_path / "alone", motion=prior)
    alone.train()
    moved = replace(alone, out=tmp_path / "moved")
    stops = {}
    for count, stop_at, changes in ((2, 4, {"sharding": FullySharded()}), (1, 7, {}), (3, None, {"accumulate": 2})):
        changed = replace(config, loop=replace(config.loop, **changes))
        launcher.start([replace(moved, config=changed, stop_at=stop_at)], count=count).wait()
        stops[count] = json.loads((moved.out / "checkpoint" / "training" / "state.json").read_text())
    assert [stops[count]["step"] for count in (2, 1, 3)] == [5, 8, 12]
    finished = json.loads((alone.out / "checkpoint" / "training" / "state.json").read_text())
    assert stops[3]["sampler"] == finished["sampler"] and finished["sampler"]["epoch"] > 0
    alike(alone.out, moved.out)


@pytest.mark.slow
@pytest.mark.parametrize("bfloat16", [False, True])
def test_adapters_are_trained_as_by_one_process(
    launcher: Launcher, data: Path, qwen_folder: Path, tmp_path: Path, bfloat16: bool
) -> None:
    """Of a frozen backbone in float32, and in bfloat16 beside adapters in float32."""
    pytest.importorskip("peft")
    lora = LoRA(rank=3, dropout=0.0)
    backbone = Qwen3VLBackboneConfig(
        model=str(qwen_folder), cameras=(("agentview", 64),), text_tokens=6, bfloat16=bfloat16, lora=lora
    )
    plain = exact_policy(config=settings(steps=3, log_every=1, batch_size=5))
    action = replace(ACTION, token_width=WIDTH)
    model = replace(plain.model, token_width=WIDTH, motion=None, guidance=None, action=action)
    config = replace(plain, model=model, backbone=backbone, validation_samples=4)
    alone = Run(config=config, data=data, out=tmp_path / "alone")
    ways = {name: WAYS[name] for name in ("replicated", "sharded_in_parts")}
    made = [
        replace(alone, config=replace(config, loop=replace(config.loop, **changes)), out=tmp_path / name)
        for name, changes in ways.items()
    ]
    launch = launcher.start(made)
    alone.train()
    launch.wait()
    adapters = {run.out.name: load_file(run.out / "checkpoint" / "adapter" / ADAPTER_WEIGHTS) for run in (alone, *made)}
    assert all(value.any() for value in adapters["alone"].values())
    allowed = 1e-3 if bfloat16 else 1e-6
    for name in ways:
        assert gap(adapters["alone"], adapters[name]) < allowed
        assert gap(weights(alone.out), weights(tmp_path / name)) < allowed


class Lives:
    """A run that is killed again and again."""

    def __init__(self, launcher: Launcher, run: Run, seed: int) -> None:
        self._launcher, self._run, self._random = launcher, run, np.random.default_rng(seed)
        self.seen: list[int] = []
        """The step of the checkpoint after each kill; 0 where there is none."""

    def live(self, *, writing: bool) -> None:
        """Lets the run go on for a while, and kills one of its processes."""
        launch = self._launcher.start([self._run])
        self._wait_for_steps(launch, int(self._random.integers(1, 6)))
        if writing:
            self._wait_for(launch, lambda: bool(list(self._run.out.glob(".tmp-*/checkpoint"))))
        time.sleep(self._random.uniform(0, 3 * self._run.write_s))
        launch.kill(int(self._random.integers(0, 2)))
        self.seen.append(self._checked())

    def _wait_for_steps(self, launch: Launch, steps: int) -> None:
        # A run that goes on first drops what was logged after its checkpoint.
        self._wait_for(launch, lambda: "continuing" in launch.said() or "step" in launch.said())
        start = len(curve(self._run.out))
        self._wait_for(launch, lambda: len(curve(self._run.out)) >= start + steps)

    @staticmethod
    def _wait_for(launch: Launch, condition: Any) -> None:
        deadline = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < deadline, launch.said()
            time.sleep(0.005)

    def _checked(self) -> int:
        """What the kill has left is either a whole checkpoint or none."""
        if not (self._run.out / "checkpoint").exists():
            return 0
        return load_checkpoint(self._run.out)[1].step


def killed(
    launcher: Launcher, data: Path, prior: Path, out: Path, changes: dict[str, Any], kills: list[bool]
) -> list[int]:
    """Compares a run that is killed so often, in the writing of a checkpoint or at any moment, with one that is not."""
    config = exact_policy(config=settings(steps=60, checkpoint_every=3, log_every=1, validate_every=20, **changes))
    straight = Run(config=config, data=data, out=out / "straight", motion=prior)
    run = replace(straight, out=out / "killed" / "run", step_s=0.05, write_s=0.1)
    lives = Lives(launcher, run, seed=len(kills))
    for writing in kills:
        lives.live(writing=writing)
    launcher.start([straight]).wait()
    launcher.start([replace(run, step_s=0.0, write_s=0.0)]).wait()
    assert load_checkpoint(run.out)[1].step == 60 and lives.seen[-1] < 60
    one, other = weights(straight.out), weights(run.out)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert [line["loss"] for line in curve(straight.out)] == [line["loss"] for line in curve(run.out)]
    assert not list(run.out.glob(".tmp-*"))
    return lives.seen


@pytest.mark.slow
def test_a_process_killed_while_a_sharded_checkpoint_is_written(
    launcher: Launcher, data: Path, prior: Path, tmp_path: Path
) -> None:
    killed(launcher, data, prior, tmp_path, {"sharding": FullySharded()}, [True])


@pytest.mark.slow
@pytest.mark.parametrize("way", ["replicated", "sharded"])
def test_processes_killed_ten_times_in_a_row(
    launcher: Launcher, data: Path, prior: Path, tmp_path: Path, way: str
) -> None:
    seen = killed(launcher, data, prior, tmp_path, WAYS[way], [True, False] * 5)
    assert len(seen) == 10 and seen == sorted(seen)


def test_noise_of_each_sample_does_not_depend_on_the_processes_either(
    launcher: Launcher, data: Path, prior: Path, tmp_path: Path
) -> None:
    config = exact_policy(config=settings(steps=4, log_every=1, noise=PerSample()))
    alone = Run(config=config, data=data, out=tmp_path / "alone", motion=prior)
    alone.train()
    other = Run(
        config=replace(config, loop=replace(config.loop, accumulate=2)), data=data, out=tmp_path / "x", motion=prior
    )
    launcher.start([other]).wait()
    alike(alone.out, other.out)
    usual = replace(alone, config=exact_policy(config=settings(steps=4, log_every=1)), out=tmp_path / "usual")
    usual.train()
    assert gap(weights(alone.out), weights(usual.out)) > 1e-3
