"""`lamp bench train-step`: the cost of one optimiser step, part by part, against another implementation in the same run."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lamp.bench.models import BenchModel, ReleaseArrangement, build_bench_model, fill_zeros
from lamp.bench.timing import check_settings, describe_machine, heading, measure, wait_for
from lamp.data.feature_cache.shards import load_mapped
from lamp.errors import ConfigError
from lamp.model.lamp import LaMP
from lamp.model.motion_fusion import FlowHead
from lamp.recipes import training
from lamp.train.config import MotionTraining, PolicyTraining
from lamp.types import Motion, MotionBatch, PolicyBatch

BATCHES_STORED = 8
"""Batches in the file that `StoredBatch` reads rows of."""
AnyBatch = MotionBatch | PolicyBatch
Note = Callable[[str], None]
"""Ends a part of a step and records how long it took."""


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
    """Where it computes."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Of the networks' arithmetic; weights, time and noise stay in float32."""
    against: Literal["uncached", "reference"] = "uncached"
    """What to compare with: `uncached` runs the frozen networks in every step, ours reads what they gave from a file;
    `reference` is the same sizes as the authors' release arranges them, both with the backbone's tokens at hand."""
    threads: int = 1
    """CPU threads."""
    seconds: float = 30.0
    """About how long to measure."""
    json: bool = False
    """Print one JSON object."""

    def __post_init__(self) -> None:
        check_settings(device=self.device, batch=self.batch, threads=self.threads, seconds=self.seconds)


class StoredBatch:
    """A batch whose backbone tokens and z_m are read from a memory-mapped file in 16 bits, other rows at each step."""

    def __init__(self, batch: AnyBatch, folder: Path) -> None:
        tokens = batch.encoded.tokens
        self._batch = batch
        stored = {"tokens": tokens.half() if tokens.dtype == torch.float32 else tokens}
        if batch.motion_hidden is not None:
            stored["hidden"] = batch.motion_hidden.half()
        repeated = {name: x.cpu().repeat(BATCHES_STORED, *(1,) * (x.ndim - 1)) for name, x in stored.items()}
        save_file({name: x.contiguous() for name, x in repeated.items()}, folder / "batches.safetensors")
        self._tensors, self._random = load_mapped(folder / "batches.safetensors")[0], np.random.default_rng(0)

    def read(self) -> AnyBatch:
        """Reads rows of it to the batch's device."""
        batch, tokens = self._batch, self._batch.encoded.tokens
        rows = torch.from_numpy(self._random.permutation(len(tokens) * BATCHES_STORED)[: len(tokens)])
        read = replace(batch.encoded, tokens=self._tensors["tokens"][rows].to(tokens.device).to(tokens.dtype))
        if batch.motion_hidden is not None:
            hidden = self._tensors["hidden"][rows].to(tokens.device).to(batch.motion_hidden.dtype)
            return replace(batch, encoded=read, motion_hidden=hidden)
        return replace(batch, encoded=read)


class TrainStep:
    """One implementation of an optimiser step, and the times of its parts.

    `loss` does the frozen part, notes what that takes, and returns the loss.
    """

    def __init__(
        self,
        loss: Callable[[Note], Tensor],
        model: nn.Module,
        settings: MotionTraining | PolicyTraining,
        device: torch.device,
    ) -> None:
        trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self._loss, self._device, self._optimiser = loss, device, settings.loop.optimiser.build(trained)
        self._times: dict[str, list[float]] = {}
        self._started = 0.0

    def _note(self, part: str) -> None:
        wait_for(self._device)
        now = time.perf_counter()
        self._times.setdefault(part, []).append(now - self._started)
        self._started = now

    def run(self) -> None:
        """Forward, backward and the optimiser."""
        wait_for(self._device)
        self._started = time.perf_counter()
        loss = self._loss(self._note)
        self._note("forward")
        loss.backward()
        self._note("backward")
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        self._note("optimiser")

    def medians(self) -> dict[str, float]:
        """Seconds of each part."""
        return {part: statistics.median(times) for part, times in self._times.items()}

    def flops(self) -> float:
        """Counts the floating-point operations of the matrix products, forward and backward."""
        with FlopCounterMode(display=False) as counter:
            self._loss(lambda _part: None).backward()
        self._optimiser.zero_grad(set_to_none=True)
        return float(counter.get_total_flops())


