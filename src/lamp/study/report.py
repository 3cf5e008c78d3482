"""What a study found: every arm's figures, its paired differences from the arm that it is compared with, and a verdict in words.

The unit is a seed of Stage 2: each difference is of two policies that saw the same demonstrations in the same order, for as many
steps, and met the same scenes.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lamp.benchmark.statistics import SeedDifferences, holm, sign_flips_exact
from lamp.configuration import to_json
from lamp.errors import DataError
from lamp.files import atomic_write_text
from lamp.json_files import read_json_as, write_json
from lamp.study.results import HELD_OUT, MOTION_ONLY, Cell, StoredMotion, cells, progress_of, read_definition
from lamp.study.study import CLAIM_MOTION_SEEDS, CLAIM_POLICY_SEEDS, Arm, Resolved, Study
from lamp.version import code_version
from lamp.view.charts import Series, line_chart
from lamp.view.page import Block, Card, Facts, Notes, Paragraph, Section, Table, render_page, shown

FILE, PAGE = "study.json", "report.html"
SIGNIFICANT = 0.05
ERROR, BEST, RATE = "held_out_error", "best_error", "success_rate"
MEASURES = {
    ERROR: "held-out error at equal steps",
    BEST: "held-out error, each one's best",
    RATE: "success rate",
}
Progress = list[tuple[Cell, dict[str, Any]]]


def summarise(resolved: Resolved, out: Path) -> dict[str, Any]:
    """Computes the figures of a study from what its cells have left, and writes them to study.json."""
    study, results = resolved.study, list(progress_of(resolved, out))
    rows = [row for arm in study.arms for count in study.demonstrations for row in _rows(study, arm, count, results)]
    differences = [
        row
        for count in study.demonstrations
        for arm in study.arms
        if arm.name != study.against
        for row in _differences(study, arm, count, results)
    ]
    for measure in MEASURES:
        tested = [row for row in differences if row["p"] is not None and row["measure"] == measure]
        for row, corrected in zip(tested, holm([row["p"] for row in tested]), strict=True):
            row["p_holm"] = corrected
    for row in differences:
        row |= _verdict(study, row)
    planned = cells(study)
    wanted = len(planned) * (1 + len(study.tests))
    done = len(results) + sum(len(result["tests"]) for _, result in results)
    figures = {
        "format": "lamp-study-figures",
        "version": 1,
        "name": study.name,
        "question": study.question,
        "complete": done == wanted,
        "cells": {"done": len(results), "planned": len(planned)},
        "against": study.against,
        "claim_takes": {"policy_seeds": CLAIM_POLICY_SEEDS, "motion_seeds": CLAIM_MOTION_SEEDS},
        "results": rows,
        "differences": differences,
        "motion": _motions(out),
        "code": sorted({result["code"] for _, result in results}),
        "study": to_json(study),
    }
    write_json(out / FILE, figures)
    return figures


def _motions(out: Path) -> list[dict[str, Any]]:
    """Every Stage 1: what it learnt from, and how well it foresees held-out motion."""
    motions = []
    for path in sorted(out.glob("motion/*/*/result.json")):
        result = read_json_as(path, StoredMotion, "result of a Stage 1")
        motions.append({"name": f"{path.parent.parent.name}/{path.parent.name}", **result})
    return motions


def _of(progress: Progress, arm: str, count: int) -> dict[int, dict[str, Any]]:
    return {cell.seed: result for cell, result in progress if (cell.arm, cell.demonstrations) == (arm, count)}


def _rows(study: Study, arm: Arm, count: int, progress: Progress) -> list[dict[str, Any]]:
    """The figures of one arm and number of demonstrations, a row a test."""
    results = _of(progress, arm.name, count)
    if not results:
        return []
    rows = []
    groups = next(iter(results.values()))["errors"]
    for group in groups:
        rows.append({**_row(study, arm, count, group, results), **_errors(results, group)})
    for test in study.tests:
        done = {seed: result["tests"][test.name] for seed, result in results.items() if test.name in result["tests"]}
        if not done:
            continue
        outcomes = [one[-1] for result in done.values() for one in result["outcomes"]]
        rates = [_rate(result) for result in done.values()]
        row = _row(study, arm, count, test.name, done) | {"successes": sum(outcomes), "episodes": len(outcomes)}
        errors = _errors({seed: results[seed] for seed in done}, _group_of(study, test.tasks, groups))
        rows.append({**row, **errors, "success_rate": float(np.mean(rates)), "success_rate_interval": _interval(rates)})
    return rows


def _group_of(study: Study, tasks: Sequence[int], groups: Mapping[str, Any]) -> str:
    """Which held-out error stands beside a test in the simulator: that of its tasks."""
    if MOTION_ONLY not in groups or study.actions.tasks is None:
        return HELD_OUT
    from lamp.data.episode_selection import parse_numbers

    with_actions = (
        set(parse_numbers(study.actions.tasks, None, "tasks")) if study.actions.tasks[:1].isdigit() else {*tasks}
    )
    return HELD_OUT if with_actions.intersection(tasks) else MOTION_ONLY


def _row(study: Study, arm: Arm, count: int, test: str, results: Mapping[int, Any]) -> dict[str, Any]:
    seeds = sorted(results)
    return {
        "arm": arm.name,
        "test": test,
        "demonstrations": count,
        "successes": None,
        "episodes": 0,
        "seeds": len(seeds),
        "motion_seeds": len({study.motion_seed(seed) for seed in seeds}) if arm.trains_motion else 0,
        "steps": study.policy_steps,
    }


def _errors(results: Mapping[int, Any], group: str) -> dict[str, Any]:
    last = [result["errors"][group]["final"] for result in results.values()]
    best = [result["errors"][group]["best"] for result in results.values()]
    return {
        ERROR: float(np.mean(last)),
        f"{ERROR}_interval": _interval(last),
        BEST: float(np.mean(best)),
        f"{BEST}_interval": _interval(best),
        "best_step": float(np.mean([result["errors"][group]["best_step"] for result in results.values()])),
        "by_seed": {str(seed): result["errors"][group]["final"] for seed, result in sorted(results.items())},
    }


def _interval(values: Sequence[float]) -> list[float] | None:
    """95%, over seeds; None of one seed."""
    differences = SeedDifferences(differences=tuple(values)).interval
    return None if differences is None else list(differences)


def _rate(result: Mapping[str, Any]) -> float:
    outcomes = [one[-1] for one in result["outcomes"]]
    return sum(outcomes) / len(outcomes)


def _differences(study: Study, arm: Arm, count: int, progress: Progress) -> list[dict[str, Any]]:
    """An arm's paired differences from the one that it is compared with, for every measure and test."""
    own, other = _of(progress, arm.name, count), _of(progress, study.against, count)
    rows = []
    shared = sorted(own.keys() & other.keys())
    if not shared:
        return []
    for group in own[shared[0]]["errors"]:
        for measure, key in ((ERROR, "final"), (BEST, "best")):
            pairs = {seed: (own[seed]["errors"][group][key], other[seed]["errors"][group][key]) for seed in shared}
            rows.append(_difference(study, arm, count, group, measure, pairs))
    for test in study.tests:
        both = [seed for seed in shared if test.name in own[seed]["tests"] and test.name in other[seed]["tests"]]
        if not both:
            continue
        pairs, clusters = {}, list[int]()
        for seed in both:
            mine, theirs = (
                {tuple(one[:-1]): int(one[-1]) for one in results[seed]["tests"][test.name]["outcomes"]}
                for results in (own, other)
            )
            scenes = sorted(mine.keys() & theirs.keys())
            if not scenes:
                continue
            pairs[seed] = tuple(sum(one[scene] for scene in scenes) / len(scenes) for one in (mine, theirs))
            states: dict[tuple[Any, ...], int] = {}
            for scene in scenes:  # repeats of an initial state are no independent scenes
                states[scene[:3]] = states.get(scene[:3], 0) + mine[scene] - theirs[scene]
            clusters += states.values()
        if not pairs:
            continue
        row = _difference(study, arm, count, test.name, RATE, pairs)
        rows.append(row | {"p_scenes": sign_flips_exact(clusters), "scenes": len(clusters)})
    return rows


