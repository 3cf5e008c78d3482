"""`lamp train ... --plan`: what a run will need, before anything is trained: memory, steps, time, disk; and a run that says it.

A `Planner` takes the place of `run_stage`, so that it sees exactly the stage that would be trained. It takes a few steps in
earnest, on the real data, and forgets them; nothing is written.
"""

from __future__ import annotations

import math
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float16, Int64

from lamp.data.mixture import MixedSamples
from lamp.data.samples import PolicySamples
from lamp.model.lamp import LaMP
from lamp.progress import say
from lamp.train.configs import LoopConfig, MotionTraining, PolicyTraining
from lamp.train.description import FILE_NAME, Description, read_description
from lamp.train.hidden import SAMPLES_AT_ONCE
from lamp.train.loop import Loop, Outcome
from lamp.train.memory import GPU_RESERVE
from lamp.train.needs import AnyStage, amount, hidden_bytes, live_module, memory, outline, parts_of
from lamp.train.plan import DiskPlan, MemoryPlan, Plan, TimePlan, size
from lamp.train.processes import SINGLE, Processes
from lamp.train.running import CHECKPOINT, TrainingResult, run_stage
from lamp.train.sharding import check_sharding
from lamp.train.stages import PolicyStage
from lamp.types import Batch

WARM_UP, MEASURED = 2, 7
"""Steps."""
PATIENCE_S = 90.0
"""No further step is measured after so long."""
VALIDATED = 8
"""Held-out samples that are measured, to tell how long all of them will take."""


