"""What the machine can do: its matrix rate and its copy rate, measured in the same run as whatever is compared with them."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lamp.bench.timing import measure
from lamp.errors import ConfigError
from lamp.model import onednn
from lamp_client.child_processes import available_cores

MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}
COPIED_BYTES = {"cpu": 256 * 2**20, "cuda": 4 * 2**30}
"""Far beyond any cache."""


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
    timed = measure(products, device, seconds=1.0 * len(products))
    product = min(timed.values(), key=lambda timing: timing.best_s)
    source = torch.zeros(COPIED_BYTES.get(device.type, COPIED_BYTES["cpu"]), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = measure({"copy": lambda: target.copy_(source)}, device, seconds=0.5)["copy"]
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
