"""What of a study is left to do, and how long and how much disk that takes."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lamp.collect.jobs import CollectConfig
from lamp.configuration import to_json
from lamp.data.feature_cache.shards import in_bytes
from lamp.errors import DataError
from lamp.json_files import read_json_as, to_line
from lamp.progress import clock
from lamp.study.jobs import Job, MotionJob, PolicyJob, TestJob
from lamp.study.results import RESULT, StoredRate, cells
from lamp.study.study import Resolved
from lamp.study.synthetic_data import MadeUpData
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
    if isinstance(resolved.study.data, MadeUpData):
        return
    wanted, free = disk(size(resolved, out)), shutil.disk_usage(out).free
    if wanted > free:
        raise DataError(
            f"{out}: the study needs about {in_bytes(wanted)} more, and {in_bytes(free)} are free there; free some, or choose "
            "another --out"
        )
