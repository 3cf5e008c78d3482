"""Collecting a dataset: several processes record, this one hands out jobs, counts, and makes the dataset of what was staged."""

from __future__ import annotations

import queue
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lamp.collect.jobs import Attempt, Attempts, CollectConfig, Job, jobs_of
from lamp.collect.record_worker import FPS, work
from lamp.configuration import to_json
from lamp.data.lerobot import LeRobotDataset, LeRobotWriter
from lamp.data.lerobot.staging import STAGING
from lamp.errors import DataError, LampError, MismatchError
from lamp.files import locked, read_json, remove_leftovers, write_json
from lamp.progress import Progress, clock
from lamp.version import code_version, package_versions
from lamp_client.child_processes import CONTEXT, ChildProcess, available_cores, end
from lamp_client.envs.libero import LiberoEnv

__all__ = ["CollectConfig", "CollectReport", "TaskReport", "collect"]

CONFIG_PATH = "meta/collection.json"
LOCK_PATH = "meta/.collecting"
FREE_TO_CHANGE = ("out", "workers", "episodes", "task")
"""Settings in which a continued collection may differ; everything else changes what is recorded."""


@dataclass(frozen=True, kw_only=True)
class TaskReport:
    """What a collection holds for one task."""

    task: int
    instruction: str
    episodes: int
    attempts: int
    mean_length: float
    """Frames an episode."""


@dataclass(frozen=True, kw_only=True)
class CollectReport:
    """What a collection did and what the dataset holds now."""

    out: Path
    episodes: int
    """Episodes in the dataset."""
    recorded: int
    """Episodes recorded by this run."""
    seconds: float
    """Wall time of this run."""
    attempts: int
    failures: dict[str, int] = field(default_factory=dict)
    """Why attempts at these episodes failed, over all runs, and how often."""
    given_up: tuple[str, ...] = ()
    """Episodes for which no attempt succeeded."""
    tasks: tuple[TaskReport, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.episodes} episodes in {self.out}; {self.recorded} recorded in {clock(self.seconds)}."]
        lines += [
            f"  task {task.task}: {task.episodes} episodes of {task.mean_length:.0f} frames, {task.attempts} attempts"
            f" ({task.instruction})"
            for task in self.tasks
        ]
        lines += [f"  failed attempts: {reason} x {count}" for reason, count in sorted(self.failures.items())]
        lines += [f"  given up: {', '.join(self.given_up)}"] if self.given_up else []
        return "\n".join(lines)


def collect(config: CollectConfig) -> CollectReport:
    """Records demonstrations until every task has its episodes; continues what an earlier run began.

    Raises:
        MismatchError: The folder holds a collection with other settings.
        DataError: Another collection is running in the folder, a worker died, or no episode succeeded.
        LampClientError: The simulator is missing or failed.
    """
    begun = time.monotonic()
    root = Path(config.out)
    busy = f"another collection is running in {root}; wait for it or choose another folder"
    with locked(root / LOCK_PATH, busy):
        _agree(root, config)
        remove_leftovers(root / STAGING)
        writer = LeRobotWriter(root, fps=FPS, robot_type="panda", cameras=tuple(LiberoEnv.cameras))
        attempts, jobs, before = Attempts.read(root), jobs_of(config), writer.names()
        names = [job.name for job in jobs]
        with Progress("collect", len(jobs), "episodes", done=len(before.intersection(names))) as progress:
            if progress.done:
                progress.say(f"{progress.done:g} of {len(jobs)} episodes are there already")
            _record(config, [job for job in jobs if job.name not in before], attempts, progress)
        if not writer.names():
            reasons = ", ".join(f"{reason} x {count}" for reason, count in attempts.failures(names).items())
            raise DataError(
                f"none of {attempts.count(names)} attempts succeeded ({reasons}); nothing to make a dataset of"
            )
        writer.finalize(_description(config, attempts))
        after = writer.names()
        return CollectReport(
            out=root,
            episodes=len(after),
            recorded=len(after - before),
            seconds=time.monotonic() - begun,
            attempts=attempts.count(names),
            failures=dict(attempts.failures(names)),
            given_up=tuple(sorted(set(names) - after)),
            tasks=_task_reports(root, attempts),
        )


