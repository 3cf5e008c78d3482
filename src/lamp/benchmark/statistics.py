"""Counting statistics for success rates: intervals for one condition, exact tests for two on the same episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from statistics import NormalDist
from typing import Any, ClassVar

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A number of successes out of a number of trials."""

    successes: int
    trials: int

    def __post_init__(self) -> None:
        if not 0 <= self.successes <= self.trials:
            raise ValueError(f"{self.successes} successes of {self.trials} trials: expected 0 <= successes <= trials")

    @property
    def value(self) -> float:
        """The observed success rate; nan where nothing was tried."""
        return self.successes / self.trials if self.trials else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95% interval."""
        return wilson(self.successes, self.trials)


def wilson(successes: float | int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Returns Wilson's score interval of a binomial proportion; (0, 1) where nothing was tried.

    Of trials that count for shares, it is that of their sum: too wide rather than too narrow, for no values between 0 and 1 vary
    more about their mean than zeros and ones do. scipy's `binomtest`, which agrees, takes whole successes only.
    """
    if trials == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = successes / trials
    denominator = 1 + z * z / trials
    centre = (p + z * z / (2 * trials)) / denominator
    half = z * sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials)) / denominator
    # The ends are exactly 0 and 1 in theory where nothing or everything succeeded; rounding must not say otherwise.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == trials else min(1.0, centre + half)
    return low, high


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Returns the two-sided exact p-value of McNemar's test: a fair coin for the episodes on which two conditions differ."""
    from scipy.stats import binomtest  # scipy.stats takes a second to import

    discordant = only_first + only_second
    return float(binomtest(only_first, discordant).pvalue) if discordant else 1.0


def sign_flips_exact(differences: Sequence[int]) -> float:
    """Returns the two-sided exact p-value of a sign-flip (permutation) test of clusters.

    Under the null hypothesis the two conditions could change names in any cluster, all its episodes at once: each difference is
    as likely negative as positive, whatever ties the episodes of a cluster to each other. With one episode a cluster it is
    McNemar's exact test.

    Args:
        differences: Of each cluster, the successes of the one condition less those of the other.
    """
    sizes = np.abs([difference for difference in differences if difference]).astype(np.int64)
    if not len(sizes):
        return 1.0
    # How likely each sum of +-size is, from the least to the largest, over all 2^clusters choices of signs.
    likely = np.ones(1)
    for size in sizes.tolist():
        longer = np.zeros(len(likely) + 2 * size)
        longer[: len(likely)] += likely / 2
        longer[2 * size :] += likely / 2
        likely = longer
    sums = np.arange(len(likely)) - sizes.sum()
    return min(1.0, float(likely[np.abs(sums) >= abs(sum(differences))].sum()))


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Two conditions compared on the episodes both have done: same initial states, same placements."""

    first: str
    second: str
    both: int
    only_first: int
    only_second: int
    neither: int
    clusters: tuple[int, ...] | None = None
    """Successes of `first` less those of `second`, for each task and initial state that both have met: repeats of one share what
    makes it hard or easy, and are no independent pairs. None: each pair is a cluster of its own."""

    @property
    def episodes(self) -> int:
        """The number of episodes that both conditions have done."""
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def difference(self) -> float:
        """Success rate of `first` minus that of `second` on the shared episodes."""
        return (self.only_first - self.only_second) / self.episodes if self.episodes else float("nan")

    @property
    def p_value(self) -> float:
        """Exact and two-sided: McNemar's, or, where initial states were met several times, of sign flips of those (`test`)."""
        if self.clusters is None or not self.repeated:
            return mcnemar_exact(self.only_first, self.only_second)
        return sign_flips_exact(self.clusters)

    @property
    def repeated(self) -> bool:
        """Whether both conditions have met some initial state several times."""
        return self.clusters is not None and len(self.clusters) < self.episodes

    @property
    def test(self) -> str:
        """What the p-value is of."""
        return "sign flips of initial states, exact" if self.repeated else "McNemar exact"


def fisher_exact(first: Rate, second: Rate) -> float:
    """Returns the two-sided p-value of Fisher's exact test of two rates that were counted apart, on no common episodes."""
    from scipy.stats import fisher_exact

    table = [[rate.successes, rate.trials - rate.successes] for rate in (first, second)]
    found: Any = fisher_exact(table)
    return float(found.pvalue)


SIGNIFICANT, POWER = NormalDist().inv_cdf(0.975), NormalDist().inv_cdf(0.8)
"""Quantiles for a two-sided level of 5% and a power of 80%."""


