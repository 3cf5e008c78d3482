"""What an evaluation found: as files, as text, and one checkpoint's part of it for its model card."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamp.benchmark import robustness
from lamp.benchmark.baselines import is_policy, rank
from lamp.benchmark.episodes import EpisodeRecord, read_records
from lamp.benchmark.robustness import RobustnessTable
from lamp.benchmark.run_manifest import RunSession, checkpoint_hash, read_manifest, read_sessions
from lamp.benchmark.tables import SuccessTable, tabulate, to_json, to_markdown, to_text
from lamp.errors import DataError, MismatchError
from lamp.files import atomic_write_text
from lamp.json_files import write_json
from lamp.train.model_card import Measured, TaskResult


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What an evaluation found."""

    folder: Path
    tables: tuple[SuccessTable, ...]
    """Of standard episodes."""
    perturbed: tuple[RobustnessTable, ...]
    """Of LIBERO-Plus, of LIBERO-Pro and of plus-style perturbations."""
    records: tuple[EpisodeRecord, ...]
    planned: int
    sessions: tuple[RunSession, ...]
    """Every call of the command that did episodes, killed ones included."""

    @property
    def complete(self) -> bool:
        """Whether every planned episode is done."""
        return len(self.records) == self.planned

    @property
    def text(self) -> str:
        """The tables for a terminal."""
        return "\n".join(filter(None, (to_text(self.tables), robustness.to_text(self.perturbed))))

    def write(self) -> None:
        """Writes summary.json, tables.md and tables.txt, and variants.csv where scenes were perturbed.

        All is computed from the episode lines and the log of sessions only.
        """
        facts = {
            "complete": self.complete,
            "planned": self.planned,
            "done": len(self.records),
            "episode_seconds": round(sum(record.wall_s for record in self.records), 1),
            "sessions": len(self.sessions),
            "session_seconds": round(sum(session.seconds for session in self.sessions), 1),
            "render": sorted({record.render for record in self.records}),
            "placement_shift": sorted({record.placement_shift for record in self.records}),
            "states": sorted({record.state for record in self.records}),
            "code": sorted({record.code for record in self.records}),
        }
        tables = {"tables": to_json(self.tables), "perturbed": robustness.to_json(self.perturbed)}
        write_json(self.folder / "summary.json", {**facts, **tables})
        parts = (to_markdown(self.tables), robustness.to_markdown(self.perturbed))
        atomic_write_text(self.folder / "tables.md", "\n".join(filter(None, parts)))
        atomic_write_text(self.folder / "tables.txt", self.text)
        if variants := variants_csv(self.records):
            atomic_write_text(self.folder / VARIANTS, variants)


def summarise(folder: Path, records: Sequence[EpisodeRecord], *, planned: int) -> Summary:
    """Computes the tables of an evaluation's episodes."""
    return Summary(
        folder=folder,
        tables=tuple(tabulate(records)),
        perturbed=tuple(robustness.robustness(records)),
        records=tuple(records),
        planned=planned,
        sessions=tuple(read_sessions(folder)),
    )


SETTINGS_ON_CARD = ("states", "episodes_per_state", "placement_shift", "render", "execute", "seed")
"""Settings of an evaluation that a card repeats."""


def checkpoint_results(folder: Path, checkpoint: Path) -> list[Measured]:
    """The successes of one checkpoint in an evaluation, one entry a suite; controls, changed priors and oracles are left out.

    Raises:
        DataError: The folder is no evaluation, or it is not finished.
        MismatchError: What was evaluated there is another checkpoint.
    """
    manifest = read_manifest(folder)
    content_hash, conditions = checkpoint_hash(checkpoint), dict(manifest["conditions"])
    own = {name for name, content in conditions.items() if content == content_hash and is_policy(name)}
    if not own:
        have = ", ".join(f"{name} {content}" for name, content in conditions.items() if content) or "none"
        raise MismatchError(
            f"{folder} is no evaluation of {checkpoint}, whose content is {content_hash}; it has {have}. Evaluate this "
            "checkpoint, or leave --results out."
        )
    episodes = read_records(folder)
    if len(episodes) != manifest["planned"]:
        raise DataError(
            f"{folder} has {len(episodes)} of {manifest['planned']} episodes; finish it with the same `lamp evaluate` first."
        )
    records = [record for record in episodes if record.condition in own]
    return [_suite_result(table, records, manifest["config"]) for table in tabulate(records)]


def _suite_result(table: SuccessTable, records: Sequence[EpisodeRecord], config: dict[str, Any]) -> Measured:
    row, (first, *_) = table.rows[0], [record for record in records if record.suite == table.suite]
    tasks = zip(table.names, row.tasks, strict=True)
    settings = {name: config[name] for name in SETTINGS_ON_CARD if config.get(name) is not None}
    return Measured(
        suite=table.suite,
        successes=row.total.successes,
        trials=row.total.trials,
        interval=row.total.interval,
        tasks=tuple(TaskResult(name=name, successes=rate.successes, trials=rate.trials) for name, rate in tasks),
        settings=(
            *((name.replace("_", " "), str(value)) for name, value in settings.items()),
            ("code", first.code),
            ("packages", ", ".join(f"{name} {version}" for name, version in first.packages.items())),
        ),
    )


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
