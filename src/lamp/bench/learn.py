"""`lamp bench learn`: how soon an Action Expert reaches an error on held-out demonstrations, against another in the same run.

Time is the processor time of the training steps alone, on one thread: measuring, reading data and other work do not count.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro

from lamp.bench.timing import describe_machine
from lamp.data.episode_selection import EpisodeSelection, parse_selection
from lamp.errors import ConfigError
from lamp.model.action_expert import Prefix
from lamp.recipes import training
from lamp.train.checkpoint_metadata import Description
from lamp.train.config import LoopConfig, PolicyTraining, Split
from lamp.train.distributed import SINGLE_PROCESS, DistributedContext
from lamp.train.metrics import LogInterval
from lamp.train.optimizer import AdamW
from lamp.train.run_folder import TrainingResult
from lamp.train.stages import PolicyStage, Stage
from lamp.train.train_policy import train_policy
from lamp.train.trainer import Outcome, Trainer

TIMED_STEPS = 12
"""Steps by which the length of the schedule is chosen."""
MEASUREMENTS = 6
"""Of the held-out error, spread over the training."""


@dataclass(frozen=True, kw_only=True)
class LearnBench:
    """Trains a recipe's policy without prior, and a reference, for the same time on the same demonstrations, and measures both
    on held-out ones. The reference: a wider Action Expert that reads every token, as the paper's does, trained with fewer and
    larger steps (`wide_recipe` in lamp/bench/learn.py)."""

    data: tyro.conf.Positional[Path]
    """A dataset of demonstrations, with the features of the recipe's backbone (`lamp cache features`)."""
    recipe: str = "demo"
    """The recipe whose Action Expert learns."""
    per_task: int = 8
    """Demonstrations of each task."""
    tasks: str | None = None
    """Task numbers of the dataset; all by default."""
    hold_out: str = "states=10:20"
    """Demonstrations that are measured, as in `lamp train` (docs/data.md)."""
    error: float = 0.13
    """The mean absolute error of normalised actions that is to be reached."""
    seconds: float = 180.0
    """Processor time of each training. [s]"""
    samples: int = 256
    """Held-out samples of each measurement."""
    seed: int = 0
    """Of the choice of demonstrations and of the training."""
    json: bool = False
    """Print one JSON object."""

    def __post_init__(self) -> None:
        if self.seconds <= 0 or self.error <= 0 or self.samples < 1:
            raise ConfigError(
                f"seconds {self.seconds:g}, error {self.error:g}, samples {self.samples}: expected positive numbers"
            )


@dataclass(frozen=True, kw_only=True)
class LearningCurve:
    """What one training reached."""

    steps: int
    points: tuple[tuple[float, float], ...]
    """(processor time of the steps so far in s, held-out error)."""

    @property
    def final_error(self) -> float:
        """After the last step."""
        return self.points[-1][1]

    def seconds_to(self, error: float) -> float | None:
        """When the error was first at most this, between two measurements linearly; None: never."""
        before = None
        for seconds, value in self.points:
            if value <= error:
                if before is None or before[1] == value:
                    return seconds
                share = (before[1] - error) / (before[1] - value)
                return before[0] + share * (seconds - before[0])
            before = seconds, value
        return None


def wide_recipe(config: PolicyTraining) -> PolicyTraining:
    """The reference: 192 wide, four layers, on all tokens, from noise, no baseline; six noise draws of 16 samples a step."""
    action = replace(config.action, width=192, layers=4, attention=Prefix(context_layers=1), baseline=None)
    model = replace(config.model, action=action, action_noise_std=1.0, pooling=None)
    loop = replace(config.loop, batch_size=16, optimiser=AdamW(lr=6e-4), ema=0.995)
    return replace(config, model=model, loop=loop, noise_draws=6)


