"""The paper's figures from a run's own episodes and trials: motion priors (Fig. 4), fusion (Fig. 5), the real robot (Fig. 7)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lamp.benchmark.baselines import is_policy
from lamp.benchmark.episodes import EpisodeRecord
from lamp.benchmark.simpler import SUITE as WIDOWX
from lamp.benchmark.simpler import WITH_STAND_INS
from lamp.benchmark.statistics import Rate
from lamp.benchmark.tables import percent
from lamp.benchmark.trials import IN_DOMAIN, TaskProgress, Trial, progress_by_column
from lamp.view.charts import Bar, BarSeries, bar_chart
from lamp.view.page import Notes, Panel, Section
from lamp.view.paper_tables import Published, read_published, source
from lamp.view.results import RunResults, folder_label, words
from lamp_client.envs.simpler_tasks import SIMPLER_TASKS

FLOWS: Mapping[str | None, str] = {None: "without motion", "ImageFlow": "2-D flow", "SpatialFlow": "3-D flow"}
FUSIONS: Mapping[str | None, str] = {
    None: "no fusion",
    "GuidanceConfig": "gated cross-attention",
    "AddFusion": "Add",
    "ConcatFusion": "Concat+MLP",
    "TokenFusion": "context tokens",
    "PathFusion": "decoded path",
    "FlowHead": "flow head in training only",
}
COLOURS: Mapping[tuple[str | None, str | None], int] = {
    ("SpatialFlow", "GuidanceConfig"): 0,
    (None, None): 1,
    ("ImageFlow", "GuidanceConfig"): 2,
    ("SpatialFlow", "ConcatFusion"): 3,
    ("SpatialFlow", "AddFusion"): 4,
}
PUBLISHED_COLOURS = {"LaMP": 0, "LaMP without motion": 1, "2-D flow prior": 2, "Concat+MLP": 3, "Add": 4}
LONGEST = 38
"""Letters of a task's name."""
TRIALS_PER_TASK, TRIALS_PER_SETTING = 10, 5


@dataclass(frozen=True, kw_only=True)
class _Method:
    """A policy's episodes on one suite, and what kind of policy it is."""

    name: str
    flow: str | None
    fusion: str | None
    records: list[EpisodeRecord]

    @property
    def colour(self) -> int:
        """One a kind, in all figures."""
        return COLOURS.get((self.flow, self.fusion), 5)


def ablations(results: RunResults) -> Section | None:
    """Figures 4 and 5 on every suite on which this run has them; None where it has neither."""
    published = read_published()
    panels = []
    for (suite, shift), methods in _by_suite(results).items():
        where = suite + (f", objects moved by up to {shift:g} m" if shift else "")
        priors = [method for method in methods if method.fusion in (None, "GuidanceConfig")]
        fusions = [method for method in methods if method.flow == "SpatialFlow"]
        for title, chosen, kinds, figure in (
            ("Motion priors (Fig. 4)", priors, {method.flow for method in priors}, published["widowx_priors"]),
            ("Fusion (Fig. 5)", fusions, {method.fusion for method in fusions}, published["widowx_fusion"]),
        ):
            if len(kinds) > 1:
                panels.append(_panel(f"{title}: {where}", chosen, suite, figure))
    if not panels:
        return None
    about = (
        "Policies that differ in their motion prior or in how it joins the policy. Bars with Wilson's 95% intervals are this "
        f"run's; hollow ones, on SimplerEnv's tasks, are published: {source()}."
    )
    return Section(anchor="ablations", title="The paper's ablations", about=about, blocks=panels)


def _by_suite(results: RunResults) -> dict[tuple[str, float], list[_Method]]:
    suites: dict[tuple[str, float], list[_Method]] = {}
    for folder, records, models in zip(results.folders, results.records, results.models, strict=True):
        for key, condition, chosen in _conditions(records):
            kind = _kind(condition, models)
            if kind is None:
                continue
            flow, fusion = kind
            label = f"{FLOWS.get(flow, flow)}" + (f", {FUSIONS.get(fusion, fusion)}" if flow or fusion else "")
            name = f"{folder_label(folder)}: {words(condition)}" + (f" ({label})" if label != words(condition) else "")
            suites.setdefault(key, []).append(_Method(name=name, flow=flow, fusion=fusion, records=chosen))
    return suites


def _conditions(records: Sequence[EpisodeRecord]) -> Iterator[tuple[tuple[str, float], str, list[EpisodeRecord]]]:
    """The episodes of policies as they are meant to act, in scenes that are not perturbed."""
    grouped: dict[tuple[tuple[str, float], str], list[EpisodeRecord]] = {}
    for record in records:
        if is_policy(record.condition) and not record.variation:
            key = (record.suite, record.placement_shift), record.condition
            grouped.setdefault(key, []).append(record)
    for (suite, condition), chosen in grouped.items():
        yield suite, condition, chosen


def _kind(condition: str, models: Mapping[str, Any]) -> tuple[str | None, str | None] | None:
    """Flow and fusion of a condition's policy, from the run's manifest; None where it lacks them."""
    if condition in models:
        return models[condition].get("flow"), models[condition].get("fusion")
    # Manifests from before models were written down name only these two.
    return {"with_motion": ("SpatialFlow", "GuidanceConfig"), "without_motion": (None, None)}.get(condition)


