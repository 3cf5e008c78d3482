"""Trials on a real robot: a person enters how far each came, and progress is averaged as the paper does (Section V-B).

A task is a list of stages, and the progress of a trial is the share of them that was completed. Trials are lines of a log, so
that an evening's work survives whatever happens to it.
"""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from lamp.benchmark.run_manifest import checkpoint_hash
from lamp.benchmark.statistics import wilson
from lamp.errors import ConfigError, DataError, unknown
from lamp.json_files import append_line, read_json, read_lines_json
from lamp.version import code_version

TRIALS = "trials.jsonl"
LONGEST_NAME = 120
"""Characters of a method's name."""
IN_DOMAIN = "in_domain"
Setting = Literal["in_domain", "unseen_layout", "unseen_object", "unseen_background"]
OUT_OF_DOMAIN = "Out of domain"
"""The category of every trial in a setting that no demonstration shows."""


@dataclass(frozen=True, kw_only=True)
class RobotTask:
    """A task on a real robot."""

    category: str
    """Which of the report's columns it counts for."""
    instruction: str
    stages: tuple[str, ...]
    """What has to be true, in this order; each is worth as much as any other."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A line of `trials.jsonl`."""

    method: str
    task: str
    category: str
    setting: str
    instruction: str
    stages: int
    """Completed."""
    of: int
    checkpoint: str
    """The content hash of the policy's checkpoint; empty where it is not ours."""
    code: str
    time: str
    """Local, ISO 8601."""
    note: str

    @property
    def progress(self) -> float:
        """The share of stages that was completed."""
        return self.stages / self.of

    @property
    def column(self) -> str:
        """The task's category, or that of all settings that no demonstration shows."""
        return self.category if self.setting == IN_DOMAIN else OUT_OF_DOMAIN


@dataclass(frozen=True, kw_only=True)
class TaskProgress:
    """The mean progress of some trials."""

    values: tuple[float, ...]

    @property
    def counted(self) -> str:
        """The number of trials in words."""
        return f"{len(self.values)} trial{'s' if len(self.values) > 1 else ''}"

    @property
    def mean(self) -> float:
        """The task progress score."""
        return sum(self.values) / len(self.values)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95% interval, which is a cautious one for shares."""
        return wilson(sum(self.values), len(self.values))


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Writes down how far a trial on a real robot came, one line of trials.jsonl each; `lamp report` shows them."""

    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """The folder of the trials, of all methods and tasks."""
    method: str | None = None
    """Whose trial it was, as the report is to name it."""
    task: str | None = None
    """One of the paper's three tasks (stack_cup, fold_towel, making_bread), or of --tasks."""
    stages: int | None = None
    """How many stages were completed; asked for at the terminal if not given."""
    setting: Setting = "in_domain"
    """Whether the demonstrations show such a scene, or what of it is new."""
    checkpoint: Path | None = None
    """The policy's checkpoint, whose content hash is written down."""
    tasks: Path | None = None
    """A JSON file of your own tasks: {"tasks": {NAME: {"category", "instruction", "stages": [...]}}}."""
    note: str = ""
    """Anything worth knowing about the trial."""
    undo: bool = False
    """Take the last trial back instead."""


def read_tasks(path: Path | None = None) -> dict[str, RobotTask]:
    """Returns the paper's tasks, or those of a file, by name.

    Raises:
        DataError: The file does not describe tasks.
    """
    raw = json.loads(files("lamp.benchmark").joinpath("robot_tasks.json").read_text()) if path is None else None
    raw = raw or read_json(path or Path(), "tasks of the robot")
    match raw:
        case {"tasks": {} as tasks} if tasks:
            return {str(name): _task(str(name), task, path) for name, task in tasks.items()}
    raise DataError(f'{path} names no tasks; expected {{"tasks": {{NAME: {{"category", "instruction", "stages"}}}}}}')


def _task(name: str, raw: Any, path: Path | None) -> RobotTask:
    match raw:
        case {"category": str(category), "instruction": str(instruction), "stages": [_, *_] as stages}:
            if all(type(stage) is str for stage in stages):
                return RobotTask(category=category, instruction=instruction, stages=tuple(stages))
    raise DataError(
        f"task {name!r} of {path} is {raw!r}; expected category and instruction as text and stages as a list of texts"
    )