class Planner:
    """Takes the place of `run_stage`: makes a plan instead of training.

    Args:
        device: What the run is to be trained on; its stage may have been built elsewhere, where there is no such device.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.plan: Plan | None = None
        self.main = True
        """Whether this process is the one that prints."""

    def __call__(
        self,
        stage: Any,
        loop: LoopConfig,
        description: Description,
        out: Path,
        *,
        fresh: bool,
        prepare: Callable[[], None] = lambda: None,
        processes: Processes = SINGLE,
    ) -> TrainingResult:
        """As `run_stage`, but for what it does."""
        check_sharding(loop.sharding, processes.count)
        assert isinstance(stage, AnyStage)
        self.main = processes.main
        done = _done(out, fresh=fresh)
        _stand_in_hidden(stage)
        seconds = _time(stage, loop, out, done, processes) if self._is_here(loop) else None
        held = memory(stage, self.device, processes.count)
        disk = _disk(stage, out)
        self.plan = Plan(
            stage=stage.name,
            out=str(out),
            amount=amount(stage, description, done, processes.count),
            memory=held,
            time=seconds,
            disk=disk,
            notes=tuple(self._notes(stage, held, seconds, disk)),
        )
        outcome = Outcome(reason="planned", step=done, elapsed_s=0.0, samples_per_s=0.0)
        return TrainingResult(checkpoint=out / CHECKPOINT, description=description, outcome=outcome)

    def _is_here(self, loop: LoopConfig) -> bool:
        return torch.device(loop.device).type == torch.device(self.device).type

    def _notes(self, stage: AnyStage, held: MemoryPlan | None, seconds: TimePlan | None, disk: DiskPlan) -> list[str]:
        notes = ["the backbone is not loaded: its features are cached"]
        if held is None:
            notes = ["the backbone is trained along (lora): what a step with it holds is not worked out"]
        elif live_module(stage) is not None:
            notes = ["the backbone encodes in each step, as no features are cached: it is held beside what is trained"]
        if seconds is None:
            notes.append(f"no step was measured: there is no {torch.device(self.device).type} here")
        if disk.total > disk.free:
            notes.append(f"the disk has {size(disk.free)} free, the run needs up to {size(disk.total)}")
        if held is not None and torch.device(self.device).type == "cuda" and torch.cuda.is_available():
            there = torch.cuda.get_device_properties(self.device).total_memory
            if held.total + GPU_RESERVE > there:
                notes.append(
                    f"a step needs {size(held.total)} and a reserve; the GPU has {size(there)}: a smaller batch, or more "
                    "parts of it (loop.accumulate)"
                )
        return notes


def announced(
    stage: Any,
    loop: LoopConfig,
    description: Description,
    out: Path,
    *,
    fresh: bool,
    prepare: Callable[[], None] = lambda: None,
    processes: Processes = SINGLE,
) -> TrainingResult:
    """`run_stage`, which says in one line what it is about to train."""
    assert isinstance(stage, AnyStage)
    done = _done(out, fresh=fresh)
    if processes.main and done < loop.steps:
        say(f"{stage.name}: {outline(stage, description, done, processes.count)}")
    return run_stage(stage, loop, description, out, fresh=fresh, prepare=prepare, processes=processes)


def _done(out: Path, *, fresh: bool) -> int:
    """Steps of the run that would be continued."""
    there = not fresh and (out / CHECKPOINT / FILE_NAME).is_file()
    return read_description(out / CHECKPOINT).step if there else 0


class Zeros:
    """Stands for hidden states that are not computed yet."""

    draws = 1

    def __init__(self, samples: int, tokens: int, width: int) -> None:
        self._samples, self._size = samples, (tokens, width)

    def __len__(self) -> int:
        return self._samples

    def take(
        self, samples: Int64[np.ndarray, " b"], draws: Int64[np.ndarray, " b"], views: Int64[np.ndarray, " b"] | None
    ) -> Float16[np.ndarray, "b m dm"]:
        """Nothing but zeros."""
        return np.zeros((len(samples), *self._size), np.float16)


def _stand_in_hidden(stage: AnyStage) -> None:
    """Lets batches come with hidden states, as they will where those are computed beforehand."""
    motion = stage.model.config.motion
    if not isinstance(stage, PolicyStage) or motion is None or not stage.config.cached_hidden_draws:
        return
    parts = [part for part in parts_of(stage) if isinstance(part, PolicySamples)]
    validation = stage.validation
    held_out = () if validation is None else validation.parts if isinstance(validation, MixedSamples) else (validation,)
    for part in (*parts, *held_out):
        if isinstance(part, PolicySamples):
            part.motion_hidden = Zeros(len(part), motion.tokens, motion.width)


def _disk(stage: AnyStage, out: Path) -> DiskPlan:
    loop = stage.config.loop
    weights = sum(value.numel() * value.element_size() for value in stage.model.state_dict().values())
    trained = sum(value.numel() * value.element_size() for value in stage.parameters().values())
    # Two moments for each trained weight, and the weights themselves where the checkpoint's are their average.
    checkpoint = weights + 2 * trained + (trained if loop.ema is not None else 0)
    hidden = hidden_bytes(stage)
    there = next(folder for folder in (out.resolve(), *out.resolve().parents) if folder.exists())
    return DiskPlan(
        checkpoint=checkpoint, hidden=hidden, total=2 * checkpoint + hidden, free=shutil.disk_usage(there).free
    )


def _time(stage: AnyStage, loop: LoopConfig, out: Path, done: int, group: Processes) -> TimePlan:
    trained = Loop(stage, loop, out, save=lambda state: None, processes=group)
    begun, seconds = time.perf_counter(), trained.rehearse(1)
    # All processes take as many steps: those that the main one has patience for.
    while len(seconds) < WARM_UP + MEASURED and group.told(time.perf_counter() - begun) < PATIENCE_S:
        seconds += trained.rehearse(1)
    # The first steps make the optimizer's state and fill caches, so they are left out, but for a very slow model's.
    measured = seconds[WARM_UP:] or seconds[-1:]
    step = statistics.median(measured)
    training = step * (loop.steps - done)
    if loop.time_budget_s is not None:
        training = min(training, loop.time_budget_s)
    # A run that has begun has its hidden states.
    with trained.placement.whole():
        hidden, validation = 0.0 if done else _hidden_time(stage), _validation_time(stage, done)
    return TimePlan(
        step=step,
        measured=len(measured),
        samples_per_s=min(loop.batch_size, len(stage.samples)) / step,
        hidden=hidden,
        training=training,
        validation=validation,
        total=hidden + training + validation,
    )


def _hidden_time(stage: AnyStage) -> float:
    if not isinstance(stage, PolicyStage) or not hidden_bytes(stage):
        return 0.0
    first = parts_of(stage)[0]
    assert isinstance(first, PolicySamples)
    indices = np.arange(min(SAMPLES_AT_ONCE, len(first)))
    model = stage.model.eval()
    times = []
    for _ in range(2):
        started = time.perf_counter()
        _hidden(stage.config.loop, model, first.batch(indices))
        times.append(time.perf_counter() - started)
    held_out = 0 if stage.validation is None else len(stage.validation)
    return times[-1] / len(indices) * (len(stage.samples) * stage.config.cached_hidden_draws + held_out)


@torch.inference_mode()
def _hidden(loop: LoopConfig, model: LaMP, batch: Batch) -> None:
    assert model.motion_shape is not None
    encoded = batch.encoded.to(loop.device)
    with loop.precision.autocast(loop.device):
        model.motion_hidden(encoded, torch.randn(len(encoded.mask), *model.motion_shape).to(loop.device)).float().cpu()


def _validation_time(stage: AnyStage, done: int) -> float:
    """Measures a few held-out samples, and multiplies."""
    if stage.validation is None:
        return 0.0
    config: Any = stage.config
    few = min(VALIDATED, len(stage.validation))
    wanted = min(config.validation_samples, len(stage.validation))
    stage.config = _with_few(config, few)
    started = time.perf_counter()
    stage.validate()
    each = (time.perf_counter() - started) / few
    stage.config = config
    validations = math.ceil(config.loop.steps / config.loop.validate_every) - done // config.loop.validate_every
    at_the_end = 0
    if isinstance(config, MotionTraining):
        at_the_end = 4 * min(config.final_samples, len(stage.validation))
    return each * (wanted * validations + at_the_end)


def _with_few(config: Any, few: int) -> Any:
    changes = {"validation_samples": few}
    if isinstance(config, PolicyTraining):
        # The whole chunks of a few samples: as many for each as there are in a full validation.
        share = config.action_samples / max(config.validation_samples, 1)
        changes["action_samples"] = math.ceil(min(share, 1.0) * few) if config.action_samples else 0
    return replace(config, **changes)
