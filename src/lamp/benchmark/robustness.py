"""Tables of perturbed episodes, by what was perturbed. Episodes of LIBERO-Plus, LIBERO-Pro and plus-style are kept apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lamp.benchmark.baselines import is_policy, rank
from lamp.benchmark.episodes import EpisodeRecord
from lamp.benchmark.statistics import Paired, Rate
from lamp.benchmark.suites import LIBERO_PLUS, LIBERO_PRO, PLUS_STYLE
from lamp.benchmark.tables import counted, paired, percent, rate_json, rate_of, sentence
from lamp.errors import MismatchError
from lamp_client.envs.libero_plus.names import CATEGORIES, SIZES
from lamp_client.envs.libero_pro import CELLS

DIMENSIONS = {LIBERO_PLUS: tuple(CATEGORIES), LIBERO_PRO: tuple(CELLS)}
"""Of the benchmarks that are one for all suites."""


@dataclass(frozen=True, kw_only=True)
class RobustnessRow:
    """One condition."""

    condition: str
    columns: tuple[Rate, ...]
    """One a column, in the order of `RobustnessTable.columns`."""
    total: Rate
    """Over all episodes: the benchmark's own Total weighs every task alike."""
    total_last: Rate
    """Success at the last step instead of at any step."""

    @property
    def mean(self) -> float:
        """Over the columns in which something was tried, each alike; nan where nothing was."""
        tried = [rate.value for rate in self.columns if rate.trials]
        return sum(tried) / len(tried) if tried else float("nan")


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """The same episodes by something else, such as their difficulty."""

    name: str
    groups: tuple[str, ...]
    rates: tuple[tuple[Rate, ...], ...]
    """One tuple a row of the table, one rate a group."""


@dataclass(frozen=True, kw_only=True)
class RobustnessTable:
    """Success under perturbations."""

    benchmark: str
    """`LIBERO-Plus`, `LIBERO-Pro` or `plus-style`."""
    suite: str
    """The perturbed suite; LIBERO-Plus and LIBERO-Pro are one for all."""
    columns: tuple[str, ...]
    """Its dimensions, or the plus-style perturbations."""
    rows: tuple[RobustnessRow, ...]
    groupings: tuple[Grouping, ...]
    pairs: tuple[Paired, ...]
    """The first condition against every other one, on the episodes both have done."""
    notes: tuple[str, ...]
    """What must be known to read the numbers."""

    @property
    def title(self) -> str:
        """Says which benchmark it is, and which it is not."""
        if self.benchmark == PLUS_STYLE:
            return f"{PLUS_STYLE} perturbations of {self.suite} (LaMP's own; not LIBERO-Plus)"
        return self.benchmark

    @property
    def ranking(self) -> tuple[RobustnessRow, ...]:
        """The policies by the mean over all dimensions of the benchmark, the best first; those that lack one have no rank."""
        if self.columns != DIMENSIONS.get(self.benchmark):
            return ()
        rows = [row for row in self.rows if is_policy(row.condition) and all(rate.trials for rate in row.columns)]
        return tuple(sorted(rows, key=lambda row: -row.mean))

    def cells(self) -> list[list[list[str]]]:
        """The table and its groupings as text, the first line of each its heads."""
        return [_cells(self), *(_group_cells(self, grouping) for grouping in self.groupings)]


def robustness(records: Sequence[EpisodeRecord]) -> list[RobustnessTable]:
    """Computes a table for LIBERO-Plus, one for LIBERO-Pro and one for each suite under plus-style perturbations.

    Standard episodes are left out.
    """
    groups: dict[tuple[str, str], list[EpisodeRecord]] = {}
    for record in records:
        if record.variation:
            groups.setdefault(_kind(record), []).append(record)
    return [robustness_table(groups[kind]) for kind in sorted(groups)]


