"""`lamp bench infer`: what one chunk of actions costs, stage by stage, and how that compares with another way in the same run."""

from __future__ import annotations

import copy
import resource
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from torch.utils.flop_counter import FlopCounterMode

from lamp.bench.reference import ReleaseArrangement
from lamp.bench.subjects import Subject, subject
from lamp.bench.timing import Ceilings, Machine, Timing, check_settings, describe_machine, heading, measure
from lamp.model.fast import FastActor, Recorded
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


@dataclass(frozen=True, kw_only=True)
class InferConfig:
    """Measures one chunk of actions with random weights: each stage's time and arithmetic, against the machine's limits."""

    recipe: str = "bench_mid"
    """Whose policy: a name that `lamp recipe list` shows."""
    batch: int = 1
    """Observations at a time."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the networks; time and noise stay in float32."""
    against: Literal["reference", "plain"] = "reference"
    """What to compare with: `reference` is the same sizes as the authors' release arranges them, in diffusers' CogVideoX
    transformer and plain PyTorch modules; `plain` is our own model without the fast path."""
    vlm: bool = True
    """Run the recipe's vision-language model too: ours the fast way, on the other side as transformers runs it."""
    threads: int = 1
    """Of the CPU."""
    seconds: float = 30.0
    """About how long to measure."""
    json: bool = False
    """Print one JSON object."""

    def __post_init__(self) -> None:
        check_settings(device=self.device, batch=self.batch, threads=self.threads, seconds=self.seconds)


@dataclass(frozen=True, kw_only=True)
class InferResult:
    """What was measured."""

    recipe: str
    batch: int
    against: str
    ratio: float
    """The other way's median over ours."""
    ours: Timing
    other: Timing
    stages: dict[str, Stage]
    host_s: float
    """What a whole chunk takes beyond its stages."""
    floors_s: float
    """Sum of the stages' floors."""
    over_floors: float
    """Our median over that sum."""
    evaluations: dict[str, int]
    parameters: int
    peak_bytes: int
    """Most memory held while ours was prepared and run: of the device where there is one, else of this process."""
    largest_difference: float
    """Between the plain path's actions and the fast path's."""
    cosine: float
    """Between the same, the least of all observations."""
    vlm_cosine: float | None
    """Between the tokens of transformers' own forward and of the fast way, the least of all tokens; None without Qwen3-VL."""
    machine: Machine


def bench_infer(config: InferConfig) -> InferResult:
    """Measures a recipe's policy.

    Raises:
        ConfigError: The recipe has no policy, or its policy has no counterpart in the reference.
    """
    torch.set_num_threads(config.threads)
    device, dtype = torch.device(config.device), getattr(torch, config.precision)
    measured = subject(config.recipe, batch=config.batch, device=device, dtype=dtype, vlm=config.vlm)
    machine = describe_machine(device, dtype)
    actor = FastActor(measured.model, dtype)
    with torch.inference_mode():
        _forget_peak(device)
        ours = _ours(measured, actor)
        ours()
        peak = _peak(device)
        fast, plain = actor.act(**measured.inputs), measured.model.act(**measured.inputs)
        vlm_cosine, parts = _vlm_cosine(measured), runs(measured, actor.model)
        whole = measure(
            {"ours": ours, "other": _other(measured, config, dtype)}, device, seconds=config.seconds * 2 / 3
        )
        timed = measure(parts, device, seconds=config.seconds / 3)
        flops = flops_of(measured)
    stages = _stages(measured, actor.model, flops, timed, machine, dtype.itemsize)
    floors = sum(found.floor_s for found in stages.values())
    return InferResult(
        recipe=config.recipe,
        batch=config.batch,
        against=config.against,
        ratio=whole["other"].p50_s / whole["ours"].p50_s,
        ours=whole["ours"],
        other=whole["other"],
        stages=stages,
        host_s=max(0.0, whole["ours"].p50_s - sum(found.seconds for found in stages.values())),
        floors_s=floors,
        over_floors=whole["ours"].p50_s / floors,
        evaluations=measured.model.config.evaluations | ({"vlm": 1} if measured.see else {}),
        parameters=sum(found.parameters for found in stages.values()),
        peak_bytes=peak,
        largest_difference=float((fast - plain).abs().max()),
        cosine=_least_cosine(fast.flatten(1), plain.flatten(1)),
        vlm_cosine=vlm_cosine,
        machine=machine,
    )


