"""Which episodes of a dataset are used: by number, task and initial state, and how many of each task.

Each stage has a selection of its own: the paper's Stage 1 learns motion from more demonstrations than Stage 2 has actions of.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from lamp.data.lerobot.reader import LeRobotDataset
from lamp.errors import ConfigError, DataError, unknown


@dataclass(frozen=True, kw_only=True)
class EpisodeSelection:
    """Episodes that meet all of the conditions given; without any, all episodes.

    A selection of fewer episodes a task is part of one of more with the same seed, so that runs on 3, 10 and 50 demonstrations
    are nested.
    """

    episodes: str | None = None
    """Episode numbers: `0:40`, `0:40:2` or `3,7,20:30`."""
    tasks: str | None = None
    """Task numbers of the dataset (`lamp info` lists them), `0,3` or `0:5`, or one instruction in its words."""
    states: str | None = None
    """Initial states as `lamp collect` recorded them: `0:10`."""
    per_task: int | None = None
    """At most so many episodes of each task, chosen by the seed among those that meet the other conditions."""
    share: float | None = None
    """This share of each task's episodes, at least one, chosen alike."""
    seed: int = 0
    """Of the choice by `per_task` and `share`."""

    def __post_init__(self) -> None:
        if self.per_task is not None and self.share is not None:
            raise ConfigError(f"per_task {self.per_task} and share {self.share} are given; expected one of the two")
        if self.per_task is not None and self.per_task < 1:
            raise ConfigError(f"per_task is {self.per_task}; expected at least 1 episode of each task")
        if self.share is not None and not 0.0 < self.share <= 1.0:
            raise ConfigError(f"share is {self.share}; expected a share above 0 and up to 1, such as 0.5")
        if self.seed < 0:
            raise ConfigError(f"the seed of a selection is {self.seed}; expected a whole number from 0 on")
        for name in ("episodes", "states"):
            if getattr(self, name) is not None:
                parse_numbers(getattr(self, name), None, name)

    @property
    def is_everything(self) -> bool:
        """Whether there is no condition."""
        return all(getattr(self, field.name) is None for field in fields(self) if field.name != "seed")

    def select(self, dataset: LeRobotDataset, leave_out: Collection[int] = ()) -> tuple[int, ...]:
        """The selected episodes, in the dataset's order, among those that are not to be left out.

        Raises:
            ConfigError: A number or an instruction is not in the dataset, or nothing is left.
            DataError: Initial states are given, and an episode does not record its own.
        """
        gone = set(leave_out)
        selected = [episode for episode in range(len(dataset)) if episode not in gone]
        if self.episodes is not None:
            wanted = set(parse_numbers(self.episodes, len(dataset), f"episodes of {dataset.root}"))
            selected = [episode for episode in selected if episode in wanted]
        if self.tasks is not None:
            texts = set(_instructions(self.tasks, dataset))
            selected = [episode for episode in selected if texts.intersection(dataset.instructions(episode)[0])]
        if self.states is not None:
            states = {episode: _initial_state(dataset, episode) for episode in selected}
            wanted = set(
                parse_numbers(self.states, max(states.values(), default=0) + 1, "initial states", strict=False)
            )
            selected = [episode for episode in selected if states[episode] in wanted]
        if self.per_task is not None or self.share is not None:
            selected = self._of_each_task(selected, dataset)
        if not selected:
            if len(gone) >= len(dataset):
                raise ConfigError(
                    f"all {len(dataset)} episodes of {dataset.root} are held out; expected some to be left"
                )
            rest = f", {len(gone)} of them held out" if gone else ""
            raise ConfigError(f"{self}: no episode of {dataset.root} meets that; it has {len(dataset)}{rest}")
        return tuple(selected)

    def _of_each_task(self, episodes: Sequence[int], dataset: LeRobotDataset) -> list[int]:
        groups: dict[tuple[str, ...], list[int]] = {}
        for episode in episodes:
            groups.setdefault(tuple(dataset.instructions(episode)[0]), []).append(episode)
        chosen: list[int] = []
        for group in groups.values():
            # Each episode's own draw orders it, so that neither other tasks nor added episodes change the choice.
            order = sorted(group, key=lambda episode: np.random.default_rng((self.seed, episode)).random())
            count = self.per_task if self.share is None else max(1, round(self.share * len(group)))
            chosen += order[:count]
        return sorted(chosen)

    def __str__(self) -> str:
        named = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "seed"}
        given = [f"{name.replace('_', ' ')} {value}" for name, value in named.items() if value is not None]
        return ", ".join(given) or "all episodes"


ALL_EPISODES = EpisodeSelection()

LONGEST = 1 << 22
"""Numbers that one slice may stand for."""
MOST_SPANS = 16
"""Ranges of numbers that are written out."""


