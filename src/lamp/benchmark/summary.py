"""What an evaluation found, as files and as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lamp.benchmark import robustness
from lamp.benchmark.episodes import EpisodeRecord
from lamp.benchmark.robustness import RobustnessTable
from lamp.benchmark.run_manifest import RunSession, read_sessions
from lamp.benchmark.tables import SuccessTable, tabulate, to_json, to_markdown, to_text
from lamp.files import atomic_write_text, write_json


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What an evaluation found."""

    folder: Path
    tables: tuple[SuccessTable, ...]
    """Of standard episodes."""
    perturbed: tuple[RobustnessTable, ...]
    """Of LIBERO-Plus and of plus-style perturbations."""
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
        """Writes summary.json, tables.md and tables.txt, computed from the episode lines and the log of sessions only."""
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
