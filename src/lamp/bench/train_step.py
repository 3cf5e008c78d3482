"""`lamp bench train-step`: what one optimiser step costs, part by part, and what it would cost another way in the same run."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lamp.bench.reference import ReleaseArrangement
from lamp.bench.subjects import Subject, stirred, subject
from lamp.bench.timing import Machine, Timing, check_settings, describe_machine, heading, measure, wait_for
from lamp.data.feature_cache.shards import load_mapped
from lamp.errors import ConfigError
from lamp.model.lamp import LaMP
from lamp.recipes import training
from lamp.recipes.kinds import Recipe, TrainingRecipe
from lamp.train.config import MotionTraining, PolicyTraining
from lamp.types import Motion, MotionBatch, PolicyBatch

BATCHES = 8
"""How many batches the file holds: rows are picked from all over it."""


class KeptBatch:
    """The backbone's tokens of a batch and, where it has them, its z_m: 16-bit numbers in a file that is mapped into memory.

    Args:
        batch: What every step gets; of the tokens and z_m, other copies each time.
        folder: Where to write.
    """

    def __init__(self, batch: MotionBatch | PolicyBatch, folder: Path) -> None:
        tokens = batch.encoded.tokens
        self._batch, self._device, self._dtype = batch, tokens.device, tokens.dtype
        kept = {"tokens": tokens.half() if tokens.dtype == torch.float32 else tokens}
        if isinstance(batch, PolicyBatch) and batch.motion_hidden is not None:
            kept["hidden"] = batch.motion_hidden.half()
        many = {name: tensor.cpu().repeat(BATCHES, *(1,) * (tensor.ndim - 1)) for name, tensor in kept.items()}
        path = folder / "kept.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in many.items()}, path)
        self._kept, self._random = load_mapped(path)[0], np.random.default_rng(0)

    def read(self) -> MotionBatch | PolicyBatch:
        """Reads it to where it was."""
        count = len(self._batch.encoded.tokens)
        rows = torch.from_numpy(self._random.permutation(count * BATCHES)[:count])
        tokens = self._kept["tokens"][rows].to(self._device).to(self._dtype)
        batch = replace(self._batch, encoded=replace(self._batch.encoded, tokens=tokens))
        if isinstance(batch, PolicyBatch) and batch.motion_hidden is not None:
            hidden = self._kept["hidden"][rows].to(self._device).to(batch.motion_hidden.dtype)
            return replace(batch, motion_hidden=hidden)
        return batch


@dataclass(frozen=True, kw_only=True)
class TrainStepConfig:
    """Measures one optimiser step of a recipe with random weights, against the same step another way."""

    recipe: str = "demo"
    """A name that `lamp recipe list` shows."""
    stage: Literal["motion", "policy"] = "policy"
    """Stage 1 or Stage 2."""
    batch: int | None = None
    """Samples of a step; the recipe's if not given."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Of the networks' arithmetic; weights, time and noise stay in float32."""
    against: Literal["uncached", "reference"] = "uncached"
    """What to compare with: `uncached` runs the frozen networks in every step, ours reads what they gave from a file;
    `reference` is the same sizes as the authors' release arranges them, both with the backbone's tokens at hand."""
    threads: int = 1
    """Of the CPU."""
    seconds: float = 30.0
    """About how long to measure."""
    json: bool = False
    """Print one JSON object."""

    def __post_init__(self) -> None:
        check_settings(device=self.device, batch=self.batch, threads=self.threads, seconds=self.seconds)


@dataclass(frozen=True, kw_only=True)
class TrainStepResult:
    """What was measured."""

    recipe: str
    stage: str
    batch: int
    against: str
    ratio: float
    """The other way's median over ours."""
    ours: Timing
    other: Timing
    samples_per_s: dict[str, float]
    stages: dict[str, dict[str, float]]
    """Seconds of each part of a step, both ways."""
    evaluations: dict[str, int]
    """How often one step of ours asks each network."""
    flops: float
    """Floating-point operations of the matrix products in one step of ours."""
    of_matrix_rate: float
    parameters: dict[str, int]
    """Trained and frozen."""
    machine: Machine


class Stopwatch:
    """Seconds of each part of a step, over many steps."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._moment = device, 0.0
        self.parts: dict[str, list[float]] = {}

    def start(self) -> None:
        wait_for(self._device)
        self._moment = time.perf_counter()

    def note(self, part: str) -> None:
        """Ends a part."""
        wait_for(self._device)
        now = time.perf_counter()
        self.parts.setdefault(part, []).append(now - self._moment)
        self._moment = now

    def medians(self) -> dict[str, float]:
        return {part: statistics.median(times) for part, times in self.parts.items()}


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way of doing a step."""

    loss: Callable[[Stopwatch], Tensor]
    """Does the frozen part, noting what it takes, and returns the loss."""
    optimiser: torch.optim.Optimizer
    watch: Stopwatch

    def step(self) -> None:
        """Forward, backward and the optimiser."""
        self.watch.start()
        loss = self.loss(self.watch)
        self.watch.note("forward")
        loss.backward()
        self.watch.note("backward")
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.watch.note("optimiser")


