"""`lamp bench infer`: the cost of one action chunk, stage by stage, against another implementation in the same run."""

from __future__ import annotations

import copy
import resource
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from torch.utils.flop_counter import FlopCounterMode

from lamp.bench.models import BenchModel, ReleaseArrangement, build_bench_model
from lamp.bench.timing import HardwareLimits, Timing, check_settings, describe_machine, heading, measure
from lamp.model.fast import CudaGraph, FastActor
from lamp.model.lamp import LaMP

Run = Callable[[], Any]


@dataclass(frozen=True, kw_only=True)
class InferConfig:
    """Measures one chunk of actions with random weights: each stage's time and arithmetic, against the machine's limits."""

    recipe: str = "bench_mid"
    """The policy's recipe: a name that `lamp recipe list` shows."""
    batch: int = 1
    """Observations at a time."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where it computes."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the networks; time and noise stay in float32."""
    against: Literal["reference", "plain"] = "reference"
    """What to compare with: `reference` is the same sizes as the authors' release arranges them, in diffusers' CogVideoX
    transformer and plain PyTorch modules; `plain` is our own model without the fast path."""
    vlm: bool = True
    """Run the recipe's vision-language model too: ours the fast way, on the other side as transformers runs it."""
    threads: int = 1
    """CPU threads."""
    seconds: float = 30.0
    """About how long to measure."""
    json: bool = False
    """Print one JSON object."""

    def __post_init__(self) -> None:
        check_settings(device=self.device, batch=self.batch, threads=self.threads, seconds=self.seconds)


def bench_infer(config: InferConfig) -> dict[str, Any]:
    """Measures a recipe's policy and returns the figures as JSON values.

    Raises:
        ConfigError: The recipe has no policy, or its policy has no counterpart in the reference.
    """
    torch.set_num_threads(config.threads)
    device, dtype = torch.device(config.device), getattr(torch, config.precision)
    bench = build_bench_model(config.recipe, batch=config.batch, device=device, dtype=dtype, vlm=config.vlm)
    machine = describe_machine(device, dtype)
    actor = FastActor(bench.model, dtype)
    act = _reference(bench, dtype) if config.against == "reference" else _plain(bench, dtype)
    with torch.inference_mode():
        if device.type == "cuda":  # what the ceilings were measured with does not count
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        ours = _ours(bench, actor)
        ours()
        on_gpu = device.type == "cuda"
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        peak = torch.cuda.max_memory_allocated(device) if on_gpu else resident
        fast, plain = actor.act(**bench.inputs), bench.model.act(**bench.inputs)
        vlm_cosine = None
        if bench.encode is not None and bench.encode_fast is not None:
            vlm_cosine = _lowest_cosine(bench.encode(), bench.encode_fast())
        parts = stage_runs(bench, actor.model)
        ways = {"ours": ours, "other": _after(bench.encode, act)}
        whole = measure(ways, device, seconds=config.seconds * 2 / 3)
        timed = measure(parts, device, seconds=config.seconds / 3)
        flops = flops_of(bench)
    evaluations = bench.model.config.evaluations | ({"vlm": 1} if bench.encode else {})
    model = actor.model
    modules = {
        "vlm": bench.vlm,
        "motion": model.motion_expert,
        "guidance": model.guidance,
        "action": model.action_expert,
    }
    stages = {
        name: stage_figures(flops[name], modules[name], evaluations[name], dtype.itemsize, timing, machine.ceilings)
        for name, timing in timed.items()
    }
    floors = sum(stage["floor_s"] for stage in stages.values())
    return {
        "recipe": config.recipe,
        "batch": config.batch,
        "against": config.against,
        "ratio": whole["other"].p50_s / whole["ours"].p50_s,
        "ours": asdict(whole["ours"]),
        "other": asdict(whole["other"]),
        "stages": stages,
        "host_s": max(0.0, whole["ours"].p50_s - sum(stage["seconds"] for stage in stages.values())),
        "floors_s": floors,
        "over_floors": whole["ours"].p50_s / floors,
        "evaluations": evaluations,
        "parameters": sum(stage["parameters"] for stage in stages.values()),
        "peak_bytes": peak,
        "largest_difference": float((fast - plain).abs().max()),
        "cosine": _lowest_cosine(fast.flatten(1), plain.flatten(1)),
        "vlm_cosine": vlm_cosine,
        "machine": asdict(machine),
    }


def _ours(bench: BenchModel, actor: FastActor) -> Run:
    if bench.fast_step is not None and actor.device.type == "cuda":
        step = bench.fast_step(actor)
        return lambda: step(**bench.expert_inputs)
    return _after(bench.encode_fast or bench.encode, lambda: actor.act(**bench.inputs))


def _after(encode: Run | None, act: Run) -> Run:
    return act if encode is None else lambda: (encode(), act())[1]


def _plain(bench: BenchModel, dtype: torch.dtype) -> Run:
    def run() -> Tensor:
        with torch.autocast(bench.state.device.type, dtype, enabled=dtype != torch.float32):
            return bench.model.act(**bench.inputs)

    return run


def _reference(bench: BenchModel, dtype: torch.dtype) -> Run:
    device = bench.state.device
    model = ReleaseArrangement(bench.model.config).eval().to(device, dtype)
    motion = torch.randn(len(bench.state), *model.motion_head.shape, device=device, dtype=dtype)
    z, state, actions = (x.to(dtype) for x in (bench.encoded.tokens, bench.state, bench.action_noise))
    return lambda: model.act(z, state, motion, actions)


