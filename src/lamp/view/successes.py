"""The report's section on success: rates with intervals, tasks, paired comparisons."""

from __future__ import annotations

from lamp.benchmark.robustness import RobustnessTable
from lamp.benchmark.tables import Row, SuccessTable, counted, percent, sentence
from lamp.view import pages
from lamp.view.charts import Span, interval_chart
from lamp.view.evidence import Evidence
from lamp.view.pages import Section
from lamp.view.wording import colour_of, words


def success(found: Evidence) -> Section:
    """Success rates with intervals, tables, paired comparisons."""
    if not found.tables and not found.perturbed:
        return Section(anchor="success", title="Success", body=pages.absent("This run has no evaluated episodes."))
    return Section(
        anchor="success",
        title="Success",
        about="Every condition meets the same initial states and placements. Bars are Wilson's 95% intervals.",
        body="".join([*(_success(table, title) for title, table in found.titled), *map(_robustness, found.perturbed)]),
    )


def _success(table: SuccessTable, title: str) -> str:
    shown = [
        Span(
            name=words(row.condition),
            value=row.total.value,
            low=row.total.interval[0],
            high=row.total.interval[1],
            said=_said(row),
            colour=colour_of(row.condition, index),
        )
        for index, row in enumerate(table.rows)
    ]
    compared = "".join(pages.paragraph(sentence(pair).replace("_", " ") + ".", "found") for pair in table.pairs[:1])
    chart = pages.panel(interval_chart(shown, label=f"success rates on {title}"), title)
    return chart + compared + _by_task(table)


def _robustness(table: RobustnessTable) -> str:
    """One line a perturbation, one column a condition; LIBERO-Plus and plus-style have panels of their own."""
    notes = "".join(pages.paragraph(note) for note in table.notes)
    compared = "".join(pages.paragraph(sentence(pair).replace("_", " ") + ".", "found") for pair in table.pairs[:1])
    tables = []
    for cells in table.cells():
        (_, *conditions), *lines = zip(*cells, strict=True)
        tables.append(pages.table(["", *map(words, conditions)], lines))
    return pages.panel(notes + "".join(tables) + compared, table.title)


def _said(row: Row) -> str:
    low, high = row.total.interval
    return (
        f"{row.total.successes}/{row.total.trials} · {percent(row.total.value)} ({100 * low:.0f} to {100 * high:.0f})"
    )


def _by_task(table: SuccessTable) -> str:
    head = ["task", *(words(row.condition) for row in table.rows)]
    rows = [
        [f"{task}. {name}", *(_fraction(row, index) for row in table.rows)]
        for index, (task, name) in enumerate(zip(table.tasks, table.names, strict=True))
    ]
    rows.append(
        ["all, 95% interval", *(counted(row.total) for row in table.rows)]
        if len(table.rows) < 4
        else ["all", *_totals(table)]
    )
    rows.append(
        ["all, at the last step", *(f"{row.total_last.successes}/{row.total_last.trials}" for row in table.rows)]
    )
    rows.append(["steps to success", *(f"{row.steps:.0f}" if row.steps else "-" for row in table.rows)])
    return pages.panel(pages.table(head, rows), "By task")


def _fraction(row: Row, index: int) -> str:
    rate = row.tasks[index]
    return f"{rate.successes}/{rate.trials}" if rate.trials else "-"


def _totals(table: SuccessTable) -> list[str]:
    return [f"{row.total.successes}/{row.total.trials}" for row in table.rows]
