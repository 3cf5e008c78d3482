"""The paper's tables and figures with this run's rows beside the published ones, which are kept as data (`published.json`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

from lamp.benchmark.audit import PublishedRate
from lamp.benchmark.baselines import is_policy
from lamp.benchmark.episodes import EpisodeRecord
from lamp.benchmark.robustness import robustness
from lamp.benchmark.simpler import SUITE as WIDOWX
from lamp.benchmark.simpler import WITH_STAND_INS
from lamp.benchmark.statistics import Rate
from lamp.benchmark.suites import LIBERO_PLUS
from lamp.benchmark.tables import percent
from lamp.view.page import Block, Notes, Panel, Section, Table
from lamp.view.results import RunResults, folder_label, words
from lamp_client.envs.libero_plus.names import CATEGORIES, SIZES
from lamp_client.envs.simpler_tasks import EPISODES, SIMPLER_TASKS

LIBERO_SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
"""In the order of the published columns."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """A table or figure of the paper."""

    title: str
    columns: tuple[str, ...]
    rows: Mapping[str, tuple[float | None, ...]]
    """Method -> success in per cent; None where the paper gives no number."""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """A condition of a run, in the columns of a published table."""

    name: str
    rates: tuple[Rate | None, ...]
    """One a column; the average over columns is not among them."""
    departs: tuple[str, ...]
    """How the run departs from the published protocol; empty where it does not."""
    total: Rate | None = None
    """Over all tasks, where the published average is that of tasks and not of columns."""

    @property
    def average(self) -> float | None:
        """As the paper averages, in per cent, where all columns are there."""
        if any(rate is None or not rate.trials for rate in self.rates):
            return None
        return self.mean if self.total is None else 100 * self.total.value

    @property
    def mean(self) -> float | None:
        """Mean of the columns, in per cent, where all are there."""
        if any(rate is None or not rate.trials for rate in self.rates):
            return None
        return 100 * sum(rate.value for rate in self.rates if rate is not None) / len(self.rates)


def read_published() -> dict[str, Published]:
    """Returns the paper's tables by name."""
    raw = json.loads(files("lamp.view").joinpath("published.json").read_text())
    return {
        name: Published(
            title=table["title"],
            columns=tuple(table["columns"]),
            rows={method: tuple(row) for method, row in table["rows"].items()},
            note=table.get("note", ""),
        )
        for name, table in raw["tables"].items()
    }


def best_published(suite: str) -> PublishedRate | None:
    """The best published row of a LIBERO suite; None where no table has it."""
    if suite not in LIBERO_SUITES:
        return None
    table = read_published()["libero"]
    rates = {method: row[LIBERO_SUITES.index(suite)] for method, row in table.rows.items()}
    known = {method: rate for method, rate in rates.items() if rate is not None}
    method = max(known, key=known.__getitem__)
    return PublishedRate(method=method, rate=known[method] / 100, source=f"LaMP, {table.title}")


def source() -> str:
    """Where the published numbers are from."""
    return str(json.loads(files("lamp.view").joinpath("published.json").read_text())["source"])


def _by_policy(
    results: RunResults, counts: Callable[[EpisodeRecord], bool]
) -> Iterator[tuple[str, list[EpisodeRecord]]]:
    """Each policy of each evaluation folder: the name of its row, and the episodes that count for a table."""
    for folder, records in zip(results.folders, results.records, strict=True):
        own = [record for record in records if is_policy(record.condition) and counts(record)]
        for condition in dict.fromkeys(record.condition for record in own):
            yield f"{folder_label(folder)}: {words(condition)}", [r for r in own if r.condition == condition]


def _rate(outcomes: Sequence[bool | None]) -> Rate | None:
    return Rate(successes=sum(map(bool, outcomes)), trials=len(outcomes)) if outcomes else None


def libero_rows(results: RunResults) -> list[RunRow]:
    """The rows of Table I (LIBERO) that the runs' episodes make; displaced objects and changed priors belong to another table."""
    return [
        RunRow(
            name=name,
            rates=tuple(
                _rate([record.success for record in records if record.suite == suite]) for suite in LIBERO_SUITES
            ),
            departs=tuple(_departs(records)),
        )
        for name, records in _by_policy(results, _is_standard_libero)
    ]


def _is_standard_libero(record: EpisodeRecord) -> bool:
    return record.suite in LIBERO_SUITES and not record.placement_shift and not record.variation


def _departs(records: Sequence[EpisodeRecord]) -> list[str]:
    """The protocol: 10 tasks a suite, 50 stored states a task, once each, exact rendering."""
    departures = []
    visits = {(record.suite, record.task, record.state) for record in records}
    suites = {record.suite for record in records}
    if len(visits) < 500 * len(suites) or len(records) > len(visits):
        tasks = len({(record.suite, record.task) for record in records})
        departures.append(f"{tasks} of {10 * len(suites)} tasks, {len(visits)} initial states, {len(records)} episodes")
    if any(record.render != "exact" for record in records):
        departures.append("fast rendering")
    return departures


