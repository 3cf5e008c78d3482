"""Reads what a report shows: metrics, episode lines, flow errors, facts of the dataset; and names it all alike."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from lamp.benchmark.baselines import CONTROLS
from lamp.benchmark.episodes import EpisodeRecord, read_records
from lamp.benchmark.robustness import RobustnessTable, robustness
from lamp.benchmark.run_manifest import read_manifest
from lamp.benchmark.statistics import Paired
from lamp.benchmark.tables import SuccessRow, SuccessTable, tabulate
from lamp.benchmark.trials import Trial, read_trials
from lamp.data.episode_selection import number_ranges
from lamp.json_files import read_json_object, read_lines_as
from lamp.train.checkpoint_metadata import FILE_NAME as DESCRIPTION
from lamp.train.checkpoint_metadata import StageEpisodes, read_description, stage_episodes
from lamp.train.flow_metrics import read_flow_errors
from lamp.train.metrics import read_metrics
from lamp.train.run_folder import CHECKPOINT

SHOWN_ELSEWHERE = ("format", "version", "packages", "fps", "states", "tasks", "episodes", "frames")
UNITS: dict[str, str] = {"placement_shift": "placement shift in m", "image_size": "image size in px"}
COLOURS = {
    "with_motion": 0,
    "one_sample": 0,
    "policy": 0,
    "without_motion": 1,
    "zero_motion": 1,
    "mean_of_4": 2,
    "constant_velocity": 7,
}
OTHERS = (2, 3, 4, 5, 6)
"""Colours of conditions and policies that have none of their own."""
PARTS = (8, 9, 10, 3, 4, 5, 6, 2)
"""Colours of a whole's parts, such as axes and dimensions: not those of the policies with and without motion."""


def folder_label(folder: Path) -> str:
    """An evaluation's folder as people tell several apart: `object/evaluation`."""
    return f"{folder.resolve().parent.name}/{folder.name}"


def words(name: str) -> str:
    """A condition's or predictor's name as people write it."""
    return name.replace("_", " ")


def failure_kind(record: EpisodeRecord) -> str:
    """How an episode failed, by what its objects did; empty where the simulator recorded no objects, or the goal names none."""
    match record.extra.get("simulator"):
        case {"targets": [_, *_] as targets, "moved": dict(moved)}:
            pass
        case _:
            return ""
    lifted = {name for name, (_, up) in moved.items() if up > LIFTED_M}
    wanted = {name for name in moved if name in targets}
    if wanted & lifted:
        return "lifted it, and did not bring it there"
    if lifted:
        return "lifted another object"
    if any(moved[name][0] > MOVED_M for name in wanted):
        return "moved it, and did not lift it"
    return "moved another object" if any(away > MOVED_M for away, _ in moved.values()) else "touched nothing"


MOVED_M, LIFTED_M = 0.02, 0.03
"""How far an object must have gone, and how high, to count as moved and as lifted. [m]"""


@dataclass(frozen=True, kw_only=True)
class Curves:
    """A run's metrics.jsonl: lines of kind "train" and "validation"."""

    lines: Sequence[Mapping[str, Any]]
    planned: int | None = None
    """Steps of the whole run; None where it goes by time."""

    def values(self, kind: str, name: str, entry: int | str | None = None) -> list[tuple[float, float]]:
        """Returns (step, value) of a metric, or of one entry of a metric that has several, by its name or, in older runs, its
        place; what is missing is left out."""
        points = []
        for line in self.lines:
            value = line.get(name) if entry is None else _entry(line.get(name), entry)
            match value:
                case int() | float() if line.get("kind") == kind and abs(value) <= sys.float_info.max:
                    points.append((float(line["step"]), float(value)))
        return points

    def names(self, kind: str, prefix: str) -> list[str]:
        """Returns the metrics of a kind of line whose name begins so, in order of appearance."""
        lines = [line for line in self.lines if line.get("kind") == kind]
        return list(dict.fromkeys(name for line in lines for name in line if name.startswith(prefix)))

    def entries(self, kind: str, name: str) -> list[str]:
        """Returns the names of a metric's entries, in order of appearance."""
        values = [line.get(name) for line in self.lines if line.get("kind") == kind]
        return list(dict.fromkeys(entry for value in values if isinstance(value, dict) for entry in value))

    @property
    def steps(self) -> int:
        """The last step."""
        return max((int(line["step"]) for line in self.lines), default=0)

    @property
    def seconds(self) -> float:
        """Training time until the last line [s]."""
        return max((float(line.get("elapsed_s", 0.0)) for line in self.lines), default=0.0)


