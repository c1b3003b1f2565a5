"""Interquartile means, probability of improvement and profiles, held against enumeration."""

import itertools

import numpy as np
import pytest
from scipy import stats as scipy_stats

from jaxrl.report.stats import iqm_ci, performance_profile, probability_of_improvement


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def middle(values):
    """The mean of the middle half, in a plain loop."""
    ordered = sorted(values)
    cut = len(ordered) // 4
    kept = ordered[cut : len(ordered) - cut]
    return sum(kept) / len(kept)


def wins(values, others):
    """P(X > Y) + P(X = Y) / 2, in a plain loop."""
    won = sum((x > y) + 0.5 * (x == y) for x in values for y in others)
    return won / (len(values) * len(others))


def resamples(values):
    """All n^n draws with replacement, each as likely as the others."""
    return list(itertools.product(values, repeat=len(values)))


def assert_percentiles(interval, exact):
    """The ends of a 95 % interval lie where the enumerated distribution has 2.5 % beyond them.

    Two thousand draws put the ends within four standard errors, 1.4 %, of it.
    """
    for end, share in zip(interval, (0.025, 0.975), strict=True):
        low, high = np.quantile(exact, [max(share - 0.014, 0), min(share + 0.014, 1)])
        assert low - 1e-9 <= end <= high + 1e-9


@pytest.mark.parametrize("number", range(1, 10))
def test_iqm_is_the_mean_of_the_middle_half(number, rng):
    values = rng.normal(size=number)
    assert iqm_ci(values)[0] == pytest.approx(middle(values), rel=1e-12)


def test_iqm_does_not_follow_a_run_that_is_far_off():
    values = [1.0, 2.0, 3.0, 4.0]
    assert iqm_ci(values)[0] == iqm_ci([1.0, 2.0, 3.0, 4e9])[0] == 2.5


def test_interval_of_iqm_is_that_of_all_resamples():
    values = [0.0, 1.0, 2.5, 4.0, 9.0]
    _, *interval = iqm_ci(values)
    assert_percentiles(interval, [middle(draw) for draw in resamples(values)])


def test_strata_are_drawn_from_one_by_one():
    """Else a draw could hold one environment only, and the interval would be far wider."""
    strata = [[0.0, 1.0, 4.0], [100.0, 103.0, 101.0]]
    value, *interval = iqm_ci(*strata)
    assert value == middle([*strata[0], *strata[1]])
    exact = [middle(x + y) for x, y in itertools.product(*map(resamples, strata))]
    assert_percentiles(interval, exact)
    unstratified = [*iqm_ci([*strata[0], *strata[1]])[1:]]
    assert unstratified[1] - unstratified[0] > 2 * (interval[1] - interval[0])


def test_of_two_runs_the_interval_is_between_them():
    """Where Student's t gives [-388, 1177]."""
    assert iqm_ci([333.0, 456.0]) == (394.5, 333.0, 456.0)


def test_columns_are_worked_out_each_with_the_runs_that_it_has(rng):
    values = rng.normal(size=(6, 5))
    values[4:, 1] = np.nan
    values[0, 3] = np.nan
    values[1:, 2] = np.nan
    values[:, 4] = np.nan
    value, low, high = iqm_ci(values)
    for column in range(4):
        kept = values[~np.isnan(values[:, column]), column]
        assert value[column] == pytest.approx(middle(kept))
        if len(kept) > 1:
            exact = iqm_ci(kept)
            np.testing.assert_allclose((low[column], high[column]), exact[1:], atol=0.2)
            assert kept.min() <= low[column] < value[column] < high[column] <= kept.max()
    assert np.isnan([low[2], high[2], value[4], low[4], high[4]]).all()


def test_interval_covers_the_mean_about_as_often_as_it_says():
    values = np.random.default_rng(1).normal(size=(16, 1_000))
    _, low, high = iqm_ci(values)
    assert np.mean((low < 0) & (high > 0)) == pytest.approx(0.94, abs=0.025)


def test_probability_of_improvement_is_mann_whitneys_u(rng):
    values, others = rng.integers(0, 5, 7), rng.integers(0, 5, 9)
    probability = probability_of_improvement([values], [others])[0]
    assert probability == pytest.approx(wins(values, others))
    assert probability == scipy_stats.mannwhitneyu(values, others).statistic / 63
    assert probability + probability_of_improvement([others], [values])[0] == pytest.approx(1)


def test_interval_of_improvement_is_that_of_all_resamples():
    strata, others = [[1.0, 4.0, 6.0], [2.0, 3.0]], [[0.0, 4.0], [1.0, 2.5, 5.0]]
    value, *interval = probability_of_improvement(strata, others)
    pairs = list(zip(strata, others, strict=True))
    assert value == pytest.approx(np.mean([wins(*pair) for pair in pairs]))
    each = [
        [wins(x, y) for x, y in itertools.product(resamples(values), resamples(theirs))]
        for values, theirs in pairs
    ]
    assert_percentiles(interval, [np.mean(both) for both in itertools.product(*each)])


def test_improvement_over_columns(rng):
    values, others = rng.normal(size=(4, 3)), rng.normal(size=(5, 3))
    others[3:, 1] = np.nan
    probability, low, high = probability_of_improvement([values], [others])
    for i in range(3):
        kept = others[~np.isnan(others[:, i]), i]
        assert probability[i] == pytest.approx(wins(values[:, i], kept))
    assert ((low >= 0) & (low <= probability) & (probability <= high) & (high <= 1)).all()


def test_profile_is_the_share_of_runs_above_and_its_band_that_of_all_resamples():
    strata, thresholds = [[0.0, 2.0, 5.0], [1.0, 2.0, np.nan, 9.0]], [-1.0, 1.5, 2.0, 6.0, 9.0]
    share, low, high = performance_profile(strata, thresholds)
    np.testing.assert_allclose(share, [1, 4 / 6, 2 / 6, 1 / 6, 0])
    whole = [[x for x in stratum if x == x] for stratum in strata]
    drawn = [x + y for x, y in itertools.product(*map(resamples, whole))]
    for i, threshold in enumerate(thresholds):
        exact = [np.mean([x > threshold for x in draw]) for draw in drawn]
        assert_percentiles((low[i], high[i]), exact)


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: iqm_ci(), "there are no runs"),
        (lambda: iqm_ci(1.0), "a single number"),
        (lambda: iqm_ci([1.0], level=1.0), "outside"),
        (lambda: probability_of_improvement([[1.0]], [[1.0], [2.0]]), "1 strata against 2"),
        (lambda: performance_profile([], [0.0]), "there are no runs"),
    ],
)
def test_what_cannot_be_worked_out_is_refused(call, line):
    with pytest.raises(ValueError, match=line):
        call()
