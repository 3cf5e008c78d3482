"""What a study found (`lamp.study.figures`), as tables for a terminal and as a page."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lamp.errors import DataError
from lamp.files import atomic_write_text
from lamp.study.figures import BEST, ERROR, FILE, PAGE, RATE, p_text, results_of, summarise
from lamp.study.results import HELD_OUT, MOTION_ONLY, progress_of, read_definition
from lamp.version import code_version
from lamp.view.charts import Series, line_chart
from lamp.view.page import Block, Card, Facts, Notes, Paragraph, Section, Table, render_page, shown


def _signed(row: Mapping[str, Any]) -> str:
    scale = 100 if row["measure"] == RATE else (100 / row["against_value"] if row["against_value"] else 1.0)
    unit = " points" if row["measure"] == RATE else "%"
    text = f"{scale * row['difference']:+.0f}{unit}"
    if row["interval"] is not None:
        low, high = (scale * end for end in row["interval"])
        text += f" ({low:+.0f} to {high:+.0f})"
    return text


def _value(value: float | None, interval: Sequence[float] | None, *, percent: bool = False) -> str:
    if value is None:
        return "-"
    shown = (lambda number: f"{100 * number:.0f}") if percent else (lambda number: f"{number:.3f}")
    return shown(value) + ("" if interval is None else f" ({shown(interval[0])} to {shown(interval[1])})")


def tables(figures: Mapping[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """The figures as tables for people: a title, a head and rows, a table a test."""
    made = []
    by_key = {(row["arm"], row["test"], row["demonstrations"], row["measure"]): row for row in figures["differences"]}
    for test in dict.fromkeys(row["test"] for row in figures["results"]):
        rows, own = list[list[str]](), [row for row in figures["results"] if row["test"] == test]
        simulated = any(row["episodes"] for row in own)
        for row in sorted(own, key=lambda row: row["demonstrations"]):
            key = (row["arm"], test, row["demonstrations"])
            cells_of = [str(row["demonstrations"]), row["arm"]]
            if simulated:
                cells_of += [
                    f"{row['successes']}/{row['episodes']}",
                    _value(row[RATE], row[f"{RATE}_interval"], percent=True),
                ]
                compared = [by_key.get((*key, RATE))]
            else:
                cells_of += [_value(row[measure], row[f"{measure}_interval"]) for measure in (ERROR, BEST)]
                compared = [by_key.get((*key, measure)) for measure in (ERROR, BEST)]
            cells_of += [_signed(one) if one else "" for one in compared]
            first = compared[0]
            cells_of += [p_text(first["p"]) if first else "", _in_words(first) if first else "", str(row["seeds"])]
            rows.append(cells_of)
        against = figures["against"]
        if simulated:
            head = ["demonstrations", "arm", "successes", "%", f"against {against}", "p", "verdict", "seeds"]
        else:
            head = [
                "demonstrations",
                "arm",
                "error at equal steps",
                "best",
                f"against {against}",
                "best against best",
                "p",
                "verdict",
                "seeds",
            ]
        made.append((_title(test), head, rows))
    return made


def _title(test: str) -> str:
    return {
        HELD_OUT: "held-out error: demonstrations of tasks with actions",
        MOTION_ONLY: "held-out error: tasks seen in motion only",
    }.get(test, f"simulator: {test}")


def _in_words(row: Mapping[str, Any]) -> str:
    ceiling = " (a ceiling)" if row["oracle"] and row["verdict"] in ("helps", "harms") else ""
    return row["verdict"] + ceiling


def verdicts(figures: Mapping[str, Any]) -> list[str]:
    """A sentence for each comparison that is not of each one's best."""
    sentences = []
    for row in figures["differences"]:
        if row["measure"] == BEST:
            continue
        what = (
            _title(row["test"]) if row["measure"] == RATE else _title(row["test"]).replace("held-out error", "error", 1)
        )
        sentences.append(
            f"{row['arm']} against {row['against']}, {row['demonstrations']} demonstrations, {what}: {_in_words(row)}, "
            f"{_signed(row)}; {row['why']}"
        )
    return sentences


def to_text(figures: Mapping[str, Any]) -> str:
    """The figures for a terminal."""
    done, planned = figures["cells"]["done"], figures["cells"]["planned"]
    lines = [
        f"{figures['name']}: {figures['question']}",
        f"{done} of {planned} cells" + ("" if figures["complete"] else ", unfinished"),
    ]
    for title, head, rows in tables(figures):
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines += ["", title]
        lines += [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in [head, *rows]
        ]
    lines += ["", *verdicts(figures)] if figures["differences"] else ["", "nothing to compare yet"]
    return "\n".join([*lines, *(f"note: {note}" for note in notes(figures))])


