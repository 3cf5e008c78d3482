"""Tables of perturbed episodes: both averages, and benchmarks kept apart."""

from __future__ import annotations

from typing import Any

import pytest

from lamp.benchmark.episodes import EpisodeRecord
from lamp.benchmark.robustness import robustness, robustness_table, to_json, to_markdown, to_text
from lamp.benchmark.tables import tabulate
from lamp.errors import MismatchError


def record(condition: str, suite: str, task: int, success: bool, **variation: Any) -> EpisodeRecord:
    return EpisodeRecord(
        condition=condition, suite=suite, task=task, state=0, repeat=0, placement_seed=task, placement_shift=0.0, placement={},
        noise_seed=(7,), success=success, success_last=False, steps=100, instruction="do", checkpoint="", code="0",
        packages={}, wall_s=1.0, render="exact", variation=variation,
    )  # fmt: skip


def plus(condition: str, task: int, category: str, success: bool, level: int | None = None) -> EpisodeRecord:
    suite = "libero_plus_goal" if task % 2 else "libero_plus_10"
    return record(condition, suite, task, success, benchmark="LIBERO-Plus", category=category, level=level)


def style(condition: str, task: int, perturbation: str, success: bool) -> EpisodeRecord:
    category, _, level = perturbation.partition("=")
    named = {"perturbation": perturbation, "category": category, "level": int(level)}
    return record(condition, f"libero_goal plus-style {perturbation}", task, success, benchmark="plus-style", **named)


PLUS = [
    *(plus("with_motion", task, "noise", task == 0, level=1 + task % 2) for task in range(4)),
    plus("with_motion", 10, "camera", True, level=5),
    *(plus("without_motion", task, "noise", task < 2, level=1 + task % 2) for task in range(4)),
]
STYLE = [
    *(style("with_motion", task, "light=1", task < 3) for task in range(4)),
    *(style("with_motion", task, "light=5", task < 1) for task in range(4)),
    style("with_motion", 9, "camera=5", False),
]
STANDARD = [record("with_motion", "libero_goal", 0, True)]


def test_both_averages_and_the_benchmarks_own_order() -> None:
    table = robustness_table(PLUS)
    assert table.columns == ("camera", "noise") and table.title == "LIBERO-Plus"
    motion, without = table.rows
    assert [(rate.successes, rate.trials) for rate in motion.columns] == [(1, 1), (1, 4)]
    assert (motion.total.successes, motion.total.trials) == (2, 5) and motion.mean == pytest.approx((1 + 0.25) / 2)
    # A dimension in which nothing was tried counts in neither average.
    assert (without.total.successes, without.total.trials, without.mean) == (2, 4, 0.5)
    assert table.pairs[0].episodes == 4 and table.pairs[0].only_second == 1
    levels, suites = table.groupings
    assert levels.groups == ("1", "2", "5")
    assert [(rate.successes, rate.trials) for rate in levels.rates[0]] == [(1, 2), (0, 2), (1, 1)]
    assert suites.groups == ("libero_plus_10", "libero_plus_goal")


def test_a_part_of_the_benchmark_says_so() -> None:
    part, mean = robustness_table(PLUS).notes
    assert part.startswith("Part of the benchmark, 5 of 10030 tasks: camera 1 of 1599, robot 0 of 1550")
    assert mean.startswith("The mean is over 2 of 7 dimensions")


def test_plus_style_is_named_so_in_every_column() -> None:
    (table,) = robustness(STYLE)
    assert table.title == "plus-style perturbations of libero_goal (LaMP's own; not LIBERO-Plus)"
    assert table.columns == ("light=1", "light=5", "camera=5")
    markdown, text, plain = to_markdown([table]), to_text([table]), to_json([table])[0]
    head = next(line for line in markdown.splitlines() if line.startswith("| condition"))
    assert head.count("plus-style ") == 3 and "mean over episodes" in head and "tasks" not in head
    assert "| with_motion | 3/4 (75.0%) | 1/4 (25.0%) | 0/1 (0.0%) | 4/9 (44.4%, 18.9-73.3) | 33.3% | 0/9 |" in markdown
    assert "not comparable with LIBERO-Plus'" in text and "plus-style camera=5" in text
    assert set(plain["conditions"][0]["columns"]) == {f"plus-style {name}" for name in table.columns}
    dimension = plain["conditions"][0]["by dimension"]
    assert (dimension["light"]["successes"], dimension["light"]["trials"]) == (4, 8)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([*PLUS, *STYLE], "LIBERO-Plus, plus-style episodes of libero_goal: expected perturbed episodes of one"),
        ([*PLUS, *STANDARD], "standard episodes of libero_goal, LIBERO-Plus: expected"),
        (
            [*STYLE, record("a", "libero_10 plus-style x=1", 0, True, benchmark="plus-style", perturbation="x=1")],
            "libero_10",
        ),
        ([], "nothing: expected"),
    ],
)
def test_benchmarks_in_one_table_are_refused(records: list[EpisodeRecord], message: str) -> None:
    with pytest.raises(MismatchError, match=message):
        robustness_table(records)


def test_benchmarks_in_one_folder_are_separated() -> None:
    tables = robustness([*STYLE, *STANDARD, *PLUS])
    assert [(table.benchmark, sum(row.total.trials for row in table.rows)) for table in tables] == [
        ("LIBERO-Plus", 9), ("plus-style", 9),
    ]  # fmt: skip
    (standard,) = tabulate([*STYLE, *STANDARD, *PLUS])
    assert standard.suite == "libero_goal" and standard.rows[0].total.trials == 1
    assert robustness(STANDARD) == [] and to_markdown([]) == to_text([]) == ""
