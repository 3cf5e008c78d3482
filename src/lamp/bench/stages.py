"""The stages of a chunk of actions, each with what it costs at least."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lamp.bench.machine import Ceilings
from lamp.bench.subjects import Subject
from lamp.bench.timing import Timing
from lamp.model.fast import Recorded
from lamp.model.lamp import LaMP

Run = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage's work and time."""

    seconds: float
    """Median."""
    flops: float
    """Floating-point operations of the matrix products, as the plain arithmetic has them."""
    weight_bytes: float
    """Weights that are read, once for each evaluation: of a table, such as the words', only some rows are, and none count."""
    parameters: int
    evaluations: int
    """How often the network is asked."""
    floor_s: float
    """The least time on this machine: of arithmetic or of reading weights, whichever is larger."""
    of_matrix_rate: float
    """Share of the machine's measured matrix rate."""
    of_copy_rate: float
    """Share of its measured bandwidth that reading the weights takes."""


def stage(
    flops: float, part: nn.Module | None, evaluations: int, itemsize: int, time: Timing, limits: Ceilings
) -> Stage:
    """Puts a stage's work beside its time."""
    parameters = sum(p.numel() for p in part.parameters()) if part is not None else 0
    tables = [m for m in part.modules() if isinstance(m, nn.Embedding)] if part is not None else []
    read = float((parameters - sum(m.weight.numel() for m in tables)) * itemsize * evaluations)
    return Stage(
        seconds=time.p50_s,
        flops=flops,
        weight_bytes=read,
        parameters=parameters,
        evaluations=evaluations,
        floor_s=limits.floor_s(flops, read),
        of_matrix_rate=flops / time.p50_s / limits.matrix_flops,
        of_copy_rate=read / time.p50_s / limits.copy_bytes,
    )


@torch.no_grad()
def runs(subject: Subject, model: LaMP) -> dict[str, Run]:
    """Returns each stage's work on the subject's batch, by itself; on a GPU as a CUDA graph."""
    encoded = replace(subject.encoded, whole=True)
    hidden = None
    stages: dict[str, Run] = {}
    if subject.see is not None:
        stages["vlm"] = subject.see_fast or subject.see
    if model.motion_expert is not None and subject.motion_noise is not None:
        hidden = model.motion_hidden(encoded, subject.motion_noise)
        stages["motion"] = _recorded(lambda noise: model.motion_hidden(encoded, noise), noise=subject.motion_noise)
    guided = model.guide(encoded, hidden)
    if model.guidance is not None:
        stages["guidance"] = _recorded(lambda hidden: model.guide(encoded, hidden).tokens, hidden=hidden)
    stages["action"] = _recorded(lambda noise: model.decode(guided, subject.state, noise), noise=subject.action_noise)
    return stages


def _recorded(function: Callable[..., Tensor], **given: Any) -> Run:
    if next(iter(given.values())).device.type != "cuda":
        return lambda: function(**given)
    graph = Recorded(function, given)
    return lambda: graph(given)


def flops_of(subject: Subject) -> dict[str, float]:
    """Counts each stage's arithmetic on tensors without values, so that a full-size model takes no time."""
    plain = copy.deepcopy(subject.model).to("meta")
    ghost = replace(
        subject,
        model=plain,
        see=None,
        encoded=replace(subject.encoded.to("meta"), whole=True),
        state=subject.state.to("meta"),
        motion_noise=None if subject.motion_noise is None else subject.motion_noise.to("meta"),
        action_noise=subject.action_noise.to("meta"),
    )
    counted = {name: _count(run) for name, run in runs(ghost, plain).items()}
    if subject.see is not None:
        counted["vlm"] = _count(subject.see)
    return counted


def _count(run: Run) -> float:
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        run()
    return float(counter.get_total_flops())
