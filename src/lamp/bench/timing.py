"""The core of the speed benchmarks: implementations are timed in turns, beside the machine's matrix rate and copy rate.

Whatever slows the machine then slows all of them alike.
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
from lamp.model.layers import PackedLinear, has_onednn
from lamp_client.child_processes import available_cores


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Wall times of one implementation."""

    p50_s: float
    p95_s: float
    best_s: float
    runs: int


def wait_for(device: torch.device) -> None:
    """Waits until the device has finished its queued work."""
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
    """Runs every one in turn, round after round, for about `seconds` beyond the uncounted warm-up rounds."""
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
    timings = {}
    for name, values in times.items():
        late = sorted(values)[round(0.95 * (len(values) - 1))]
        timings[name] = Timing(p50_s=statistics.median(values), p95_s=late, best_s=min(values), runs=len(values))
    return timings


MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}
COPIED_BYTES = {"cpu": 256 * 2**20, "cuda": 4 * 2**30}
"""Far beyond any cache."""
CEILING_S = 1.0
"""How long each way of multiplying is measured; copies, half as long. [s]"""


@dataclass(frozen=True, kw_only=True)
class HardwareLimits:
    """The best rates measured on the machine."""

    matrix_flops: float
    """Floating-point operations of a large matrix product, by the fastest kernel [1/s]."""
    copy_bytes: float
    """Bytes read and written while a large tensor is copied [1/s]."""

    def floor_s(self, flops: float, weight_bytes: float) -> float:
        """The least time for this much arithmetic and weight reading [s]."""
        return max(flops / self.matrix_flops, weight_bytes / self.copy_bytes)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The machine and the settings of a measurement."""

    device: str
    name: str
    """Of the processor or the accelerator."""
    threads: int
    precision: str
    ceilings: HardwareLimits
    torch: str
    python: str


def heading(what: str, batch: int, machine: Mapping[str, Any]) -> str:
    """The first line of a table for a terminal."""
    threads = "one thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    return f"{what}, batch {batch}, {machine['precision']}, {machine['name']}, {threads}"


def check_settings(*, device: str, **positive: Any) -> None:
    """Checks the device and that numbers are positive.

    Raises:
        ConfigError: One is not, or there is no such device here.
    """
    for name, value in positive.items():
        if value is not None and value <= 0:
            raise ConfigError(f"{name} is {value}; expected more than 0")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is 'cuda' and torch finds no GPU here; expected 'cpu', or a machine with one")


def measure_hardware(device: torch.device, dtype: torch.dtype) -> HardwareLimits:
    """Measures the matrix rate in `dtype` and the copy rate; a second or two."""
    side = MATRIX_SIDE.get(device.type, MATRIX_SIDE["cpu"])
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty(side, side, device=device, dtype=dtype)
    products: dict[str, Callable[[], object]] = {"torch": lambda: torch.matmul(left, right, out=out)}
    if device.type == "cpu" and dtype == torch.float32 and has_onednn():
        # torch multiplies through MKL, which is not the fastest on every processor.
        packed = PackedLinear(torch.nn.Linear(side, side, bias=False))
        products["onednn"] = torch.inference_mode()(lambda: packed(left))
    timed = measure(products, device, seconds=CEILING_S * len(products))
    product = min(timed.values(), key=lambda timing: timing.best_s)
    source = torch.zeros(COPIED_BYTES.get(device.type, COPIED_BYTES["cpu"]), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = measure({"copy": lambda: target.copy_(source)}, device, seconds=CEILING_S / 2)["copy"]
    return HardwareLimits(matrix_flops=2 * side**3 / product.best_s, copy_bytes=2 * source.numel() / copy.best_s)


def describe_machine(device: torch.device, dtype: torch.dtype) -> Machine:
    """Names the machine and measures its ceilings."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        info = Path("/proc/cpuinfo")
        lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
        name = f"{model or platform.processor() or platform.machine()}, {available_cores()} cores"
    return Machine(
        device=device.type,
        name=name,
        threads=torch.get_num_threads(),
        precision=str(dtype).removeprefix("torch."),
        ceilings=measure_hardware(device, dtype),
        torch=torch.__version__,
        python=platform.python_version(),
    )


def summary(files: Sequence[Path]) -> str:
    """One line for each file of figures."""
    lines = []
    for file in files:
        try:
            stored = json.loads(file.read_text(encoding="utf-8"))
            ours, other = (1e3 * stored[way]["p50_s"] for way in ("ours", "other"))
            line = (
                f"{file.stem}: {ours:.2f} ms, {stored['against']} {other:.2f} ms, ratio {stored['ratio']:.2f}; "
                f"{stored['machine']['name']}, {stored['machine']['precision']}"
            )
            if "over_floors" in stored:
                line += f"; {stored['over_floors']:.2f}x the sum of the floors, "
                line += f"least cosine to the plain path {stored['cosine']:.5f}"
        except (OSError, ValueError, KeyError, TypeError):
            line = f"{file.stem}: no result"
        lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    print(summary([Path(name) for name in sys.argv[1:]]))