def _lowest_cosine(one: Tensor, other: Tensor) -> float:
    return float(cosine_similarity(one.float(), other.float(), dim=-1).min())


@torch.no_grad()
def stage_runs(bench: BenchModel, model: LaMP) -> dict[str, Run]:
    """Returns each stage's work on the batch, by itself; on a GPU as a CUDA graph."""
    encoded = replace(bench.encoded, whole=True)
    hidden = None
    stages: dict[str, Run] = {}
    if bench.encode is not None:
        stages["vlm"] = bench.encode_fast or bench.encode
    if model.motion_expert is not None and bench.motion_noise is not None:
        hidden = model.motion_hidden(encoded, bench.motion_noise)
        stages["motion"] = _recorded(lambda noise: model.motion_hidden(encoded, noise), noise=bench.motion_noise)
    guided = model.guide(encoded, hidden)
    if model.guidance is not None and hidden is not None:
        stages["guidance"] = _recorded(lambda hidden: model.guide(encoded, hidden).tokens, hidden=hidden)
    stages["action"] = _recorded(lambda noise: model.decode(guided, bench.state, noise), noise=bench.action_noise)
    return stages


def _recorded(function: Callable[..., Tensor], **inputs: Any) -> Run:
    if next(iter(inputs.values())).device.type != "cuda":
        return lambda: function(**inputs)
    graph = CudaGraph(function, inputs)
    return lambda: graph(inputs)


def flops_of(bench: BenchModel) -> dict[str, float]:
    """Counts each stage's arithmetic on the meta device, so that a full-size model takes no time."""
    model = copy.deepcopy(bench.model).to("meta")
    meta = replace(
        bench,
        model=model,
        encode=None,
        encoded=bench.encoded.to("meta"),
        state=bench.state.to("meta"),
        motion_noise=None if bench.motion_noise is None else bench.motion_noise.to("meta"),
        action_noise=bench.action_noise.to("meta"),
    )
    counted = {}
    for name, run in (stage_runs(meta, model) | ({"vlm": bench.encode} if bench.encode else {})).items():
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            run()
        counted[name] = float(counter.get_total_flops())
    return counted


def stage_figures(
    flops: float, part: nn.Module | None, evaluations: int, itemsize: int, timing: Timing, ceilings: HardwareLimits
) -> dict[str, Any]:
    """Puts a stage's work beside its time.

    `floor_s` is the least time on this machine for the arithmetic and for reading the weights once an evaluation. An embedding
    table's weights are not counted, since only some rows are read.
    """
    parameters = sum(p.numel() for p in part.parameters()) if part is not None else 0
    tables = sum(m.weight.numel() for m in part.modules() if isinstance(m, nn.Embedding)) if part is not None else 0
    read = float((parameters - tables) * itemsize * evaluations)
    return {
        "seconds": timing.p50_s,
        "flops": flops,
        "weight_bytes": read,
        "parameters": parameters,
        "evaluations": evaluations,
        "floor_s": ceilings.floor_s(flops, read),
        "of_matrix_rate": flops / timing.p50_s / ceilings.matrix_flops,
        "of_copy_rate": read / timing.p50_s / ceilings.copy_bytes,
    }


def to_text(figures: Mapping[str, Any]) -> str:
    """A table for a terminal."""
    machine, ours, other, against = (figures[key] for key in ("machine", "ours", "other", "against"))
    limits = machine["ceilings"]
    lines = [
        heading(figures["recipe"], figures["batch"], machine),
        f"measured here: matrix products {limits['matrix_flops'] / 1e9:,.0f} GFLOP/s, "
        f"copies {limits['copy_bytes'] / 1e9:,.1f} GB/s",
        "",
        f"{'stage':<10}{'ms':>9}{'GFLOP':>9}{'of matrix rate':>16}{'weights MB':>12}{'of copy rate':>14}"
        f"{'floor ms':>10}{'asked':>7}",
    ]
    lines += [
        f"{name:<10}{1e3 * s['seconds']:>9.2f}{s['flops'] / 1e9:>9.2f}{s['of_matrix_rate']:>16.0%}"
        f"{s['weight_bytes'] / 1e6:>12.1f}{s['of_copy_rate']:>14.0%}{1e3 * s['floor_s']:>10.2f}{s['evaluations']:>7}"
        for name, s in figures["stages"].items()
    ]
    lines += [
        f"{'host':<10}{1e3 * figures['host_s']:>9.2f}",
        "",
        f"one chunk: {1e3 * ours['p50_s']:.2f} ms (p95 {1e3 * ours['p95_s']:.2f}, {ours['runs']} runs), "
        f"{figures['over_floors']:.2f}x the sum of the floors; {figures['parameters'] / 1e6:.1f} M parameters; "
        f"most memory {figures['peak_bytes'] / 2**30:.2f} GiB",
        f"{against}: {1e3 * other['p50_s']:.2f} ms (p95 {1e3 * other['p95_s']:.2f}, {other['runs']} runs)",
        f"{against} / ours: {figures['ratio']:.2f}",
        f"plain and fast path's actions: largest difference {figures['largest_difference']:.1e}, "
        f"least cosine {figures['cosine']:.6f}",
    ]
    if figures["vlm_cosine"] is not None:
        lines.append(f"least cosine between the vision-language model's tokens, both ways: {figures['vlm_cosine']:.6f}")
    return "\n".join(lines)
