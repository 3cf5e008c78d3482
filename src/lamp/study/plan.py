"""Which episodes the stages of a study learn from, what of it is left to do, and how long and how much disk that takes."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from lamp.collect.jobs import CollectConfig
from lamp.configuration import to_json
from lamp.data.episode_selection import EpisodeSelection, number_ranges
from lamp.data.feature_cache.shards import in_bytes
from lamp.data.lerobot.reader import LeRobotDataset
from lamp.errors import DataError, MismatchError
from lamp.json_files import read_json_as, to_line
from lamp.progress import clock
from lamp.study.jobs import Job, MotionJob, PolicyJob, TestJob
from lamp.study.results import HELD_OUT, MOTION_ONLY, RESULT, StoredRate, cells
from lamp.study.study import Arm, Resolved, Study
from lamp.train.checkpoint_metadata import read_description
from lamp.train.publishing import find_checkpoint
from lamp_client.child_processes import available_cores

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
class Estimate:
    """How long things take, on one core: what this study has measured so far, and before that what they took elsewhere. [s]"""

    seconds: dict[str, float]
    samples: int

    @classmethod
    def of(cls, resolved: Resolved, out: Path | None = None) -> Estimate:
        """The estimate for a study, with what its folder holds."""
        seconds, study = dict(SECONDS), resolved.study
        for name, pattern in (("motion step", "motion/*/*/result.json"), ("policy step", "cells/*/*/*/result.json")):
            stored = [read_json_as(path, StoredRate, "result") for path in sorted(out.glob(pattern))] if out else []
            rates = [one["seconds"] / one["steps"] for one in stored if one["seconds"] > 0 and one["steps"] > 0]
            if rates:
                seconds[name] = sum(rates) / len(rates)
                seconds |= {"measured frame": 0.0} if name == "policy step" else {}
        return cls(seconds=seconds, samples=study.measurements * study.held_out_samples)

    def job(self, job: Job) -> float:
        """Of one job."""
        match job.work:
            case MotionJob():
                return job.work.training.loop.steps * self.seconds["motion step"]
            case PolicyJob():
                return self.policy(job.work.training.loop.steps)
            case TestJob():
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
    if study.policy_seeds < 4 or (study.motion_seeds < 2 and any(arm.trains_motion for arm in study.arms)):
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
    if resolved.study.is_made_up:
        return
    wanted, free = disk(size(resolved, out)), shutil.disk_usage(out).free
    if wanted > free:
        raise DataError(
            f"{out}: the study needs about {in_bytes(wanted)} more, and {in_bytes(free)} are free there; free some, or choose "
            "another --out"
        )


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
        chosen = EpisodeSelection(episodes=listed(self.pool), per_task=count, seed=motion_seed).select(self.dataset)
        of_tasks: dict[str, int] = {}
        for episode in chosen:
            of_tasks[self.task(episode)] = of_tasks.get(self.task(episode), 0) + 1
        for task, episodes in of_tasks.items():
            if episodes < count:
                raise DataError(
                    f"{count} demonstrations of each task are asked for, and {self.dataset.root} has {episodes} of "
                    f"{task!r} among those that `actions` selects ({self.study.actions}, {len(self.held_out)} held out); "
                    f"expected {count}: collect more episodes, select more, or ask for fewer demonstrations"
                )
        return chosen

    def motion(self, arm: Arm, count: int, motion_seed: int) -> tuple[int, ...]:
        """What an arm's Stage 1 learns from.

        Raises:
            MismatchError: It says that the stages share no episode, and they do.
        """
        if arm.prior is None or arm.prior.checkpoint is not None:
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

    def _check_unseen(self, arm: Arm, checkpoint: str) -> None:
        """
        Raises:
            MismatchError: The checkpoint was trained on what is held out here.
        """
        description = read_description(find_checkpoint(checkpoint))
        for record in (description.data, *(description.flow.also if description.flow else ())):
            if not record.dataset or record.dataset != self.dataset.content:
                continue
            trained = set(range(len(self.dataset))) if record.train_episodes is None else {*record.train_episodes}
            if seen := sorted(trained.intersection(self.held_out)):
                raise MismatchError(
                    f"arm {arm.name!r}: {checkpoint} was trained on episodes {number_ranges(seen)} of {self.dataset.root}, which "
                    f"are held out here ({self.study.held_out}); expected others to be held out, or another checkpoint"
                )

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
        for arm in self.study.arms:
            if arm.prior is not None and arm.prior.checkpoint is not None:
                self._check_unseen(arm, arm.prior.checkpoint)
        for motion_seed in range(self.study.motion_seeds):
            for count in self.study.demonstrations:
                for arm in self.study.arms:
                    self.motion(arm, count, motion_seed)
                self.demonstrations(count, motion_seed)


def listed(episodes: Sequence[int]) -> str:
    return ",".join(map(str, episodes))
