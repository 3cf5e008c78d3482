"""What a run writes down while it trains: `metrics.jsonl`, trackers, and a line of progress."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lamp.files import append_line, atomic_write_text, read_lines_json, to_line
from lamp.train.processes import SINGLE, Processes
from lamp.train.tracking import TensorBoard, Tracker, Trackers

FILE_NAME = "metrics.jsonl"
GIB = 2**30

Value = float | int | str | list[float] | list[list[float]] | dict[str, float]


class Interval:
    """Sums of what the steps since the last log line reported; tensors stay on their device until they are read."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self.steps = 0
        self.samples = 0
        self.waited_s = 0.0
        self.started = time.perf_counter()

    def add(self, values: Mapping[str, Tensor], *, samples: int, waited_s: float) -> None:
        for name, value in values.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self.steps += 1
        self.samples += samples
        self.waited_s += waited_s

    def read(self, processes: Processes = SINGLE) -> dict[str, Value]:
        """Returns the means, the rate in samples a second, and the share of time spent waiting for data.

        What several processes have added is put together: losses and samples add up, and the time is the mean.
        """
        spent = max(time.perf_counter() - self.started, 1e-9)
        sums = processes.sum(self._sums)
        means: dict[str, Value] = {name: (total / self.steps).tolist() for name, total in sums.items()}
        amounts = {"samples": float(self.samples), "waited": self.waited_s / processes.count}
        taken = processes.sum({name: torch.tensor(value, dtype=torch.float64) for name, value in amounts.items()})
        return means | {
            "samples_per_s": round(float(taken["samples"]) / spent, 2),
            "data_wait_share": round(float(taken["waited"]) / spent, 4),
        }


def device_memory(device: str, processes: Processes = SINGLE) -> dict[str, Value]:
    """The most GPU memory that tensors took at once since the process began, and what torch held for them; nothing on a CPU.

    Of several processes' GPUs, those of the fullest; all have to ask.
    """
    if torch.device(device).type != "cuda" or not torch.cuda.is_available():
        return {}
    mine = (torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device))
    each = torch.zeros(processes.count, len(mine), dtype=torch.float64)
    each[processes.index] = torch.tensor(mine)
    taken, held = (processes.sum({"each": each})["each"].amax(0) / GIB).tolist()
    return {"gpu_memory_gib": round(taken, 3), "gpu_reserved_gib": round(held, 3)}


class Journal:
    """Writes the metrics of one run; a continued run first drops what was written after its checkpoint.

    One line is one JSON object: `kind` ("train" or "validation"), `step`, `elapsed_s`, and the values. "train" lines hold `loss`,
    the losses by axis or by action dimension and by flow time, `lr`, `grad_norm` in all and by module, `gate`, `samples_per_s`,
    `data_wait_share`, and on a GPU `gpu_memory_gib`.
    """

    def __init__(self, out: Path, *, from_step: int, trackers: Sequence[Tracker] = (TensorBoard(),)) -> None:
        self.path = out / FILE_NAME
        if self.path.exists():
            kept = [line for line in read_lines_json(self.path) if line["step"] <= from_step] if from_step else []
            atomic_write_text(self.path, "".join(to_line(line) + "\n" for line in kept))
        self._trackers = Trackers(trackers, out, from_step=from_step)

    def write(self, kind: str, step: int, elapsed_s: float, values: Mapping[str, Value]) -> None:
        append_line(self.path, to_line({"kind": kind, "step": step, "elapsed_s": round(elapsed_s, 3), **values}))
        self._trackers.log(
            dict(pair for name, value in values.items() for pair in _flat(f"{kind}/{name}", value)), step
        )

    def close(self) -> None:
        self._trackers.close()


def _flat(name: str, value: Value) -> list[tuple[str, float]]:
    if isinstance(value, list):
        return [pair for index, item in enumerate(value) for pair in _flat(f"{name}/{index}", item)]
    if isinstance(value, dict):
        return [(f"{name}/{key}", item) for key, item in value.items()]
    return [] if isinstance(value, str) else [(name, float(value))]
