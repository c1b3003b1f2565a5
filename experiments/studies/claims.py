"""What a paper states, held against intervals of what was measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from jaxrl.report.stats import mean_ci

HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"

Measures = Mapping[str, Sequence[float]]  # name -> a value for each seed


class Interval(NamedTuple):
    """A mean over seeds and its 95 % confidence interval; NaN bounds from a single seed."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: ArrayLike) -> Interval:
        """Student's t interval of the mean of `values` (seeds,)."""
        return cls(*(float(x) for x in mean_ci(values)))

    @classmethod
    def difference(cls, values: ArrayLike, others: ArrayLike) -> Interval:
        """Of mean(`values`) - mean(`others`), independent seeds (seeds,) each (Welch 1947)."""
        samples = [np.asarray(x, dtype=np.float64) for x in (values, others)]
        samples = [x[~np.isnan(x)] for x in samples]
        if min(map(len, samples)) == 0:
            return cls(math.nan, math.nan, math.nan)
        mean = float(samples[0].mean() - samples[1].mean())
        if min(map(len, samples)) < 2:
            return cls(mean, math.nan, math.nan)
        # Squared standard error of each mean, and the degrees of freedom of their sum.
        errors = [x.var(ddof=1) / len(x) for x in samples]
        if sum(errors) == 0:
            return cls(mean, mean, mean)
        freedom = sum(errors) ** 2 / sum(
            error**2 / (len(x) - 1) for error, x in zip(errors, samples, strict=True)
        )
        half = float(stdtrit(freedom, 0.975)) * math.sqrt(sum(errors))
        return cls(mean, mean - half, mean + half)

    def text(self, digits: int = 2) -> str:
        """`1.50 [1.00, 2.00]`; a dash where there is no number."""
        if math.isnan(self.mean):
            return "-"
        mean, low, high = (f"{x:,.{digits}f}" for x in self)
        return mean if math.isnan(self.low) else f"{mean} [{low}, {high}]"


class Verdict(NamedTuple):
    """A claim beside what was measured."""

    claim: str
    measured: str
    verdict: str  # HOLDS, FAILS or UNDECIDED


class Claim(NamedTuple):
    """What a paper states: that each of some intervals lies between two bounds.

    `intervals` takes the measures of a study's cells by name. Bounds belong to the range.
    """

    text: str
    intervals: Callable[[Mapping[str, Measures]], Sequence[Interval]]
    low: float = -math.inf
    high: float = math.inf

    def check(self, cells: Mapping[str, Measures], digits: int = 2) -> Verdict:
        """Undecided where a cell that the claim is about has not been run."""
        try:
            intervals = self.intervals(cells)
        except KeyError as missing:
            return Verdict(self.text, f"no {missing.args[0]} yet", UNDECIDED)
        measured = "; ".join(interval.text(digits) for interval in intervals)
        return Verdict(self.text, measured, verdict(intervals, self.low, self.high))


def verdict(intervals: Sequence[Interval], low: float, high: float) -> str:
    """Whether all `intervals` lie in [`low`, `high`].

    HOLDS where each lies inside, FAILS where one lies wholly outside, else UNDECIDED: where the
    data allow both, where there is no interval (a single seed), or nothing at all.
    """
    if any(x.high < low or x.low > high for x in intervals):
        return FAILS
    if intervals and all(low <= x.low and x.high <= high for x in intervals):
        return HOLDS
    return UNDECIDED


def mean_of(cell: str, measure: str) -> Callable[[Mapping[str, Measures]], list[Interval]]:
    """For a claim about one measure of one cell."""
    return lambda cells: [Interval.of(cells[cell][measure])]


def gain(
    cell: str, others: Sequence[str], measure: str
) -> Callable[[Mapping[str, Measures]], list[Interval]]:
    """For a claim about how much more a cell has of `measure` than each of some others."""
    return lambda cells: [
        Interval.difference(cells[cell][measure], cells[other][measure]) for other in others
    ]


def values_of(measures: Mapping[str, Sequence[Any]]) -> dict[str, list[float]]:
    """Measures as JSON has them: null, which stands for NaN, becomes NaN again."""
    return {
        name: [math.nan if x is None else float(x) for x in values]
        for name, values in measures.items()
    }
