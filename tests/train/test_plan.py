"""`lamp train ... --plan`: what it says, that it leaves everything as it was, and where it says less."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from training_fakes import PatchBackbone, loop, motion_training, policy_training

import lamp.recipes
from lamp import cli
from lamp.model.parameter_count import expected_parameters
from lamp.recipes.kinds import TrainingRecipe
from lamp.train import datasets
from lamp.train import train_motion as motion
from lamp.train.dry_run import Planner
from lamp.train.memory_estimate import BatchShape, step_memory
from lamp.train.run_plan import size, to_text
from lamp.train.train_motion import train_motion
from lamp.train.train_policy import train_policy

SETTINGS = loop(steps=30, validate_every=10, checkpoint_every=10, device="cpu")


def tiny() -> TrainingRecipe:
    return TrainingRecipe(
        name="tiny",
        summary="",
        motion=motion_training(loop=SETTINGS),
        policy=policy_training(loop=SETTINGS, cached_hidden_draws=2),
    )


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> str:
    """A recipe for the data of these tests, by its name."""
    monkeypatch.setitem(lamp.recipes.RECIPES, "tiny", tiny)
    for module in (motion, datasets):
        monkeypatch.setattr(module, "find_backbone", lambda config: PatchBackbone())
    return "tiny"


@pytest.fixture(scope="module")
def prior(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prior") / "motion"
    stopped = motion_training(loop=replace(SETTINGS, steps=4, checkpoint_every=4), final_samples=2)
    train_motion(stopped, data, out, backbone=PatchBackbone())
    return out


def plan(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert cli.main(["train", *words, "--plan", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in sorted(folder.rglob("*"))
    }


@pytest.mark.long
def test_a_policy_s_plan_says_what_the_training_then_needs(
    data: Path, prior: Path, recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--recipe", recipe, "--data", str(data), "--motion", str(prior)]
    before = contents(data)
    found = plan(capsys, "policy", *words, "--out", str(tmp_path / "out"))
    assert contents(data) == before and not (tmp_path / "out").exists()
    trained = tiny().policy
    counts = expected_parameters(trained.model)
    amount, memory, seconds, disk = (found[name] for name in ("amount", "memory", "time", "disk"))
    assert amount["trained"] == {name: counts[name] for name in ("guidance", "action_expert")}
    assert amount["frozen"] == {"motion_expert": counts["motion_expert"]}
    assert (amount["steps"], amount["batch"], amount["processes"]) == (30, 8, 1)
    assert amount["epochs"] == 30 * 8 / amount["samples"] and amount["episodes"] + amount["held_out_episodes"] == 6
    shape = BatchShape(samples=8, tokens=34, hidden=True)
    assert memory["total"] == step_memory(trained, shape).total == sum(memory["parts"].values())
    assert memory["largest_batch"] == {} and memory["data"]["features (mapped)"] > 0
    assert seconds["step"] > 0 and seconds["samples_per_s"] == pytest.approx(8 / seconds["step"])
    assert seconds["training"] == pytest.approx(30 * seconds["step"]) and seconds["hidden"] > 0 < seconds["validation"]
    assert seconds["total"] == sum(seconds[part] for part in ("hidden", "training", "validation"))

    done = train_policy(trained, data, tmp_path / "out", prior, backbone=PatchBackbone())
    written = sum(path.stat().st_size for path in done.checkpoint.rglob("*.safetensors"))
    assert disk["checkpoint"] == pytest.approx(written, rel=0.15)
    held_out = done.description.data.validation_episodes
    samples = amount["samples"] * 2 + 12 * len(held_out)
    assert disk["hidden"] == samples * trained.model.motion.tokens * trained.model.motion.width * 2  # pyright: ignore[reportOptionalMemberAccess]
    assert disk["total"] == 2 * disk["checkpoint"] + disk["hidden"] and disk["free"] > 0


class WithWeights(PatchBackbone, nn.Module):
    """The same tokens, of a backbone that holds 250,000 numbers on the device."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.weight = nn.Parameter(torch.zeros(1000, 249), requires_grad=False)
        self.register_buffer("mean", torch.zeros(1000))


