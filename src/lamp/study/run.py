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
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lamp.benchmark.evaluate import EvaluateConfig
from lamp.collect.collect import collect
from lamp.collect.jobs import CollectConfig
from lamp.configuration import to_json
from lamp.data.augmentation import NO_AUGMENTATION
from lamp.data.embodiment import OWN, Embodiment, embodiment
from lamp.data.episode_selection import EpisodeSelection
from lamp.errors import DataError, LampError
from lamp.files import locked
from lamp.json_files import to_line, write_json
from lamp.progress import QUIET, Progress, clock, say
from lamp.recipes import Recipe
from lamp.sceneflow.build import build
from lamp.study.figures import summarise
from lamp.study.jobs import LOG, Job, MotionJob, PolicyJob, TestJob, do
from lamp.study.plan import Estimate, Partition, RunOptions, check_disk, listed, plan_text
from lamp.study.report import write_report
from lamp.study.results import DEFINITION, HELD_OUT, MOTION_ONLY, RESULT, Cell, cells, read_definition
from lamp.study.study import Arm, Data, RecordedData, Resolved, SimulatorTest, Study, check_continues
from lamp.study.synthetic_data import MadeUpData, write_synthetic_data
from lamp.train.backbones import ensure_features
from lamp.train.config import MixedIn, Split
from lamp.train.publishing import find_checkpoint
from lamp.train.run_folder import CHECKPOINT
from lamp_client.child_processes import ProcessPool, available_cores

PATIENCE_S = 120.0
"""How long a training that is asked to end may take to write its checkpoint. [s]"""


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
                write_synthetic_data(source, folder)
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
        data, jobs, motion = partition.dataset.root, list[Job](), None
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
            work = MotionJob(training=training, data=data, episodes=episodes)
            folder = f"motion/{name}-{key}/s{motion_seed}"
            jobs.append(Job(folder=folder, label=f"Stage 1 {name} (seed {motion_seed})", work=work))
            motion = self.out / folder / CHECKPOINT
        elif arm.prior is not None and arm.prior.checkpoint is not None:
            motion = find_checkpoint(arm.prior.checkpoint)
        policy = self.resolved.policy(arm)
        policy = replace(policy, loop=self._loop(policy.loop, cell.seed), split=_split(used, partition.held_out))
        match study.data:
            case RecordedData(embodiment=str(robot)):
                policy = replace(policy, embodiment=embodiment(robot))
        work = PolicyJob(training=policy, data=data, motion=motion, episodes=used, groups=partition.groups)
        needs = tuple(job.folder for job in jobs)
        jobs.append(Job(folder=cell.folder, label=cell.label, work=work, needs=needs))
        for test in study.tests:
            work = TestJob(
                config=self._evaluation(test, arm, cell),
                episodes=test.episodes,
                policy=self.out / cell.folder,
                discard=not self.options.keep_checkpoints and test is study.tests[-1],
            )
            needs = (
                cell.folder,
                *(f"{cell.folder}/tests/{one.name}" for one in study.tests if work.discard and one is not test),
            )
            jobs.append(
                Job(
                    folder=f"{cell.folder}/tests/{test.name}",
                    label=f"{cell.label}, {test.name}",
                    work=work,
                    needs=needs,
                )
            )
        return jobs

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
            if job.folder not in done and job.work.tries_policy
            for need in job.needs[:1]
            if not (self.out / need / "policy" / CHECKPOINT).exists()
        }
        done -= lacking
        waiting = [job for job in jobs if job.folder not in done and not job.work.on_demand]
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
            done, of, what = job.work.progress(folder)
            return f"{job.label} ({done}/{of} {what})", 1 - done / of
        return job.label, 1.0


def _begin() -> None:
    os.environ[QUIET] = "1"


def _split(episodes: Sequence[int], held_out: Sequence[int]) -> Split:
    return Split(
        validation_share=0.0,
        episodes=EpisodeSelection(episodes=listed(episodes)),
        held_out=EpisodeSelection(episodes=listed(held_out)),
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
