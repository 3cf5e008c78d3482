"""Commands that carry out studies of when a motion prior helps."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from lamp.commands.command import Command
from lamp.errors import ConfigError
from lamp.flags import parse
from lamp.progress import clock


@dataclass(frozen=True, kw_only=True)
class ListFlags:
    """Lists the studies, each with its question, its cells, and about how long it takes on 2 cores."""

    all: bool = False
    """Also those that only try the machinery."""


def _list(arguments: Sequence[str]) -> None:
    flags = parse(ListFlags, arguments, "study list")
    from lamp.study.catalogue import STUDIES
    from lamp.study.plan import size
    from lamp.study.study import Resolved

    for name, build in STUDIES.items():
        study = build()
        if study.check and not flags.all:
            continue
        whole = size(Resolved.of(study))
        trials = f", {whole.trials:,} episodes in the simulator" if whole.trials else ""
        print(f"{name}\n    {study.question}")
        print(
            f"    {len(study.arms)} arms, {whole.cells} cells{trials}; about {whole.total_s / 2 / 3600:.1f} hours on 2 cores"
        )


@dataclass(frozen=True, kw_only=True)
class ShowFlags:
    """Prints a study as JSON, to be changed and given to `lamp study run` (docs/studies.md)."""

    name: tyro.conf.Positional[str]
    """A name of `lamp study list`, or a study's JSON file."""


def _show(arguments: Sequence[str]) -> None:
    flags = parse(ShowFlags, arguments, "study show")
    from lamp.configuration import to_json
    from lamp.study.catalogue import find_study

    print(json.dumps(to_json(find_study(flags.name)), indent=2, ensure_ascii=False))


@dataclass(frozen=True, kw_only=True)
class RunFlags:
    """Carries out a study, or goes on with it, and writes its report (docs/studies.md)."""

    name: tyro.conf.Positional[str]
    """A name of `lamp study list`, or a study's JSON file."""
    out: Path
    """The folder of everything."""
    only: str | None = None
    """Arms to do in this sitting, such as none,same; all by default."""
    cells: int | None = None
    """At most so many cells in this sitting."""
    until: str | None = None
    """Stop at this time of the day, HH:MM; the same command goes on."""
    hours: float | None = None
    """Stop after so long; the same command goes on."""
    workers: int = 0
    """Trainings at once, one thread each; 0: one per processor."""
    data: Path | None = None
    """The folder of the demonstrations, in place of OUT/data/demonstrations: one collection for several studies."""
    demonstrations: tuple[int, ...] = ()
    """Action demonstrations a task, in place of the study's."""
    motion_steps: int | None = None
    """Steps of Stage 1, in place of the study's."""
    policy_steps: int | None = None
    """Steps of Stage 2, in place of the study's."""
    motion_seeds: int | None = None
    """Seeds of Stage 1, in place of the study's."""
    policy_seeds: int | None = None
    """Seeds of Stage 2, in place of the study's."""
    keep_checkpoints: bool = True
    """Keep policies once they are measured."""
    plan: bool = False
    """Say what is to be done and how long it takes, and do nothing."""


def deadline(until: str | None, hours: float | None, now: float | None = None) -> float | None:
    """The time at which to stop, as `time.time()` counts. [s]

    Raises:
        ConfigError: Both are given, or one is no time.
    """
    now = time.time() if now is None else now
    if until is not None and hours is not None:
        raise ConfigError(f"--until {until} and --hours {hours:g}: expected one of the two")
    if hours is not None:
        if not 0 < hours < float("inf"):
            raise ConfigError(f"--hours {hours:g}: expected more than 0, such as 2.5")
        return now + 3600 * hours
    if until is None:
        return None
    try:
        clock_time = time.strptime(until, "%H:%M")
    except ValueError:
        raise ConfigError(f"--until {until!r}: expected a time of the day such as 18:30") from None
    today = time.localtime(now)
    wanted = time.mktime((*today[:3], clock_time.tm_hour, clock_time.tm_min, 0, 0, 0, -1))
    if wanted > now:
        return wanted
    return time.mktime((*today[:2], today[2] + 1, clock_time.tm_hour, clock_time.tm_min, 0, 0, 0, -1))


def _run(arguments: Sequence[str]) -> None:
    flags = parse(RunFlags, arguments, "study run")
    from lamp.study.catalogue import find_study
    from lamp.study.plan import RunOptions, plan_text
    from lamp.study.report import to_text
    from lamp.study.run import run
    from lamp.study.study import Resolved

    changes = {
        name: value
        for name in ("demonstrations", "motion_steps", "policy_steps", "motion_seeds", "policy_seeds")
        if (value := getattr(flags, name)) not in (None, ())
    }
    study = replace(find_study(flags.name), **changes)
    if flags.workers < 0 or (flags.cells is not None and flags.cells < 1):
        raise ConfigError(
            f"--workers {flags.workers}, --cells {flags.cells}: expected 0 workers or more, and 1 cell or more"
        )
    options = RunOptions(
        workers=flags.workers,
        only=tuple(name.strip() for name in flags.only.split(",") if name.strip()) if flags.only else (),
        cells=flags.cells,
        deadline=deadline(flags.until, flags.hours),
        data=flags.data,
        keep_checkpoints=flags.keep_checkpoints,
    )
    for name in options.only:
        study.arm(name)
    if flags.plan:
        print(plan_text(Resolved.of(study), flags.out, options))
        return
    begun = time.monotonic()
    figures = run(study, flags.out, options)
    print(to_text(figures))
    state = "done" if figures["complete"] else "unfinished; the same command goes on"
    print(f"{state}, after {clock(time.monotonic() - begun)} in this sitting; open {flags.out / 'report.html'}")


@dataclass(frozen=True, kw_only=True)
class ReportFlags:
    """Prints a study's results so far, and writes study.json and report.html into its folder."""

    folder: tyro.conf.Positional[Path]
    """The --out of `lamp study run`."""


def _report(arguments: Sequence[str]) -> None:
    flags = parse(ReportFlags, arguments, "study report")
    from lamp.study.report import report

    print(report(flags.folder))


COMMANDS: dict[str, Command] = {
    "study list": Command(summary="list the studies of when a motion prior helps", run=_list),
    "study show": Command(summary="print a study as JSON, for one of your own", run=_show),
    "study run": Command(summary="carry out a study: many trainings, compared in pairs", run=_run),
    "study report": Command(summary="print a study's results so far", run=_report, elsewhere="another folder"),
}