def bench_train_step(config: TrainStepConfig) -> dict[str, Any]:
    """Measures a recipe's training step and returns the figures as JSON values.

    Raises:
        ConfigError: The recipe does not train this stage, or has no counterpart to compare with.
    """
    torch.set_num_threads(config.threads)
    device, dtype = torch.device(config.device), getattr(torch, config.precision)
    recipe = training(config.recipe)
    settings = recipe.motion if config.stage == "motion" else recipe.policy
    if settings is None:
        raise ConfigError(f"recipe {recipe.name!r} has no motion prior to train; measure its policy: --stage policy.")
    size = config.batch or settings.loop.batch_size
    uncached = config.against == "uncached"
    bench = build_bench_model(config.recipe, batch=size, device=device, dtype=dtype, vlm=uncached)
    if uncached and bench.encode is None:
        raise ConfigError(f"recipe {config.recipe!r} names no backbone, so there is nothing to cache.")
    model = bench.model if config.stage == "policy" else fill_zeros(LaMP(settings.model)).to(device)
    batch = _make_batch(bench, model, settings)
    machine = describe_machine(device, dtype)
    with tempfile.TemporaryDirectory() as folder:
        if uncached:
            stored = StoredBatch(batch, Path(folder))
            fresh = batch if batch.motion_hidden is None else replace(batch, motion_hidden=None)
            ours = _our_step(model, stored.read, settings, dtype, reads=True)
            other = _our_step(model, lambda: fresh, settings, dtype, encode=bench.encode)
        else:
            ours = _our_step(model, lambda: batch, settings, dtype)
            other = _reference_step(model, batch, settings, dtype)
        timed = measure({"ours": ours.run, "other": other.run}, device, seconds=config.seconds)
        flops = ours.flops()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    evaluations = {"motion": 1}
    if isinstance(settings, PolicyTraining) and isinstance(batch, PolicyBatch):
        once = model.config.evaluations
        motion = 0 if batch.motion_hidden is not None else once["motion"]
        evaluations = {"motion": motion, "guidance": once["guidance"], "action": settings.noise_draws}
    return {
        "recipe": config.recipe,
        "stage": config.stage,
        "batch": size,
        "against": config.against,
        "ratio": timed["other"].p50_s / timed["ours"].p50_s,
        "ours": asdict(timed["ours"]),
        "other": asdict(timed["other"]),
        "samples_per_s": {name: size / timing.p50_s for name, timing in timed.items()},
        "stages": {"ours": ours.medians(), "other": other.medians()},
        "evaluations": evaluations,
        "flops": flops,
        "of_matrix_rate": flops / timed["ours"].p50_s / machine.ceilings.matrix_flops,
        "parameters": {"trained": trained, "frozen": sum(p.numel() for p in model.parameters()) - trained},
        "machine": asdict(machine),
    }


def _make_batch(bench: BenchModel, model: LaMP, settings: MotionTraining | PolicyTraining) -> AnyBatch:
    """A batch as the data pipeline gives it, with z_m only where the recipe caches that too."""

    def motion(*shape: int) -> Motion:
        values = torch.rand((len(bench.state), *shape), device=bench.state.device) * 2 - 1
        return Motion(values=values, mask=torch.ones_like(values).bool())

    if isinstance(settings, MotionTraining):
        return MotionBatch(encoded=bench.encoded, motion=motion(*settings.motion.shape))
    hidden, fusion = None, settings.model.fusion
    if settings.cached_hidden_draws and bench.motion_noise is not None:
        hidden = model.motion_hidden(bench.encoded, bench.motion_noise)
    actions = torch.randn_like(bench.action_noise)
    mask = torch.ones_like(actions[..., 0]).bool()
    return PolicyBatch(
        encoded=bench.encoded,
        state=bench.state,
        actions=actions,
        action_mask=mask,
        motion_hidden=hidden,
        motion=motion(math.prod(fusion.grid), fusion.horizon, 3) if isinstance(fusion, FlowHead) else None,
    )


