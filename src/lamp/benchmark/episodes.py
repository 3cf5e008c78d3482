"""One evaluated episode: what identifies it, and the JSON line that records it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from lamp.benchmark import suites
from lamp.errors import DataError
from lamp.json_files import check_type, read_lines_json, to_line

EPISODES = "episodes.jsonl"
"""The file in an evaluation folder with one line an episode."""


@dataclass(frozen=True, kw_only=True)
class EvaluationEpisode:
    """An episode to run. Two conditions with the same suite, task, state and repeat meet the same scene."""

    condition: str
    suite: str
    task: int
    state: int
    """Number of the stored initial state."""
    repeat: int
    placement_seed: int
    noise_seed: tuple[int, ...]
    checkpoint: str
    """Content hash of the checkpoint; empty for a control that needs none."""

    @property
    def key(self) -> tuple[str, str, int, int, int, str]:
        """What must be done exactly once."""
        return self.condition, self.suite, self.task, self.state, self.placement_seed, self.checkpoint

    @property
    def scene(self) -> tuple[str, int, int, int]:
        """What pairs the episodes of two conditions."""
        return self.suite, self.task, self.state, self.placement_seed

    @property
    def simulator_key(self) -> tuple[str, int]:
        """What a simulator is opened for."""
        return self.suite, self.task

    @property
    def name(self) -> str:
        """A file name that no other episode of the folder has."""
        suite = re.sub(r"[^\w.=+-]+", "-", self.suite)
        return f"{self.condition}-{suite}-task{self.task}-state{self.state:02d}-{self.repeat}"


@dataclass(frozen=True, kw_only=True)
class EpisodeRecord:
    """What came of an episode: one line of `episodes.jsonl`."""

    condition: str
    suite: str
    task: int
    state: int
    repeat: int
    placement_seed: int
    placement_shift: float
    """Largest displacement along x and y in [m]."""
    placement: dict[str, list[float]]
    """Offset (x, y) of every displaced object in [m]."""
    noise_seed: tuple[int, ...] = ()
    success: bool
    """The environment reported success at some step (the protocol's success)."""
    success_last: bool
    """The environment reported success at the last step."""
    steps: int
    instruction: str
    """The instruction that the policy was given."""
    checkpoint: str
    code: str
    packages: dict[str, str]
    wall_s: float
    render: str
    policy_calls: int = 0
    policy_ms: float = 0.0
    """Mean time from a sent observation to the received chunk in [ms]."""
    attempt: int = 1
    """1, or more where worker processes died on this episode before."""
    video: str | None = None
    strip: str | None = None
    variation: dict[str, Any] = field(default_factory=dict)
    """How the scene differs from the standard one (`benchmark`, `category`, `level`, what was drawn); empty: not at all."""
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, int, int, int, str]:
        """What must be done exactly once; equals `EvaluationEpisode.key`."""
        return self.condition, self.suite, self.task, self.state, self.placement_seed, self.checkpoint

    @property
    def scene(self) -> tuple[str, int, int, int]:
        """What pairs the episodes of two conditions."""
        return self.suite, self.task, self.state, self.placement_seed

    def to_line(self) -> str:
        """The JSON line, without its end of line."""
        return to_line(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, line: object, where: str = "an episode's line") -> EpisodeRecord:
        """Reads one parsed line; keys of later versions go into `extra`.

        Raises:
            DataError: A required key is missing, or one is of another type.
        """
        record = check_type(line, cls, where)
        names = {item.name for item in dataclasses.fields(cls)}
        later = {key: value for key, value in cast(Mapping[str, Any], line).items() if key not in names}
        return dataclasses.replace(record, extra={**record.extra, **later}) if later else record


def read_records(folder: Path) -> list[EpisodeRecord]:
    """Reads the episodes of an evaluation folder, dropping a last line that a crash has torn.

    Raises:
        DataError: The folder is none of an evaluation, or holds an episode twice.
    """
    path = folder / EPISODES
    if not path.is_file():
        raise DataError(f"{folder} holds no {EPISODES}: expected the output folder of `lamp evaluate`")
    records = [
        EpisodeRecord.from_json(line, f"line {number} of {path}")
        for number, line in enumerate(read_lines_json(path), start=1)
    ]
    seen = set()
    for record in records:
        if record.key in seen:
            raise DataError(f"{path} holds an episode twice: {record.key}")
        seen.add(record.key)
    return records


def plan(
    *,
    conditions: Iterable[tuple[str, str]],
    suite: str,
    tasks: Sequence[int],
    states: Sequence[int],
    repeats: int,
    seed: int,
) -> list[EvaluationEpisode]:
    """Lists every episode of a run, conditions interleaved: while one waits for the policy, another simulates.

    Args:
        conditions: Pairs of a condition's name and its checkpoint's hash (empty where it has none).
        repeats: Episodes of each initial state.
        seed: The placements of objects are derived from it.
    """
    return [
        EvaluationEpisode(
            condition=condition,
            suite=suite,
            task=task,
            state=state,
            repeat=repeat,
            placement_seed=suites.placement_seed(seed, suite, task, state, repeat),
            noise_seed=(suites.noise_seed(suite, task, state, repeat),),
            checkpoint=checkpoint,
        )
        for task in tasks
        for repeat in range(repeats)
        for state in states
        for condition, checkpoint in conditions
    ]