def robustness_table(records: Sequence[EpisodeRecord]) -> RobustnessTable:
    """Computes the table of one benchmark's perturbed episodes.

    Raises:
        MismatchError: The episodes are of several, or some are not perturbed; their rates would stand in one column.
    """
    kinds = sorted({_kind(record) for record in records})
    if len(kinds) != 1 or not kinds[0][0]:
        named = ", ".join(_named(*kind) for kind in kinds) or "nothing"
        raise MismatchError(f"{named}: expected perturbed episodes of one benchmark; these are not counted together")
    ((benchmark, suite),) = kinds
    column = _by("perturbation") if benchmark == PLUS_STYLE else _by("category")
    present = list(dict.fromkeys(map(column, records)))
    columns = tuple(name for name in DIMENSIONS.get(benchmark, present) if name in present)
    conditions = sorted({record.condition for record in records}, key=rank)
    own = {condition: [record for record in records if record.condition == condition] for condition in conditions}
    pairs = [paired(own[conditions[0]], own[other]) for other in conditions[1:]]
    return RobustnessTable(
        benchmark=benchmark,
        suite=suite,
        columns=columns,
        rows=tuple(
            _row(condition, _rates(own[condition], column, columns), own[condition]) for condition in conditions
        ),
        groupings=tuple(_groupings(benchmark, list(own.values()))),
        pairs=tuple(pair for pair in pairs if pair.episodes),
        notes=_notes(benchmark, records),
    )


def _kind(record: EpisodeRecord) -> tuple[str, str]:
    """Which benchmark's perturbation an episode is of, and of which suite; a standard episode is of none."""
    benchmark = str(record.variation.get("benchmark", ""))
    return benchmark, benchmark if benchmark in DIMENSIONS else record.suite.split(f" {PLUS_STYLE} ")[0]


def _named(benchmark: str, suite: str) -> str:
    return benchmark if benchmark in DIMENSIONS else f"{benchmark or 'standard'} episodes of {suite}"


def _by(key: str) -> Callable[[EpisodeRecord], str]:
    return lambda record: str(record.variation.get(key, ""))


def _rates(
    records: Sequence[EpisodeRecord], group: Callable[[EpisodeRecord], str], names: Sequence[str]
) -> tuple[Rate, ...]:
    found: dict[str, list[EpisodeRecord]] = {name: [] for name in names}
    for record in records:
        found[group(record)].append(record)
    return tuple(rate_of(found[name]) for name in names)


def _row(condition: str, columns: tuple[Rate, ...], records: Sequence[EpisodeRecord]) -> RobustnessRow:
    last = Rate(successes=sum(record.success_last for record in records), trials=len(records))
    return RobustnessRow(condition=condition, columns=columns, total=rate_of(records), total_last=last)


def _groupings(benchmark: str, rows: Sequence[Sequence[EpisodeRecord]]) -> list[Grouping]:
    """By difficulty level where the episodes have one, and by suite or by dimension."""
    ways: dict[str, Callable[[EpisodeRecord], str]] = {
        "level": lambda record: str(record.variation.get("level") or "-")
    }
    if benchmark == PLUS_STYLE:
        ways["dimension"] = _by("category")
    else:
        ways["suite"] = lambda record: record.suite.split(f" {LIBERO_PRO} ")[0]
    found = []
    for name, group in ways.items():
        names = tuple(sorted({group(record) for row in rows for record in row}))
        if len(names) > 1 or (name == "level" and names != ("-",)):
            found.append(Grouping(name=name, groups=names, rates=tuple(_rates(row, group, names) for row in rows)))
    return found


def _notes(benchmark: str, records: Sequence[EpisodeRecord]) -> tuple[str, ...]:
    if benchmark == PLUS_STYLE:
        return (
            "Perturbations drawn by LaMP on LIBERO's own assets; the numbers are not comparable with LIBERO-Plus'.",
        )
    if benchmark == LIBERO_PRO:
        return _pro_notes(records)
    tasks = {(record.suite, record.task): record.variation.get("category", "") for record in records}
    counts = Counter(tasks.values())
    notes = []
    if len(tasks) < sum(SIZES.values()):
        done = ", ".join(f"{name} {counts[name]} of {size}" for name, size in SIZES.items())
        notes.append(f"Part of the benchmark, {len(tasks)} of {sum(SIZES.values())} tasks: {done}.")
    if len(counts) < len(SIZES):
        notes.append(f"The mean is over {len(counts)} of {len(SIZES)} dimensions; the published one is over all.")
    return tuple(notes)


def _pro_notes(records: Sequence[EpisodeRecord]) -> tuple[str, ...]:
    """Which part of the sixteen cells it is, and what the package does not hold."""
    scenes = {(record.suite, record.task, record.state) for record in records}
    notes = ["Without the benchmark's environment dimension, whose files its package does not hold."]
    whole = len(CELLS) * 4 * 10 * 50
    if len(scenes) < whole:
        cells = len({record.suite for record in records})
        notes.append(
            f"Part of the benchmark: {cells} of {len(CELLS) * 4} cells, {len(scenes)} of {whole} initial states."
        )
    return tuple(notes)


