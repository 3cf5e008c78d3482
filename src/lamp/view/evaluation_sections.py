"""The report's sections on evaluations: success rates, comparisons between runs, whether the motion prior is used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

from lamp.benchmark.baselines import CONTROLS, is_policy
from lamp.benchmark.episodes import EpisodeRecord
from lamp.benchmark.flow_errors import of_episode
from lamp.benchmark.robustness import RobustnessTable
from lamp.benchmark.statistics import Paired, rank_sum
from lamp.benchmark.tables import SuccessRow, SuccessTable, counted, paired, percent, sentence
from lamp.model.prior_interventions import is_intervention
from lamp.view.charts import Interval, Series, interval_chart, line_chart
from lamp.view.page import Block, Columns, Notes, Panel, Paragraph, Section, Table, shown
from lamp.view.results import RunResults, failure_kind, folder_label, words

SWEEPS = {
    "gate": "opening of the gate",
    "denoised": "denoising steps before z_m",
    "action_steps": "Euler steps of the actions",
}


def success(results: RunResults) -> Section | None:
    """Success rates with intervals, tables, paired comparisons; None where nothing was evaluated."""
    if not results.tables and not results.perturbed:
        return None
    blocks = [block for title, table in results.titled for block in _success(results, table, title)]
    return Section(
        anchor="success",
        title="Success",
        about="Every condition meets the same initial states and placements. Bars are Wilson's 95% intervals.",
        blocks=[*blocks, *map(_robustness, results.perturbed)],
    )


def _success(results: RunResults, table: SuccessTable, title: str) -> list[Block]:
    intervals = []
    for row in table.rows:
        rate, (low, high) = row.total, row.total.interval
        text = f"{rate.successes}/{rate.trials} · {percent(rate.value)} ({100 * low:.0f} to {100 * high:.0f})"
        colour = results.colour(row.condition)
        intervals.append(
            Interval(name=words(row.condition), value=rate.value, low=low, high=high, text=text, colour=colour)
        )
    chart = interval_chart(intervals, label=f"success rates on {title}")
    return [Panel([chart], title), *_first_pair(table.pairs), Panel([_by_task(table)], "By task")]


def verdict(results: RunResults) -> Section:
    """What can be concluded from the run's results, and what cannot, in words."""
    can, cannot = [], []
    pair = results.pair
    for title, table in results.titled:
        rows = {row.condition: row for row in table.rows}
        policy = next((row for row in table.rows if is_policy(row.condition)), None)
        if policy is None:
            continue
        low, high = policy.total.interval
        name = words(policy.condition)
        can.append(
            f"On {title}, the policy {name} succeeds in {policy.total.successes} of {policy.total.trials} episodes: in "
            f"{100 * low:.0f} to {100 * high:.0f}% of such episodes, with 95% confidence."
        )
        for control, meaning in (
            ("replay", "repeating one expert episode blindly"),
            ("zero", "doing nothing"),
            ("wrong_instruction", "acting on another task's instruction"),
        ):
            compared = next(
                (one for one in table.pairs if {one.first, one.second} == {policy.condition, control}), None
            )
            if control not in rows or compared is None:
                continue
            better = compared.difference if compared.first == policy.condition else -compared.difference
            if compared.p_value < SIGNIFICANT and better > 0:
                can.append(f"It does better than {meaning} ({100 * better:+.0f} points, p = {compared.p_value:.2g}).")
            else:
                cannot.append(
                    f"That it does better than {meaning}: {100 * better:+.0f} points in {compared.episodes} episodes, "
                    f"p = {compared.p_value:.2g}."
                )
    if pair is not None:
        gap, smallest = 100 * pair.difference, smallest_difference(pair)
        if pair.p_value < SIGNIFICANT:
            can.append(
                f"These two trained policies differ: {words(pair.first)} against {words(pair.second)} {gap:+.0f} points on the "
                f"same {pair.episodes} episodes (p = {pair.p_value:.2g})."
            )
        else:
            cannot.append(
                f"That the motion prior helps, or that it does not: {gap:+.0f} points on the same {pair.episodes} episodes "
                f"(p = {pair.p_value:.2g}), which would show a difference of about {100 * smallest:.0f} points or more."
            )
        cannot.append(
            "What another training would give: each policy was trained once, and seeds differ by as much as methods do; "
            "`lamp study` compares several."
        )
    for name, errors in results.flows.items():
        rows = {row.name: row.moving[0] for row in errors.rows}
        still, own = rows.get("zero motion"), rows.get("mean of 4") or rows.get("one sample")
        if own is None or still is None:
            continue
        comparison = (
            f"{own:.1f} px on held-out demonstrations, where expecting no motion errs by {still:.1f} px ({words(name)})"
        )
        if own < still:
            can.append(f"The motion prior foresees motion: its paths of moving points err by {comparison}.")
        else:
            cannot.append(f"That the motion prior foresees anything: its paths of moving points err by {comparison}.")
    if not results.episodes:
        cannot.append("How often the robot succeeds: nothing was evaluated. `lamp evaluate` does that.")
    else:
        tasks = {(record.suite, record.task) for record in results.episodes}
        suites = ", ".join(sorted({suite for suite, _ in tasks}))
        cannot.append(f"Anything about other tasks than these {len(tasks)} of {suites}, other scenes or robots.")
    blocks: list[Block] = [Panel([Notes(can)], "These results show")] if can else []
    return Section(
        anchor="verdict", title="What can be concluded", blocks=[*blocks, Panel([Notes(cannot)], "They do not show")]
    )


