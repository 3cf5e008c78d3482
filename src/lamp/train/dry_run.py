"""`lamp train ... --plan`: what a run will need, before anything is trained: memory, steps, time, disk.

A `Planner` takes the place of `run_stage`, so that it sees exactly the stage that would be trained. It takes a few real steps on
the real data and discards them; nothing is written."""

from __future__ import annotations

import math
import shutil
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float16, Int64
from torch import Tensor, nn

from lamp.data.feature_cache.cache import HiddenStates
from lamp.data.image_dataset import ObservedBatch
from lamp.data.motion_dataset import MEMORY_LIMIT
from lamp.model.lamp import LaMP
from lamp.progress import say
from lamp.train.checkpoint_metadata import FILE_NAME, Description, read_description
from lamp.train.config import LoopConfig
from lamp.train.distributed import SINGLE_PROCESS, DistributedContext
from lamp.train.memory_estimate import GIB, GPU_RESERVE, BatchShape, Memory, largest_batch, step_memory
from lamp.train.motion_feature_cache import SAMPLES_AT_ONCE
from lamp.train.parallel import check_sharding
from lamp.train.run_folder import CHECKPOINT, TrainingResult, run_stage
from lamp.train.run_plan import Amount, DiskPlan, MemoryPlan, RunPlan, TimePlan, size
from lamp.train.stages import MotionStage, PolicyStage
from lamp.train.trainer import Outcome, Trainer
from lamp.types import TokenBatch

AnyStage = MotionStage | PolicyStage

GPU_SIZES_GIB = (24, 40, 80)
"""GPUs for which the largest batch is worked out."""


def amount(stage: AnyStage, description: Description, done: int, count: int) -> Amount:
    """How much is trained on what, where `done` steps of a run are there and `count` processes share the rest."""
    loop, trained = stage.config.loop, stage.parameters()
    known = {id(parameter) for parameter in trained.values()}
    whole = {name.removeprefix("lamp."): parameter for name, parameter in stage.module.named_parameters()}
    return Amount(
        steps=loop.steps,
        done=done,
        epochs=loop.steps * stage.batch_samples / len(stage.samples),
        samples=len(stage.samples),
        episodes=description.data.episodes,
        held_out_episodes=len(description.data.validation_episodes),
        batch=loop.batch_size,
        processes=count,
        trained=_by_module(trained),
        frozen=_by_module({name: value for name, value in whole.items() if id(value) not in known})
        | ({"backbone": sum(value.numel() for value in live.parameters())} if (live := live_module(stage)) else {}),
    )


def live_module(stage: AnyStage) -> nn.Module | None:
    """The frozen backbone that encodes in the step; None where its features are cached, or it is part of the model."""
    backbones = [part.features.backbone for part in stage.samples.cached]
    return next((backbone for backbone in backbones if isinstance(backbone, nn.Module)), None)


def _step_memory(stage: AnyStage, shape: BatchShape, device: str | None, count: int) -> Memory:
    """What a step holds on each of so many devices, with the backbone that encodes in it."""
    held, live = step_memory(stage.config, shape, device, processes=count), live_module(stage)
    if live is None:
        return held
    return replace(held, backbone=sum(value.nbytes for value in (*live.parameters(), *live.buffers())))


