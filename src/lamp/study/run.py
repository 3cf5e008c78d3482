"""Carries out a study: data, every Stage 1 once, then cell after cell; an interrupted study goes on where it stopped.

out/definition.json    the study, and its recipes as they were when it was begun
out/data/              demonstrations, and the datasets that only Stage 1 learns from; with scene flow and features
out/motion/SET/sN/     Stage 1, by what it learns from and its seed
out/cells/ARM/nNNN/sN/ a policy, its measurements (`result.json`) and its episodes in the simulator
out/study.json         the figures of all arms, and their differences
out/report.html        the same for people
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lamp.benchmark.episodes import EPISODES
from lamp.benchmark.evaluate import EvaluateConfig, evaluate
from lamp.collect.collect import collect
from lamp.collect.jobs import CollectConfig
from lamp.configuration import to_json
from lamp.data.augmentation import NO_AUGMENTATION
from lamp.data.embodiment import OWN, Embodiment, embodiment
from lamp.data.episode_selection import EpisodeSelection, number_ranges
from lamp.data.feature_cache.shards import in_bytes
from lamp.data.lerobot.reader import LeRobotDataset
from lamp.errors import DataError, LampError, MismatchError
from lamp.files import locked, remove_folder
from lamp.json_files import read_json_as, read_json_object, read_lines_json, to_line, write_json
from lamp.progress import QUIET, Progress, clock, say
from lamp.recipes import Recipe
from lamp.sceneflow.build import build
from lamp.study.made_up import MadeUpData, write_made_up_data
from lamp.study.report import summarise, write_report
from lamp.study.results import (
    DEFINITION,
    HELD_OUT,
    MOTION_ONLY,
    RESULT,
    Cell,
    StoredRate,
    cells,
    read_definition,
)
from lamp.study.study import Arm, Data, RecordedData, Resolved, SimulatorTest, Study, check_continues
from lamp.train.backbones import ensure_features
from lamp.train.config import MixedIn, MotionTraining, PolicyTraining, Split
from lamp.train.flow_metrics import FILE_NAME as FLOW
from lamp.train.metrics import FILE_NAME as METRICS
from lamp.train.run_folder import CHECKPOINT
from lamp.train.train_motion import train_motion
from lamp.train.train_policy import train_policy
from lamp.version import code_version
from lamp_client.child_processes import ProcessPool, available_cores

LOG = "log.txt"
PATIENCE_S = 120.0
"""How long a training that is asked to end may take to write its checkpoint. [s]"""
SECONDS = {
    "collect": 5.0,
    "flow": 2.5,
    "features": 4.0,
    "motion step": 0.7,
    "policy step": 0.2,
    "measured frame": 0.05,
    "test episode": 4.5,
}
"""What one episode, step or frame took on one core of an AMD EPYC with AVX2 (a virtual machine), with the small recipes; what a
study has measured itself takes their place. [s]"""
CHECKPOINT_BYTES = 75_000_000
"""About what a policy of the small recipes takes on the disk, with what it takes to train it longer."""
EPISODE_BYTES = 12_000_000
"""About what a collected episode takes, with its scene flow and features."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How much of a study is done in one sitting, and with how many processes."""

    workers: int = 0
    """Trainings, or evaluations, at once; 0: one per processor."""
    only: tuple[str, ...] = ()
    """Arms to do; all by default."""
    cells: int | None = None
    """At most so many cells in this sitting."""
    deadline: float | None = None
    """`time.time()` at which to stop. [s]"""
    data: Path | None = None
    """The folder of the demonstrations, in place of OUT/data/demonstrations."""
    keep_checkpoints: bool = True
    """Keep policies that are measured; without them, tests that are added later train them again."""


