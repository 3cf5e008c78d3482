"""What a run will need, as `lamp train ... --plan` prints it; `lamp.train.dry_run` works it out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lamp.progress import clock


@dataclass(frozen=True, kw_only=True)
class Amount:
    """How much is trained on what."""

    steps: int
    done: int
    """Of them, by a run that would be continued."""
    epochs: float
    samples: int
    """Training samples, each once an epoch."""
    episodes: int
    held_out_episodes: int
    batch: int
    """Samples of a step, over all processes."""
    processes: int
    trained: dict[str, int]
    """Parameters of each module."""
    frozen: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """What a step holds, as it was worked out on tensors without values. [bytes]"""

    device: str
    samples: int
    """That each device computes at once."""
    total: int
    fullest: str
    """The moment at which it is that much."""
    parts: dict[str, int]
    """At that moment."""
    gradients: int
    """Once all are there, which may be another moment."""
    largest_batch: dict[str, int]
    """Samples that a GPU of so many GiB can compute at once, with a reserve of one GiB; empty on a CPU."""
    data: dict[str, int]
    """In the host's memory besides: what is kept of the data, and files that are mapped."""


@dataclass(frozen=True, kw_only=True)
class TimePlan:
    """How long it takes, from steps that were taken. [s]"""

    step: float
    """Median."""
    measured: int
    """Steps that it is the median of."""
    samples_per_s: float
    hidden: float
    """To compute the motion hidden states beforehand."""
    training: float
    """The steps that are left."""
    validation: float
    """All validations, and what is measured at the end."""
    total: float


@dataclass(frozen=True, kw_only=True)
class DiskPlan:
    """What the run's folder needs. [bytes]"""

    checkpoint: int
    """It is written beside the one before, which then goes."""
    hidden: int
    """The motion hidden states, until the run is finished."""
    total: int
    """At most."""
    free: int


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """What a run will need."""

    stage: str
    out: str
    amount: Amount
    memory: MemoryPlan | None
    """None where it is not worked out."""
    time: TimePlan | None
    """None where no step could be measured."""
    disk: DiskPlan
    notes: tuple[str, ...]


def size(count: int) -> str:
    """Formats bytes for people."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**29 else f"{count / 2**20:.1f} MiB"


def to_text(plan: RunPlan) -> str:
    """A plan for a terminal."""
    amount, memory, disk = plan.amount, plan.memory, plan.disk
    lines = [f"plan of {plan.stage}, {plan.out}", ""]
    lines += ["parameters", *_table({**_counts(amount.trained, "trained"), **_counts(amount.frozen, "frozen")})]
    left = f" ({amount.done} done)" if amount.done else ""
    shared = f" over {amount.processes} processes" if amount.processes > 1 else ""
    lines += ["", "amount", *_table({
        "steps": f"{amount.steps:,}{left}",
        "epochs": f"{amount.epochs:.1f}",
        "samples": f"{amount.samples:,} of {amount.episodes} episodes; {amount.held_out_episodes} held out",
        "batch": f"{amount.batch}{shared}",
    })]  # fmt: skip
    lines += _memory_lines(memory) if memory is not None else []
    if plan.time is not None:
        time = plan.time
        rows = {
            "step": f"{1e3 * time.step:.0f} ms, median of {time.measured}; {time.samples_per_s:.1f} samples/s",
            "hidden states": clock(time.hidden) if time.hidden else "",
            "training": clock(time.training),
            "validation": clock(time.validation) if time.validation else "",
        }
        lines += ["", f"time: {clock(time.total)}", *_table({name: text for name, text in rows.items() if text})]
    lines += ["", f"disk: up to {size(disk.total)} of {size(disk.free)} free", *_table({
        "checkpoint": f"{size(disk.checkpoint)}, twice while it is written",
        **({"hidden states": size(disk.hidden)} if disk.hidden else {}),
    })]  # fmt: skip
    return "\n".join([*lines, "", *(f"note: {note}" for note in plan.notes), "nothing was trained or written."])


def _memory_lines(memory: MemoryPlan) -> list[str]:
    head = f"memory of a step on {memory.device}, {memory.samples} samples at once: {size(memory.total)}"
    largest = {
        f"GPU of {gib} GiB": f"{'fits' if value >= memory.samples else 'TOO LITTLE'}; at most {value} samples at once"
        for gib, value in memory.largest_batch.items()
    }
    return [
        "",
        f"{head}, most in {memory.fullest}",
        *_table({name: size(value) for name, value in memory.parts.items() if value}),
        *_table(largest),
        *_table({name: size(value) for name, value in memory.data.items()}),
    ]


def _counts(modules: Mapping[str, int], kind: str) -> dict[str, str]:
    return {f"{name}, {kind}": f"{count:,}" for name, count in modules.items()}


def _table(rows: Mapping[str, str]) -> list[str]:
    width = max(map(len, rows), default=0)
    return [f"  {name:<{width}}  {text}" for name, text in rows.items()]
