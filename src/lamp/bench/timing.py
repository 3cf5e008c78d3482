"""Timing several ways of doing the same thing in turns, so that whatever slows the machine slows all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


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
