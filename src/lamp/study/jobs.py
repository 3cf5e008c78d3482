"""The pieces of work that a study consists of, each done in a process of its own: a Stage 1, a Stage 2, a test."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from lamp.benchmark.episodes import EPISODES
from lamp.benchmark.evaluate import EvaluateConfig, evaluate
from lamp.errors import DataError
from lamp.files import remove_folder
from lamp.json_files import read_json_object, read_lines_json, write_json
from lamp.study.results import RESULT
from lamp.train.config import MotionTraining, PolicyTraining
from lamp.train.flow_metrics import FILE_NAME as FLOW
from lamp.train.metrics import FILE_NAME as METRICS
from lamp.train.run_folder import CHECKPOINT
from lamp.train.train_motion import train_motion
from lamp.train.train_policy import train_policy
from lamp.version import code_version

LOG = "log.txt"


class Work:
    """What a job does."""

    on_demand: ClassVar[bool] = False
    """Whether it is done only where another job needs it."""
    tries_policy: ClassVar[bool] = False
    """Whether it needs the checkpoint of the job before it."""

    def do(self, out: Path) -> dict[str, Any]:
        """Does it in a folder, and returns the result."""
        raise NotImplementedError

    def clean_up(self) -> None:
        """Removes what is not needed once the result is written."""

    def progress(self, out: Path) -> tuple[int, int, str]:
        """How much is done, of how much, and of what."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Job:
    """One piece of work, done in a process of its own."""

    folder: str
    """In that of the study; it is done when there is a result in it."""
    label: str
    work: MotionJob | PolicyJob | TestJob
    needs: tuple[str, ...] = ()
    """Folders of the jobs that have to be done before."""


@dataclass(frozen=True, kw_only=True)
class MotionJob(Work):
    """Trains a Stage 1."""

    training: MotionTraining
    data: Path
    episodes: tuple[int, ...]
    on_demand: ClassVar[bool] = True

    def progress(self, out: Path) -> tuple[int, int, str]:
        return read_lines_json(out / METRICS)[-1]["step"], self.training.loop.steps, "steps"

    def do(self, out: Path) -> dict[str, Any]:
        train_motion(self.training, self.data, out)
        flow = read_json_object(out / FLOW, "flow errors")
        moving = flow["moving"]
        return {
            "steps": self.training.loop.steps,
            "episodes": list(self.episodes),
            "seconds": read_lines_json(out / METRICS)[-1]["elapsed_s"],
            "ade_px": moving["one_sample"]["ade_px"],
            "zero_motion_ade_px": moving["zero_motion"]["ade_px"],
            "code": code_version(),
        }


@dataclass(frozen=True, kw_only=True)
class PolicyJob(Work):
    """Trains a Stage 2, and reads what it measured on the way."""

    training: PolicyTraining
    data: Path
    motion: Path | None
    episodes: tuple[int, ...]
    groups: dict[str, tuple[str, ...]]

    def progress(self, out: Path) -> tuple[int, int, str]:
        return read_lines_json(out / "policy" / METRICS)[-1]["step"], self.training.loop.steps, "steps"

    def do(self, out: Path) -> dict[str, Any]:
        train_policy(self.training, self.data, out / "policy", self.motion)
        lines = read_lines_json(out / "policy" / METRICS)
        measured = [line for line in lines if line["kind"] == "validation"]
        return {
            "steps": self.training.loop.steps,
            "episodes": list(self.episodes),
            "seconds": lines[-1]["elapsed_s"],
            "errors": {name: errors_of(measured, tasks) for name, tasks in self.groups.items()},
            "code": code_version(),
        }


def errors_of(measured: Sequence[dict[str, Any]], tasks: Sequence[str]) -> dict[str, Any]:
    """The held-out errors of a training: at its end, and the least of all its measurements; tasks count alike."""
    curve = []
    for line in measured:
        by_task = line.get("action_error_by_task")
        error = line["action_error"] if by_task is None else sum(by_task[task] for task in tasks) / len(tasks)
        curve.append((int(line["step"]), float(error)))
    if not curve:
        raise DataError(
            "a training has measured nothing on held-out demonstrations; expected validation lines in metrics.jsonl"
        )
    best_step, best = min(curve, key=lambda point: point[1])
    return {"final": curve[-1][1], "best": best, "best_step": best_step, "curve": [list(point) for point in curve]}


@dataclass(frozen=True, kw_only=True)
class TestJob(Work):
    """Tries a policy in the simulator."""

    config: EvaluateConfig
    episodes: int
    policy: Path
    """The cell's folder."""
    discard: bool
    """Whether the policy is not needed any more."""
    tries_policy: ClassVar[bool] = True

    def clean_up(self) -> None:
        if self.discard:
            remove_folder(self.policy / "policy" / CHECKPOINT)

    def progress(self, out: Path) -> tuple[int, int, str]:
        return len(read_lines_json(out / "episodes" / EPISODES)), self.episodes, "episodes"

    def do(self, out: Path) -> dict[str, Any]:
        begun = time.monotonic()
        summary = evaluate(replace(self.config, out=out / "episodes", checkpoint=self.policy / "policy" / CHECKPOINT))
        if not summary.complete:
            raise DataError(f"{len(summary.records)} of {summary.planned} episodes are done; the same command goes on")
        outcomes = [[*record.scene, bool(record.success)] for record in summary.records]
        return {"outcomes": outcomes, "seconds": round(time.monotonic() - begun, 1), "code": code_version()}


def do(job: Job, out: Path) -> dict[str, Any]:
    """Does a job, in a process of its own: what it says goes into a file beside its result."""
    folder = out / job.folder
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(open(folder / LOG, "a", encoding="utf-8", buffering=1))
        stack.enter_context(contextlib.redirect_stdout(log))
        stack.enter_context(contextlib.redirect_stderr(log))
        result = job.work.do(folder)
    write_json(folder / RESULT, result)
    job.work.clean_up()
    return result
