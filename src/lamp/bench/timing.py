"""The core of the speed benchmarks: ways of doing the same thing are timed in turns, beside what the machine can do.

Whatever slows the machine slows all ways. The machine's own matrix rate and copy rate are measured in the same run.
`python -m lamp.bench.timing FILE...` prints a line for each file of `lamp bench infer --json` and `lamp bench train-step --json`.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lamp.errors import ConfigError
from lamp.model import onednn
from lamp_client.child_processes import available_cores


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Wall times of one thing."""

    p50_s: float
    p95_s: float
    best_s: float
    runs: int


def wait_for(device: torch.device) -> None:
    """Waits until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(
    ways: Mapping[str, Callable[[], object]],
    device: torch.device,
    *,
    seconds: float = 5.0,
    least: int = 5,
    most: int = 1000,
    warm_up: int = 2,
) -> dict[str, Timing]:
    """Runs every way in turn, round after round, and returns each one's times.

    Args:
        ways: Name -> what to run.
        device: Where it computes; each run is waited for.
        seconds: About how long to measure in all, beyond `warm_up` rounds.
        least: Rounds at least.
        most: Rounds at most.
        warm_up: Rounds that are not counted: compilers, caches, clock rates.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(-warm_up, most):
        for name, run in ways.items():
            begun = time.perf_counter()
            run()
            wait_for(device)
            if round_ >= 0:
                times[name].append(time.perf_counter() - begun)
        if round_ + 1 >= least and sum(map(sum, times.values())) >= seconds:
            break
    return {name: _timing(values) for name, values in times.items()}


def _timing(values: list[float]) -> Timing:
    ordered = sorted(values)
    late = ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))]
    return Timing(p50_s=statistics.median(ordered), p95_s=late, best_s=ordered[0], runs=len(ordered))


MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}
COPIED_BYTES = {"cpu": 256 * 2**20, "cuda": 4 * 2**30}
"""Far beyond any cache."""
CEILING_S = 1.0
"""How long each way of multiplying is measured; copies, half as long. [s]"""


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """The best the machine was seen to do."""

    matrix_flops: float
    """Floating-point operations per second of a large matrix product in the precision at hand, by whichever kernel is the
    fastest [1/s]."""
    copy_bytes: float
    """Bytes read and written per second, together, while a large tensor is copied [1/s]."""

    def floor_s(self, flops: float, weight_bytes: float) -> float:
        """The least time for so much arithmetic on so many weights: the larger of the two limits [s]."""
        return max(flops / self.matrix_flops, weight_bytes / self.copy_bytes)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where a figure was measured."""

    device: str
    name: str
    """Of the processor or the accelerator."""
    threads: int
    precision: str
    ceilings: Ceilings
    torch: str
    python: str


def heading(what: str, batch: int, machine: Machine) -> str:
    """The first line of a table for a terminal."""
    threads = "one thread" if machine.threads == 1 else f"{machine.threads} threads"
    return f"{what}, batch {batch}, {machine.precision}, {machine.name}, {threads}"


def check_settings(*, device: str, **positive: Any) -> None:
    """Raises:
    ConfigError: There is no such device here, or a number that was given is not above zero.
    """
    for name, value in positive.items():
        if value is not None and value <= 0:
            raise ConfigError(f"{name} is {value}; expected more than 0")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is 'cuda' and torch finds no GPU here; expected 'cpu', or a machine with one")


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Measures the matrix rate in `dtype` and the copy rate; a second or two."""
    side = MATRIX_SIDE.get(device.type, MATRIX_SIDE["cpu"])
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty(side, side, device=device, dtype=dtype)
    products: dict[str, Callable[[], object]] = {"torch": lambda: torch.matmul(left, right, out=out)}
    if device.type == "cpu" and dtype == torch.float32 and onednn.available():
        # torch multiplies through MKL, which is not the fastest on every processor.
        packed = onednn.PackedLinear(torch.nn.Linear(side, side, bias=False))
        products["onednn"] = torch.inference_mode()(lambda: packed(left))
    timed = measure(products, device, seconds=CEILING_S * len(products))
    product = min(timed.values(), key=lambda timing: timing.best_s)
    source = torch.zeros(COPIED_BYTES.get(device.type, COPIED_BYTES["cpu"]), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = measure({"copy": lambda: target.copy_(source)}, device, seconds=CEILING_S / 2)["copy"]
    return Ceilings(matrix_flops=2 * side**3 / product.best_s, copy_bytes=2 * source.numel() / copy.best_s)


def describe_machine(device: torch.device, dtype: torch.dtype) -> Machine:
    """Measures the ceilings and notes what ran where."""
    return Machine(
        device=device.type,
        name=torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        threads=torch.get_num_threads(),
        precision=str(dtype).removeprefix("torch."),
        ceilings=measure_ceilings(device, dtype),
        torch=torch.__version__,
        python=platform.python_version(),
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    found = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return f"{found or platform.processor() or platform.machine()}, {available_cores()} cores"


def line(name: str, found: Mapping[str, Any]) -> str:
    """What one result says."""
    ours, other = (1e3 * found[way]["p50_s"] for way in ("ours", "other"))
    said = [
        f"{name}: {ours:.2f} ms, {found['against']} {other:.2f} ms, ratio {found['ratio']:.2f}",
        f"{found['machine']['name']}, {found['machine']['precision']}",
    ]
    if "over_floors" in found:
        said.append(
            f"{found['over_floors']:.2f}x the sum of the floors, least cosine to the plain path {found['cosine']:.5f}"
        )
    return "; ".join(said)


def summary(files: Sequence[Path]) -> str:
    """A line for each file that holds a result, and a word for each that does not."""
    lines = []
    for file in files:
        try:
            lines.append(line(file.stem, json.loads(file.read_text(encoding="utf-8"))))
        except (OSError, ValueError, KeyError, TypeError):
            lines.append(f"{file.stem}: no result")
    return "\n".join(lines)


if __name__ == "__main__":
    print(summary([Path(name) for name in sys.argv[1:]]))
