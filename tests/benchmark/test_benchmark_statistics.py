from __future__ import annotations

import math
from itertools import product
from statistics import NormalDist

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from lamp.benchmark.statistics import Paired, Rate, mcnemar_exact, rank_sum, sign_flips_exact, wilson


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # Newcombe (1998), Table I, the score method without continuity correction.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (8, 10, 0.4902, 0.9433),
        (10, 10, 0.7225, 1.0),
    ],
)
def test_wilson_agrees_with_published_intervals(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson(successes, trials) == pytest.approx((low, high), abs=5e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_rate_and_mirrors(counts: tuple[int, int]) -> None:
    successes, trials = counts
    low, high = wilson(successes, trials)
    assert 0 <= low <= successes / trials <= high <= 1
    assert wilson(trials - successes, trials) == pytest.approx((1 - high, 1 - low))
    assert wilson(successes, trials) == pytest.approx(binomtest(successes, trials).proportion_ci(method="wilson"))


def test_nothing_tried_says_nothing() -> None:
    assert math.isnan(Rate(successes=0, trials=0).value)
    assert Rate(successes=0, trials=0).interval == (0.0, 1.0)
    with pytest.raises(ValueError, match="3 successes of 2"):
        Rate(successes=3, trials=2)


@pytest.mark.parametrize(
    ("first", "second", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (5, 0, 0.0625),
        (0, 6, 0.03125),
        (8, 2, 0.109375),
        (3, 3, 1.0),
        (2000, 1900, 0.11289365),
    ],
)
def test_mcnemar_is_a_fair_coin_on_discordant_pairs(first: int, second: int, p: float) -> None:
    assert mcnemar_exact(first, second) == pytest.approx(p)


def test_paired_counts() -> None:
    pair = Paired(first="a", second="b", both=4, only_first=5, only_second=1, neither=2)
    assert pair.episodes == 12
    assert pair.difference == pytest.approx(9 / 12 - 5 / 12)
    assert pair.p_value == pytest.approx(2 * (1 + 6) / 64)


@pytest.mark.parametrize(
    ("first", "second", "p"),
    [
        ([1.0, 2.0, 3.0, 9.0], [4.0, 5.0, 6.0], 0.376759117812),
        ([1.0, 1.0, 2.0], [1.0, 2.0, 2.0, 2.0, 3.0], 0.252999061475),
        ([5.0] * 9, [1.0] * 8, 0.000079985193),
    ],
)
def test_rank_sum_is_corrected_for_ties_and_continuity(first: list[float], second: list[float], p: float) -> None:
    assert rank_sum(first, second) == pytest.approx(p, abs=1e-11) == rank_sum(second, first)


def test_rank_sum_of_nothing_to_compare_finds_nothing() -> None:
    assert rank_sum([], [1.0, 2.0]) == rank_sum([1.0, 1.0], [1.0]) == 1.0


@pytest.mark.parametrize(("first", "second"), [(0, 0), (5, 0), (4, 2), (1, 9), (3, 3), (60, 31)])
def test_sign_flips_of_single_episodes_are_mcnemar(first: int, second: int) -> None:
    differences = [1] * first + [-1] * second + [0] * 7
    assert sign_flips_exact(differences) == pytest.approx(mcnemar_exact(first, second), rel=1e-9)


def test_sign_flips_by_enumeration() -> None:
    differences = [3, -1, 2, 2, 0, -1]
    sums = [
        sum(sign * size for sign, size in zip(signs, differences, strict=True)) for signs in product((1, -1), repeat=6)
    ]
    expected = sum(abs(total) >= 5 for total in sums) / len(sums)
    assert sign_flips_exact(differences) == pytest.approx(expected)


def test_sign_flips_of_thousands_of_clusters_take_no_time() -> None:
    differences = [1, -1, 2, -2] * 1000 + [1] * 50
    by_normal = 2 * NormalDist().cdf(-49 / sum(size**2 for size in differences) ** 0.5)
    assert sign_flips_exact(differences) == pytest.approx(by_normal, abs=1e-3)
