"""Success on each variant of a perturbed benchmark, as a table for other programs: `variants.csv`."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from lamp.benchmark.baselines import rank
from lamp.benchmark.episodes import EpisodeRecord

VARIANTS = "variants.csv"
COLUMNS = (
    *("benchmark", "suite", "task", "id", "name", "dimension", "level", "condition"),
    *("episodes", "successes", "successes_last", "mean_steps"),
)
"""`task` counts from 0, `id` as the benchmark does, from 1; `successes_last`: at the last step; steps are of all episodes."""


def variants_csv(records: Sequence[EpisodeRecord]) -> str:
    """Writes a line for each variant and condition, of perturbed episodes only; empty where there are none."""
    groups: dict[tuple[str, int, str], list[EpisodeRecord]] = {}
    for record in records:
        if record.variation:
            groups.setdefault((record.suite, record.task, record.condition), []).append(record)
    if not groups:
        return ""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(COLUMNS)
    for (suite, task, condition), own in sorted(groups.items(), key=lambda item: (*item[0][:2], rank(item[0][2]))):
        about = own[0].variation
        name, number = about.get("name", own[0].instruction), about.get("id", task + 1)
        successes, last = sum(one.success for one in own), sum(one.success_last for one in own)
        steps = round(sum(one.steps for one in own) / len(own), 1)
        of = (about.get("benchmark", ""), suite, task, number, name, about.get("category", ""), about.get("level"))
        lines.writerow((*of, condition, len(own), successes, last, steps))
    return text.getvalue()