def parse_selection(text: str) -> EpisodeSelection:
    """Reads a selection from one argument, `states=10:15` or `tasks=0,3;per_task=8`.

    Raises:
        ConfigError: The text is no such list of conditions.
    """
    values: dict[str, Any] = {}
    types = {"per_task": int, "share": float, "seed": int}
    for part in filter(None, text.split(";")):
        name, separator, value = part.strip().partition("=")
        name = name.strip().replace("-", "_")
        if name not in {field.name for field in fields(EpisodeSelection)}:
            raise unknown("condition of a selection", name, [field.name for field in fields(EpisodeSelection)])
        if not separator or name in values:
            raise ConfigError(f"selection {text!r}: expected NAME=VALUE once for each condition, such as states=10:15")
        try:
            values[name] = types.get(name, str)(value.strip())
        except ValueError:
            raise ConfigError(f"selection {text!r}: {name} is {value!r}; expected a number") from None
    if not values.keys() - {"seed"}:
        raise ConfigError(f"selection {text!r}: expected a condition, such as states=10:15 or tasks=0,3;per_task=8")
    return EpisodeSelection(**values)


def parse_numbers(text: str, available: int | None, name: str, *, strict: bool = True) -> tuple[int, ...]:
    """Reads numbers as Python writes slices, joined by commas: `30:50`, `0:50:5`, `0,3,40:50`.

    Args:
        available: How many there are, from 0 on; None checks the form alone.
        name: Their name in errors.
        strict: Refuse a number that is not available, rather than leave it out.

    Raises:
        ConfigError: The text is no such list, names a number twice, or one that is not available.
    """
    limit = LONGEST if available is None else available
    numbers: list[int] = []
    for part in text.split(","):
        pieces = part.strip().split(":")
        try:
            bounds = [int(piece) if piece.strip() else None for piece in pieces]
        except ValueError:
            bounds = []
        if len(bounds) == 1 and bounds[0] is not None:
            numbers.append(bounds[0])
        elif len(bounds) in (2, 3) and all(bound is None or bound >= 0 for bound in bounds) and bounds[2:] != [0]:
            stop = bounds[1] if bounds[1] is not None else limit
            if available is None or not strict:
                stop = min(stop, limit)
            piece = range(bounds[0] or 0, stop, (bounds[2] if bounds[2:] else None) or 1)
            if len(piece) > LONGEST:
                raise ConfigError(f"{name} {text!r}: {part} is more than {LONGEST:,} numbers; expected fewer")
            numbers.extend(piece)
        else:
            raise ConfigError(f"{name} {text!r}: expected numbers or slices such as '30:50', '0:50:5' or '0,3,40:50'")
    outside = [number for number in numbers if number < 0 or (strict and available is not None and number >= available)]
    if outside:
        there = "expected numbers from 0 on" if available is None else f"there are 0 to {limit - 1}"
        raise ConfigError(f"{name} {text!r}: there is no {outside[0]}; {there}")
    if len(set(numbers)) != len(numbers) or (not numbers and available is not None and strict):
        raise ConfigError(f"{name} {text!r}: expected at least one number and none twice")
    return tuple(numbers)


def number_ranges(numbers: Sequence[int]) -> str:
    """Writes sorted whole numbers shortly, `0-4, 7, 30-49`, and of very many ranges the first."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    shown = [str(first) if first == last else f"{first}-{last}" for first, last in spans[:MOST_SPANS]]
    return ", ".join([*shown, f"and {len(spans) - MOST_SPANS} more ranges"] if len(spans) > MOST_SPANS else shown)


def counted_ranges(numbers: Sequence[int] | None) -> str:
    """How many episodes, and which: `12: 0-9, 14, 20`; None where that was not noted."""
    if numbers is None:
        return "not noted by that version"
    return f"{len(numbers)}: {number_ranges(sorted(numbers))}" if numbers else "none"


def _instructions(text: str, dataset: LeRobotDataset) -> list[str]:
    """The instructions that a text names, by number or in their words."""
    if text in dataset.tasks:
        return [text]
    if not set(text) <= set("0123456789:, "):
        raise unknown("task", text, dataset.tasks)
    return [dataset.tasks[number] for number in parse_numbers(text, len(dataset.tasks), f"tasks of {dataset.root}")]


def _initial_state(dataset: LeRobotDataset, episode: int) -> int:
    state = dataset.extra(episode).get("initial_state")
    if not isinstance(state, int) or isinstance(state, bool):
        raise DataError(
            f"episode {episode} of {dataset.root} does not record its initial state, as episodes of `lamp collect` do; "
            "expected a choice by episodes or tasks"
        )
    return state
