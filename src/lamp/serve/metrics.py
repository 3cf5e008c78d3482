"""Figures for monitoring, in Prometheus' text format."""

from __future__ import annotations

import bisect
import os
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
BATCHES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
RECENT = 400
"""Values of which the live page shows quantiles."""


@dataclass
class Histogram:
    """Counts per bucket, and the last values."""

    bounds: tuple[float, ...] = SECONDS
    counts: list[int] = field(default_factory=list)
    total: float = 0.0
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        """Counts a value."""
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.total += value
        self.recent.append(value)

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self.counts)

    def lines(self, name: str) -> Iterator[str]:
        """The histogram in Prometheus' format."""
        running = 0
        for bound, count in zip((*self.bounds, "+Inf"), self.counts, strict=True):
            running += count
            yield f'{name}_bucket{{le="{bound}"}} {running}'
        yield f"{name}_sum {self.total:.6f}"
        yield f"{name}_count {running}"


def quantile(values: Sequence[float], share: float) -> float | None:
    """The value below which so large a share lies; None where there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))] if ordered else None


@dataclass
class Metrics:
    """What the server counts."""

    requests: Counter[str] = field(default_factory=Counter)
    """By protocol."""
    refusals: Counter[str] = field(default_factory=Counter)
    """By reason."""
    connections: int = 0
    resets: int = 0
    observations: int = 0
    infer: Histogram = field(default_factory=Histogram)
    """Of a batch [s]."""
    queue: Histogram = field(default_factory=Histogram)
    """From arrival to the start of the batch [s]."""
    request: Histogram = field(default_factory=Histogram)
    """From the message's arrival until its reply is sent [s]."""
    batch: Histogram = field(default_factory=lambda: Histogram(bounds=BATCHES))
    started: float = field(default_factory=time.time)

    def text(self, gauges: Mapping[str, tuple[str, float | None]]) -> str:
        """All figures, and these: name -> (what it is, value)."""
        lines: list[str] = []
        counters = {
            "lamp_connections_total": ("Connections that were let in.", {"": self.connections}),
            "lamp_requests_total": ("Requests that were answered, by dialect.", _labelled("dialect", self.requests)),
            "lamp_refusals_total": ("Requests and connections that were refused.", _labelled("reason", self.refusals)),
            "lamp_resets_total": ("Episodes begun by clients.", {"": self.resets}),
            "lamp_observations_total": ("Observations that were computed.", {"": self.observations}),
        }
        for name, (about, values) in counters.items():
            lines += [f"# HELP {name} {about}", f"# TYPE {name} counter"]
            lines += [f"{name}{label} {value}" for label, value in values.items()]
        histograms = {
            "lamp_infer_seconds": ("Computing a batch.", self.infer),
            "lamp_queue_seconds": ("Waiting for the batch to start.", self.queue),
            "lamp_request_seconds": ("From a request's arrival until its reply is sent.", self.request),
            "lamp_batch_size": ("Observations computed together.", self.batch),
        }
        for name, (about, histogram) in histograms.items():
            lines += [f"# HELP {name} {about}", f"# TYPE {name} histogram", *histogram.lines(name)]
        fixed = {
            "lamp_start_time_seconds": ("When the server started.", self.started),
            "process_resident_memory_bytes": ("Memory of the process.", resident_bytes()),
        }
        for name, (about, value) in {**gauges, **fixed}.items():
            if value is not None:
                lines += [f"# HELP {name} {about}", f"# TYPE {name} gauge", f"{name} {value:.10g}"]
        return "\n".join(lines) + "\n"


def _labelled(label: str, counts: Mapping[str, int]) -> dict[str, int]:
    return {f'{{{label}="{name}"}}': value for name, value in sorted(counts.items())}


def resident_bytes() -> float | None:
    """Memory that the process holds; None where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return float(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None
