"""The report's section on the motion prior: what becomes of success when it is changed, and whether it errs less where the policy
succeeds."""

from __future__ import annotations

from collections.abc import Sequence

from lamp.benchmark.episodes import EpisodeRecord
from lamp.benchmark.flow_errors import of_episode
from lamp.benchmark.statistics import rank_sum
from lamp.benchmark.tables import Row, SuccessTable, counted
from lamp.model.interventions import is_intervention
from lamp.view import pages
from lamp.view.charts import Series, line_chart
from lamp.view.evidence import Evidence
from lamp.view.pages import Section
from lamp.view.wording import words

SWEEPS = {
    "gate": "opening of the gate",
    "denoised": "denoising steps before z_m",
    "action_steps": "Euler steps of the actions",
}


def prior(found: Evidence) -> Section | None:
    """What interventions and flow errors show; None where the run has neither."""
    body = "".join(_interventions(table, title) for title, table in found.titled)
    body += "".join(_errors(records) for records in found.records)
    if not body:
        return None
    about = "One step of acting is changed and all else, the noise of the actions too, stays as it was, on the same episodes."
    return Section(anchor="prior", title="Is the motion prior used?", about=about, body=body)


def _interventions(table: SuccessTable, title: str) -> str:
    changed = [row for row in table.rows if is_intervention(row.condition)]
    if not changed:
        return ""
    pairs = {pair.second: pair for pair in table.pairs}
    base, rows, tests = table.rows[0], [], dict[str, None]()
    for row in (base, *changed):
        pair = pairs.get(row.condition)
        compared = ["", ""] if pair is None else [f"{100 * pair.difference:+.1f} points", f"{pair.p_value:.3g}"]
        tests |= {pair.test: None} if pair else {}
        rows.append([words(row.condition), counted(row.total), *compared])
    head = [
        "condition",
        "success, 95% interval",
        f"{words(base.condition)} minus it",
        f"p ({', '.join(tests) or 'none'})",
    ]
    charts = [chart for name, label in SWEEPS.items() if (chart := _sweep(name, label, base, changed))]
    return pages.panel(pages.table(head, rows), title) + (pages.panels(charts) if charts else "")


def _sweep(name: str, label: str, base: Row, rows: Sequence[Row]) -> str:
    points = [
        (float(row.condition.partition("=")[2]), 100 * row.total.value)
        for row in rows
        if row.condition.startswith(f"{name}=")
    ]
    if len(points) < 2:
        return ""
    level = 100 * base.total.value
    ends = (min(x for x, _ in points), max(x for x, _ in points))
    drawn = line_chart(
        [
            Series(name=f"{words(base.condition)}, as trained", points=[(x, level) for x in ends], dashed=True),
            Series(name="changed", points=sorted(points), colour=2, marked=True),
        ],
        x_label=label,
        y_label="success [%]",
        label=f"success against {label}",
        y_range=(0, 100),
    )
    return pages.panel(drawn, f"Success against {label}")


def _errors(records: Sequence[EpisodeRecord]) -> str:
    measured = [
        (record, pair)
        for record in records
        if not is_intervention(record.condition) and (pair := of_episode(record.extra)) is not None
    ]
    if not measured:
        return ""
    rows = []
    for condition in dict.fromkeys(record.condition for record, _ in measured):
        groups = [
            [pair for record, pair in measured if record.condition == condition and record.success is success]
            for success in (True, False)
        ]
        for name, group in zip(("successes", "failures"), groups, strict=True):
            rows.append([f"{words(condition)}: {name}", str(len(group)), *_middle(group)])
        if all(groups):
            p = rank_sum(*[[error / still for error, still in group] for group in groups])
            rows.append([f"{words(condition)}: difference", "", "", "", f"rank-sum p = {p:.3g}"])
    head = ["episodes", "count", "foresight [px], median", "no motion [px], median", "ratio, median"]
    about = "Mean path error over the points that moved, against exact flow of the episode itself; pixels of a 256-pixel image."
    return pages.panel(
        pages.table(head, rows) + pages.paragraph(about), "Foresight where the policy succeeds and fails"
    )


def _middle(pairs: Sequence[tuple[float, float]]) -> list[str]:
    if not pairs:
        return ["-", "-", "-"]
    columns = [sorted(error for error, _ in pairs), sorted(still for _, still in pairs)]
    columns.append(sorted(error / still for error, still in pairs))
    return [f"{column[len(column) // 2]:.2f}" for column in columns]
