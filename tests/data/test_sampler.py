from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamp.data.dataloader import BatchShare, Sampler
from lamp.errors import ConfigError, DataError, MismatchError


@settings(max_examples=30, deadline=None)
@given(
    size=st.integers(1, 40),
    batch=st.integers(1, 12),
    steps=st.integers(0, 30),
    seed=st.integers(0, 5),
    weighted=st.booleans(),
)
def test_a_resumed_sampler_goes_on_exactly(size: int, batch: int, steps: int, seed: int, weighted: bool) -> None:
    weights = np.arange(1.0, size + 1) if weighted else None
    whole = Sampler(size, batch, seed=seed, weights=weights)
    for _ in range(steps):
        next(whole)
    resumed = Sampler(size, batch, seed=seed, weights=weights)
    resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    for _ in range(20):
        expected, found = next(whole), next(resumed)
        np.testing.assert_array_equal(found.indices, expected.indices)
        assert found.epoch == expected.epoch


@settings(max_examples=20, deadline=None)
@given(size=st.integers(1, 40), batch=st.integers(1, 12))
def test_an_epoch_takes_no_sample_twice(size: int, batch: int) -> None:
    sampler = Sampler(size, batch)
    for epoch in range(3):
        picks = [next(sampler) for _ in range(sampler.size // sampler.batch_size)]
        assert {pick.epoch for pick in picks} == {epoch}
        taken = np.concatenate([pick.indices for pick in picks])
        assert len(set(taken.tolist())) == len(taken) >= size - min(batch, size) + 1


@settings(max_examples=30, deadline=None)
@given(size=st.integers(6, 40), batch=st.integers(4, 12), processes=st.integers(1, 4), moved_to=st.integers(1, 4))
def test_the_batches_do_not_depend_on_how_many_processes_share_them(
    size: int, batch: int, processes: int, moved_to: int
) -> None:
    """Nor does where a run goes on, with another number of them."""
    whole = Sampler(size, batch, seed=3)
    shared = [Sampler(size, batch, seed=3, share=BatchShare(index=n, of=processes)) for n in range(processes)]
    for _ in range(7):
        expected, found = next(whole), [next(sampler) for sampler in shared]
        np.testing.assert_array_equal(np.concatenate([pick.indices for pick in found]), expected.indices)
        assert {pick.epoch for pick in found} == {expected.epoch}
    states = [sampler.state_dict() for sampler in shared]
    assert all(state == whole.state_dict() for state in states)
    moved = [Sampler(size, batch, seed=3, share=BatchShare(index=n, of=moved_to)) for n in range(moved_to)]
    for sampler in moved:
        sampler.load_state_dict(states[0])
    for _ in range(7):
        found = np.concatenate([next(sampler).indices for sampler in moved])
        np.testing.assert_array_equal(found, next(whole).indices)


def test_epochs_and_seeds_differ() -> None:
    orders = []
    for seed in (0, 1):
        sampler = Sampler(100, 100, seed=seed)
        orders += [next(sampler).indices.tolist() for _ in range(2)]
    assert len({tuple(order) for order in orders}) == 4


def test_weights_balance_groups() -> None:
    groups = np.repeat([0, 1], [90, 10])
    sampler = Sampler(100, 100, weights=1 / np.array([90, 10])[groups])
    taken = groups[np.concatenate([next(sampler).indices for _ in range(20)])]
    assert taken.mean() == pytest.approx(0.5, abs=0.02)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(DataError, match="no samples"):
        Sampler(0, 4)
    with pytest.raises(ConfigError, match="batch size of 0"):
        Sampler(4, 0)
    with pytest.raises(ConfigError, match="weights"):
        Sampler(4, 2, weights=np.ones(3))
    state = Sampler(4, 2).state_dict()
    with pytest.raises(MismatchError, match="size of 4, this one 5"):
        Sampler(5, 2).load_state_dict(state)
    with pytest.raises(MismatchError, match="no sampler state"):
        Sampler(4, 2).load_state_dict({"somewhere": 3})
