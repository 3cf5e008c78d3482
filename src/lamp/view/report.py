"""`lamp report`: a run as one HTML file that needs nothing else, from whatever parts the run has."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lamp.benchmark.episodes import EPISODES
from lamp.benchmark.robustness import to_json as perturbed_to_json
from lamp.benchmark.tables import sentence
from lamp.benchmark.tables import to_json as tables_to_json
from lamp.benchmark.trials import TRIALS
from lamp.errors import ConfigError, DataError
from lamp.files import atomic_write_text, read_json, write_json
from lamp.version import code_version
from lamp.view import between_runs, evidence, figures, learning, published, sections, showing, successes
from lamp.view.pages import page
from lamp.view.prior import prior
from lamp.view.strips import read_caption

METRICS = "metrics.jsonl"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture of the run and what it shows."""

    path: Path
    caption: str


@dataclass(frozen=True, kw_only=True)
class ReportInputs:
    """What a report is made of. Each part may be absent; the report then says so."""

    title: str = "LaMP run"
    lead: str = ""
    """A sentence below the title; made from the run if empty."""
    seconds: Mapping[str, float | int] = field(default_factory=dict)
    """Stage of the run -> its wall time [s]."""
    motion: Path | None = None
    """metrics.jsonl of the first stage."""
    policies: Mapping[str, Path] = field(default_factory=dict)
    """Condition, such as with_motion -> metrics.jsonl of its second stage."""
    evaluations: tuple[Path, ...] = ()
    """Output folders of `lamp evaluate`."""
    trials: tuple[Path, ...] = ()
    """Folders in which `lamp score` wrote down trials on a real robot."""
    flow: Path | None = None
    """flow.json of the first stage: errors of predicted paths on held-out episodes."""
    pictures: tuple[Picture, ...] = ()
    """Foresight and other pictures."""
    data: Path | None = None
    """Dataset folder."""
    configuration: Mapping[str, Any] = field(default_factory=dict)
    """Name -> JSON value."""
    notes: tuple[str, ...] = ()
    """What the reader should know; the run's own facts are added."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Machine, versions and the like."""
    max_films: int = 6


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """What `lamp report` does."""

    run: tuple[Path, ...]
    """Folders of a demo, a training or an evaluation; the episodes of all are compared."""
    out: Path | None = None
    """The HTML file; None writes report.html into the first folder."""
    json: Path | None = None
    """Also write the tables as JSON."""
    title: str | None = None
    """Heading of the page."""
    max_films: int = 6
    """Films put into the page; each adds some hundred kilobytes."""


def report(config: ReportConfig) -> Path:
    """Writes the report of run folders and returns its path.

    Raises:
        ConfigError: No folder is given.
        DataError: A folder holds nothing to report.
    """
    if not config.run:
        raise ConfigError("no folder to report; expected that of a demo, a training or an evaluation, or several")
    first, *others = (discover(run, title=config.title, max_films=config.max_films) for run in config.run)
    further = tuple(folder for inputs in others for folder in inputs.evaluations)
    trials = tuple(dict.fromkeys([*first.trials, *(folder for inputs in others for folder in inputs.trials)]))
    inputs = replace(first, evaluations=tuple(dict.fromkeys(first.evaluations + further)), trials=trials)
    if config.json is not None:
        found = _gathered(inputs)
        tables, between = tables_to_json(found.tables), [sentence(pair) for pair in between_runs.pairs(found)]
        folders = [str(folder) for folder in found.folders]
        parts = {"folders": folders, "tables": tables, "perturbed": perturbed_to_json(found.perturbed)}
        write_json(
            config.json,
            {**parts, "between": between, "paper": published.to_json(found), "figures": figures.to_json(found)},
        )
    return write_report(inputs, config.out or config.run[0] / "report.html")


def write_report(inputs: ReportInputs, out: Path) -> Path:
    """Writes one self-contained HTML file."""
    atomic_write_text(out, render(inputs))
    return out


