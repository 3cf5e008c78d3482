"""The way of a rig's owner from demonstrations to scored trials, on the twin; an interrupted run goes on where it stopped.

out/rig.json           the twin's description, with a small camera
out/recording/         demonstrations of the scripted expert, as `lamp-rig record` keeps them
out/data/              the same as a LeRobot dataset, with exact scene flow and features
out/recipe.json        the recipe `demo`, fitted to it
out/motion/            Stage 1: the warm-up of the Motion Expert
out/policy_with/       Stage 2
out/policy_without/    Stage 2 without the motion prior
out/trials.jsonl       trials on layouts that were not demonstrated, as `lamp-rig score` writes them: some where demonstrations
                       put the objects, and some with the objects' sides exchanged (`unseen_layout`)
out/summary.json       the figures
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lamp.data.feature_cache.shards import picture_hashes
from lamp.data.import_recording import EMBODIMENT_PATH, import_recording
from lamp.errors import ConfigError, DataError
from lamp.experiment import QUICK, Clock, in_another_process
from lamp.files import locked
from lamp.json_files import read_json, write_json
from lamp.policy import LaMPPolicy
from lamp.progress import say
from lamp.recipes import recipe
from lamp.recipes.fit import fit
from lamp.recipes.fit_robot import FitConfig
from lamp.recipes.kinds import TrainingRecipe
from lamp.sceneflow.build import FlowBuildConfig, as_recorded, build
from lamp.train.backbones import ensure_features
from lamp.train.config import LoopConfig
from lamp.train.train_motion import train_motion
from lamp.train.train_policy import train_policy
from lamp.version import code_version
from lamp_client.child_processes import available_cores
from lamp_client.rig.cli import main as lamp_rig
from lamp_client.rig.cli import parser
from lamp_client.rig.commands.score import score
from lamp_client.rig.trials import made_trials, wilson
from lamp_client.twin import twin_description

STAGES = ("record", "flow", "features", "train_motion", "train_policy", "trials")
IN_DOMAIN, CONDITION = "in_domain", "unseen_layout"
METHODS = ("policy_with", "policy_without")
CAMERA_SIZE = (160, 120)
"""Width and height that the twin is drawn in [px]: what the small backbone sees of it."""
NOISE = 0.015
"""By which the arm is displaced from the expert's targets, so that demonstrations hold how an error is made good [m]."""
FIRST_TRIAL = 1000
"""Seed of the first trial's layout; demonstrations begin at 0."""


@dataclass(frozen=True, kw_only=True)
class TwinDemo:
    """Demonstrations on the twin, exact scene flow, warm-up of the Motion Expert, a policy with it and one without, trials on
    layouts that were not demonstrated. What is there already is kept."""

    out: Path = Path("outputs/twin-demo")
    """The folder of everything."""
    task: str = "stack_cup"
    demonstrations: int = 30
    motion_steps: int = 500
    policy_steps: int = 2000
    trials: int = 40
    """Of each policy, in each of the two conditions."""
    quick: bool = False
    """Two demonstrations, a few steps, one trial: whether everything works here. Too small for its figures to mean anything."""

    def __post_init__(self) -> None:
        counts = (self.demonstrations, self.motion_steps, self.policy_steps, self.trials)
        if min(counts) < 1 or self.demonstrations < 2:
            raise ConfigError(
                f"demonstrations, motion_steps, policy_steps, trials: {counts} given, at least two demonstrations and one of all "
                "else expected"
            )


def run(demo: TwinDemo) -> dict[str, Any]:
    """Runs what is missing in the folder and returns what summary.json says.

    Raises:
        ConfigError: The folder is another run's.
        DataError: Another process is at work there, or the expert fails too often.
    """
    if demo.quick:
        demo = replace(demo, demonstrations=2, motion_steps=4, policy_steps=4, trials=1)
        say(QUICK)
    out = demo.out
    with locked(out / ".lock", f"a run is at work in {out} already; wait for it, or choose another --out"):
        _claim(demo)
        clock = Clock(out / "seconds.json", STAGES)
        with clock.stage("record"):
            _record(demo)
        data = out / "data"
        with clock.stage("flow"):
            config = as_recorded(FlowBuildConfig(data=data, stride=4, horizon=8, every=2))
            build(config, pictures=picture_hashes(data, config.cameras))
        fitted = _recipe(demo)
        with clock.stage("features"):
            ensure_features(data, fitted.backbone, augmentation=fitted.policy.augmentation)
        with in_another_process(train_policy, fitted.without_motion, data, out / METHODS[1], None) as plain:
            with clock.stage("train_motion"):
                if fitted.motion is not None:
                    train_motion(fitted.motion, data, out / "motion")
            with clock.stage("train_policy"):
                train_policy(fitted.policy, data, out / METHODS[0], out / "motion" / "checkpoint")
                plain.result()
        with clock.stage("trials"):
            _make_trials(demo)
        summary = _summary(demo, clock)
        write_json(out / "summary.json", summary)
    say(text_of(summary))
    return summary


