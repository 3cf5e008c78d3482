"""`lamp report`: a run as one HTML file that needs nothing else, from whatever parts the run has."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from lamp.benchmark.episodes import EPISODES
from lamp.benchmark.robustness import to_json as perturbed_to_json
from lamp.benchmark.tables import sentence
from lamp.benchmark.tables import to_json as tables_to_json
from lamp.benchmark.trials import TRIALS
from lamp.errors import ConfigError, DataError
from lamp.files import atomic_write_text
from lamp.json_files import read_json, read_json_as, write_json
from lamp.version import code_version
from lamp.view import evaluation_sections, paper_figures, paper_tables, run_sections
from lamp.view.images import read_caption
from lamp.view.page import render_page
from lamp.view.results import RunResults, folder_label, load_results

METRICS, FLOW = "metrics.jsonl", "flow.json"
DEPTHS = ("", "*/", "*/*/")
"""Where the parts of a run may lie in its folder."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture of the run and what it shows."""

    path: Path
    caption: str


@dataclass(frozen=True, kw_only=True)
class ReportInputs:
    """What a report is made of. Each part may be absent."""

    title: str = "LaMP run"
    lead: str = ""
    """A sentence below the title; made from the run if empty."""
    warning: str = ""
    """Why the figures must not be used, above everything else."""
    unfinished: tuple[str, ...] = ()
    """What of an experiment is not there yet."""
    command: str = ""
    """The command that repeats the run; empty where it was not noted."""
    seconds: Mapping[str, float | int] = field(default_factory=dict)
    """Stage of the run -> its wall time [s]."""
    motions: Mapping[str, Path] = field(default_factory=dict)
    """Name -> metrics.jsonl of a first stage."""
    policies: Mapping[str, Path] = field(default_factory=dict)
    """Condition, such as with_motion -> metrics.jsonl of its second stage."""
    evaluations: tuple[Path, ...] = ()
    """Output folders of `lamp evaluate`."""
    trials: tuple[Path, ...] = ()
    """Folders in which `lamp score` wrote down trials on a real robot."""
    flows: Mapping[str, Path] = field(default_factory=dict)
    """Name -> flow.json of a first stage: errors of predicted paths on held-out episodes."""
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
    """Writes the HTML report of a demo, trainings, evaluations and trials."""

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
    runs = list({run.resolve(): run for run in config.run}.values())
    inputs = together([(run, discover(run, title=config.title, max_films=config.max_films)) for run in runs])
    if config.json is not None:
        results = _load(inputs)
        values = {
            "folders": [str(folder) for folder in results.folders],
            "tables": tables_to_json(results.tables),
            "perturbed": perturbed_to_json(results.perturbed),
            "between": [sentence(pair) for pair in evaluation_sections.pairs_between_runs(results)],
            "paper": paper_tables.to_json(results),
            "figures": paper_figures.to_json(results),
        }
        write_json(config.json, values)
    out = config.out or config.run[0] / "report.html"
    atomic_write_text(out, render(inputs))
    return out


def render(inputs: ReportInputs) -> str:
    results = _load(inputs)
    sections = [
        evaluation_sections.verdict(results),
        run_sections.episodes(results, inputs.max_films),
        evaluation_sections.success(results),
        evaluation_sections.failures(results),
        evaluation_sections.between_runs(results),
        evaluation_sections.motion_prior_use(results),
        paper_tables.paper_tables(results),
        paper_figures.ablations(results),
        paper_figures.robot(results),
        run_sections.time(inputs.seconds),
        run_sections.foresight([(picture.path, picture.caption) for picture in inputs.pictures]),
        run_sections.motion_prior(results),
        run_sections.policy(results),
        run_sections.data(results),
        run_sections.configuration(inputs.configuration, results, inputs.facts, inputs.command),
        run_sections.notes(results, inputs.notes),
        run_sections.glossary(results),
    ]
    today = datetime.date.today().isoformat()
    return render_page(
        title=inputs.title,
        lead=inputs.lead or run_sections.lead(results),
        warning=" ".join(filter(None, (inputs.warning, _unfinished(inputs, results)))),
        cards=run_sections.headline(results, inputs.seconds),
        sections=[section for section in sections if section is not None],
        footer=f"Written by LaMP {code_version()} on {today}. Every number is computed from the run's own files.",
    )


