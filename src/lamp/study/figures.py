"""The figures of a study: every arm's results, and its paired differences from the arm that it is compared with, with a verdict.

The unit is a seed of Stage 2: each difference is of two policies that saw the same demonstrations in the same order, for as many
steps, and met the same scenes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lamp.benchmark.statistics import SeedDifferences, holm, sign_flips_exact
from lamp.configuration import to_json
from lamp.json_files import read_json_as, write_json
from lamp.study.results import HELD_OUT, MOTION_ONLY, Cell, StoredMotion, cells, progress_of
from lamp.study.study import CLAIM_MOTION_SEEDS, CLAIM_POLICY_SEEDS, Arm, Resolved, Study

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


def results_of(progress: Progress, arm: str, count: int) -> dict[int, dict[str, Any]]:
    return {cell.seed: result for cell, result in progress if (cell.arm, cell.demonstrations) == (arm, count)}


def _rows(study: Study, arm: Arm, count: int, progress: Progress) -> list[dict[str, Any]]:
    """The figures of one arm and number of demonstrations, a row a test."""
    results = results_of(progress, arm.name, count)
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
    own, other = results_of(progress, arm.name, count), results_of(progress, study.against, count)
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
        why = f"p {p_text(row['p'])} over {row['pairs']} pairs"
        why += (
            "" if corrected else f"; not after correction for all comparisons of the study (p {p_text(row['p_holm'])})"
        )
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


def p_text(value: float | None) -> str:
    if value is None:
        return "-"
    return "< 0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def _size(row: Mapping[str, Any], value: float) -> str:
    """A difference in the unit that it is read in: percent of the other arm's error, or points of success."""
    if row["measure"] == RATE:
        return f"{100 * value:.0f} points"
    return f"{100 * value / row['against_value']:.0f}%" if row["against_value"] else f"{value:.4f}"