def bench_learn(bench: LearnBench) -> dict[str, Any]:
    """Trains and measures both, one after the other.

    Raises:
        ConfigError: The recipe has no policy, or nothing meets the selections.
    """
    policy = training(bench.recipe).without_motion
    split = Split(
        episodes=EpisodeSelection(tasks=bench.tasks, per_task=bench.per_task, seed=bench.seed),
        held_out=parse_selection(bench.hold_out),
    )
    loop = replace(policy.loop, seed=bench.seed, threads=1, device="cpu", trackers=(), time_budget_s=None)
    own = replace(policy, split=split, loop=loop, validation_samples=bench.samples, action_samples=bench.samples)
    curves = {name: _learn(one, bench) for name, one in (("recipe", own), ("reference", wide_recipe(own)))}
    times = {name: curve.seconds_to(bench.error) for name, curve in curves.items()}
    own_s, reference_s = times["recipe"], times["reference"]
    return {
        "machine": asdict(describe_machine(torch.device("cpu"), torch.float32)),
        "settings": {key: value for key, value in asdict(bench).items() if key not in ("json", "data")},
        "seconds_to_error": own_s,
        "reference_seconds_to_error": reference_s,
        "ratio": None if own_s is None or reference_s is None else reference_s / own_s,
        **{name: asdict(curve) | {"final_error": curve.final_error} for name, curve in curves.items()},
    }


def _learn(config: PolicyTraining, bench: LearnBench) -> LearningCurve:
    """Trains for the given time: the first steps are timed, then all is begun again with as many as fit."""
    with tempfile.TemporaryDirectory(prefix="lamp-learn-") as folder:
        curves: list[LearningCurve] = []
        for steps in (TIMED_STEPS, None):
            planned = steps or max(TIMED_STEPS, int(bench.seconds / (curves[0].points[-1][0] / TIMED_STEPS)))
            loop = replace(config.loop, steps=planned)
            train_policy(
                replace(config, loop=loop),
                bench.data,
                Path(folder) / str(steps),
                run=_Measured(measurements=0 if steps else MEASUREMENTS, curves=curves),
            )
        return curves[1]


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """Trains a prepared stage to its last step, and measures it on the way."""

    measurements: int
    curves: list[LearningCurve]

    def __call__(
        self,
        stage: Stage[Any],
        loop: LoopConfig,
        description: Description,
        out: Path,
        *,
        fresh: bool,
        prepare: Callable[[], None] = lambda: None,
        distributed: DistributedContext = SINGLE_PROCESS,
    ) -> TrainingResult:
        assert isinstance(stage, PolicyStage)
        prepare()
        out.mkdir(parents=True, exist_ok=True)
        trainer = Trainer(stage, loop, out, lambda *_: None)
        interval, spent = LogInterval(), 0.0
        at = {round(loop.steps * number / max(self.measurements, 1)) for number in range(1, self.measurements + 1)}
        points = []
        while trainer.step < loop.steps:
            start = time.process_time()
            trainer.train_step(interval)
            spent += time.process_time() - start
            if trainer.step in at:
                points.append((spent, held_out_error(stage, trainer)))
        stage.close()
        self.curves.append(LearningCurve(steps=loop.steps, points=tuple(points) or ((spent, float("nan")),)))
        outcome = Outcome(
            reason="time limit", step=trainer.step, elapsed_s=spent, samples_per_s=trainer.samples / spent
        )
        return TrainingResult(checkpoint=out, description=description, outcome=outcome)


def held_out_error(stage: PolicyStage, trainer: Trainer) -> float:
    """The mean absolute error of normalised held-out actions, with averaged weights where there are any."""
    if stage.validation is None:
        raise ConfigError("no demonstration is held out; expected some: --hold-out")
    if trainer.ema is None:
        return float(stage.validate()["action_error"])  # pyright: ignore[reportArgumentType]
    with trainer.ema.applied():
        return float(stage.validate()["action_error"])  # pyright: ignore[reportArgumentType]


def to_text(figures: Mapping[str, Any]) -> str:
    """The figures for people."""
    settings = figures["settings"]
    lines = [
        f"{settings['per_task']} demonstrations a task, {settings['seconds']:g} s of one processor for each; "
        f"{figures['machine']['name']}"
    ]
    for name in ("recipe", "reference"):
        curve = figures[name]
        shown = ", ".join(f"{seconds:.0f} s {error:.3f}" for seconds, error in curve["points"])
        lines.append(f"{name:9} {curve['steps']:6,} steps; held-out error after {shown}")
    for name, key in (("recipe", "seconds_to_error"), ("reference", "reference_seconds_to_error")):
        reached = figures[key]
        lines.append(
            f"{name:9} error {settings['error']:g} {'not reached' if reached is None else f'after {reached:.0f} s'}"
        )
    if figures["ratio"] is not None:
        lines.append(f"the reference takes {figures['ratio']:.2f} times as long")
    return "\n".join(lines)