@dataclass(frozen=True, kw_only=True)
class Partition:
    """Which episodes of the demonstrations each stage learns from."""

    study: Study
    dataset: LeRobotDataset

    @cached_property
    def held_out(self) -> tuple[int, ...]:
        """What is measured and never trained on."""
        return self.study.held_out.select(self.dataset)

    @cached_property
    def pool(self) -> tuple[int, ...]:
        """What action demonstrations are chosen from."""
        return self.study.actions.select(self.dataset, leave_out=self.held_out)

    @cached_property
    def action_free(self) -> tuple[int, ...]:
        """What Stage 1 learns from without actions."""
        return self.study.motion.select(self.dataset, leave_out=self.held_out)

    def demonstrations(self, count: int, motion_seed: int) -> tuple[int, ...]:
        """The action demonstrations of Stage 2; fewer are among more.

        Raises:
            DataError: A task has not so many.
        """
        chosen = EpisodeSelection(episodes=_listed(self.pool), per_task=count, seed=motion_seed).select(self.dataset)
        of_tasks: dict[str, int] = {}
        for episode in chosen:
            of_tasks[self.task(episode)] = of_tasks.get(self.task(episode), 0) + 1
        for task, found in of_tasks.items():
            if found < count:
                raise DataError(
                    f"{count} demonstrations of each task are asked for, and {self.dataset.root} has {found} of {task!r} among "
                    f"those that `actions` selects ({self.study.actions}, {len(self.held_out)} held out); expected {count}: "
                    "collect more episodes, select more, or ask for fewer demonstrations"
                )
        return chosen

    def motion(self, arm: Arm, count: int, motion_seed: int) -> tuple[int, ...]:
        """What an arm's Stage 1 learns from.

        Raises:
            MismatchError: It says that the stages share no episode, and they do.
        """
        if arm.prior is None:
            return ()
        used = self.demonstrations(count, motion_seed)
        if arm.prior.motion == "same":
            return used
        if arm.prior.motion == "both":
            return tuple(sorted({*used, *self.action_free}))
        shared = sorted({*used}.intersection(self.action_free))
        if shared:
            raise MismatchError(
                f"arm {arm.name!r} says that its Stage 1 learns from none of Stage 2's demonstrations (motion: action_free), and "
                f"{len(shared)} of the {len(used)} are in both: episodes {number_ranges(shared)}; expected `actions` "
                f"({self.study.actions}) and `motion` ({self.study.motion}) without a common episode, or motion: both"
            )
        return self.action_free

    def task(self, episode: int) -> str:
        """What an episode is told to do, as measurements name it."""
        return " / ".join(self.dataset.instructions(episode)[0])

    @cached_property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """The tasks whose held-out demonstrations are measured together."""
        with_actions = {self.task(episode) for episode in self.pool}
        measured = sorted({self.task(episode) for episode in self.held_out})
        groups = {
            HELD_OUT: tuple(task for task in measured if task in with_actions),
            MOTION_ONLY: tuple(task for task in measured if task not in with_actions),
        }
        if not groups[HELD_OUT]:
            raise MismatchError(
                f"no held-out episode ({self.study.held_out}) is of a task that has actions ({self.study.actions}); expected some"
            )
        return {name: tasks for name, tasks in groups.items() if tasks}

    def check(self) -> None:
        """Every choice that the study will make."""
        _ = self.groups
        for motion_seed in range(self.study.motion_seeds):
            for count in self.study.demonstrations:
                for arm in self.study.arms:
                    self.motion(arm, count, motion_seed)
                self.demonstrations(count, motion_seed)


def _listed(episodes: Sequence[int]) -> str:
    return ",".join(map(str, episodes))


@dataclass(frozen=True, kw_only=True)
class Job:
    """One piece of work, done in a process of its own."""

    folder: str
    """In that of the study; it is done when there is a result in it."""
    label: str
    work: MotionWork | PolicyWork | TestWork
    needs: tuple[str, ...] = ()
    """Folders of the jobs that have to be done before."""


@dataclass(frozen=True, kw_only=True)
class MotionWork:
    """Trains a Stage 1."""

    training: MotionTraining
    data: Path
    episodes: tuple[int, ...]

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
class PolicyWork:
    """Trains a Stage 2, and reads what it measured on the way."""

    training: PolicyTraining
    data: Path
    motion: Path | None
    episodes: tuple[int, ...]
    groups: dict[str, tuple[str, ...]]

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
class TestWork:
    """Tries a policy in the simulator."""

    config: EvaluateConfig
    episodes: int
    policy: Path
    """The cell's folder."""
    discard: bool
    """Whether the policy is not needed any more."""

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
    if isinstance(job.work, TestWork) and job.work.discard:
        remove_folder(job.work.policy / "policy" / CHECKPOINT)
    return result


