"""What recorded actions are, found out by comparing them with the states."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from lamp.data.actions import compare_with_state

Made = list[tuple[np.ndarray, np.ndarray]]


def walks(seed: int = 0, width: int = 6, length: int = 60, episodes: int = 4) -> list[np.ndarray]:
    """Smooth paths of a state."""
    random = np.random.default_rng(seed)
    steps = [np.cumsum(random.normal(0, 0.01, (length, width)), axis=0) * 0.3 for _ in range(episodes)]
    return [np.cumsum(step, axis=0) + random.normal(0, 1, width) for step in steps]


def next_state(path: np.ndarray, ahead: int = 1) -> np.ndarray:
    return np.concatenate([path[ahead:], np.repeat(path[-1:], ahead, axis=0)])


def noisy(values: np.ndarray, share: float) -> np.ndarray:
    return values + share * values.std(axis=0) * np.random.default_rng(5).normal(size=values.shape)


def changes(path: np.ndarray) -> np.ndarray:
    return np.diff(path, axis=0, append=path[-1:])


@pytest.mark.parametrize(
    ("of", "kind"),
    [
        (lambda path: next_state(path), "absolute"),
        (lambda path: next_state(path, 4), "absolute"),
        (lambda path: path + 0, "absolute"),
        (lambda path: noisy(next_state(path), 0.1), "absolute"),
        (lambda path: changes(path), "delta"),
        (lambda path: 40 * changes(path), "delta"),  # in the controller's units
        (lambda path: noisy(changes(path), 0.7), "delta"),
        (lambda path: np.roll(changes(path), -2, axis=0), "delta"),  # a controller that lags
        (lambda path: np.random.default_rng(1).normal(size=path.shape), None),
        (lambda path: walks(9)[0], None),
        (lambda path: np.ones_like(path), None),
    ],
)
def test_targets_and_changes(of: Callable[[np.ndarray], np.ndarray], kind: str | None) -> None:
    found = compare_with_state([(of(path), path) for path in walks()])
    assert found.kind == kind
    assert found.pairs == (tuple((dim, dim) for dim in range(6)) if kind == "absolute" else ())


def test_other_orders_units_and_a_gripper() -> None:
    paths = walks()
    # Position and joints in the other order, and one angle in degrees: that one is no target in the state's units.
    mixed = [(np.stack([path[:, 4], path[:, 2], np.degrees(path[:, 0])], axis=1), path) for path in paths]
    found = compare_with_state(mixed)
    assert found.kind == "absolute" and found.pairs == ((0, 4), (1, 2))
    assert "3 of 3 values" in found.why and "1 of them in other units" in found.why
    both = [(np.stack([next_state(path)[:, 0], changes(path)[:, 1]], axis=1), path) for path in paths]
    assert compare_with_state(both).kind is None and "values 0 are targets" in compare_with_state(both).why
    assert compare_with_state(both, without={0}).kind == "delta"


def test_a_controller_that_corrects_an_error_is_no_target() -> None:
    """Four values move, and one is held upright by changes in proportion to its error: perfectly correlated with the state."""
    made = []
    for path in walks():
        action = changes(path)
        action[:, 4] = -0.3 * path[:, 4]
        made.append((action[:, :5], path))
    found = compare_with_state(made)
    assert found.kind == "delta" and "values go with the change" in found.why


def test_little_data_says_nothing() -> None:
    """Four frames agree with something by chance, among all pairs of values and moments."""
    random = np.random.default_rng(3)
    found = compare_with_state([(random.normal(size=(8, 7)), random.normal(size=(8, 7)).cumsum(axis=0))])
    assert found.kind is None
    assert compare_with_state([(np.zeros((1, 7)), np.zeros((1, 7)))]).kind is None
    assert compare_with_state([(np.ones((9, 2)).cumsum(axis=0), np.zeros((9, 0)))]).kind is None