def _our_step(
    model: LaMP, read: Callable[[], AnyBatch], settings: MotionTraining | PolicyTraining, dtype: torch.dtype, *,
    reads: bool = False, encode: Callable[[], object] | None = None,
) -> TrainStep:  # fmt: skip
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    model.requires_grad_(False)
    for part in settings.trained_parts(model):
        part.train().requires_grad_(True)
    draws = 1 if isinstance(settings, MotionTraining) else settings.noise_draws

    def loss(note: Note) -> Tensor:
        batch = read()
        if reads:
            note("read")
        if encode is not None:
            encode()
            note("vlm")
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            if isinstance(batch, MotionBatch):
                return model.motion_loss(batch, generator).total
            if batch.motion_hidden is None and model.motion_expert is not None:
                noise = model.motion_noise(len(batch.encoded.mask), generator, device)
                batch = replace(batch, motion_hidden=model.motion_hidden(batch.encoded, noise))
                note("motion")
            return model.action_loss(batch, generator, draws).total

    return TrainStep(loss, model, settings, device)


def _reference_step(
    model: LaMP, batch: AnyBatch, settings: MotionTraining | PolicyTraining, dtype: torch.dtype
) -> TrainStep:
    if isinstance(settings, MotionTraining) or isinstance(batch, MotionBatch):
        raise ConfigError("the reference trains policies; expected --stage policy, or --against uncached.")
    device = batch.state.device
    release = ReleaseArrangement(model.config).to(device).train()
    release.motion_head.requires_grad_(False).eval()
    z, state, actions, draws = batch.encoded.tokens.float(), batch.state, batch.actions, settings.noise_draws

    def loss(note: Note) -> Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            with torch.no_grad():
                noise = torch.randn(len(state), *release.motion_head.shape, device=device)
                hidden = release.motion_hidden(z, noise)
            note("motion")
            guided = release.motion_guidance(z, hidden)
            clean, states, guided = (x.repeat(draws, *(1,) * (x.ndim - 1)) for x in (actions, state, guided))
            noise = torch.randn_like(clean)
            predicted = release.action_model(0.5 * (noise + clean), 0.5, states, guided)
            return nn.functional.mse_loss(predicted.float(), noise - clean)

    return TrainStep(loss, release, settings, device)


def to_text(figures: Mapping[str, Any]) -> str:
    """A table for a terminal."""
    machine, ours, other, against = (figures[key] for key in ("machine", "ours", "other", "against"))
    parts = dict.fromkeys([part for way in figures["stages"].values() for part in way])
    rows = {part: [figures["stages"][way].get(part) for way in ("ours", "other")] for part in parts}
    rows["step"] = [ours["p50_s"], other["p50_s"]]
    samples, parameters = figures["samples_per_s"], figures["parameters"]
    lines = [
        heading(f"{figures['recipe']}, {figures['stage']}", figures["batch"], machine),
        "",
        f"{'part':<12}{'ours ms':>12}{against + ' ms':>16}",
    ]
    for name, row in rows.items():
        mine, theirs = ("-" if seconds is None else f"{1e3 * seconds:.1f}" for seconds in row)
        lines.append(f"{name:<12}{mine:>12}{theirs:>16}")
    lines += [
        f"{'samples/s':<12}{samples['ours']:>12.1f}{samples['other']:>16.1f}",
        "",
        f"{against} / ours: {figures['ratio']:.2f} ({ours['runs']} and {other['runs']} steps)",
        f"{figures['flops'] / 1e9:.1f} GFLOP a step, {figures['of_matrix_rate']:.0%} of the matrix rate of "
        f"{machine['ceilings']['matrix_flops'] / 1e9:,.0f} GFLOP/s measured here; "
        f"{parameters['trained'] / 1e6:.1f} M parameters trained, {parameters['frozen'] / 1e6:.1f} M frozen",
    ]
    return "\n".join(lines)