def bench_train_step(config: TrainStepConfig) -> TrainStepResult:
    """Measures a recipe's training step.

    Raises:
        ConfigError: The recipe does not train this stage, or has no counterpart to compare with.
    """
    torch.set_num_threads(config.threads)
    device, dtype = torch.device(config.device), getattr(torch, config.precision)
    recipe = training(config.recipe)
    settings = _settings(recipe, config.stage)
    batch = config.batch or settings.loop.batch_size
    uncached = config.against == "uncached"
    made = subject(config.recipe, batch=batch, device=device, dtype=dtype, vlm=uncached)
    if uncached and made.see is None:
        raise ConfigError(f"recipe {config.recipe!r} names no backbone, so there is nothing to cache.")
    model = made.model if config.stage == "policy" else stirred(LaMP(settings.model)).to(device)
    given = _batch(made, model, settings, cached=config.stage == "policy")
    machine = describe_machine(device, dtype)
    with tempfile.TemporaryDirectory() as folder:
        if uncached:
            kept = KeptBatch(given, Path(folder))
            ours = _ours(model, kept, settings, None, device, dtype)
            other = _ours(model, replace(given, motion_hidden=None), settings, made, device, dtype)
        else:
            ours = _ours(model, given, settings, None, device, dtype)
            other = _reference(model, given, settings, device, dtype)
        timed = measure({"ours": ours.step, "other": other.step}, device, seconds=config.seconds)
        flops = _flops(ours)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return TrainStepResult(
        recipe=config.recipe,
        stage=config.stage,
        batch=batch,
        against=config.against,
        ratio=timed["other"].p50_s / timed["ours"].p50_s,
        ours=timed["ours"],
        other=timed["other"],
        samples_per_s={name: batch / timing.p50_s for name, timing in timed.items()},
        stages={"ours": ours.watch.medians(), "other": other.watch.medians()},
        evaluations=_evaluations(model, settings, given),
        flops=flops,
        of_matrix_rate=flops / timed["ours"].p50_s / machine.ceilings.matrix_flops,
        parameters={"trained": trained, "frozen": sum(p.numel() for p in model.parameters()) - trained},
        machine=machine,
    )


def _settings(recipe: Recipe | TrainingRecipe, stage: str) -> MotionTraining | PolicyTraining:
    settings = recipe.motion if stage == "motion" else recipe.policy
    if settings is None:
        raise ConfigError(f"recipe {recipe.name!r} has no motion prior to train; measure its policy: --stage policy.")
    return settings


def _batch(
    made: Subject, model: LaMP, settings: MotionTraining | PolicyTraining, *, cached: bool
) -> MotionBatch | PolicyBatch:
    """A batch as the data pipeline brings it; of the motion hidden states only where the recipe caches those too."""
    device, count = made.state.device, len(made.state)
    if isinstance(settings, MotionTraining):
        assert model.motion_shape is not None
        values = torch.rand(count, *model.motion_shape, device=device) * 2 - 1
        return MotionBatch(
            encoded=made.encoded, motion=Motion(values=values, mask=torch.ones_like(values, dtype=torch.bool))
        )
    hidden = None
    if cached and settings.cached_hidden_draws and made.motion_noise is not None:
        hidden = model.motion_hidden(made.encoded, made.motion_noise)
    actions = torch.randn(made.action_noise.shape, device=device)
    mask = torch.ones(actions.shape[:2], dtype=torch.bool, device=device)
    return PolicyBatch(encoded=made.encoded, state=made.state, actions=actions, action_mask=mask, motion_hidden=hidden)