def episodes_needed(first: float, second: float) -> int | None:
    """Returns how many episodes of EACH of two conditions show a difference of rates (two-sided 5%, power 80%).

    The usual normal approximation for two independent proportions (Fleiss, Statistical Methods for Rates and Proportions);
    None where the rates are equal.
    """
    if first == second:
        return None
    middle = (first + second) / 2
    spread = SIGNIFICANT * sqrt(2 * middle * (1 - middle)) + POWER * sqrt(first * (1 - first) + second * (1 - second))
    return ceil((spread / (first - second)) ** 2)


def pairs_needed(difference: float, disagreement: float) -> int | None:
    """Returns how many PAIRED episodes show a difference by McNemar's test (two-sided 5%, power 80%), after Connor (1987).

    Args:
        difference: Of the success rates.
        disagreement: Share of the pairs in which one condition succeeds and the other does not.

    Returns:
        None where there is no difference, or fewer pairs disagree than it takes to make it.
    """
    size = abs(difference)
    if not size or disagreement < size:
        return None
    spread = SIGNIFICANT * sqrt(disagreement) + POWER * sqrt(disagreement - size**2)
    return ceil((spread / size) ** 2)


def rank_sum(first: Sequence[float], second: Sequence[float]) -> float:
    """Returns the two-sided p-value of the Wilcoxon-Mann-Whitney test, by its normal approximation, corrected for ties and for
    continuity: do the values of one group tend to be larger? 1 where a group is empty or all values are equal."""
    from scipy.stats import mannwhitneyu

    if not first or not second or len({*first, *second}) == 1:
        return 1.0
    return float(mannwhitneyu(first, second, method="asymptotic").pvalue)


@dataclass(frozen=True, kw_only=True)
class SeedDifferences:
    """Two ways of training compared by seeds, one difference each: trainings vary far more than the episodes of one of them, so
    that a seed, and not an episode, is what is counted. Student's t over the differences."""

    differences: tuple[float, ...]

    POWER: ClassVar[float] = 0.8
    """Of the differences that are called detectable."""
    MOST: ClassVar[int] = 10_000
    """Pairs beyond which no number is given."""

    @property
    def mean(self) -> float:
        """The mean difference; nan without any."""
        return float(np.mean(self.differences)) if self.differences else float("nan")

    @property
    def deviation(self) -> float | None:
        """Standard deviation from seed to seed; None where one seed, or equal differences, do not say it."""
        found = float(np.std(self.differences, ddof=1)) if len(self.differences) > 1 else 0.0
        return found if found > 1e-12 else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95%; None where it is not known how differences vary."""
        from scipy.stats import t

        if self.deviation is None:
            return None
        count = len(self.differences)
        half = float(t.ppf(0.975, count - 1)) * self.deviation / sqrt(count)
        return self.mean - half, self.mean + half

    @property
    def p_value(self) -> float:
        """Two-sided. Where differences do not vary at all, that of signs, which four equal ones leave at 1/8."""
        from scipy.stats import t

        count = len(self.differences)
        if self.deviation is None:
            return min(1.0, 2.0 ** (1 - count)) if count and self.mean else 1.0
        return float(2 * t.sf(abs(self.mean) * sqrt(count) / self.deviation, count - 1))

    def power(self, difference: float, pairs: int) -> float:
        """How likely so many pairs, which vary as these do, would show a difference (p < 0.05, two-sided)."""
        from scipy.stats import chi2, norm, t

        if self.deviation is None or pairs < 2:
            return 0.0
        # Noncentral t, as a mean over the estimated deviation: scipy's own overflows far out.
        shares = (np.arange(4000) + 0.5) / 4000
        estimated = float(t.ppf(0.975, pairs - 1)) * np.sqrt(chi2.ppf(shares, pairs - 1) / (pairs - 1))
        away = abs(difference) * sqrt(pairs) / self.deviation
        return float(np.mean(norm.sf(estimated - away) + norm.cdf(-estimated - away)))

    @property
    def detectable(self) -> float | None:
        """The smallest difference that these pairs would show with a chance of 80%; None where it is not known how they vary."""
        from scipy.optimize import brentq

        if self.deviation is None:
            return None
        count, largest = len(self.differences), 100 * self.deviation

        def lacking(size: float) -> float:
            return self.power(size, count) - self.POWER

        found: Any = brentq(lacking, 0.0, largest, xtol=1e-6 * self.deviation)
        return float(found)

    def more_pairs(self, difference: float | None = None) -> int | None:
        """How many more pairs would show a difference, by default the observed one, with a chance of 80%; None: not known, or
        more than `MOST`."""
        size, count = self.mean if difference is None else difference, len(self.differences)
        if self.deviation is None or not size or self.power(size, self.MOST) < self.POWER:
            return None
        low, high = 1, self.MOST
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.power(size, middle) >= self.POWER else (middle, high)
        return max(0, high - count)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: p-values of several comparisons, such that one below 0.05 among them is chance in 5% of such sets."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected, least = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = least
    return corrected
