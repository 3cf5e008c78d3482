"""What a prepared stage needs: how much is trained on what, and what a step holds; no step is taken for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lamp.data.image_samples import ImageSamples
from lamp.data.live_features import LiveFeatures
from lamp.data.mixture import Mixture
from lamp.data.motion_samples import MEMORY_LIMIT, MotionSamples
from lamp.data.samples import PolicySamples
from lamp.train.description import Description
from lamp.train.memory import GIB, GPU_RESERVE, BatchShape, Memory, largest_batch, step_memory
from lamp.train.plan import Amount, MemoryPlan, size
from lamp.train.stages import MotionStage, PolicyStage
from lamp.types import Batch

AnyStage = MotionStage | PolicyStage

GPU_SIZES_GIB = (24, 40, 80)
"""For which the largest batch is told."""


def parts_of(stage: AnyStage) -> list[MotionSamples | PolicySamples]:
    """The samples of each dataset, where they are cached."""
    samples = stage.samples
    if isinstance(samples, ImageSamples):
        return []
    return [*samples.parts] if isinstance(samples, Mixture) else [samples]


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
    live = [part.features.backbone for part in parts_of(stage) if isinstance(part.features, LiveFeatures)]
    return next((backbone for backbone in live if isinstance(backbone, nn.Module)), None)


def _step_memory(stage: AnyStage, shape: BatchShape, device: str | None, count: int) -> Memory:
    """What a step holds on each of so many devices, with the backbone that encodes in it."""
    found, live = step_memory(stage.config, shape, device, processes=count), live_module(stage)
    if live is None:
        return found
    return replace(found, backbone=sum(value.nbytes for value in (*live.parameters(), *live.buffers())))


def _by_module(parameters: Mapping[str, Tensor]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name, parameter in parameters.items():
        module = name.split(".")[0]
        counts[module] = counts.get(module, 0) + parameter.numel()
    return counts


def memory(stage: AnyStage, device: str, count: int) -> MemoryPlan | None:
    """What a step holds on each of so many devices; None where the backbone is trained along, which is not worked out."""
    if isinstance(stage.samples, ImageSamples):
        return None
    training, shape = stage.config, batch_shape(stage, count)
    found = _step_memory(stage, shape, device, count)
    sizes = GPU_SIZES_GIB if torch.device(device).type != "cpu" else ()
    limits = {gib: gib * GIB - GPU_RESERVE - found.backbone for gib in sizes}
    return MemoryPlan(
        device=device,
        samples=shape.samples,
        total=found.total,
        fullest=found.fullest.name,
        parts=found.parts,
        gradients=max(moment.gradients for moment in found.moments),
        largest_batch={
            str(gib): largest_batch(training, shape, limit, device, processes=count) for gib, limit in limits.items()
        },
        data=_data(stage),
    )


def batch_shape(stage: AnyStage, count: int) -> BatchShape:
    """Of what each of so many processes computes at once; with hidden states, where they are computed before."""
    at_once = math.ceil(stage.batch_samples / (count * stage.config.loop.accumulate))
    batch = stage.samples.batch(np.arange(at_once))
    assert isinstance(batch, Batch)
    hidden = isinstance(stage, PolicyStage) and stage.config.cached_hidden_draws > 0
    return replace(BatchShape.of(batch), hidden=hidden)


def outline(stage: AnyStage, description: Description, done: int, count: int) -> str:
    """What is about to be trained, in one line."""
    told = amount(stage, description, done, count)
    trained, frozen = (_told(sum(counts.values())) for counts in (told.trained, told.frozen))
    shared = f" over {count} processes" if count > 1 else ""
    line = (
        f"{trained} parameters trained, {frozen} frozen; {told.steps - done:,} steps of "
        f"{stage.batch_samples} samples{shared}, {told.epochs * (1 - done / told.steps):.1f} epochs"
    )
    if isinstance(stage.samples, ImageSamples):
        return line
    device = torch.device(stage.config.loop.device).type
    held = _step_memory(stage, batch_shape(stage, count), None, count).total
    return f"{line}; a step holds about {size(held)} on {device} (--plan says more)"


def _told(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count:,}"


def _data(stage: AnyStage) -> dict[str, int]:
    folders = {part.features.folder for part in parts_of(stage) if not isinstance(part.features, LiveFeatures)}
    found = {"features (mapped)": sum(map(_folder_bytes, folders))} if folders else {}
    if isinstance(stage, MotionStage):
        rows, columns = stage.samples.store.description.sampling.grid
        steps = stage.samples.horizon
        # Start and increments in float32; visibility, and a mask for each axis.
        each = rows * columns * (12 + steps * (12 + 1 + 3))
        found["scene flow"] = min(each * len(stage.samples), MEMORY_LIMIT)
    if hidden := hidden_bytes(stage):
        found["motion hidden states (mapped)"] = hidden
    return found


def hidden_bytes(stage: AnyStage) -> int:
    """Of the motion hidden states, where they are computed before."""
    motion = stage.model.config.motion
    if not isinstance(stage, PolicyStage) or motion is None:
        return 0
    held_out = len(stage.validation) if stage.validation is not None and stage.config.cached_hidden_draws else 0
    return (len(stage.samples) * stage.config.cached_hidden_draws + held_out) * motion.tokens * motion.width * 2


def _folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