def _ours(
    model: LaMP,
    batch: MotionBatch | PolicyBatch | KeptBatch,
    settings: MotionTraining | PolicyTraining,
    see: Subject | None,
    device: torch.device,
    dtype: torch.dtype,
) -> Way:
    generator = torch.Generator().manual_seed(0)
    parts = [model.motion_expert] if isinstance(settings, MotionTraining) else [model.guidance, model.action_expert]
    model.requires_grad_(False)
    for part in parts:
        if part is not None:
            part.train().requires_grad_(True)

    draws = 1 if isinstance(settings, MotionTraining) else settings.noise_draws

    def loss(watch: Stopwatch) -> Tensor:
        given = batch.read() if isinstance(batch, KeptBatch) else batch
        if isinstance(batch, KeptBatch):
            watch.note("read")
        if see is not None and see.see is not None:
            see.see()
            watch.note("vlm")
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            if isinstance(given, MotionBatch):
                return model.motion_loss(given, generator).total
            if given.motion_hidden is None and model.motion_shape is not None:
                noise = torch.randn(len(given.encoded.mask), *model.motion_shape, generator=generator).to(device)
                given = replace(given, motion_hidden=model.motion_hidden(given.encoded, noise))
                watch.note("motion")
            return model.action_loss(given, generator, draws).total

    named = {name: value for name, value in model.named_parameters() if value.requires_grad}
    return Way(loss=loss, optimiser=settings.loop.optimiser.build(named), watch=Stopwatch(device))


def _reference(
    model: LaMP,
    batch: MotionBatch | PolicyBatch,
    settings: MotionTraining | PolicyTraining,
    device: torch.device,
    dtype: torch.dtype,
) -> Way:
    if isinstance(settings, MotionTraining) or isinstance(batch, MotionBatch):
        raise ConfigError("the reference trains policies; expected --stage policy, or --against uncached.")
    policy = model.config
    release = ReleaseArrangement(policy).to(device).train()
    release.motion_head.requires_grad_(False).eval()
    assert policy.motion is not None
    frames, (rows, columns) = policy.motion.horizon // policy.motion.frames_per_token, policy.motion.grid
    count, draws = len(batch.state), settings.noise_draws
    shape = (count, frames, 3 * policy.motion.frames_per_token, rows, columns)
    z, state, actions = batch.encoded.tokens.float(), batch.state, batch.actions

    def loss(watch: Stopwatch) -> Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            with torch.no_grad():
                hidden = release.motion_hidden(z, torch.randn(shape, device=device))
            watch.note("motion")
            guided = release.motion_guidance(z, hidden)
            many = [x.repeat(draws, *(1,) * (x.ndim - 1)) for x in (actions, state, guided)]
            noise = torch.randn_like(many[0])
            predicted = release.action_model(0.5 * (noise + many[0]), 0.5, many[1], many[2])
            return nn.functional.mse_loss(predicted.float(), noise - many[0])

    named = {name: value for name, value in release.named_parameters() if value.requires_grad}
    return Way(loss=loss, optimiser=settings.loop.optimiser.build(named), watch=Stopwatch(device))


def _evaluations(
    model: LaMP, settings: MotionTraining | PolicyTraining, batch: MotionBatch | PolicyBatch
) -> dict[str, int]:
    if isinstance(settings, MotionTraining) or isinstance(batch, MotionBatch):
        return {"motion": 1}
    asked = model.config.evaluations
    return {
        "motion": 0 if batch.motion_hidden is not None else asked["motion"],
        "guidance": asked["guidance"],
        "action": settings.noise_draws,
    }


def _flops(way: Way) -> float:
    counter = FlopCounterMode(display=False)
    with counter:
        way.loss(Stopwatch(torch.device("cpu"))).backward()
    way.optimiser.zero_grad(set_to_none=True)
    return float(counter.get_total_flops())


def to_text(result: TrainStepResult) -> str:
    """A table for a terminal."""
    names: Mapping[str, None] = dict.fromkeys([part for way in result.stages.values() for part in way])
    machine = result.machine
    lines = [
        heading(f"{result.recipe}, {result.stage}", result.batch, machine),
        "",
        f"{'part':<12}{'ours ms':>12}{result.against + ' ms':>16}",
    ]
    for name in names:
        ours, other = (result.stages[way].get(name) for way in ("ours", "other"))
        lines.append(f"{name:<12}{_ms(ours):>12}{_ms(other):>16}")
    lines += [
        f"{'step':<12}{_ms(result.ours.p50_s):>12}{_ms(result.other.p50_s):>16}",
        f"{'samples/s':<12}{result.samples_per_s['ours']:>12.1f}{result.samples_per_s['other']:>16.1f}",
        "",
        f"{result.against} / ours: {result.ratio:.2f} ({result.ours.runs} and {result.other.runs} steps)",
        f"{result.flops / 1e9:.1f} GFLOP a step, {result.of_matrix_rate:.0%} of the matrix rate of "
        f"{machine.ceilings.matrix_flops / 1e9:,.0f} GFLOP/s measured here; "
        f"{result.parameters['trained'] / 1e6:.1f} M parameters trained, {result.parameters['frozen'] / 1e6:.1f} M frozen",
    ]
    return "\n".join(lines)


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.1f}"