def _unfinished(inputs: ReportInputs, results: RunResults) -> str:
    """Says what is not done yet; empty where all is."""
    left = [*inputs.unfinished, *run_sections.unfinished(results)]
    again = f" `{inputs.command}` goes on." if inputs.command else " The same command goes on."
    return f"UNFINISHED: {'; '.join(left)}.{again}" if left else ""


def _load(inputs: ReportInputs) -> RunResults:
    return load_results(
        motions=inputs.motions,
        policies=inputs.policies,
        evaluations=inputs.evaluations,
        flows=inputs.flows,
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
    summary = _summary(run / "summary.json")
    motions, policies = _trainings(run)
    evaluations = tuple(sorted(path.parent for pattern in DEPTHS for path in run.glob(f"{pattern}{EPISODES}")))
    trials = (run,) if (run / TRIALS).is_file() else ()
    flows = _by_name(run, FLOW)
    data = run / "data" if (run / "data" / "meta" / "info.json").is_file() else None
    pictures = tuple(
        Picture(path=path, caption=read_caption(path) or path.stem.replace("-", " ").replace("_", " "))
        for path in sorted(run.glob("pictures/*"))
        if path.suffix in (".png", ".jpg")
    )
    if not (motions or policies or evaluations or pictures or data or trials):
        raise DataError(
            f"{run} holds nothing to report: expected {METRICS}, {EPISODES}, {TRIALS}, pictures/ or a dataset in data/, here or "
            "in its folders"
        )
    return ReportInputs(
        title=title or summary["title"] or f"LaMP run: {run.resolve().name}",
        lead=summary["lead"],
        warning=summary["warning"],
        unfinished=_stopped_in(run),
        command=command_of(run),
        seconds=summary["seconds"],
        motions=motions,
        policies=policies,
        evaluations=evaluations,
        trials=trials,
        flows=flows,
        pictures=pictures,
        data=data,
        configuration=_configurations(run, evaluations),
        notes=summary["notes"],
        facts=summary["facts"],
        max_films=max_films,
    )


EXPERIMENT = "experiment.json"


class StoredExperiment(TypedDict):
    """The command of an experiment, as its `experiment.json` records it."""

    command: str
    recipe: str
    quick: bool


def command_of(run: Path) -> str:
    """The command that made an experiment's folder; empty where it was not noted.

    Raises:
        DataError: The note is damaged.
    """
    path = run / EXPERIMENT
    return read_json_as(path, StoredExperiment, "record of an experiment")["command"] if path.is_file() else ""


def _stopped_in(run: Path) -> tuple[str, ...]:
    """The stage that an experiment has come to, where it is not finished."""
    noted = run / "seconds.json"
    if (run / "summary.json").is_file() or not noted.is_file():
        return ()
    stages = list(read_json_as(noted, dict[str, float], "stage times"))
    return (f"the experiment has come to the stage {stages[-1].replace('_', ' ')}" if stages else "nothing is done",)


class RunSummary(TypedDict, total=False):
    """What is read again of a run's `summary.json`."""

    title: str | None
    lead: str | None
    warning: str
    seconds: dict[str, float]
    notes: list[Any]
    flow: dict[str, Any]
    facts: dict[str, Any]


def _summary(path: Path) -> dict[str, Any]:
    """The run's own summary; a part that it lacks is empty."""
    stored = read_json_as(path, RunSummary, "summary of a run") if path.is_file() else RunSummary()
    return {
        "title": stored.get("title") or "",
        "lead": stored.get("lead") or "",
        "warning": stored.get("warning", ""),
        "seconds": {name: value for name, value in stored.get("seconds", {}).items() if name != "total"},
        "notes": tuple(map(str, stored.get("notes", ()))),
        "facts": stored.get("facts", {}),
    }


def _trainings(run: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """The trainings of either stage, by their folders' names; the demo's policies are called as in its evaluation."""
    motions, policies = {}, {}
    for name, path in _by_name(run, METRICS).items():
        if _stage(path.parent) == "motion":
            motions[name] = path
        else:
            called = {"policy_with": "with_motion", "policy_without": "without_motion"}.get(name, name)
            policies[f"{called} (oracle)" if _is_oracle(path.parent) else called] = path
    return motions, policies


def _by_name(run: Path, file: str) -> dict[str, Path]:
    """Files of that name here and in the folders below, by their folder's name; where two have the same, by its path."""
    paths = sorted({path for pattern in DEPTHS for path in run.glob(f"{pattern}{file}")})
    times = Counter(path.parent.resolve().name for path in paths)
    return {
        name if times[name := path.parent.resolve().name] == 1 else str(path.parent.relative_to(run)): path
        for path in paths
    }


def _stage(folder: Path) -> str:
    """Which stage a run trained, by its own record or its checkpoint's; else by its folder's name."""
    for path in (folder / "lamp.json", folder / "checkpoint" / "lamp.json"):
        match _json(path):
            case {"stage": "motion" | "policy" as stage} | {"kind": "motion" | "policy" as stage}:
                return stage
    return "motion" if "motion" in folder.name and not folder.name.startswith("policy") else "policy"


def _is_oracle(folder: Path) -> bool:
    """Whether a policy was trained with the true motion to come, by its own record or its checkpoint's."""
    for path in (folder / "lamp.json", folder / "checkpoint" / "lamp.json"):
        match _json(path):
            case {"training": {"prior": "oracle"}}:
                return True
    return False


def together(runs: Sequence[tuple[Path, ReportInputs]]) -> ReportInputs:
    """The parts of several runs as those of one; the title, the lead and the dataset are the first one's that has them."""
    if len(runs) == 1:
        return runs[0][1]

    def named(kind: str) -> dict[str, Any]:
        """Parts by their names; those that several runs have by the folders' names too."""
        times = Counter(name for _, inputs in runs for name in getattr(inputs, kind))
        parts: dict[str, Any] = {}
        for run, inputs in runs:
            for name, value in getattr(inputs, kind).items():
                full = name if times[name] == 1 else f"{folder_label(run)}/{name}"
                parts[full if full not in parts else f"{run.resolve()}/{name}"] = value
        return parts

    def all_of(kind: str) -> tuple[Any, ...]:
        return tuple(dict.fromkeys(item for _, inputs in runs for item in getattr(inputs, kind)))

    first = runs[0][1]
    return replace(
        first,
        lead=next((inputs.lead for _, inputs in runs if inputs.lead), ""),
        warning=" ".join(dict.fromkeys(inputs.warning for _, inputs in runs if inputs.warning)),
        data=next((inputs.data for _, inputs in runs if inputs.data), None),
        **{kind: named(kind) for kind in ("motions", "policies", "flows", "seconds", "configuration", "facts")},
        **{kind: all_of(kind) for kind in ("evaluations", "trials", "pictures", "notes")},
    )


def _configurations(run: Path, evaluations: tuple[Path, ...]) -> dict[str, Any]:
    names = sorted({*run.glob("*.json"), *run.glob("*/lamp.json"), *run.glob("*/config.json")})
    kept = [path for path in names if path.name in ("lamp.json", "config.json", "demo.json")]
    kept += [folder / "run.json" for folder in evaluations if (folder / "run.json").is_file()]
    return {str(path.relative_to(run)): _json(path) for path in kept}


def _json(path: Path) -> Any:
    return read_json(path, "file") if path.is_file() else None