def _entry(value: Any, entry: int | str) -> Any:
    match value, entry:
        case dict(), _:
            return value.get(entry)
        case list(), int() if entry < len(value):
            return value[entry]
    return None


@dataclass(frozen=True, kw_only=True)
class FlowRow:
    """Errors of one predictor: ADE and FDE over moving and static points, pixels of a 256-pixel image; None where unknown."""

    name: str
    moving: tuple[float | None, float | None]
    static: tuple[float | None, float | None]
    moving_mm: float | None
    """ADE of the moving points in space [mm]."""


@dataclass(frozen=True, kw_only=True)
class FlowErrors:
    """Errors of the paths that a motion prior predicts, and how they were measured."""

    rows: tuple[FlowRow, ...]
    facts: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class RunResults:
    """Everything that a report shows."""

    motions: Mapping[str, Curves]
    """Name -> a training of the motion prior."""
    policies: Mapping[str, Curves]
    folders: tuple[Path, ...]
    records: tuple[tuple[EpisodeRecord, ...], ...]
    """The episodes of each evaluation folder."""
    planned: tuple[int, ...]
    models: tuple[Mapping[str, Mapping[str, str | None]], ...]
    """Of each evaluation folder: condition -> its policy's `flow` and `fusion`, where recorded."""
    flows: Mapping[str, FlowErrors]
    """Name of a motion prior -> the errors of its paths."""
    data: Mapping[str, Any]
    trials: tuple[Trial, ...] = ()
    """On a real robot."""
    stages: Mapping[str, Sequence[StageEpisodes]] = field(default_factory=dict)
    """Name of a policy -> the episodes that each stage behind it was trained on."""

    @cached_property
    def _colours(self) -> dict[str, int]:
        names = [*self.policies, *(record.condition for record in self.episodes)]
        free = [name for name in dict.fromkeys(names) if name not in COLOURS and name not in CONTROLS]
        return {name: OTHERS[place % len(OTHERS)] for place, name in enumerate(free)}

    def colour(self, name: str) -> int:
        """The style sheet's colour of a condition, a policy or a predictor, the same in all figures; controls are grey."""
        return COLOURS.get(name, 7 if name in CONTROLS else self._colours.get(name, OTHERS[0]))

    @property
    def episodes(self) -> list[EpisodeRecord]:
        """The episodes of all evaluation folders."""
        return [record for records in self.records for record in records]

    @property
    def tables(self) -> list[SuccessTable]:
        """The success tables, a suite each and a folder each."""
        return [table for records in self.records for table in tabulate(records)]

    @property
    def titled(self) -> list[tuple[str, SuccessTable]]:
        """The success tables with a heading each: the suite, and the folder where there are several."""
        several = len(self.folders) > 1
        return [
            (f"{table.suite}, {folder_label(folder)}" if several else table.suite, table)
            for folder, records in zip(self.folders, self.records, strict=True)
            for table in tabulate(records)
        ]

    @property
    def perturbed(self) -> list[RobustnessTable]:
        """The tables of LIBERO-Plus and of plus-style perturbations, folder by folder."""
        return [table for records in self.records for table in robustness(records)]

    def row(self, condition: str) -> SuccessRow | None:
        """The first table's row of a condition."""
        rows = [row for table in self.tables for row in table.rows if row.condition == condition]
        return rows[0] if rows else None

    @property
    def pair(self) -> Paired | None:
        """The comparison of the policies with and without motion."""
        pairs = [pair for table in self.tables for pair in table.pairs if pair.second == "without_motion"]
        return pairs[0] if pairs else None