def _ours(measured: Subject, actor: FastActor) -> Run:
    if measured.joined is not None and actor.device.type == "cuda":
        return measured.joined(actor)
    return _whole(measured.see_fast or measured.see, lambda: actor.act(**measured.inputs))


def _whole(see: Run | None, act: Run) -> Run:
    if see is None:
        return act

    def run() -> None:
        see()
        act()

    return run


def _other(measured: Subject, config: InferConfig, dtype: torch.dtype) -> Run:
    if config.against == "plain":
        return _whole(measured.see, _plain(measured, dtype))
    return _whole(measured.see, _reference(measured, dtype))


def _vlm_cosine(measured: Subject) -> float | None:
    if measured.see is None or measured.see_fast is None:
        return None
    plain, fast = measured.see(), measured.see_fast()
    assert isinstance(plain, Tensor)
    return _least_cosine(plain, fast)


def _least_cosine(one: Tensor, other: Tensor) -> float:
    return float(cosine_similarity(one.float(), other.float(), dim=-1).min())


def _plain(measured: Subject, dtype: torch.dtype) -> Run:
    def run() -> Tensor:
        with torch.autocast(measured.state.device.type, dtype, enabled=dtype != torch.float32):
            return measured.model.act(**measured.inputs)

    return run


def _reference(measured: Subject, dtype: torch.dtype) -> Callable[[], Tensor]:
    config, device = measured.model.config, measured.state.device
    model = ReleaseArrangement(config).eval().to(device, dtype)
    assert config.motion is not None
    frames, (rows, columns) = config.motion.horizon // config.motion.frames_per_token, config.motion.grid
    batch, channels = len(measured.state), 3 * config.motion.frames_per_token
    motion = torch.randn(batch, frames, channels, rows, columns, device=device, dtype=dtype)
    z, state, actions = (x.to(dtype) for x in (measured.encoded.tokens, measured.state, measured.action_noise))
    return lambda: model.act(z, state, motion, actions)


def _stages(
    measured: Subject, model: LaMP, flops: dict[str, float], timed: dict[str, Timing], machine: Machine, itemsize: int
) -> dict[str, Stage]:
    parts = {
        "vlm": measured.vlm,
        "motion": model.motion_expert,
        "guidance": model.guidance,
        "action": model.action_expert,
    }
    evaluations = model.config.evaluations | {"vlm": 1}
    return {
        name: stage(flops[name], parts[name], evaluations[name], itemsize, time, machine.ceilings)
        for name, time in timed.items()
    }


def _forget_peak(device: torch.device) -> None:
    """What the ceilings were measured with does not count."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def to_text(result: InferResult) -> str:
    """A table for a terminal."""
    machine, limits = result.machine, result.machine.ceilings
    lines = [
        heading(result.recipe, result.batch, machine),
        f"measured here: matrix products {limits.matrix_flops / 1e9:,.0f} GFLOP/s, "
        f"copies {limits.copy_bytes / 1e9:,.1f} GB/s",
        "",
        f"{'stage':<10}{'ms':>9}{'GFLOP':>9}{'of matrix rate':>16}{'weights MB':>12}{'of copy rate':>14}"
        f"{'floor ms':>10}{'asked':>7}",
    ]
    lines += [
        f"{name:<10}{1e3 * s.seconds:>9.2f}{s.flops / 1e9:>9.2f}{s.of_matrix_rate:>16.0%}{s.weight_bytes / 1e6:>12.1f}"
        f"{s.of_copy_rate:>14.0%}{1e3 * s.floor_s:>10.2f}{s.evaluations:>7}"
        for name, s in result.stages.items()
    ]
    lines += [
        f"{'host':<10}{1e3 * result.host_s:>9.2f}",
        "",
        f"one chunk: {1e3 * result.ours.p50_s:.2f} ms (p95 {1e3 * result.ours.p95_s:.2f}, {result.ours.runs} runs), "
        f"{result.over_floors:.2f}x the sum of the floors; {result.parameters / 1e6:.1f} M parameters; "
        f"most memory {result.peak_bytes / 2**30:.2f} GiB",
        f"{result.against}: {1e3 * result.other.p50_s:.2f} ms (p95 {1e3 * result.other.p95_s:.2f}, {result.other.runs} runs)",
        f"{result.against} / ours: {result.ratio:.2f}",
        f"plain and fast path's actions: largest difference {result.largest_difference:.1e}, least cosine {result.cosine:.6f}",
    ]
    if result.vlm_cosine is not None:
        lines.append(f"least cosine between the vision-language model's tokens, both ways: {result.vlm_cosine:.6f}")
    return "\n".join(lines)