def _claim(demo: TwinDemo) -> None:
    path, settings = demo.out / "settings.json", {**asdict(demo), "out": ""}
    del settings["trials"]  # more of them are added
    if path.is_file() and (before := read_json(path)) != settings:
        raise ConfigError(f"{demo.out} holds a run with {before}, and {settings} was asked for; choose another --out")
    write_json(path, settings)


def _record(demo: TwinDemo) -> None:
    rig, recording = demo.out / "rig.json", demo.out / "recording"
    if not rig.is_file():
        width, height = CAMERA_SIZE
        twin_description(width=width, height=height).save(rig)
    words = ["record", str(rig), "--task", demo.task, "--out", str(recording), "--noise", str(NOISE)]
    if lamp_rig([*words, "--episodes", str(demo.demonstrations)]):
        raise DataError(f"fewer than {demo.demonstrations} demonstrations succeeded; they are in {recording}")
    import_recording(recording, demo.out / "data", robot_type="rizon4", successes_only=True)


def _recipe(demo: TwinDemo) -> TrainingRecipe:
    """The recipe `demo` for these recordings; its prior, which has seen none of this, gives way to one of its own."""
    data = demo.out / "data"
    config = FitConfig(
        data=str(data), out=demo.out / "recipe.json", cameras=("front=observation.images.front",),
        embodiment=str(data / EMBODIMENT_PATH),
    )  # fmt: skip
    fitted, text = fit(config, recipe("demo"))
    say(text)

    def lasting(loop: LoopConfig, steps: int) -> LoopConfig:
        often = max(1, min(loop.validate_every, steps))
        return replace(loop, steps=steps, validate_every=often, checkpoint_every=often)

    motion = fitted.motion
    if motion is not None:
        samples = 4 if demo.quick else motion.final_samples
        motion = replace(motion, loop=lasting(motion.loop, demo.motion_steps), final_samples=samples)
    policy = replace(fitted.policy, loop=lasting(fitted.policy.loop, demo.policy_steps))
    return replace(fitted, motion=motion, policy=policy)


def _make_trials(demo: TwinDemo) -> None:
    methods = [word for name in METHODS for word in ("--method", f"{name}={demo.out / name / 'checkpoint'}")]
    words = ["score", str(demo.out / "rig.json"), "--task", demo.task, "--out", str(demo.out), *methods]
    words += ["--conditions", IN_DOMAIN, CONDITION, "--trials", str(demo.trials), "--seed", str(FIRST_TRIAL)]
    score(parser().parse_args(words), connect=lambda address: LaMPPolicy.from_checkpoint(Path(address)))


def _summary(demo: TwinDemo, clock: Clock) -> dict[str, Any]:
    def reached(condition: str) -> dict[str, Any]:
        trials = [trial for trial in made_trials(demo.out) if trial["setting"] == condition]
        return {name: progress([t["stages"] / t["of"] for t in trials if t["method"] == name]) for name in METHODS}

    return {
        **asdict(demo), "out": str(demo.out),
        IN_DOMAIN: reached(IN_DOMAIN), "condition": CONDITION, "methods": reached(CONDITION),
        "seconds": clock.rounded(), "machine": f"{available_cores()} cores, {platform.machine()}, {platform.system()}",
        "code": code_version(), **({"warning": QUICK} if demo.quick else {}),
    }  # fmt: skip


def progress(shares: Sequence[float]) -> dict[str, float | int | list[float]]:
    """Mean share of a task's stages, with its 95% interval, and how many trials completed all of them."""
    low, high = wilson(sum(shares), len(shares))
    return {
        "trials": len(shares), "completed": sum(share == 1 for share in shares),
        "progress": round(sum(shares) / max(1, len(shares)), 4), "interval": [round(low, 4), round(high, 4)],
    }  # fmt: skip


def text_of(summary: dict[str, Any]) -> str:
    """The figures in words."""
    lines = [f"{summary['task']}, {summary['demonstrations']} demonstrations, layouts that none of them had:"]
    for condition, methods in ((IN_DOMAIN, summary[IN_DOMAIN]), (summary["condition"], summary["methods"])):
        for name, found in methods.items():
            low, high = found["interval"]
            lines.append(
                f"  {condition:<15} {name:<15} progress {found['progress']:.0%} ({low:.0%} to {high:.0%}), all stages in "
                f"{found['completed']} of {found['trials']} trials"
            )
    return "\n".join([*lines, f"  {summary['seconds']['total']:.0f} s; {summary['out']}/summary.json"])