def notes(figures: Mapping[str, Any]) -> list[str]:
    """What a reader should know."""
    study = figures["study"]
    sentences = [
        f"Intervals of 95% and p-values are Student's t over {study['policy_seeds']} seeds of Stage 2. Those of the same of "
        f"{study['motion_seeds']} seeds of Stage 1 share it and their demonstrations, so that they are less than independent.",
        f"{sum(row['p'] is not None for row in figures['differences'])} differences were tested; p_holm in {FILE} is corrected "
        "for all of one measure.",
        "The best of several measurements is chosen on the demonstrations that it is measured on, in all arms alike.",
    ]
    given = dict.fromkeys(
        arm["prior"]["checkpoint"] for arm in study["arms"] if arm["prior"] and arm["prior"].get("checkpoint")
    )
    if given:
        sentences.append(
            f"Stage 1 of {', '.join(given)} was trained once, before: what is found holds for that checkpoint, and seeds vary "
            "the demonstrations and Stage 2 alone."
        )
    if any(row["oracle"] for row in figures["differences"]):
        sentences.append("An oracle knows the true motion to come: it is a ceiling for any prior and no result.")
    if len(figures["code"]) > 1:
        sentences.append(f"Cells were made by several versions of the code: {', '.join(figures['code'])}.")
    return [*sentences, *study["notes"]]


def write_report(figures: Mapping[str, Any], out: Path) -> Path:
    """Writes the page, which needs nothing else, and returns its path."""
    sections = [Section(anchor="verdicts", title="Verdicts", blocks=[_verdict_block(figures)])]
    for number, (title, head, rows) in enumerate(tables(figures)):
        anchor = f"test-{number}"
        sections.append(Section(anchor=anchor, title=title[:1].upper() + title[1:], blocks=[Table(head, rows)]))
    sections.append(Section(anchor="curves", title="Learning curves", blocks=_curves(figures, out)))
    sections.append(Section(anchor="prior", title="The priors", blocks=[_motion_table(figures)]))
    sections.append(Section(anchor="notes", title="How to read it", blocks=[Notes(notes(figures)), _facts(figures)]))
    done, planned = figures["cells"]["done"], figures["cells"]["planned"]
    page = render_page(
        title=f"Study: {figures['name']}",
        lead=figures["question"],
        cards=[
            Card("cells", f"{done}/{planned}", "complete" if figures["complete"] else "unfinished"),
            *_cards(figures),
        ],
        sections=sections,
        footer=f"lamp study report, code {code_version()}, {datetime.datetime.now().astimezone():%Y-%m-%d %H:%M}",
    )
    atomic_write_text(out / PAGE, page)
    return out / PAGE


def _cards(figures: Mapping[str, Any]) -> list[Card]:
    """How many comparisons ended how."""
    counted: dict[str, int] = {}
    for row in figures["differences"]:
        if not row["oracle"] and row["measure"] != BEST:
            counted[row["verdict"]] = counted.get(row["verdict"], 0) + 1
    return [Card(name, str(count), "comparisons") for name, count in counted.items()]


def _verdict_block(figures: Mapping[str, Any]) -> Block:
    sentences = verdicts(figures)
    return Notes(sentences) if sentences else Paragraph("Nothing to compare yet.", "absent")


def _curves(figures: Mapping[str, Any], out: Path) -> list[Block]:
    """The held-out error of every arm over the steps, the mean of its seeds."""
    results = list(progress_of(read_definition(out), out))
    blocks = list[Block | None]()
    for count in figures["study"]["demonstrations"]:
        series = []
        for number, arm in enumerate(figures["study"]["arms"]):
            curves = [
                result["errors"][HELD_OUT]["curve"] for result in results_of(results, arm["name"], count).values()
            ]
            if curves:
                length = min(map(len, curves))
                points = [
                    (step, float(np.mean([curve[place][1] for curve in curves])))
                    for place, (step, _) in enumerate(curves[0][:length])
                ]
                series.append(Series(name=arm["name"], points=points, colour=number % 8, marked=True))
        if series:
            label = f"Held-out error, {count} demonstrations a task"
            blocks += [
                Paragraph(label),
                line_chart(series, x_label="steps of Stage 2", y_label="mean absolute error", label=label),
            ]
    return shown(blocks) or [Paragraph("No cell is finished yet.", "absent")]


def _motion_table(figures: Mapping[str, Any]) -> Block:
    rows = [
        [
            one["name"],
            str(len(one["episodes"])),
            str(one["steps"]),
            f"{one['ade_px']:.1f}",
            f"{one['zero_motion_ade_px']:.1f}",
        ]
        for one in figures["motion"]
    ]
    head = ["Stage 1", "episodes", "steps", "error of moving points [px]", "of no motion [px]"]
    return Table(head, rows) if rows else Paragraph("No Stage 1 is finished yet.", "absent")


def _facts(figures: Mapping[str, Any]) -> Block:
    study = figures["study"]
    return Facts(
        {
            name: study[name]
            for name in ("recipe", "motion_steps", "policy_steps", "motion_seeds", "policy_seeds", "demonstrations")
        }
    )


def report(out: Path) -> str:
    """Computes the figures of a study's folder anew, writes study.json and the page, and returns the text.

    Raises:
        DataError: The folder holds no study, or no cell is finished.
    """
    if not out.is_dir():
        raise DataError(f"no study at {out}: there is no such folder; expected the --out of `lamp study run`")
    resolved = read_definition(out)
    figures = summarise(resolved, out)
    if not figures["cells"]["done"]:
        raise DataError(
            f"{out}: no cell of the study {figures['name']!r} is finished yet; `lamp study run {figures['name']} --out {out}` "
            "goes on"
        )
    page = write_report(figures, out)
    return f"{to_text(figures)}\n\n{page}"