@pytest.mark.long
@pytest.mark.parametrize("stage", [pytest.param("motion", marks=pytest.mark.slow), "policy"])
def test_a_backbone_that_encodes_in_the_step_is_counted(stage: str, data: Path, prior: Path, tmp_path: Path) -> None:
    planners = []
    for live in (False, True):
        planners.append(planner := Planner("cpu"))
        out, backbone = tmp_path / "out", WithWeights()
        if stage == "motion":
            settings = motion_training(loop=SETTINGS, cache_features=not live)
            train_motion(settings, data, out, backbone=backbone, run=planner)
        else:
            settings = policy_training(loop=SETTINGS, cache_features=not live)
            train_policy(settings, data, out, prior, backbone=backbone, run=planner)
    cached, live = (planner.plan for planner in planners)
    assert cached is not None and live is not None and cached.memory is not None and live.memory is not None
    assert live.memory.parts["backbone"] == 1_000_000 and cached.memory.parts["backbone"] == 0
    assert live.memory.total == cached.memory.total + 1_000_000
    assert live.amount.frozen == cached.amount.frozen | {"backbone": 249_000}
    assert live.memory.data.keys() == cached.memory.data.keys() - {"features (mapped)"}
    assert "features are cached" in cached.notes[0] and "encodes in each step" in live.notes[0]
    assert "backbone" in to_text(live) and live.time is not None


def test_a_run_that_would_be_continued_is_left_alone_and_counted(
    data: Path, prior: Path, recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(prior)
    words = ["motion", "--recipe", recipe, "--data", str(data), "--out", str(prior)]
    found = plan(capsys, *words)
    assert contents(prior) == before
    assert found["amount"]["done"] == 4 and found["time"]["training"] == pytest.approx(26 * found["time"]["step"])
    assert plan(capsys, *words, "--fresh")["amount"]["done"] == 0
    assert contents(prior) == before


@pytest.mark.slow
def test_for_a_gpu_that_is_not_here_memory_is_told_and_no_time(
    data: Path, recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    words = ["--recipe", recipe, "--data", str(data), "--out", str(tmp_path / "out"), "--loop.device", "cuda"]
    found = plan(capsys, "motion", *words)
    assert found["time"] is None and any("no cuda here" in note for note in found["notes"])
    assert found["memory"]["device"] == "cuda"
    fits = found["memory"]["largest_batch"]
    assert fits["24"] < fits["40"] < fits["80"]
    assert cli.main(["train", "motion", *words]) == 2  # without --plan, that is a mistake


def test_the_text_names_every_part(data: Path, recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--recipe", recipe, "--data", str(data), "--out", str(tmp_path / "out")]
    assert cli.main(["train", "policy", *words, "--plan"]) == 0
    shown = capsys.readouterr().out
    for part in ("action_expert, trained", "steps", "epochs", "weights", "optimiser", "average",
                 "activations", "features (mapped)", "training", "validation", "checkpoint"):  # fmt: skip
        assert part in shown, part
    assert "8 samples" in shown and "exchange" not in shown and "nothing was trained or written" in shown


@pytest.mark.slow
def test_a_run_says_what_it_is_about_to_train_and_a_finished_one_does_not(
    data: Path,
    prior: Path,
    recipe: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lamp.train.backbones.ensure_features", lambda *_, **__: None)
    words = ["train", "policy", "--recipe", recipe, "--data", str(data), "--motion", str(prior), "--out", str(tmp_path)]
    found = plan(capsys, *words[1:])
    stop = ["--loop.time-limit-s", "0"]
    for more in (stop, [], []):
        assert cli.main([*words, *more]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "parameters trained" in line]
    counts = expected_parameters(tiny().policy.model)
    trained, frozen = counts["guidance"] + counts["action_expert"], counts["motion_expert"]
    assert len(told) == 2 and told[0] == told[1]  # of the three calls, the last one had nothing to do
    assert told[0].startswith(f"policy: {trained:,} parameters trained, {frozen:,} frozen; 30 steps of 8 samples, ")
    assert (
        f"{found['amount']['epochs']:.1f} epochs; a step holds about {size(found['memory']['total'])} on cpu" in told[0]
    )


@pytest.mark.slow
def test_a_plan_says_which_gpus_a_step_fits(data: Path, tmp_path: Path) -> None:
    trained = motion_training(loop=loop(steps=3, batch_size=8))
    planner = Planner("cuda")
    train_motion(trained, data, tmp_path / "out", backbone=PatchBackbone(), run=planner)
    assert planner.plan is not None and planner.plan.memory is not None
    assert to_text(planner.plan).count("fits; at most") == 3
    big = replace(planner.plan.memory, samples=10, largest_batch={"24": 9, "40": 10})
    lines = [line.split() for line in to_text(replace(planner.plan, memory=big)).splitlines() if "GPU of" in line]
    assert [line[4:6] for line in lines] == [["TOO", "LITTLE;"], ["fits;", "at"]]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--json"], "--json given without --plan"),
        (["--plan", "--track", "wandbb"], "did you mean 'wandb'"),
    ],
)
def test_mistakes(
    flags: list[str], message: str, data: Path, recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--recipe", recipe, "--data", str(data), "--out", str(tmp_path / "out")]
    assert cli.main(["train", "motion", *words, *flags]) == 2
    assert message in capsys.readouterr().err
