"""Finding out what recorded actions are, by comparing them with the states: targets, or changes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

AHEAD = 5
"""A robot reaches its target, or carries out a change, within so many frames."""
FOLLOWS = 0.9
"""Share of a target's variance that the state explains, where it is one in the same units."""
GOES_WITH = 0.5
"""Correlation of a change that is commanded with the one that comes of it: controllers lag, hands tremble."""

SCALED = 0.97
"""Correlation of a target with the state where it is one in other units, such as degrees."""
SURE = 4.0
"""Standard errors by which a correlation must differ from none: many pairs of values and moments are tried."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What the actions were found to be."""

    kind: Literal["absolute", "delta"] | None
    """None: they do not say."""
    why: str
    """In words."""
    pairs: tuple[tuple[int, int], ...] = ()
    """Dimensions of the action that are targets, each with that of the state which follows it, in the same units."""


def compare_with_state(
    episodes: Sequence[tuple[np.ndarray, np.ndarray]], *, without: Collection[int] = ()
) -> Comparison:
    """Compares the recorded actions of some episodes with their states.

    A target is where the state is a moment later. A change goes with the difference of the state between now and then. Each
    dimension that moves has a vote; at least half of them must agree, and two thirds of those that say something: a change that
    corrects an error, as a controller's does, looks like a target in other units.

    Args:
        episodes: Of each, the actions (frames, a) and the states (frames, s).
        without: Dimensions of the action that are not asked, such as grippers.
    """
    episodes = [(actions.astype(np.float64), states.astype(np.float64)) for actions, states in episodes]
    width, states = episodes[0][0].shape[1], episodes[0][1].shape[1]
    targets: dict[int, int | None] = {}
    changes: dict[int, float] = {}
    moving = 0
    for dim in range(width):
        if dim in without or all(np.ptp(actions[:, dim]) == 0 for actions, _ in episodes):
            continue
        moving += 1
        follows = {place: _explained(episodes, dim, place) for place in range(states)}
        best = max(follows, key=lambda place: follows[place], default=None)
        if best is not None and follows[best] >= FOLLOWS:
            # A value of the state at the same place comes first where it follows as well.
            targets[dim] = dim if follows.get(dim, 0.0) >= follows[best] - 0.02 else best
            continue
        level = max((_correlation(episodes, dim, place, change=False) for place in range(states)), default=0.0)
        change = max((_correlation(episodes, dim, place, change=True) for place in range(states)), default=0.0)
        if level >= SCALED and level > change:
            targets[dim] = None
        elif change >= GOES_WITH and change > level:
            changes[dim] = change
    if moving == 0:
        return Comparison(kind=None, why="no value of the action changes within an episode")
    most, votes = max(len(targets), len(changes)), len(targets) + len(changes)
    if 2 * most < moving:
        return Comparison(kind=None, why=f"{most} of {moving} values follow the state or its change")
    if 3 * most < 2 * votes:
        why = f"values {_listed(targets)} are targets of the state, values {_listed(changes)} go with its changes"
        return Comparison(kind=None, why=why)
    if len(targets) > len(changes):
        pairs = tuple((dim, place) for dim, place in targets.items() if place is not None)
        units = "" if len(pairs) == len(targets) else f", {len(targets) - len(pairs)} of them in other units"
        why = f"{len(targets)} of {moving} values are where the state is up to {AHEAD} frames later{units}"
        return Comparison(kind="absolute", why=why, pairs=pairs)
    mean = sum(changes.values()) / len(changes)
    why = f"{len(changes)} of {moving} values go with the change of the state, correlation {mean:.2f}"
    return Comparison(kind="delta", why=why)


def _explained(episodes: Sequence[tuple[np.ndarray, np.ndarray]], dim: int, place: int) -> float:
    """The share of an action's variance within episodes that the state explains a moment later, as it is, in the same units."""
    best = 0.0
    for ahead in range(AHEAD + 1):
        pairs = [(a[: len(a) - ahead, dim], s[ahead:, place]) for a, s in episodes if len(a) > ahead + 1]
        variance = sum(float(((a - a.mean()) ** 2).sum()) for a, _ in pairs)
        error = sum(float(((a - s) ** 2).sum()) for a, s in pairs)
        best = max(best, 1 - error / variance if variance > 0 else 0.0)
    return best


def _correlation(episodes: Sequence[tuple[np.ndarray, np.ndarray]], dim: int, place: int, *, change: bool) -> float:
    """The correlation within episodes of an action with the state, or its change, a moment later; 0 where it may be chance."""
    best = 0.0
    for ahead in range(AHEAD):
        both = np.zeros((0, 2))
        for actions, states in episodes:
            later = np.diff(states[ahead:, place]) if change else states[ahead:, place]
            if len(later) > 3:
                pair = np.stack([actions[: len(later), dim], later], axis=1)
                both = np.concatenate([both, pair - pair.mean(axis=0)])
        size = (both**2).sum(axis=0)
        if len(both) < 6 or not size.all():
            continue
        found = float(both.prod(axis=1).sum() / np.sqrt(size.prod()))
        # Smooth paths say less than their number of frames (Bartlett); Fisher's z has unit variance.
        smooth = float(np.prod((both[1:] * both[:-1]).sum(axis=0) / size))
        frames = len(both) * (1 - smooth) / (1 + smooth)
        if frames > 3 and np.arctanh(min(found, 1 - 1e-9)) * np.sqrt(frames - 3) > SURE:
            best = max(best, found)
    return best


def _listed(dims: Iterable[int]) -> str:
    return ", ".join(map(str, dims))
