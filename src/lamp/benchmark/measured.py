"""What an evaluation's folder says of one checkpoint, for its model card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lamp.benchmark.baselines import CONTROLS
from lamp.benchmark.episodes import EpisodeRecord, read_records
from lamp.benchmark.run_manifest import FORMAT, MANIFEST, checkpoint_hash
from lamp.benchmark.tables import SuccessTable, tabulate
from lamp.errors import DataError, MismatchError
from lamp.files import read_json
from lamp.train.model_card import Measured, TaskResult

TOLD = ("states", "episodes_per_state", "placement_shift", "render", "execute", "seed")
"""Settings of an evaluation that a card repeats."""


def measured(folder: Path, checkpoint: Path) -> list[Measured]:
    """The successes of one checkpoint in an evaluation, one entry a suite; controls are left out.

    Raises:
        DataError: The folder is no evaluation, or it is not finished.
        MismatchError: What was evaluated there is another checkpoint.
    """
    manifest = read_json(folder / MANIFEST, "evaluation manifest")
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DataError(
            f"{folder / MANIFEST} is not the manifest of an evaluation; expected the --out of `lamp evaluate`."
        )
    found, asked = checkpoint_hash(checkpoint), dict(manifest["conditions"])
    own = {name for name, content in asked.items() if content == found and name not in CONTROLS}
    if not own:
        have = ", ".join(f"{name} {content}" for name, content in asked.items() if content) or "none"
        raise MismatchError(
            f"{folder} is no evaluation of {checkpoint}, whose content is {found}; it has {have}. Evaluate this checkpoint, or "
            "leave --results out."
        )
    every = read_records(folder)
    if len(every) != manifest["planned"]:
        raise DataError(
            f"{folder} has {len(every)} of {manifest['planned']} episodes; finish it with the same `lamp evaluate` first."
        )
    records = [record for record in every if record.condition in own]
    return [_measured(table, records, manifest["config"]) for table in tabulate(records)]


def _measured(table: SuccessTable, records: Sequence[EpisodeRecord], config: dict[str, Any]) -> Measured:
    row, (first, *_) = table.rows[0], [record for record in records if record.suite == table.suite]
    tasks = zip(table.names, row.tasks, strict=True)
    settings = {name: config[name] for name in TOLD if config.get(name) is not None}
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