def _settings(config: CollectConfig) -> dict[str, Any]:
    return {key: value for key, value in to_json(config).items() if key not in FREE_TO_CHANGE}


def _agree(root: Path, config: CollectConfig) -> None:
    """Notes the settings of a new collection, or compares them with those of the one that is continued."""
    path, now = root / CONFIG_PATH, _settings(config)
    if not path.exists():
        if (root / "meta/info.json").exists():
            raise MismatchError(f"{root} holds a dataset that was not collected here; choose another folder")
        write_json(path, now)
        return
    before = read_json(path, "collection's settings")
    differences = [
        f"{key} {before.get(key)} there, {now.get(key)} here"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
    if differences:
        raise MismatchError(
            f"{root} holds a collection with other settings ({'; '.join(differences)}); "
            "use the same ones or another folder"
        )


def _record(config: CollectConfig, jobs: list[Job], attempts: Attempts, progress: Progress) -> None:
    """Runs workers until each job has succeeded or has used up its attempts."""
    by_name = {job.name: job for job in jobs}
    waiting = deque(job for job in jobs if attempts.next(job.name) is not None)
    if not waiting:
        return
    orders, results = CONTEXT.Queue(), CONTEXT.Queue()
    count = min(config.workers or available_cores(), len(waiting))
    workers = [ChildProcess(target=work, args=(config, orders, results), daemon=True) for _ in range(count)]
    try:
        for worker in workers:
            worker.start()
        open_orders = failed = 0
        while waiting or open_orders:
            # A few orders ahead keep the workers busy; a second attempt then does not wait for all first ones.
            while waiting and open_orders < 2 * count:
                job = waiting.popleft()
                orders.put((job, attempts.next(job.name)))
                open_orders += 1
            result = _next_result(results, workers)
            open_orders -= 1
            attempts.note(result)
            if result.outcome == "success":
                progress.advance()
            else:
                failed += 1
                progress.update(progress.done, note=f"{failed} attempt{'s' if failed > 1 else ''} failed")
                if attempts.next(result.job) is not None:
                    waiting.appendleft(by_name[result.job])
        for _ in workers:
            orders.put(None)
        for worker in workers:
            worker.join(timeout=20)
    finally:
        end([worker for worker in workers if worker.pid is not None])


def _next_result(results: Any, workers: list[Any]) -> Attempt:
    """Waits for a worker's answer.

    Raises:
        LampError: A worker met an error that the user can put right.
        DataError: A worker died.
    """
    while True:
        try:
            result = results.get(timeout=1.0)
        except queue.Empty:
            dead = [worker.exitcode for worker in workers if worker.exitcode not in (None, 0)]
            if dead:
                raise DataError(
                    f"a recording process died with exit code {dead[0]}; the same command continues with what was "
                    "recorded (fewer --workers need less memory)"
                ) from None
            continue
        if isinstance(result, str):
            raise LampError(result)
        if isinstance(result, OSError):
            raise result
        return result


def _description(config: CollectConfig, attempts: Attempts) -> dict[str, Any]:
    """What `meta/lamp.json` says about the collection."""
    names = list(attempts.by_job)
    return {
        **{key: value for key, value in _settings(config).items() if key != "type"},
        "collected": {"attempts": attempts.count(names), "failures": dict(attempts.failures(names))},
        "code": code_version(),
        "packages": package_versions(),
    }


def _task_reports(root: Path, attempts: Attempts) -> tuple[TaskReport, ...]:
    dataset = LeRobotDataset(root)
    extras = [dataset.extra(episode.index) for episode in dataset.episodes]
    reports = []
    for task in sorted({extra["task"] for extra in extras}):
        own = [
            (episode, extra) for episode, extra in zip(dataset.episodes, extras, strict=True) if extra["task"] == task
        ]
        names = [name for name in attempts.by_job if name.split("-")[1] == f"{task:02d}"]
        reports.append(
            TaskReport(
                task=task,
                instruction=own[0][0].task,
                episodes=len(own),
                attempts=attempts.count(names),
                mean_length=sum(episode.length for episode, _ in own) / len(own),
            )
        )
    return tuple(reports)
