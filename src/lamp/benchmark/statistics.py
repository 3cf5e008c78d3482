"""Counting statistics for success rates: intervals for one condition, exact tests for two on the same episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

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


def rank_sum(first: Sequence[float], second: Sequence[float]) -> float:
    """Returns the two-sided p-value of the Wilcoxon-Mann-Whitney test, by its normal approximation, corrected for ties and for
    continuity: do the values of one group tend to be larger? 1 where a group is empty or all values are equal."""
    from scipy.stats import mannwhitneyu

    if not first or not second or len({*first, *second}) == 1:
        return 1.0
    return float(mannwhitneyu(first, second, method="asymptotic").pvalue)