def _panel(title: str, methods: Sequence[_Method], suite: str, figure: Published) -> Panel:
    widowx = suite in (WIDOWX, WITH_STAND_INS)
    tasks = sorted({record.task for method in methods for record in method.records})
    names = [_task_name(methods, task, widowx) for task in tasks]
    series = [
        BarSeries(name=method.name, bars=[*_bars(method.records, tasks, last=widowx)], colour=method.colour)
        for method in methods
    ]
    notes = []
    if widowx:
        columns = [*tasks, len(SIMPLER_TASKS)]
        for name, row in figure.rows.items():
            bars, colour = [_published(row[column]) for column in columns], PUBLISHED_COLOURS.get(name, 0)
            series.append(BarSeries(name=f"{name} (paper)", bars=bars, colour=colour, published=True))
        notes += [*filter(None, [figure.note]), "Successes are those at the last step, as SimplerEnv counts them."]
    if suite == WITH_STAND_INS:
        notes.append("Files of the scenes are not the original ones: not comparable with the published numbers.")
    chart = bar_chart([*names, "all tasks"], series, label=title)
    return Panel([chart, Notes(notes) if notes else None], title)


def _task_name(methods: Sequence[_Method], task: int, widowx: bool) -> str:
    if widowx:
        return words(SIMPLER_TASKS[task].name)
    text = next(record.instruction for method in methods for record in method.records if record.task == task)
    return text if len(text) <= LONGEST else text[: LONGEST - 1].rstrip() + "…"


def _bars(records: Sequence[EpisodeRecord], tasks: Sequence[int], *, last: bool) -> Iterator[Bar]:
    for chosen in [*([record for record in records if record.task == task] for task in tasks), list(records)]:
        won = [bool(record.success_last if last else record.success) for record in chosen]
        if not won:
            yield Bar(value=None, text="no episode")
            continue
        rate = Rate(successes=sum(won), trials=len(won))
        text = f"{rate.successes}/{rate.trials} · {percent(rate.value)}"
        yield Bar(value=rate.value, interval=rate.interval, text=text)


def _published(value: float | None) -> Bar:
    return Bar(value=None, text="not given") if value is None else Bar(value=value / 100, text=f"{value:.1f}")


def robot(results: RunResults) -> Section | None:
    """Figure 7: task progress on a real robot beside the published; None where no trial was scored."""
    if not results.trials:
        return None
    figure = read_published()["real"]
    ours = progress_by_column(results.trials)
    columns = list(dict.fromkeys([*figure.columns, *(name for columns in ours.values() for name in columns)]))
    series = [
        BarSeries(name=method, bars=[_progress(scored.get(column)) for column in columns], colour=index % 7)
        for index, (method, scored) in enumerate(ours.items())
    ]
    for index, (name, row) in enumerate(figure.rows.items()):
        given = dict(zip(figure.columns, row, strict=True))
        bars = [_published(given.get(column)) for column in columns]
        series.append(BarSeries(name=f"{name} (paper)", bars=bars, colour=index % 7, published=True))
    notes = [f"{note}. Not the published protocol." for note in departures(results.trials)]
    notes.append(
        "The published trials are of a Flexiv Rizon 4 with the paper's own objects; another robot's are another table."
    )
    about = (
        "Mean share of a task's stages that was completed, scored by a person; Wilson's 95% intervals, cautious ones for shares. "
        f"Published: {source()}."
    )
    chart = bar_chart(columns, series, label="task progress on a real robot")
    panel = Panel([chart, Notes(notes)], figure.title)
    return Section(anchor="robot", title="On a real robot", about=about, blocks=[panel])


def _progress(progress: TaskProgress | None) -> Bar:
    if progress is None:
        return Bar(value=None, text="no trial")
    text = f"{100 * progress.mean:.1f} · {progress.counted}"
    return Bar(value=progress.mean, interval=progress.interval, text=text)


def departures(trials: Sequence[Trial]) -> list[str]:
    """How the numbers of trials depart from the paper's: 10 of each task in domain, 5 of each other setting and task."""
    counts: dict[tuple[str, str, str], int] = {}
    for trial in trials:
        key = trial.method, trial.task, trial.setting
        counts[key] = counts.get(key, 0) + 1
    missing = []
    for (method, task, setting), count in counts.items():
        meant = TRIALS_PER_TASK if setting == IN_DOMAIN else TRIALS_PER_SETTING
        if count != meant:
            missing.append(f"{method}: {count} of {meant} trials of {words(task)}, {words(setting)}")
    return missing


def to_json(results: RunResults) -> dict[str, Any]:
    """The figures' bars as plain values: successes and episodes of every suite, method and task; progress of the robot."""
    return {
        "ablations": [
            {
                "suite": suite,
                "placement_shift": shift,
                "name": method.name,
                "flow": method.flow,
                "fusion": method.fusion,
                "success": sum(record.success for record in method.records),
                "success_last": sum(bool(record.success_last) for record in method.records),
                "episodes": len(method.records),
            }
            for (suite, shift), methods in _by_suite(results).items()
            for method in methods
        ],
        "robot": {
            method: {
                column: {"mean": p.mean, "interval": p.interval, "trials": len(p.values)}
                for column, p in scored.items()
            }
            for method, scored in progress_by_column(results.trials).items()
        },
    }