def plus_rows(results: RunResults) -> list[RunRow]:
    """The rows of Table II (LIBERO-Plus) that the runs' episodes make; plus-style perturbations are no part of it."""
    rows = []
    for name, records in _by_policy(results, lambda record: record.variation.get("benchmark") == LIBERO_PLUS):
        departs = tuple(_departs_from_plus(records))
        for table in robustness(records):
            for row in table.rows:
                by_column = dict(zip(table.columns, row.columns, strict=True))
                rates = tuple(by_column.get(category) for category in CATEGORIES)
                rows.append(RunRow(name=name, rates=rates, departs=departs, total=row.total))
    return rows


def _departs_from_plus(records: Sequence[EpisodeRecord]) -> list[str]:
    """The protocol: every task once, exact rendering, prompts without the perturbations' numbers."""
    departures, tasks = [], {(record.suite, record.task) for record in records}
    if len(tasks) < sum(SIZES.values()) or len(records) > len(tasks):
        departures.append(f"{len(tasks)} of {sum(SIZES.values())} tasks, {len(records)} episodes")
    if any(record.render != "exact" for record in records):
        departures.append("fast rendering")
    return departures


def widowx_rows(results: RunResults) -> list[RunRow]:
    """The rows of Table I (SimplerEnv) that the runs' episodes make: at the last step, as SimplerEnv has it, and at any step."""
    rows = []
    for name, records in _by_policy(results, lambda record: record.suite in (WIDOWX, WITH_STAND_INS)):
        by_task = [[record for record in records if record.task == task] for task in range(len(SIMPLER_TASKS))]
        departs = tuple(_departs_from_widowx(records))
        for rule, outcome in (("at the last step", "success_last"), ("at any step", "success")):
            rates = tuple(_rate([getattr(record, outcome) for record in some]) for some in by_task)
            rows.append(RunRow(name=f"{name}, {rule}", rates=rates, departs=departs))
    return rows


def _departs_from_widowx(records: Sequence[EpisodeRecord]) -> list[str]:
    """The protocol: 24 episodes of each of four tasks, each to its own limit, in the original scenes."""
    departures, whole = [], EPISODES * len(SIMPLER_TASKS)
    visits = {(record.task, record.state) for record in records}
    if len(visits) < whole or len(records) > len(visits):
        departures.append(f"{len(visits)} of {whole} arrangements, {len(records)} episodes")
    if any(record.steps != SIMPLER_TASKS[record.task].step_limit for record in records):
        departures.append("another number of actions")
    if any(record.suite == WITH_STAND_INS for record in records):
        departures.append("files of the scenes are not the original ones")
    return departures


def paper_tables(results: RunResults) -> Section | None:
    """The published tables to which this run has rows; None where it has none."""
    published = read_published()
    blocks = [
        *_table(published["libero"], libero_rows(results)),
        *_plus_table(published["libero_plus"], plus_rows(results)),
        *_table(published["widowx"], widowx_rows(results)),
    ]
    if not blocks:
        return None
    about = f"Rows of this run first, then the paper's own numbers, in per cent. Published rows: {source()}."
    return Section(anchor="paper", title="Beside the paper", about=about, blocks=blocks)


def _table(published: Published, own: Sequence[RunRow]) -> list[Block]:
    if not own:
        return []
    rows = [
        [row.name, *map(_cell, row.rates), _number(row.average), *([] if row.total is None else [_number(row.mean)])]
        for row in own
    ]
    rows += [[f"{name} (paper)", *map(_number, values)] for name, values in reversed(list(published.rows.items()))]
    notes = [f"{row.name}: {'; '.join(row.departs)}. Not the published protocol." for row in own if row.departs]
    notes += [published.note] if published.note else []
    table = Table(["method", *published.columns], rows)
    return [Panel([table, Notes(notes) if notes else None], published.title)]


def _plus_table(published: Published, own: Sequence[RunRow]) -> list[Block]:
    """With both averages: the published one is over tasks, which weighs the dimensions by their sizes."""
    *columns, average = published.columns
    with_means = {
        name: (*row, None if any(value is None for value in row[:-1]) else sum(filter(None, row[:-1])) / len(columns))
        for name, row in published.rows.items()
    }
    heads = (*columns, f"{average} over tasks", "over dimensions")
    return _table(replace(published, columns=heads, rows=with_means), own)


def _cell(rate: Rate | None) -> str:
    if rate is None or not rate.trials:
        return "-"
    low, high = rate.interval
    return f"{percent(rate.value)} ({rate.successes}/{rate.trials}, {100 * low:.0f} to {100 * high:.0f})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def to_json(results: RunResults) -> dict[str, Any]:
    """The rows of this run and the published ones as plain values."""
    published = read_published()
    return {
        name: {
            "ours": [_row_json(row, published[name]) for row in rows],
            "published": {method: list(row) for method, row in published[name].rows.items()},
        }
        for name, rows in (
            ("libero", libero_rows(results)),
            ("libero_plus", plus_rows(results)),
            ("widowx", widowx_rows(results)),
        )
    }


def _row_json(row: RunRow, published: Published) -> dict[str, Any]:
    return {
        "name": row.name,
        "columns": {
            column: None if rate is None else {"successes": rate.successes, "episodes": rate.trials}
            for column, rate in zip(published.columns, row.rates, strict=False)
        },
        "average": row.average,
        "mean": row.mean,
        "departs": list(row.departs),
    }