def _by_module(parameters: Mapping[str, Tensor]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name, parameter in parameters.items():
        module = name.split(".")[0]
        counts[module] = counts.get(module, 0) + parameter.numel()
    return counts


def memory(stage: AnyStage, device: str, count: int) -> MemoryPlan | None:
    """What a step holds on each of so many devices; None where the backbone is trained along, which is not worked out."""
    if not stage.samples.cached:
        return None
    training, shape = stage.config, batch_shape(stage, count)
    held = _step_memory(stage, shape, device, count)
    sizes = GPU_SIZES_GIB if torch.device(device).type != "cpu" else ()
    limits = {gib: gib * GIB - GPU_RESERVE - held.backbone for gib in sizes}
    return MemoryPlan(
        device=device,
        samples=shape.samples,
        total=held.total,
        fullest=held.fullest.name,
        parts=held.parts,
        gradients=max(moment.gradients for moment in held.moments),
        largest_batch={
            str(gib): largest_batch(training, shape, limit, device, processes=count) for gib, limit in limits.items()
        },
        data=_data_in_memory(stage),
    )


def batch_shape(stage: AnyStage, count: int) -> BatchShape:
    """Of what each of so many processes computes at once; with hidden states, where they are computed before."""
    at_once = math.ceil(stage.batch_samples / (count * stage.config.loop.accumulate))
    batch = stage.samples.batch(np.arange(at_once))
    assert not isinstance(batch, ObservedBatch)  # `memory` leaves pictures out
    return replace(BatchShape.of(batch), hidden=stage.stored_draws > 0)


def summary_line(stage: AnyStage, description: Description, done: int, count: int) -> str:
    """What is about to be trained, in one line."""
    planned = amount(stage, description, done, count)
    trained, frozen = (_count_text(sum(counts.values())) for counts in (planned.trained, planned.frozen))
    shared = f" over {count} processes" if count > 1 else ""
    line = (
        f"{trained} parameters trained, {frozen} frozen; {planned.steps - done:,} steps of "
        f"{stage.batch_samples} samples{shared}, {planned.epochs * (1 - done / planned.steps):.1f} epochs"
    )
    if not stage.samples.cached:
        return line
    device = torch.device(stage.config.loop.device).type
    held = _step_memory(stage, batch_shape(stage, count), None, count).total
    return f"{line}; a step holds about {size(held)} on {device} (--plan says more)"


def _count_text(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count:,}"


def _data_in_memory(stage: AnyStage) -> dict[str, int]:
    folders = {part.features.folder for part in stage.samples.cached if part.features.backbone is None}
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    sizes = {"features (mapped)": sum(file.stat().st_size for file in files)} if folders else {}
    for flow in [part.scene_flow for part in stage.samples.cached]:
        if flow is not None:
            rows, columns = flow.store.description.sampling.grid
            # Start and increments in float32; visibility, and a mask for each axis.
            each = rows * columns * (12 + flow.horizon * (12 + 1 + 3))
            sizes["scene flow"] = sizes.get("scene flow", 0) + min(each * len(flow), MEMORY_LIMIT)
    if hidden := hidden_states_size(stage):
        sizes["motion hidden states (mapped)"] = hidden
    return sizes


def hidden_states_size(stage: AnyStage) -> int:
    """Of the motion hidden states, where they are computed before."""
    shape = stage.model.config.hidden_shape
    if not stage.stored_draws or shape is None:
        return 0
    held_out = 0 if stage.validation is None else len(stage.validation)
    return (len(stage.samples) * stage.stored_draws + held_out) * math.prod(shape) * 2


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
        self.plan: RunPlan | None = None
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
        distributed: DistributedContext = SINGLE_PROCESS,
    ) -> TrainingResult:
        """As `run_stage`, but for what it does."""
        check_sharding(loop.sharding, distributed.world_size)
        self.main = distributed.is_main
        done = _completed_steps(out, fresh=fresh)
        _use_placeholder_hidden_states(stage)
        is_present = torch.device(loop.device).type == torch.device(self.device).type
        seconds = _time_plan(stage, loop, out, done, distributed) if is_present else None
        held = memory(stage, self.device, distributed.world_size)
        disk = _disk_plan(stage, out)
        self.plan = RunPlan(
            stage=stage.name,
            out=str(out),
            amount=amount(stage, description, done, distributed.world_size),
            memory=held,
            time=seconds,
            disk=disk,
            notes=tuple(self._notes(stage, held, seconds, disk)),
        )
        outcome = Outcome(reason="planned", step=done, elapsed_s=0.0, samples_per_s=0.0)
        return TrainingResult(checkpoint=out / CHECKPOINT, description=description, outcome=outcome)

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


def run_stage_with_summary(
    stage: Any,
    loop: LoopConfig,
    description: Description,
    out: Path,
    *,
    fresh: bool,
    prepare: Callable[[], None] = lambda: None,
    distributed: DistributedContext = SINGLE_PROCESS,
) -> TrainingResult:
    """`run_stage`, which says in one line what it is about to train."""
    done = _completed_steps(out, fresh=fresh)
    if distributed.is_main and done < loop.steps:
        say(f"{stage.name}: {summary_line(stage, description, done, distributed.world_size)}")
    return run_stage(stage, loop, description, out, fresh=fresh, prepare=prepare, distributed=distributed)


def _completed_steps(out: Path, *, fresh: bool) -> int:
    """Steps of the run that would be continued."""
    there = not fresh and (out / CHECKPOINT / FILE_NAME).is_file()
    return read_description(out / CHECKPOINT).step if there else 0