def _difference(
    study: Study, arm: Arm, count: int, test: str, measure: str, pairs: Mapping[int, tuple[float, float]]
) -> dict[str, Any]:
    """One paired difference, this arm's value less the other's, and what as many pairs could show."""
    seeds = SeedDifferences(differences=tuple(mine - theirs for mine, theirs in pairs.values()))
    base, interval = float(np.mean([theirs for _, theirs in pairs.values()])), seeds.interval
    of_motion: dict[int, list[float]] = {}
    for seed, (mine, theirs) in pairs.items():
        of_motion.setdefault(study.motion_seed(seed), []).append(mine - theirs)
    return {
        "arm": arm.name,
        "against": study.against,
        "oracle": bool(arm.prior and arm.prior.oracle),
        "test": test,
        "measure": measure,
        "demonstrations": count,
        "difference": seeds.mean,
        "relative": seeds.mean / base if base and measure != RATE else None,
        "interval": None if interval is None else list(interval),
        "p": seeds.p_value if len(pairs) > 1 else None,
        "p_holm": None,
        "pairs": len(pairs),
        "seeds": len(pairs),
        "motion_seeds": len(of_motion) if arm.trains_motion else 0,
        "needs_motion_seeds": _needs_motion_seeds(study, arm),
        "by_seed": {str(seed): mine - theirs for seed, (mine, theirs) in pairs.items()},
        "by_motion_seed": {str(seed): float(np.mean(values)) for seed, values in of_motion.items()},
        "against_value": base,
        "detectable": seeds.detectable,
        "more_pairs": seeds.more_pairs(),
    }