def load_results(
    *,
    motions: Mapping[str, Path],
    policies: Mapping[str, Path],
    evaluations: Sequence[Path],
    flows: Mapping[str, Path],
    data: Path | None,
    trials: Sequence[Path] = (),
) -> RunResults:
    """Reads all parts that are there.

    Raises:
        DataError: A part is there, but damaged.
    """
    manifests = [read_manifest(folder) for folder in evaluations]
    return RunResults(
        motions={name: curves for name, path in motions.items() if (curves := _curves(path)) is not None},
        policies={name: curves for name, path in policies.items() if (curves := _curves(path)) is not None},
        folders=tuple(evaluations),
        records=tuple(tuple(read_records(folder)) for folder in evaluations),
        planned=tuple(manifest["planned"] for manifest in manifests),
        models=tuple(manifest.get("facts", {}).get("models", {}) for manifest in manifests),
        flows={name: _flow_errors(path) for name, path in flows.items() if path.is_file()},
        data=_dataset(data),
        trials=tuple(trial for folder in trials for trial in read_trials(folder)),
        stages={
            name: stage_episodes(read_description(path.parent / CHECKPOINT))
            for name, path in policies.items()
            if (path.parent / CHECKPOINT / DESCRIPTION).is_file()
        },
    )


def _curves(path: Path | None) -> Curves | None:
    if path is None or not path.is_file():
        return None
    return Curves(lines=read_metrics(path), planned=_planned_steps(path.parent))


def _planned_steps(run: Path) -> int | None:
    """The planned steps of a training; None where they were not recorded, or it goes by time."""
    for path in (run / DESCRIPTION, run / CHECKPOINT / DESCRIPTION):
        if path.is_file():
            match read_json_object(path, "description of a training"):
                case {"training": {"loop": {"steps": int(steps), **loop}}} if not loop.get("time_budget_s"):
                    return steps
    return None


def _flow_errors(path: Path) -> FlowErrors:
    stored, rows = read_flow_errors(path), []
    for name, moving in stored["moving"].items():
        static, metres = stored["static"].get(name, {}), moving.get("ade_m")
        rows.append(
            FlowRow(
                name=words(name),
                moving=(moving.get("ade_px"), moving.get("fde_px")),
                static=(static.get("ade_px"), static.get("fde_px")),
                moving_mm=None if metres is None else 1000.0 * metres,
            )
        )
    facts = {key: value for key, value in stored.items() if isinstance(value, int | float | str)}
    return FlowErrors(rows=tuple(rows), facts=facts | {"moving_threshold": stored.get("moving_threshold", 0.01)})


class CollectedEpisode(TypedDict, total=False):
    """What is shown of a line of `meta/lamp_episodes.jsonl`."""

    length: int
    initial_state: int
    task: int


def _dataset(folder: Path | None) -> dict[str, Any]:
    """Facts of a dataset from its description; no table or picture is read."""
    if folder is None or not (folder / "meta" / "info.json").is_file():
        return {}
    meta = folder / "meta"
    info = read_json_object(meta / "info.json", "dataset description")
    collected = read_json_object(meta / "lamp.json", "collection record") if (meta / "lamp.json").is_file() else {}
    lines = read_lines_as(meta / "lamp_episodes.jsonl", CollectedEpisode, "log of episodes")
    facts: dict[str, Any] = {
        "episodes": info.get("total_episodes"),
        "frames": info.get("total_frames"),
        "frames per second": info.get("fps"),
        "tasks": info.get("total_tasks"),
    }
    if lengths := [line["length"] for line in lines if "length" in line]:
        facts["episode length in frames"] = f"{min(lengths)} to {max(lengths)}, mean {sum(lengths) / len(lengths):.0f}"
    if states := {line["initial_state"] for line in lines if "initial_state" in line}:
        facts["initial states"] = number_ranges(sorted(states))
    if tasks := Counter(line["task"] for line in lines if "task" in line):
        facts["episodes per task"] = {f"task {task}": tasks[task] for task in sorted(tasks)}
    return facts | {
        UNITS.get(name, words(name)): value for name, value in collected.items() if name not in SHOWN_ELSEWHERE
    }
