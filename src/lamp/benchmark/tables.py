"""Success tables, computed from the episode lines and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lamp.benchmark.baselines import rank
from lamp.benchmark.episodes import EpisodeRecord
from lamp.benchmark.statistics import Paired, Rate
from lamp.benchmark.suites import PLUS_STYLE


@dataclass(frozen=True, kw_only=True)
class SuccessRow:
    """One condition of a suite."""

    condition: str
    tasks: tuple[Rate, ...]
    """One a task, in the order of `SuccessTable.tasks`."""
    tasks_last: tuple[Rate, ...]
    """The same at the last step instead of at any step."""
    total: Rate
    total_last: Rate
    """Success at the last step instead of at any step."""
    steps: float
    """Mean length of a successful episode; 0 where none succeeded."""


@dataclass(frozen=True, kw_only=True)
class SuccessTable:
    """The results on one suite."""

    suite: str
    tasks: tuple[int, ...]
    names: tuple[str, ...]
    """The true instruction of each task (that of the wrong-instruction control is not the task's)."""
    rows: tuple[SuccessRow, ...]
    pairs: tuple[Paired, ...]
    """The first condition against every other one, on the episodes both have done."""


def tabulate(records: Sequence[EpisodeRecord]) -> list[SuccessTable]:
    """Computes one table a suite; with and without motion are compared first. Perturbed episodes are no part of it."""
    standard = [record for record in records if not record.variation]
    return [_table(suite, [r for r in standard if r.suite == suite]) for suite in sorted({r.suite for r in standard})]


def rate_of(records: Sequence[EpisodeRecord]) -> Rate:
    """Counts the episodes and their successes."""
    return Rate(successes=sum(record.success for record in records), trials=len(records))


def _rate_last(records: Sequence[EpisodeRecord]) -> Rate:
    return Rate(successes=sum(record.success_last for record in records), trials=len(records))


def _table(suite: str, records: Sequence[EpisodeRecord]) -> SuccessTable:
    tasks = tuple(sorted({record.task for record in records}))
    conditions = sorted({record.condition for record in records}, key=rank)
    by_condition = {condition: [r for r in records if r.condition == condition] for condition in conditions}
    pairs = [paired(by_condition[conditions[0]], by_condition[other]) for other in conditions[1:]]
    return SuccessTable(
        suite=suite,
        tasks=tasks,
        names=tuple(_instruction([r for r in records if r.task == task]) for task in tasks),
        rows=tuple(_row(condition, tasks, by_condition[condition]) for condition in conditions),
        pairs=tuple(pair for pair in pairs if pair.episodes),
    )


def _instruction(records: Sequence[EpisodeRecord]) -> str:
    instructions = [record.instruction for record in records if record.condition != "wrong_instruction"]
    return instructions[0] if instructions else ""


def _row(condition: str, tasks: Sequence[int], records: Sequence[EpisodeRecord]) -> SuccessRow:
    lengths = [record.steps for record in records if record.success]
    by_task = [[record for record in records if record.task == task] for task in tasks]
    return SuccessRow(
        condition=condition,
        tasks=tuple(map(rate_of, by_task)),
        tasks_last=tuple(map(_rate_last, by_task)),
        total=rate_of(records),
        total_last=_rate_last(records),
        steps=sum(lengths) / len(lengths) if lengths else 0.0,
    )


def paired(first: Sequence[EpisodeRecord], second: Sequence[EpisodeRecord]) -> Paired:
    """Compares two conditions, of at least one episode each, on the scenes that both have met."""
    one = {record.scene: record.success for record in first}
    two = {record.scene: record.success for record in second}
    shared = [(one[scene], two[scene]) for scene in one if scene in two]
    clusters: dict[tuple[str, int, int], int] = {}
    for scene in one.keys() & two.keys():
        suite, task, state, _ = scene
        place = (suite.split(f" {PLUS_STYLE} ")[0], task, state)  # perturbations of one initial state are repeats of it
        clusters[place] = clusters.get(place, 0) + one[scene] - two[scene]
    return Paired(
        first=first[0].condition,
        second=second[0].condition,
        both=shared.count((True, True)),
        only_first=shared.count((True, False)),
        only_second=shared.count((False, True)),
        neither=shared.count((False, False)),
        clusters=tuple(clusters[place] for place in sorted(clusters)),
    )


def percent(value: float) -> str:
    """Formats a rate; a dash where nothing was tried."""
    return "-" if value != value else f"{100 * value:.1f}%"


def counted(rate: Rate) -> str:
    """Formats a rate as successes/trials and its 95% interval, such as `24/30 (80.0%, 62.7-90.5)`."""
    if not rate.trials:
        return "-"
    low, high = rate.interval
    return f"{rate.successes}/{rate.trials} ({percent(rate.value)}, {100 * low:.1f}-{100 * high:.1f})"


def _cells(table: SuccessTable) -> list[list[str]]:
    head = [
        "condition",
        *(f"task {task}" for task in table.tasks),
        "total (Wilson 95%)",
        "at the last step",
        "steps to success",
    ]
    body = [
        [
            row.condition,
            *(_cell(rate, last) for rate, last in zip(row.tasks, row.tasks_last, strict=True)),
            counted(row.total),
            f"{row.total_last.successes}/{row.total_last.trials}",
            f"{row.steps:.0f}" if row.steps else "-",
        ]
        for row in table.rows
    ]
    return [head, *body]


def _cell(rate: Rate, last: Rate) -> str:
    """Successes at any step; where they were fewer at the last step, those too."""
    if not rate.trials:
        return "-"
    fewer = f", {last.successes} last" if last.successes < rate.successes else ""
    return f"{rate.successes}/{rate.trials}{fewer}"


def sentence(pair: Paired) -> str:
    """Says what a paired comparison found, with its counts."""
    states = f" of {len(pair.clusters)} initial states" if pair.repeated and pair.clusters is not None else ""
    return (
        f"{pair.first} against {pair.second} on the same {pair.episodes} episodes{states}: both {pair.both}, "
        f"only {pair.first} {pair.only_first}, only {pair.second} {pair.only_second}, neither {pair.neither}; "
        f"difference {100 * pair.difference:+.1f} points, {pair.test} p = {pair.p_value:.3g}"
    )


def to_markdown(tables: Sequence[SuccessTable]) -> str:
    """Writes the tables in Markdown."""
    parts = []
    for table in tables:
        head, *body = _cells(table)
        lines = [
            f"### {table.suite}",
            "",
            *(f"{t}. {name}" for t, name in zip(table.tasks, table.names, strict=True)),
            "",
        ]
        lines += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        lines += ["| " + " | ".join(row) + " |" for row in body]
        lines += ["", *(f"- {sentence(pair)}" for pair in table.pairs)]
        parts.append("\n".join(lines).rstrip() + "\n")
    return "\n".join(parts)


def to_text(tables: Sequence[SuccessTable]) -> str:
    """Writes the tables for a terminal."""
    parts = []
    for table in tables:
        cells = _cells(table)
        widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
        lines = [f"{table.suite}"]
        lines += [
            "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in cells
        ]
        lines += ["  " + sentence(pair) for pair in table.pairs]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def rate_json(rate: Rate) -> dict[str, Any]:
    """A rate as plain JSON values, with its interval."""
    low, high = rate.interval
    value = rate.value if rate.trials else None
    return {"successes": rate.successes, "trials": rate.trials, "rate": value, "low": low, "high": high}


def _row_json(row: SuccessRow, tasks: Sequence[int]) -> dict[str, Any]:
    return {
        "condition": row.condition,
        "total": rate_json(row.total),
        "total_last": rate_json(row.total_last),
        "steps": row.steps,
        "tasks": {str(task): rate_json(rate) for task, rate in zip(tasks, row.tasks, strict=True)},
        "tasks_last": {str(task): rate_json(rate) for task, rate in zip(tasks, row.tasks_last, strict=True)},
    }


def _pair_json(pair: Paired) -> dict[str, Any]:
    counts = {
        "both": pair.both,
        "only_first": pair.only_first,
        "only_second": pair.only_second,
        "neither": pair.neither,
    }
    states = pair.episodes if pair.clusters is None else len(pair.clusters)
    statistics = {"episodes": pair.episodes, "initial_states": states, "difference": pair.difference}
    statistics |= {"p_value": pair.p_value, "test": pair.test}
    return {"first": pair.first, "second": pair.second, **counts, **statistics}


def to_json(tables: Sequence[SuccessTable]) -> list[dict[str, Any]]:
    """Turns the tables into plain JSON values, as `summary.json` holds them."""
    return [
        {
            "suite": table.suite,
            "tasks": {str(task): name for task, name in zip(table.tasks, table.names, strict=True)},
            "conditions": [_row_json(row, table.tasks) for row in table.rows],
            "pairs": [_pair_json(pair) for pair in table.pairs],
        }
        for table in tables
    ]