def _needs_motion_seeds(study: Study, arm: Arm) -> bool:
    return arm.trains_motion or study.arm(study.against).trains_motion


def _verdict(study: Study, row: Mapping[str, Any]) -> dict[str, Any]:
    """Whether a claim may be made, and what it is."""
    enough_motion = not row["needs_motion_seeds"] or row["motion_seeds"] >= CLAIM_MOTION_SEEDS
    claim = row["seeds"] >= CLAIM_POLICY_SEEDS and enough_motion
    has = f"{row['seeds']} seed{'s' if row['seeds'] > 1 else ''} of Stage 2"
    has += f" and {row['motion_seeds']} of Stage 1" if row["needs_motion_seeds"] else ""
    if not claim:
        wanted = f"{CLAIM_POLICY_SEEDS} of Stage 2" + (
            f" and {CLAIM_MOTION_SEEDS} of Stage 1" if row["needs_motion_seeds"] else ""
        )
        return {"claim": False, "verdict": "no claim", "why": f"{has}; a claim takes {wanted}"}
    better = row["difference"] > 0 if row["measure"] == RATE else row["difference"] < 0
    if row["p"] < SIGNIFICANT and row["interval"] is not None:
        corrected = row["p_holm"] is not None and row["p_holm"] < SIGNIFICANT
        why = f"p {_p(row['p'])} over {row['pairs']} pairs"
        why += "" if corrected else f"; not after correction for all comparisons of the study (p {_p(row['p_holm'])})"
        return {"claim": True, "verdict": "helps" if better else "harms", "why": why}
    more = row["more_pairs"]
    if row["interval"] is None:
        why = "all pairs differ alike, so that it is not known how they vary"
    elif more is None:
        why = "no number of pairs within reach would show so small a difference"
    else:
        why = f"{more} more pairs would show a difference of this size with a chance of 80%"
    if row["detectable"] is not None:
        why += f"; these {row['pairs']} show one of {_size(row, row['detectable'])} or more"
    return {"claim": True, "verdict": "cannot tell", "why": why}


def _p(value: float | None) -> str:
    if value is None:
        return "-"
    return "< 0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def _size(row: Mapping[str, Any], value: float) -> str:
    """A difference in the unit that it is read in: percent of the other arm's error, or points of success."""
    if row["measure"] == RATE:
        return f"{100 * value:.0f} points"
    return f"{100 * value / row['against_value']:.0f}%" if row["against_value"] else f"{value:.4f}"


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
            cells_of += [_p(first["p"]) if first else "", _in_words(first) if first else "", str(row["seeds"])]
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
            curves = [result["errors"][HELD_OUT]["curve"] for result in _of(results, arm["name"], count).values()]
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