class ZeroHiddenStates(HiddenStates):
    """Stands for hidden states that are not computed yet."""

    def __init__(self, samples: int, tokens: int, width: int) -> None:
        self._samples, self._size, self.draws = samples, (tokens, width), 1

    def __len__(self) -> int:
        return self._samples

    def take(
        self, samples: Int64[np.ndarray, " b"], draws: Int64[np.ndarray, " b"], views: Int64[np.ndarray, " b"] | None
    ) -> Float16[np.ndarray, "b m dm"]:
        """Nothing but zeros."""
        return np.zeros((len(samples), *self._size), np.float16)


def _use_placeholder_hidden_states(stage: AnyStage) -> None:
    """Lets batches come with hidden states, as they will where those are computed beforehand."""
    shape = stage.model.config.hidden_shape
    if not isinstance(stage, PolicyStage) or shape is None or not stage.stored_draws:
        return
    for part in (*stage.samples.cached, *(stage.validation.cached if stage.validation is not None else ())):
        part.motion_hidden = ZeroHiddenStates(len(part), *shape)


def _disk_plan(stage: AnyStage, out: Path) -> DiskPlan:
    loop = stage.config.loop
    weights = sum(value.numel() * value.element_size() for value in stage.model.state_dict().values())
    trained = sum(value.numel() * value.element_size() for value in stage.parameters().values())
    # Two moments for each trained weight, and the weights themselves where the checkpoint's are their average.
    checkpoint = weights + 2 * trained + (trained if loop.ema is not None else 0)
    hidden = hidden_states_size(stage)
    there = next(folder for folder in (out.resolve(), *out.resolve().parents) if folder.exists())
    return DiskPlan(
        checkpoint=checkpoint, hidden=hidden, total=2 * checkpoint + hidden, free=shutil.disk_usage(there).free
    )


def _time_plan(stage: AnyStage, loop: LoopConfig, out: Path, done: int, distributed: DistributedContext) -> TimePlan:
    trainer = Trainer(stage, loop, out, save=lambda state: None, distributed=distributed)
    begun, seconds = time.perf_counter(), trainer.rehearse(1)
    # All processes take as many steps: those that the main one has patience for.
    while len(seconds) < WARM_UP + MEASURED and distributed.broadcast(time.perf_counter() - begun) < PATIENCE_S:
        seconds += trainer.rehearse(1)
    # The first steps make the optimizer's state and fill caches, so they are left out, but for a very slow model's.
    measured = seconds[WARM_UP:] or seconds[-1:]
    step = statistics.median(measured)
    training = step * (loop.steps - done)
    if loop.time_budget_s is not None:
        training = min(training, loop.time_budget_s)
    # A run that has begun has its hidden states.
    with trainer.strategy.unsharded():
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
    if not hidden_states_size(stage):
        return 0.0
    first = next(iter(stage.samples.cached))
    indices = np.arange(min(SAMPLES_AT_ONCE, len(first)))
    model = stage.model.eval()
    times = []
    for _ in range(2):
        started = time.perf_counter()
        _compute_hidden(stage.config.loop, model, first.batch(indices))
        times.append(time.perf_counter() - started)
    held_out = 0 if stage.validation is None else len(stage.validation)
    return times[-1] / len(indices) * (len(stage.samples) * stage.stored_draws + held_out)


@torch.inference_mode()
def _compute_hidden(loop: LoopConfig, model: LaMP, batch: TokenBatch) -> None:
    encoded = batch.encoded.to(loop.device)
    with loop.precision.autocast(loop.device):
        noise = model.motion_noise(len(encoded.mask), torch.default_generator, loop.device)
        model.motion_hidden(encoded, noise).float().cpu()


def _validation_time(stage: AnyStage, done: int) -> float:
    """Measures a few held-out samples, and multiplies."""
    if stage.validation is None:
        return 0.0
    config: Any = stage.config
    few = min(VALIDATED, len(stage.validation))
    wanted = min(config.validation_samples, len(stage.validation))
    stage.config = _with_few_samples(config, few)
    started = time.perf_counter()
    stage.validate()
    each = (time.perf_counter() - started) / few
    stage.config = config
    validations = math.ceil(config.loop.steps / config.loop.validate_every) - done // config.loop.validate_every
    at_the_end = 4 * min(config.final_samples, len(stage.validation))
    return each * (wanted * validations + at_the_end)


def _with_few_samples(config: Any, few: int) -> Any:
    changes = {"validation_samples": few}
    if config.action_samples:
        # The whole chunks of a few samples: as many for each as there are in a full validation.
        share = config.action_samples / max(config.validation_samples, 1)
        changes["action_samples"] = math.ceil(min(share, 1.0) * few)
    return replace(config, **changes)