def render(inputs: ReportInputs) -> str:
    """Builds the page."""
    found = _gathered(inputs)
    asked = (
        between_runs.between(found),
        prior(found),
        published.beside_the_paper(found),
        figures.ablations(found),
        figures.robot(found),
    )
    made = [
        successes.success(found),
        *(section for section in asked if section is not None),
        sections.time(inputs.seconds),
        showing.foresight([(item.path, item.caption) for item in inputs.pictures]),
        showing.episodes(found, inputs.max_films),
        learning.motion(found),
        learning.policy(found),
        sections.data(found),
        sections.configuration(inputs.configuration, found, inputs.facts),
        sections.honest(found, inputs.notes),
    ]
    today = datetime.date.today().isoformat()
    lead = inputs.lead or sections.lead(found)
    footer = f"Written by LaMP {code_version()} on {today}. Every number is computed from the run's own files."
    return page(
        title=inputs.title, lead=lead, cards=sections.headline(found, inputs.seconds), sections=made, footer=footer
    )


def _gathered(inputs: ReportInputs) -> evidence.Evidence:
    return evidence.gather(
        motion=inputs.motion,
        policies=inputs.policies,
        evaluations=inputs.evaluations,
        flow=inputs.flow,
        data=inputs.data,
        trials=inputs.trials,
    )


def discover(run: Path, *, title: str | None = None, max_films: int = 6) -> ReportInputs:
    """Finds the parts of a report in a demo's, a training's or an evaluation's folder.

    Raises:
        DataError: The folder holds nothing to report.
    """
    if not run.is_dir():
        raise DataError(f"no folder {run}; expected the output folder of a demo, a training or an evaluation")
    summary = _json(run / "summary.json") or {}
    motion, policies = _trainings(run)
    evaluations = tuple(
        sorted(path.parent for pattern in ("", "*/", "*/*/") for path in run.glob(f"{pattern}{EPISODES}"))
    )
    trials = (run,) if (run / TRIALS).is_file() else ()
    flows = [path for path in (run / "flow.json", run / "motion" / "flow.json") if path.is_file()]
    data = run / "data" if (run / "data" / "meta" / "info.json").is_file() else None
    pictures = tuple(
        Picture(path=path, caption=_caption(path))
        for path in sorted(run.glob("pictures/*"))
        if path.suffix in (".png", ".jpg")
    )
    if not (motion or policies or evaluations or pictures or data or trials):
        raise DataError(
            f"{run} holds nothing to report: expected {METRICS}, {EPISODES}, {TRIALS}, pictures/ or a dataset, here or "
            "in its folders"
        )
    return ReportInputs(
        title=title or summary.get("title") or f"LaMP run: {run.resolve().name}",
        lead=summary.get("lead", ""),
        seconds={name: value for name, value in summary.get("seconds", {}).items() if name != "total"},
        motion=motion,
        policies=policies,
        evaluations=evaluations,
        trials=trials,
        flow=flows[0] if flows else None,
        pictures=pictures,
        data=data,
        configuration=_configurations(run, evaluations),
        notes=tuple(summary.get("notes", ())),
        facts=summary.get("facts", {}),
        max_films=max_films,
    )


def _trainings(run: Path) -> tuple[Path | None, dict[str, Path]]:
    """Tells the stages apart by their folders: `motion`, `policy_with`, `policy_without` or other policies."""
    motion, policies = None, {}
    for path in sorted({*run.glob(METRICS), *run.glob(f"*/{METRICS}")}):
        kind = (_json(path.parent / "lamp.json") or _json(path.parent / "checkpoint" / "lamp.json") or {}).get("kind")
        name = path.parent.name
        if kind == "motion" or (kind is None and "motion" in name and not name.startswith("policy")):
            motion = path
        else:
            policies[{"policy_with": "with_motion", "policy_without": "without_motion"}.get(name, name)] = path
    return motion, policies


def _configurations(run: Path, evaluations: tuple[Path, ...]) -> dict[str, Any]:
    names = sorted({*run.glob("*.json"), *run.glob("*/lamp.json"), *run.glob("*/config.json")})
    kept = [path for path in names if path.name in ("lamp.json", "config.json", "demo.json")]
    kept += [folder / "run.json" for folder in evaluations if (folder / "run.json").is_file()]
    return {str(path.relative_to(run)): _json(path) for path in kept}


def _json(path: Path) -> Any:
    return read_json(path, "file") if path.is_file() else None


def _caption(path: Path) -> str:
    return read_caption(path) or path.stem.replace("-", " ").replace("_", " ")