def run(study: Study, out: Path, options: RunOptions | None = None) -> dict[str, Any]:
    """Runs a study, or goes on with it, and returns what study.json says.

    Raises:
        DataError: Another process is at work in the folder, or the data lack something.
        MismatchError: The folder holds another study, or stages overlap where they must not.
        ConfigError: Something of the study cannot be.
    """
    options = options or RunOptions()
    for name in options.only:
        study.arm(name)
    if (out / "meta" / "info.json").exists() or ((out.exists() and any(out.iterdir())) and not _is_study(out)):
        raise DataError(f"{out} is there and holds no study; expected an empty folder, a new one, or that of a study")
    with locked(out / ".lock", f"a study is at work in {out} already; wait for it, or choose another --out"):
        return _Run(resolved=_resolved(study, out), out=out, options=options).run()


def _is_study(out: Path) -> bool:
    return (out / DEFINITION).is_file() or {item.name for item in out.iterdir()} <= {".lock"}


def _resolved(study: Study, out: Path) -> Resolved:
    """The study with the recipes with which it was begun, if it was."""
    now = Resolved.of(study)
    if (out / DEFINITION).is_file():
        before = read_definition(out)
        check_continues(before.study, study, out)
        for name, recipe in before.recipes.items():
            if name in now.recipes and now.recipes[name] != recipe:
                say(
                    f"recipe {name} has changed since this study was begun; it goes on with the one that it was begun with"
                )
        now = replace(now, recipes={**now.recipes, **before.recipes})
        now.check()
    content = {"format": "lamp-study", "version": 1, "study": to_json(now.study), "recipes": to_json(now.recipes)}
    write_json(out / DEFINITION, content)
    return now


