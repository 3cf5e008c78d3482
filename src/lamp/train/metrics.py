"""What a run logs: `metrics.jsonl`, a line of progress, and trackers (TensorBoard; Weights & Biases or trackio through
Accelerate).

A tracker is chosen by its type, `LoopConfig.trackers`. Its package is imported when a run starts, not before. A dashboard that
fails later does not end a training: it is dropped with a message, and `metrics.jsonl` has everything.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, NotRequired, Protocol, runtime_checkable

import torch
from torch import Tensor
from typing_extensions import TypedDict

from lamp.errors import ConfigError, MissingDependencyError, unknown
from lamp.files import atomic_write_text
from lamp.json_files import append_line, read_json_as, read_json_object, read_lines_as, to_line, write_json
from lamp.progress import say
from lamp.train.distributed import SINGLE_PROCESS, DistributedContext

IDS = "trackers.json"
"""In the run's folder: under which id each tracker knows the run, so that a continued run goes on there."""


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """What a tracker is told of a run when it starts."""

    out: Path
    """The run's folder; its name is the run's."""
    id: str
    """The same whenever the run is continued."""
    from_step: int
    """The step that the run goes on from; 0 at the start."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """The run's settings, as `lamp.json` has them."""


@runtime_checkable
class Sink(Protocol):
    """What metrics are written to."""

    def log(self, values: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class TensorBoard:
    """Event files in the run's folder: `tensorboard --logdir OUT`."""

    NEEDS: ClassVar[tuple[str, ...]] = ("tensorboard",)

    def open(self, run: TrackedRun) -> Sink:
        return _EventFiles(run)


@dataclass(frozen=True, kw_only=True)
class Wandb:
    """Weights & Biases; the account and `WANDB_MODE=offline` are its own affair."""

    NEEDS: ClassVar[tuple[str, ...]] = ("accelerate", "wandb")

    project: str = "lamp"
    name: str | None = None
    """None: the name of the run's folder."""
    entity: str | None = None
    tags: tuple[str, ...] = ()

    def open(self, run: TrackedRun) -> Sink:
        known = {"id": run.id, "resume": "allow", "dir": str(run.out), "tags": list(self.tags), "entity": self.entity}
        return _accelerated("WandBTracker", self.project, run, name=self.name or run.out.name, **known)


@dataclass(frozen=True, kw_only=True)
class Trackio:
    """trackio: a local data base (`trackio show`), which may be copied to a Space of the hub."""

    NEEDS: ClassVar[tuple[str, ...]] = ("accelerate", "trackio")

    project: str = "lamp"
    name: str | None = None
    """None: the name of the run's folder, and its id, since trackio tells runs apart by their names."""
    space: str | None = None
    """Hub id of the Space; None: stay on this machine."""

    def open(self, run: TrackedRun) -> Sink:
        name = self.name or f"{run.out.name}-{run.id}"
        return _accelerated("TrackioTracker", self.project, run, name=name, resume="allow", space_id=self.space)


Tracker = TensorBoard | Wandb | Trackio
KINDS: Mapping[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": Wandb, "trackio": Trackio}


def tracker(text: str) -> Tracker:
    """Reads a tracker as the command line names it: KIND or KIND=PROJECT.

    Raises:
        ConfigError: There is none of that kind, or it has no projects.
    """
    kind, _, project = text.partition("=")
    if kind not in KINDS:
        raise unknown("tracker", kind, KINDS)
    made = KINDS[kind]()
    if not project:
        return made
    if isinstance(made, TensorBoard):
        raise ConfigError(f"tracker {text!r} given; TensorBoard has no projects: expected 'tensorboard' alone.")
    return replace(made, project=project)


def check_trackers(trackers: Sequence[Tracker]) -> None:
    """
    Raises:
        MissingDependencyError: A package that a tracker needs is not installed.
    """
    for tracker in trackers:
        missing = [name for name in tracker.NEEDS if find_spec(name) is None]
        if missing:
            kind, lacking = type(tracker).__name__, " and ".join(missing)
            raise MissingDependencyError(
                f"tracking with {kind} needs packages that are not installed: {lacking}. Install them, "
                f"pip install 'lamp-vla[{kind.lower()}]', or leave the tracker out: metrics.jsonl is written anyway."
            )


class Trackers:
    """All trackers of a run."""

    def __init__(self, trackers: Sequence[Tracker], out: Path, *, from_step: int) -> None:
        check_trackers(trackers)
        ids = _ids(trackers, out)
        record = read_json_object(out / "lamp.json", "run description") if (out / "lamp.json").is_file() else {}
        self._sinks = {
            name: tracker.open(TrackedRun(out=out, id=ids.get(name, ""), from_step=from_step, record=record))
            for name, tracker in _by_name(trackers).items()
        }

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, sink in list(self._sinks.items()):
            try:
                sink.log(values, step)
            except Exception as error:
                self._disable(name, error)

    def close(self) -> None:
        for name, sink in list(self._sinks.items()):
            try:
                sink.close()
            except Exception as error:
                self._disable(name, error)

    def _disable(self, name: str, error: Exception) -> None:
        del self._sinks[name]
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        say(f"tracker {name} is left out from now on ({reason}); metrics.jsonl has everything.")


def _by_name(trackers: Sequence[Tracker]) -> dict[str, Tracker]:
    """Several of one type are numbered."""
    names: dict[str, Tracker] = {}
    for tracker in trackers:
        kind = type(tracker).__name__.lower()
        same = sum(name.split(" ")[0] == kind for name in names)
        names[f"{kind} {same + 1}" if same else kind] = tracker
    return names


def _ids(trackers: Sequence[Tracker], out: Path) -> dict[str, str]:
    """Reads the ids of a continued run; makes and keeps those that are missing."""
    path = out / IDS
    before = read_json_as(path, dict[str, str], "record of trackers") if path.is_file() else {}
    wanted = [name for name, tracker in _by_name(trackers).items() if not isinstance(tracker, TensorBoard)]
    ids = before | {name: uuid.uuid4().hex[:8] for name in wanted if name not in before}
    if ids != before:
        write_json(path, ids)
    return ids


class _EventFiles:
    def __init__(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge = run.from_step + 1 if run.from_step else None
        self._writer = SummaryWriter(str(run.out / "tensorboard"), purge_step=purge)

    def log(self, values: Mapping[str, float], step: int) -> None:
        for tag, number in values.items():
            self._writer.add_scalar(tag, number, step)

    def close(self) -> None:
        self._writer.close()


class _Accelerated:
    """One of Accelerate's trackers. A step that was logged before the run was broken off may come again: with equal values."""

    def __init__(self, tracker: Any) -> None:
        self._tracker = tracker

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._tracker.log(dict(values), step=step)

    def close(self) -> None:
        self._tracker.finish()


def _accelerated(kind: str, project: str, run: TrackedRun, **known: Any) -> _Accelerated:
    from accelerate.state import PartialState

    PartialState()  # Accelerate's trackers log through it
    tracker = getattr(import_module("accelerate.tracking"), kind)(project, **known)
    tracker.start()
    tracker.store_init_configuration(dict(run.record))
    return _Accelerated(tracker)


FILE_NAME = "metrics.jsonl"
GIB = 2**30

Value = float | int | str | list[float] | list[list[float]] | dict[str, float]


class LogInterval:
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

    def read(self, distributed: DistributedContext = SINGLE_PROCESS) -> dict[str, Value]:
        """Returns the means, the rate in samples a second, and the share of time spent waiting for data.

        What several processes have added is put together: losses and samples add up, and the time is the mean.
        """
        spent = max(time.perf_counter() - self.started, 1e-9)
        sums = distributed.sum(self._sums)
        means: dict[str, Value] = {name: (total / self.steps).tolist() for name, total in sums.items()}
        amounts = {"samples": float(self.samples), "waited": self.waited_s / distributed.world_size}
        taken = distributed.sum({name: torch.tensor(value, dtype=torch.float64) for name, value in amounts.items()})
        return means | {
            "samples_per_s": round(float(taken["samples"]) / spent, 2),
            "data_wait_share": round(float(taken["waited"]) / spent, 4),
        }


def device_memory(device: str, distributed: DistributedContext = SINGLE_PROCESS) -> dict[str, Value]:
    """The most GPU memory that tensors took at once since the process began, and what torch held for them; nothing on a CPU.

    Of several processes' GPUs, those of the fullest; all have to ask.
    """
    if torch.device(device).type != "cuda" or not torch.cuda.is_available():
        return {}
    mine = (torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device))
    each = torch.zeros(distributed.world_size, len(mine), dtype=torch.float64)
    each[distributed.rank] = torch.tensor(mine)
    taken, held = (distributed.sum({"each": each})["each"].amax(0) / GIB).tolist()
    return {"gpu_memory_gib": round(taken, 3), "gpu_reserved_gib": round(held, 3)}


class MetricsLine(TypedDict):
    """What every line of `metrics.jsonl` holds, besides the values."""

    step: int
    elapsed_s: NotRequired[float]
    kind: NotRequired[str]


def read_metrics(path: Path) -> list[MetricsLine]:
    """Reads a run's `metrics.jsonl`; none where there is no such file.

    Raises:
        DataError: A line is damaged.
    """
    return read_lines_as(path, MetricsLine, "log of metrics")


class Journal:
    """Writes the metrics of one run; a continued run first drops what was written after its checkpoint.

    One line is one JSON object: `kind` ("train" or "validation"), `step`, `elapsed_s`, and the values. "train" lines hold `loss`,
    the losses by axis or by action dimension and by flow time, `lr`, `grad_norm` in all and by module, `gate`, `samples_per_s`,
    `data_wait_share`, and on a GPU `gpu_memory_gib`.
    """

    def __init__(self, out: Path, *, from_step: int, trackers: Sequence[Tracker] = (TensorBoard(),)) -> None:
        self.path = out / FILE_NAME
        if self.path.exists():
            kept = [line for line in read_metrics(self.path) if line["step"] <= from_step] if from_step else []
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
    match value:
        case list():
            return [pair for index, item in enumerate(value) for pair in _flat(f"{name}/{index}", item)]
        case dict():
            return [(f"{name}/{key}", item) for key, item in value.items()]
        case str():
            return []
    return [(name, float(value))]