SIGNIFICANT = 0.05
"""Below this, a p-value is called a difference."""


def smallest_difference(pair: Paired) -> float:
    """About the smallest difference of success rates that so many pairs show in four of five tries, by the normal approximation
    of McNemar's test at the share of pairs that differed here, or a fifth where fewer did. In [0, 1]."""
    discordant = max((pair.only_first + pair.only_second) / pair.episodes, 0.2)
    return min(1.0, (1.96 + 0.84) * (discordant / pair.episodes) ** 0.5)


def failures(results: RunResults) -> Section | None:
    """How the policies failed, by kind; None where none did, or no simulator recorded its objects."""
    failed = [
        record
        for record in results.episodes
        if not record.success and is_policy(record.condition) and failure_kind(record)
    ]
    if not failed:
        return None
    conditions = list(dict.fromkeys(record.condition for record in failed))
    counts = Counter((failure_kind(record), record.condition) for record in failed)
    kinds = sorted({kind for kind, _ in counts}, key=lambda kind: -sum(counts[kind, name] for name in conditions))
    rows = [[kind, *(str(counts[kind, name]) for name in conditions)] for kind in kinds]
    rows.append(["all failures", *(str(sum(counts[kind, name] for kind in kinds)) for name in conditions)])
    about = "By how far objects went: moved by more than 2 cm, lifted by more than 3 cm. `It` is what the instruction names."
    table = Table(["how it failed", *map(words, conditions)], rows)
    return Section(anchor="failures", title="Failures", about=about, blocks=[Panel([table])])


def _first_pair(pairs: Sequence[Paired]) -> list[Block]:
    return [Paragraph(words(sentence(pair)) + ".", "found") for pair in pairs[:1]]


def _robustness(table: RobustnessTable) -> Panel:
    """One line a perturbation, one column a condition; LIBERO-Plus and plus-style have panels of their own."""
    blocks: list[Block] = [Paragraph(note) for note in table.notes]
    for cells in table.cells():
        (_, *conditions), *lines = zip(*cells, strict=True)
        blocks.append(Table(["", *map(words, conditions)], lines))
    return Panel([*blocks, *_first_pair(table.pairs)], table.title)


def _by_task(table: SuccessTable) -> Table:
    rows = []
    for index, (task, name) in enumerate(zip(table.tasks, table.names, strict=True)):
        rates = [row.tasks[index] for row in table.rows]
        fractions = [f"{rate.successes}/{rate.trials}" if rate.trials else "-" for rate in rates]
        rows.append([f"{task}. {name}", *fractions])
    if len(table.rows) < 4:
        rows.append(["all, 95% interval", *(counted(row.total) for row in table.rows)])
    else:
        rows.append(["all", *(f"{row.total.successes}/{row.total.trials}" for row in table.rows)])
    last = [row.total_last for row in table.rows]
    rows.append(["all, at the last step", *(f"{rate.successes}/{rate.trials}" for rate in last)])
    rows.append(["steps to success", *(f"{row.steps:.0f}" if row.steps else "-" for row in table.rows)])
    return Table(["task", *(words(row.condition) for row in table.rows)], rows)


def pairs_between_runs(results: RunResults) -> list[Paired]:
    """Compares each condition of a folder with the same one of every other, or its only policy with another's only one."""
    compared = []
    runs = list(zip(results.folders, map(_policies, results.records), strict=True))
    for (folder, own), (other_folder, others) in combinations(runs, 2):
        matches = [(name, name) for name in own if name in others]
        if not matches and len(own) == len(others) == 1:
            matches = [(*own, *others)]
        for name, other_name in matches:
            # Only where the objects lie alike: the same seed places them elsewhere for another shift.
            places = {record.scene: (record.placement, record.render) for record in own[name]}
            both = [one for one in others[other_name] if places.get(one.scene) == (one.placement, one.render)]
            if both:
                first, second = f"{folder_label(folder)}: {name}", f"{folder_label(other_folder)}: {other_name}"
                compared.append(replace(paired(own[name], both), first=first, second=second))
    return compared


