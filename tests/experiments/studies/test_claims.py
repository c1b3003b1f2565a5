"""Intervals of what was measured, and verdicts on claims about them."""

import math

import numpy as np
import pytest
from scipy.stats import ttest_ind

from experiments.studies.claims import (
    FAILS,
    HOLDS,
    UNDECIDED,
    Claim,
    Interval,
    gain,
    mean_of,
    verdict,
)

NAN = math.nan


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 3.0, HOLDS),
        (1.0, 2.0, HOLDS),  # bounds belong to it
        (2.1, 3.0, FAILS),
        (0.0, 0.9, FAILS),
        (1.5, 3.0, UNDECIDED),
        (0.0, 1.5, UNDECIDED),
        (1.4, 1.6, UNDECIDED),  # narrower than the interval: it may be inside
    ],
)
def test_verdict_on_one_interval(low, high, expected):
    assert verdict([Interval(1.5, 1.0, 2.0)], low, high) == expected


@pytest.mark.parametrize(
    ("intervals", "expected"),
    [
        ([(1, 0, 2), (3, 2, 4)], HOLDS),
        ([(1, 0, 2), (-1, -2, 1)], UNDECIDED),
        ([(1, 0, 2), (-1, -2, 1), (-3, -4, -2)], FAILS),
        ([(1, NAN, NAN)], UNDECIDED),  # a single seed
        ([(1, 0, 2), (1, NAN, NAN)], UNDECIDED),
        ([], UNDECIDED),
    ],
)
def test_verdict_on_several_intervals(intervals, expected):
    assert verdict([Interval(*x) for x in intervals], 0.0, math.inf) == expected


def test_interval_of_a_mean_is_students():
    mean, low, high = Interval.of([1.0, 2.0, 3.0])
    assert mean == 2.0
    # t of 0.975 with 2 degrees of freedom is 4.3027, the standard error 1 / sqrt(3).
    np.testing.assert_allclose([low, high], [2 - 2.48414, 2 + 2.48414], rtol=1e-5)


def test_interval_of_a_difference_is_welchs():
    a, b = [1.0, 2.5, 3.0, 8.0], [0.5, 1.0, 0.0]
    expected = ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    interval = Interval.difference(a, b)
    np.testing.assert_allclose(interval, [3.625 - 0.5, expected.low, expected.high])
    assert Interval.difference([*a, NAN], b) == interval  # a seed that is missing
    assert Interval.difference([2.0, 2.0], [1.0, 1.0]) == (1.0, 1.0, 1.0)
    assert Interval.difference([2.0], [1.0, 1.5]).text() == "0.75"
    assert Interval.difference([], [1.0]).text() == "-"


def test_text():
    assert Interval(1234.5678, 1000, 1500).text() == "1,234.57 [1,000.00, 1,500.00]"
    assert Interval(1.25, NAN, NAN).text(1) == "1.2"
    assert Interval(NAN, NAN, NAN).text() == "-"


def test_claims_about_cells():
    cells = {"ours": {"score": [5.0, 5.1, 5.2]}, "theirs": {"score": [1.0, 1.1, 1.2]}}
    assert Claim("more", gain("ours", ["theirs"], "score"), low=0.0).check(cells).verdict == HOLDS
    assert Claim("less", gain("ours", ["theirs"], "score"), high=0.0).check(cells).verdict == FAILS
    assert Claim("five", mean_of("ours", "score"), low=5.1).check(cells).verdict == UNDECIDED
    missing = Claim("more", gain("ours", ["others"], "score"), low=0.0).check(cells)
    assert missing == ("more", "no others yet", UNDECIDED)
