"""What can be wrong with a dataset, and where."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lamp.data.lerobot.metadata import MetadataError, Problem
from lamp.errors import DataError

ALIKE = 20
"""At most so many faults of one kind are listed; more are counted."""


@dataclass(frozen=True, kw_only=True)
class DatasetFault:
    """One fault of a dataset."""

    problem: str
    """What is there and what was expected, in words."""
    file: str
    """Relative to the dataset's folder."""
    episode: int | None = None
    frame: int | None = None
    """The first one in the episode that the fault is seen at."""
    key: str | None = None
    """The feature or column."""

    def __str__(self) -> str:
        places = [self.file]
        places += [
            f"{name} {value}" for name, value in (("episode", self.episode), ("frame", self.frame)) if value is not None
        ]
        line = ": ".join([", ".join(places + ([self.key] if self.key else [])), self.problem])
        # Names in JSON may hold halves of characters, which no terminal takes.
        return line.encode("utf-8", "backslashreplace").decode()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def faults_from_problems(problems: Iterable[Problem], root: Path) -> list[DatasetFault]:
    """The faults that reading metadata has shown."""
    return [
        DatasetFault(
            problem=problem.words
            if problem.row is None or problem.episode is not None
            else f"row {problem.row}: {problem.words}",
            file=str(problem.file.relative_to(root) if problem.file.is_relative_to(root) else problem.file),
            episode=problem.episode,
            key=problem.key,
        )
        for problem in problems
    ]


def faults_from_error(error: DataError, root: Path, file: str) -> list[DatasetFault]:
    """The faults behind an error of reading a file."""
    return (
        faults_from_problems(error.problems, root)
        if isinstance(error, MetadataError)
        else [DatasetFault(problem=str(error), file=file)]
    )


@dataclass(frozen=True, kw_only=True)
class DatasetReport:
    """All faults of a dataset, and how much was read."""

    root: str
    version: str | None
    """None where not even that could be read."""
    episodes: int
    frames: int
    pictures: int
    """Frames of all cameras that were decoded or, in a quick check, counted."""
    faults: tuple[DatasetFault, ...]
    """Those that are listed: at most `ALIKE` of one kind."""
    alike: int = 0
    """How many more there are."""
    faulty: tuple[int, ...] = ()
    """The episodes with faults, listed or not."""

    @classmethod
    def of(cls, faults: Iterable[DatasetFault], **read: Any) -> DatasetReport:
        """A report of any number of faults, of which those of one kind are cut short: one wrong value may spoil every episode."""
        kept, kinds, episodes = list[DatasetFault](), Counter[tuple[str | None, str]](), set[int]()
        for fault in faults:
            # The same words of the same column, whatever the numbers and names in them.
            kind = fault.key, re.sub(r"'[^']*'|\"[^\"]*\"|\S*[\d/]\S*", "", fault.problem)
            kinds[kind] += 1
            if fault.episode is not None:
                episodes.add(fault.episode)
            if kinds[kind] <= ALIKE:
                kept.append(fault)
        alike = sum(max(0, times - ALIKE) for times in kinds.values())
        return cls(faults=tuple(kept), alike=alike, faulty=tuple(sorted(episodes)), **read)

    @property
    def ok(self) -> bool:
        """Whether there are no faults."""
        return not self.faults

    def to_json(self) -> Mapping[str, Any]:
        """For machines."""
        return {**asdict(self), "faults": [fault.to_json() for fault in self.faults], "ok": self.ok}

    def to_text(self) -> str:
        """For people: a line a fault, then a summary."""
        total = len(self.faults) + self.alike
        counted = f"{total} faults" if total != 1 else "1 fault"
        more = [f"... and {self.alike} more like those above"] if self.alike else []
        summary = (
            f"{self.root}: LeRobot {self.version or 'of no known version'}, {self.episodes} episodes, {self.frames} frames, "
            f"{self.pictures} pictures read: {counted if self.faults else 'no fault found'}"
        )
        return "\n".join([*map(str, self.faults), *more, summary])