def _ranked(table: RobustnessTable) -> str:
    """The ranking in words; empty where fewer than two policies have one."""
    if len(table.ranking) < 2:
        return ""
    named = ", ".join(
        f"{place}. {row.condition} {percent(row.mean)}" for place, row in enumerate(table.ranking, start=1)
    )
    return f"Ranked by the mean of the {len(table.columns)} dimensions: {named}."


def _heads(table: RobustnessTable) -> tuple[str, ...]:
    """Every column's head says plus-style where it is, so that none can be taken for the benchmark's."""
    return tuple(f"{PLUS_STYLE} {name}" if table.benchmark == PLUS_STYLE else name for name in table.columns)


def _cells(table: RobustnessTable) -> list[list[str]]:
    unit = "perturbations" if table.benchmark == PLUS_STYLE else "dimensions"
    over = "tasks" if table.benchmark == LIBERO_PLUS else "episodes"
    head = ["condition", *_heads(table), f"mean over {over} (Wilson 95%)", f"mean over {unit}", "at the last step"]
    body = [
        [
            row.condition,
            *(
                f"{rate.successes}/{rate.trials} ({percent(rate.value)})" if rate.trials else "-"
                for rate in row.columns
            ),
            counted(row.total),
            percent(row.mean),
            f"{row.total_last.successes}/{row.total_last.trials}",
        ]
        for row in table.rows
    ]
    return [head, *body]


def _group_cells(table: RobustnessTable, grouping: Grouping) -> list[list[str]]:
    head = ["condition", *(f"{grouping.name} {group}" for group in grouping.groups)]
    body = [
        [row.condition, *(f"{rate.successes}/{rate.trials} ({percent(rate.value)})" for rate in rates)]
        for row, rates in zip(table.rows, grouping.rates, strict=True)
    ]
    return [head, *body]


def to_markdown(tables: Sequence[RobustnessTable]) -> str:
    """Writes the tables in Markdown."""
    parts = []
    for table in tables:
        lines = [f"### {table.title}", "", *(f"{note}\n" for note in table.notes)]
        for cells in table.cells():
            head, *body = cells
            lines += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
            lines += [*("| " + " | ".join(row) + " |" for row in body), ""]
        lines += [f"{ranked}\n"] if (ranked := _ranked(table)) else []
        lines += [f"- {sentence(pair)}" for pair in table.pairs]
        parts.append("\n".join(lines).rstrip() + "\n")
    return "\n".join(parts)


def to_text(tables: Sequence[RobustnessTable]) -> str:
    """Writes the tables for a terminal, one line a column: there may be many."""
    parts = []
    for table in tables:
        lines = [table.title, *(f"  {note}" for note in table.notes)]
        for cells in table.cells():
            columns = list(zip(*cells, strict=True))
            widths = [max(len(column[i]) for column in columns) for i in range(len(cells))]
            lines += [
                "  " + "  ".join(cell.ljust(width) for cell, width in zip(column, widths, strict=True)).rstrip()
                for column in columns
            ]
            lines.append("")
        ranked = _ranked(table)
        lines = [*lines[:-1], *([f"  {ranked}"] if ranked else []), *("  " + sentence(pair) for pair in table.pairs)]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def to_json(tables: Sequence[RobustnessTable]) -> list[dict[str, Any]]:
    """Turns the tables into plain JSON values, as `summary.json` holds them."""
    return [
        {
            "benchmark": table.benchmark,
            "title": table.title,
            "notes": list(table.notes),
            "ranking": [row.condition for row in table.ranking],
            "conditions": [_row_json(table, index) for index in range(len(table.rows))],
        }
        for table in tables
    ]


def _row_json(table: RobustnessTable, index: int) -> dict[str, Any]:
    row = table.rows[index]
    return {
        "condition": row.condition,
        "columns": {name: rate_json(rate) for name, rate in zip(_heads(table), row.columns, strict=True)},
        "total": rate_json(row.total),
        "total_last": rate_json(row.total_last),
        "mean": row.mean if row.mean == row.mean else None,
        **{
            f"by {grouping.name}": {
                group: rate_json(rate) for group, rate in zip(grouping.groups, grouping.rates[index], strict=True)
            }
            for grouping in table.groupings
        },
    }
