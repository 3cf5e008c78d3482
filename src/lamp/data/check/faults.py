"""What can be wrong with a dataset, and where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Fault:
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
        return ": ".join([", ".join(places + ([self.key] if self.key else [])), self.problem])

    def to_json(self) -> dict[str, Any]:
        """All fields, None where one does not apply."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that was found wrong with a dataset, and how much was read."""

    root: str
    version: str | None
    """None where not even that could be read."""
    episodes: int
    frames: int
    pictures: int
    """Frames of all cameras that were decoded or, in a quick check, counted."""
    faults: tuple[Fault, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.faults

    def faulty_episodes(self) -> tuple[int, ...]:
        """The episodes that faults were found in."""
        return tuple(sorted({fault.episode for fault in self.faults if fault.episode is not None}))

    def to_json(self) -> Mapping[str, Any]:
        """For machines."""
        return {**asdict(self), "faults": [fault.to_json() for fault in self.faults], "ok": self.ok}

    def to_text(self) -> str:
        """For people: a line a fault, then a summary."""
        found = f"{len(self.faults)} faults" if len(self.faults) != 1 else "1 fault"
        summary = (
            f"{self.root}: LeRobot {self.version or 'of no known version'}, {self.episodes} episodes, {self.frames} frames, "
            f"{self.pictures} pictures read: {found if self.faults else 'no fault found'}"
        )
        return "\n".join([*map(str, self.faults), summary])