def score(config: ScoreConfig) -> str:
    """Adds a trial, or takes the last one back, and returns what all trials say so far.

    Raises:
        ConfigError: The method, task or number of stages is missing or invalid.
        DataError: A file is missing or damaged.
    """
    path = config.out / TRIALS
    if config.undo:
        _undo(path)
    else:
        append_line(path, json.dumps(asdict(_trial(config)), ensure_ascii=False))
    trials = read_trials(config.out)
    return to_text(trials) if trials else f"{path} holds no trial now"


def _trial(config: ScoreConfig) -> Trial:
    tasks = read_tasks(config.tasks)
    if config.method is None or config.task is None:
        raise ConfigError(f"a trial needs --method NAME and --task, one of {', '.join(tasks)}")
    if not config.method.strip() or not config.method.isprintable() or len(config.method) > LONGEST_NAME:
        raise ConfigError(
            f"--method {config.method[:LONGEST_NAME]!a} names nothing that a table can show; expected one line of up to "
            f"{LONGEST_NAME} characters"
        )
    if config.task not in tasks:
        raise unknown("task of the robot", config.task, tasks)
    task = tasks[config.task]
    stages = _ask_for_stages(task) if config.stages is None else config.stages
    if not 0 <= stages <= len(task.stages):
        raise ConfigError(f"--stages is {stages}; expected 0 to {len(task.stages)}, the stages of {config.task}")
    return Trial(
        method=config.method,
        task=config.task,
        category=task.category,
        setting=config.setting,
        instruction=task.instruction,
        stages=stages,
        of=len(task.stages),
        checkpoint=checkpoint_hash(config.checkpoint) if config.checkpoint else "",
        code=code_version(),
        time=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        note=config.note,
    )


def _ask_for_stages(task: RobotTask) -> int:
    if not sys.stdin.isatty():
        raise ConfigError(
            f"--stages is not given; expected 0 to {len(task.stages)}, and no terminal is there to ask at"
        )
    for number, stage in enumerate(task.stages, start=1):
        print(f"  {number}  {stage}", file=sys.stderr)
    answer = input("The last stage completed (0 if none): ").strip()
    if not answer.isdigit():
        raise ConfigError(f"{answer!r} is no stage; expected 0 to {len(task.stages)}")
    return int(answer)


def _undo(path: Path) -> None:
    """Nothing that was written is ever changed: a further line takes the last trial back."""
    if not _not_undone(read_lines_json(path)):
        raise DataError(f"{path} holds no trial to take back")
    append_line(path, json.dumps({"undo": True}))


def _not_undone(lines: Sequence[Any]) -> list[Any]:
    kept: list[Any] = []
    for line in lines:
        match line:
            case {"undo": undo} if undo:
                kept = kept[:-1]
            case _:
                kept.append(line)
    return kept


def read_trials(folder: Path) -> list[Trial]:
    """Returns the trials of a folder that were not taken back, oldest first; none where there is no log.

    Raises:
        DataError: A line is no trial.
    """
    trials = []
    for line in _not_undone(read_lines_json(folder / TRIALS)):
        try:
            trial = Trial(**line)
            if not 0 <= trial.stages <= trial.of or not trial.of:
                raise ValueError(f"{trial.stages} of {trial.of} stages")
        except (TypeError, ValueError) as error:
            raise DataError(f"{folder / TRIALS} holds a line that is no trial ({error}): {line!r}") from None
        trials.append(trial)
    return trials


def progress_by_column(trials: Iterable[Trial]) -> dict[str, dict[str, TaskProgress]]:
    """Returns method -> column -> progress, in order of appearance."""
    grouped: dict[str, dict[str, list[float]]] = {}
    for trial in trials:
        grouped.setdefault(trial.method, {}).setdefault(trial.column, []).append(trial.progress)
    return {
        method: {column: TaskProgress(values=tuple(values)) for column, values in columns.items()}
        for method, columns in grouped.items()
    }


def to_text(trials: Sequence[Trial]) -> str:
    """One line a method and column: mean progress, its interval, the number of trials."""
    lines = []
    for method, columns in progress_by_column(trials).items():
        for column, progress in columns.items():
            low, high = progress.interval
            summary = f"{100 * progress.mean:.1f}% ({100 * low:.0f} to {100 * high:.0f}), {progress.counted}"
            lines.append(f"{method}, {column}: {summary}")
    return "\n".join(lines)