def _policies(records: Sequence[EpisodeRecord]) -> dict[str, list[EpisodeRecord]]:
    by_condition: dict[str, list[EpisodeRecord]] = {}
    for record in records:
        if record.condition not in CONTROLS:
            by_condition.setdefault(record.condition, []).append(record)
    return by_condition


def between_runs(results: RunResults) -> Section | None:
    """The comparisons as sentences; None where no two evaluations share a scene."""
    sentences = [words(sentence(pair)) + "." for pair in pairs_between_runs(results)]
    if not sentences:
        return None
    about = "Evaluations compared in pairs, on the initial states and placements that both have met."
    return Section(anchor="between", title="Between runs", about=about, blocks=[Notes(sentences)])


def motion_prior_use(results: RunResults) -> Section | None:
    """What interventions and flow errors show of the motion prior; None where the run has neither."""
    blocks = [block for title, table in results.titled for block in _interventions(table, title)]
    blocks += shown(map(_errors_by_success, results.records))
    if not blocks:
        return None
    about = "One step of acting is changed and all else, the noise of the actions too, stays as it was, on the same episodes."
    return Section(anchor="prior", title="Is the motion prior used?", about=about, blocks=blocks)


def _interventions(table: SuccessTable, title: str) -> list[Block]:
    changed = [row for row in table.rows if is_intervention(row.condition)]
    if not changed:
        return []
    pairs = {pair.second: pair for pair in table.pairs}
    base, rows, tests = table.rows[0], [], dict[str, None]()
    for row in (base, *changed):
        pair = pairs.get(row.condition)
        compared = ["", ""] if pair is None else [f"{100 * pair.difference:+.1f} points", f"{pair.p_value:.3g}"]
        tests |= {pair.test: None} if pair else {}
        rows.append([words(row.condition), counted(row.total), *compared])
    p_value = f"p ({', '.join(tests) or 'none'})"
    head = ["condition", "success, 95% interval", f"{words(base.condition)} minus it", p_value]
    charts = [_sweep(name, label, base, changed) for name, label in SWEEPS.items()]
    return [Panel([Table(head, rows)], title), Columns(charts)]


def _sweep(name: str, label: str, base: SuccessRow, rows: Sequence[SuccessRow]) -> Panel:
    points = [
        (float(row.condition.partition("=")[2]), 100 * row.total.value)
        for row in rows
        if row.condition.startswith(f"{name}=")
    ]
    if len(points) < 2:
        return Panel([])
    level = 100 * base.total.value
    ends = (min(x for x, _ in points), max(x for x, _ in points))
    chart = line_chart(
        [
            Series(name=f"{words(base.condition)}, as trained", points=[(x, level) for x in ends], dashed=True),
            Series(name="changed", points=sorted(points), colour=2, marked=True),
        ],
        x_label=label,
        y_label="success [%]",
        label=f"success against {label}",
        y_range=(0, 100),
    )
    return Panel([chart], f"Success against {label}")


def _errors_by_success(records: Sequence[EpisodeRecord]) -> Panel | None:
    measured = [
        (record, errors)
        for record in records
        if not is_intervention(record.condition) and (errors := of_episode(record.extra)) is not None
    ]
    if not measured:
        return None
    rows = []
    for condition in dict.fromkeys(record.condition for record, _ in measured):
        groups = [
            [errors for record, errors in measured if record.condition == condition and record.success is success]
            for success in (True, False)
        ]
        for name, group in zip(("successes", "failures"), groups, strict=True):
            rows.append([f"{words(condition)}: {name}", str(len(group)), *_medians(group)])
        if all(groups):
            p = rank_sum(*[[error / still for error, still in group] for group in groups])
            rows.append([f"{words(condition)}: difference", "", "", "", f"rank-sum p = {p:.3g}"])
    head = ["episodes", "count", "foresight [px], median", "no motion [px], median", "ratio, median"]
    about = "Mean path error over the points that moved, against exact flow of the episode itself; pixels of a 256-pixel image."
    return Panel([Table(head, rows), Paragraph(about)], "Foresight where the policy succeeds and fails")


def _medians(pairs: Sequence[tuple[float, float]]) -> list[str]:
    """Upper medians of foresight's errors, of those of no motion, and of their ratios."""
    if not pairs:
        return ["-", "-", "-"]
    columns = [*zip(*pairs, strict=True), [error / still for error, still in pairs]]
    return [f"{sorted(column)[len(column) // 2]:.2f}" for column in columns]