@dataclass(kw_only=True)
class _Run:
    resolved: Resolved
    out: Path
    options: RunOptions

    @property
    def study(self) -> Study:
        return self.resolved.study

    @cached_property
    def workers(self) -> int:
        return self.options.workers or available_cores()

    def run(self) -> dict[str, Any]:
        say(plan_text(self.resolved, self.out, self.options))
        check_disk(self.resolved, self.out)
        partition, extras = self._data()
        partition.check()
        jobs = self._jobs(partition, extras)
        self._do(jobs)
        figures = summarise(self.resolved, self.out)
        write_report(figures, self.out)
        return figures

    def _data(self) -> tuple[Partition, list[MixedIn]]:
        root = self.out / "data"
        begun = time.monotonic()
        data, kind = self._prepare(self.study.data, self.options.data or root / "demonstrations", actions=True)
        extras = []
        for number, extra in enumerate(self.study.extra):
            path, robot = self._prepare(extra, root / f"extra-{number}", actions=False)
            extras.append(MixedIn(data=str(path), embodiment=robot))
        if (spent := time.monotonic() - begun) > 60:
            say(f"data are ready after {clock(spent)}")
        return Partition(study=self.study, dataset=kind.open(data)), extras

    def _prepare(self, source: Data, folder: Path, *, actions: bool) -> tuple[Path, Embodiment]:
        """Sees to it that a dataset is there with scene flow and features."""
        base, robot = self.resolved.base, OWN
        match source:
            case CollectConfig():
                collect(replace(source, out=folder, workers=self.workers))
                assert isinstance(base, Recipe)
                build(replace(base.flow, data=folder, workers=self.workers))
            case MadeUpData():
                write_made_up_data(source, folder)
            case RecordedData():
                folder, robot = Path(source.path), embodiment(source.embodiment) if source.embodiment else OWN
        if not folder.is_dir():
            raise DataError(
                f"no dataset at {folder}: there is no such folder; expected one with scene flow (docs/studies.md)"
            )
        dataset = robot.open(folder, pictures_only=not actions)
        policy = base.policy
        views = policy.augmentation if actions else NO_AUGMENTATION
        ensure_features(dataset, base.backbone, token_width=policy.model.token_width, augmentation=views)
        return folder, robot

    def _jobs(self, partition: Partition, extras: Sequence[MixedIn]) -> list[Job]:
        """All that is to be done, in order: a cell after the Stage 1 that it needs, its tests after it."""
        jobs: dict[str, Job] = {}
        study, left = self.study, self.options.cells
        for cell in cells(study, self.options.only):
            own = self._cell_jobs(cell, partition, extras)
            pending = [job for job in own if not self._is_done(job)]
            if pending and left is not None:
                if left == 0:
                    continue
                left -= 1
            for job in own:
                jobs.setdefault(job.folder, job)
        return list(jobs.values())

    def _cell_jobs(self, cell: Cell, partition: Partition, extras: Sequence[MixedIn]) -> list[Job]:
        study, arm = self.study, self.study.arm(cell.arm)
        motion_seed = study.motion_seed(cell.seed)
        used = partition.demonstrations(cell.demonstrations, motion_seed)
        data, found, motion = partition.dataset.root, list[Job](), None
        if (training := self.resolved.motion(arm)) is not None and arm.prior is not None:
            episodes = partition.motion(arm, cell.demonstrations, motion_seed)
            mixed = tuple(extras) if arm.prior.extra and arm.prior.motion != "same" else ()
            training = replace(
                training,
                also=mixed,
                loop=self._loop(training.loop, motion_seed),
                split=_split(episodes, partition.held_out),
            )
            key = hashlib.sha256(to_line(to_json(training)).encode()).hexdigest()[:8]
            name = arm.prior.motion + ("-shuffled" if arm.prior.targets == "shuffled" else "")
            name += f"-n{cell.demonstrations:03d}" if arm.prior.motion != "action_free" else ""
            work = MotionWork(training=training, data=data, episodes=episodes)
            folder = f"motion/{name}-{key}/s{motion_seed}"
            found.append(Job(folder=folder, label=f"Stage 1 {name} (seed {motion_seed})", work=work))
            motion = self.out / folder / CHECKPOINT
        policy = self.resolved.policy(arm)
        policy = replace(policy, loop=self._loop(policy.loop, cell.seed), split=_split(used, partition.held_out))
        if isinstance(study.data, RecordedData) and study.data.embodiment:
            policy = replace(policy, embodiment=embodiment(study.data.embodiment))
        work = PolicyWork(training=policy, data=data, motion=motion, episodes=used, groups=partition.groups)
        needs = tuple(job.folder for job in found)
        found.append(Job(folder=cell.folder, label=cell.label, work=work, needs=needs))
        for test in study.tests:
            work = TestWork(
                config=self._evaluation(test, arm, cell),
                episodes=test.episodes,
                policy=self.out / cell.folder,
                discard=not self.options.keep_checkpoints and test is study.tests[-1],
            )
            needs = (
                cell.folder,
                *(f"{cell.folder}/tests/{one.name}" for one in study.tests if work.discard and one is not test),
            )
            found.append(
                Job(
                    folder=f"{cell.folder}/tests/{test.name}",
                    label=f"{cell.label}, {test.name}",
                    work=work,
                    needs=needs,
                )
            )
        return found

    def _loop(self, loop: Any, seed: int) -> Any:
        every = min(loop.checkpoint_every, max(1, loop.steps // 4))
        return replace(loop, seed=seed, threads=1, trackers=(), checkpoint_every=every)

    def _evaluation(self, test: SimulatorTest, arm: Arm, cell: Cell) -> EvaluateConfig:
        return EvaluateConfig(
            suite=test.suite,
            task=test.tasks,
            states=test.states,
            episodes_per_state=test.repeats,
            placement_shift=test.shift,
            perturb=(test.perturb,) if test.perturb else (),
            prior="oracle" if arm.prior is not None and arm.prior.oracle else "predicted",
            checkpoint=self.out / cell.folder / "policy" / CHECKPOINT,
            render="fast",
            workers=max(1, available_cores() // self.workers),
            seed=cell.seed,
        )

    def _is_done(self, job: Job) -> bool:
        return (self.out / job.folder / RESULT).is_file()

    def _do(self, jobs: Sequence[Job]) -> None:
        done = {job.folder for job in jobs if self._is_done(job)}
        lacking = {
            need
            for job in jobs
            if job.folder not in done and isinstance(job.work, TestWork)
            for need in job.needs[:1]
            if not (self.out / need / "policy" / CHECKPOINT).exists()
        }
        done -= lacking
        waiting = [job for job in jobs if job.folder not in done and not isinstance(job.work, MotionWork)]
        needed = {need for job in waiting for need in job.needs}
        waiting = [job for job in jobs if job in waiting or (job.folder in needed and job.folder not in done)]
        waiting_for = {job.folder for job in waiting}
        running: dict[Future[dict[str, Any]], Job] = {}
        estimate = Estimate.of(self.resolved, self.out)
        deadline = self.options.deadline
        count = min(self.workers, max(1, len(waiting)))
        with (
            Progress("study", len(jobs), "runs", done=len(jobs) - len(waiting)) as progress,
            ProcessPool(count, _begin, patience_s=PATIENCE_S) as pool,
        ):
            while waiting or running:
                late = deadline is not None and time.time() >= deadline
                while waiting and len(running) < count and not late:
                    ready = next(
                        (job for job in waiting if all(need in done or need not in waiting_for for need in job.needs)),
                        None,
                    )
                    if ready is None:
                        break
                    waiting.remove(ready)
                    running[pool.submit(do, ready, self.out)] = ready
                if late:
                    progress.say(
                        f"it is time: {len(running)} runs stop where they are, {len(waiting)} wait; the same command goes on"
                    )
                    pool.stop()
                    return
                finished, _ = wait(running, timeout=5.0, return_when=FIRST_COMPLETED)
                for future in finished:
                    job = running.pop(future)
                    done.add(job.folder)
                    progress.say(f"{job.label}: {_in_words(self._result(future, job))}")
                    progress.advance()
                states = [(job, *self._state(job)) for job in running.values()]
                left = sum(map(estimate.job, waiting)) + sum(estimate.job(job) * rest for job, _, rest in states)
                note = "; ".join(text for _, text, _ in states)
                progress.update(progress.done, note=f"now {note}" if note else "", left_s=left / count)

    def _result(self, future: Future[dict[str, Any]], job: Job) -> dict[str, Any]:
        try:
            return future.result()
        except BrokenProcessPool:
            raise DataError(
                f"{job.label}: its process died (see {self.out / job.folder / LOG}); the same command goes on, and fewer "
                "--workers need less memory"
            ) from None
        except LampError as error:
            raise type(error)(f"{job.label}: {error}") from error

    def _state(self, job: Job) -> tuple[str, float]:
        """What a running job is at, and which share of it is left."""
        folder = self.out / job.folder
        with contextlib.suppress(LampError, OSError, KeyError, IndexError):
            if isinstance(job.work, TestWork):
                done, of = len(read_lines_json(folder / "episodes" / EPISODES)), job.work.episodes
                return f"{job.label} ({done}/{of} episodes)", 1 - done / of
            folder = folder / "policy" if isinstance(job.work, PolicyWork) else folder
            done, of = read_lines_json(folder / METRICS)[-1]["step"], job.work.training.loop.steps
            return f"{job.label} ({done}/{of} steps)", 1 - done / of
        return job.label, 1.0


def _begin() -> None:
    os.environ[QUIET] = "1"


def _split(episodes: Sequence[int], held_out: Sequence[int]) -> Split:
    return Split(
        validation_share=0.0,
        episodes=EpisodeSelection(episodes=_listed(episodes)),
        held_out=EpisodeSelection(episodes=_listed(held_out)),
    )


def _in_words(result: dict[str, Any]) -> str:
    took = f" in {clock(result['seconds'])}"
    if "outcomes" in result:
        outcomes = result["outcomes"]
        return f"{sum(one[-1] for one in outcomes)} of {len(outcomes)} episodes succeeded{took}"
    if "errors" in result:
        errors = ", ".join(
            f"{_group(name)}{one['final']:.4f} (best {one['best']:.4f})" for name, one in result["errors"].items()
        )
        return f"held-out error {errors}{took}"
    return f"{result['ade_px']:.1f} px, {result['zero_motion_ade_px']:.1f} px for no motion{took}"


def _group(name: str) -> str:
    return {HELD_OUT: "", MOTION_ONLY: "of tasks seen in motion only "}.get(name, name)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """How long things take, on one core: what this study has measured so far, and before that what they took elsewhere. [s]"""

    seconds: dict[str, float]
    samples: int

    @classmethod
    def of(cls, resolved: Resolved, out: Path | None = None) -> Estimate:
        """The estimate for a study, with what its folder holds."""
        seconds, study = dict(SECONDS), resolved.study
        for name, pattern in (("motion step", "motion/*/*/result.json"), ("policy step", "cells/*/*/*/result.json")):
            found = [read_json_as(path, StoredRate, "result") for path in sorted(out.glob(pattern))] if out else []
            rates = [one["seconds"] / one["steps"] for one in found if one["seconds"] > 0 and one["steps"] > 0]
            if rates:
                seconds[name] = sum(rates) / len(rates)
                seconds |= {"measured frame": 0.0} if name == "policy step" else {}
        return cls(seconds=seconds, samples=study.measurements * study.held_out_samples)

    def job(self, job: Job) -> float:
        """Of one job."""
        match job.work:
            case MotionWork():
                return job.work.training.loop.steps * self.seconds["motion step"]
            case PolicyWork():
                return self.policy(job.work.training.loop.steps)
            case TestWork():
                return job.work.episodes * self.seconds["test episode"]

    def policy(self, steps: int) -> float:
        """Of a Stage 2."""
        return steps * self.seconds["policy step"] + self.samples * self.seconds["measured frame"]


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much a study is: of each kind, how many, and the time on one core. [s]"""

    cells: int
    motions: int
    episodes: int
    """Collected."""
    trials: int
    """In the simulator."""
    seconds: dict[str, float]

    @property
    def total_s(self) -> float:
        """On one core. [s]"""
        return sum(self.seconds.values())


def size(resolved: Resolved, out: Path | None = None, only: Sequence[str] = ()) -> Size:
    """What of a study is left to do; all of it where there is no folder."""
    study, estimate = resolved.study, Estimate.of(resolved, out)
    left = [cell for cell in cells(study, only) if out is None or not (out / cell.folder / RESULT).is_file()]
    trials = 0
    for cell in cells(study, only):
        for test in study.tests:
            if out is None or not (out / cell.folder / "tests" / test.name / RESULT).is_file():
                trials += test.episodes
    motions: set[str] = set()
    for cell in left:
        arm = study.arm(cell.arm)
        if (training := resolved.motion(arm)) is not None and arm.prior is not None:
            prior = replace(arm.prior, oracle=False)
            per_count = cell.demonstrations if prior.motion != "action_free" else 0
            motions.add(to_line([to_json(training), to_json(prior), per_count, study.motion_seed(cell.seed)]))
    there = len(list(out.glob("motion/*/*/result.json"))) if out else 0
    wanted = sum(
        source.episodes * len(source.tasks)
        for source in (study.data, *study.extra)
        if isinstance(source, CollectConfig)
    )
    ready = out is not None and (out / "data" / "demonstrations" / "features").is_dir()
    episodes = 0 if ready else wanted
    count = max(0, len(motions) - there)
    rate = estimate.seconds
    return Size(
        cells=len(left),
        motions=count,
        episodes=episodes,
        trials=trials,
        seconds={
            "data": episodes * (rate["collect"] + rate["flow"] + rate["features"]),
            "Stage 1": count * study.motion_steps * rate["motion step"],
            "Stage 2": len(left) * estimate.policy(study.policy_steps),
            "simulator": trials * rate["test episode"],
        },
    )


def plan_text(resolved: Resolved, out: Path | None, options: RunOptions) -> str:
    """What is to be done, how long that takes and how much disk, in lines."""
    study, workers = resolved.study, options.workers or available_cores()
    here = out if out is not None and out.is_dir() else None
    whole, left = size(resolved, only=options.only), size(resolved, here, options.only)
    arms = [arm.name for arm in study.arms if not options.only or arm.name in options.only]
    parts = ", ".join(f"{name} {clock(seconds / workers)}" for name, seconds in left.seconds.items() if seconds)
    text = [
        f"{study.name}: {study.question}",
        f"  arms {', '.join(arms)}; {', '.join(map(str, study.demonstrations))} demonstrations a task; seeds: "
        f"{study.policy_seeds} of Stage 2, {study.motion_seeds} of Stage 1; steps: {study.policy_steps} and {study.motion_steps}",
        f"  {left.cells} of {whole.cells} cells to train, {left.motions} Stage 1, {left.episodes} episodes to collect, "
        f"{left.trials} in the simulator",
        f"  about {clock(left.total_s / workers)} with {workers} processes ({parts or 'nothing'}); about {in_bytes(disk(left))} "
        "of disk",
    ]
    if study.policy_seeds < 4 or (study.motion_seeds < 2 and any(arm.prior for arm in study.arms)):
        text.append("  too few seeds for a claim: that takes 4 of Stage 2 and 2 of Stage 1")
    return "\n".join(text)


def disk(left: Size) -> int:
    """About how many bytes the rest of a study takes."""
    return (left.cells + left.motions) * CHECKPOINT_BYTES + left.episodes * EPISODE_BYTES


def check_disk(resolved: Resolved, out: Path) -> None:
    """
    Raises:
        DataError: The disk has not enough room.
    """
    if isinstance(resolved.study.data, MadeUpData):
        return
    wanted, free = disk(size(resolved, out)), shutil.disk_usage(out).free
    if wanted > free:
        raise DataError(
            f"{out}: the study needs about {in_bytes(wanted)} more, and {in_bytes(free)} are free there; free some, or choose "
            "another --out"
        )
