"""Confidence intervals and the binning of training episodes; `test_bootstraps` has the others."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from jaxrl.report import plots
from jaxrl.report.stats import mean_ci


def test_interval_is_students_t():
    values = np.random.default_rng(0).normal(size=(7, 3))
    mean, low, high = mean_ci(values, level=0.9)
    expected = scipy_stats.t.interval(
        0.9, df=6, loc=values.mean(0), scale=scipy_stats.sem(values, axis=0)
    )
    np.testing.assert_allclose(mean, values.mean(0))
    np.testing.assert_allclose((low, high), expected)


def test_interval_covers_the_mean_as_often_as_it_says():
    values = np.random.default_rng(1).normal(size=(4, 20_000))
    _, low, high = mean_ci(values)
    assert np.mean((low < 0) & (high > 0)) == pytest.approx(0.95, abs=0.005)


def test_missing_values_are_left_out():
    mean, low, high = mean_ci([[1.0, np.nan], [3.0, 5.0], [np.nan, np.nan]])
    np.testing.assert_allclose(mean, [2.0, 5.0])
    np.testing.assert_allclose(low[0], mean_ci([1.0, 3.0])[1])
    assert np.isnan([low[1], high[1]]).all()


def test_one_run_has_a_mean_and_no_interval():
    mean, low, high = mean_ci([4.0])
    assert mean == 4.0
    assert np.isnan(low)
    assert np.isnan(high)


@pytest.mark.parametrize(("values", "level"), [(1.0, 0.95), ([1.0], 1.0), ([1.0], 0.0)])
def test_mean_ci_refuses(values, level):
    with pytest.raises(ValueError, match="mean_ci"):
        mean_ci(values, level)


def test_bins_weigh_by_episodes_and_bridge_gaps():
    steps = np.arange(1.0, 7.0)[None] * 10
    returns = np.array([[np.nan, 1.0, 4.0, np.nan, 6.0, np.nan]])
    episodes = np.array([[0.0, 1.0, 2.0, 0.0, 1.0, 0.0]])
    centres, binned = plots.bin_episodes(steps, returns, episodes, bins=6)
    np.testing.assert_allclose(centres, [5, 15, 25, 35, 45, 55])
    np.testing.assert_allclose(binned, [[np.nan, 1, 4, 5, 6, np.nan]])
    _, binned = plots.bin_episodes(steps, returns, episodes, bins=2)
    np.testing.assert_allclose(binned, [[3.0, 6.0]])  # (1 + 2 * 4) / 3


def test_bins_of_runs_of_different_length():
    steps = np.array([[10.0, 20.0, np.nan, np.nan], [10.0, 20.0, 30.0, 40.0]])
    returns = np.where(np.isnan(steps), np.nan, 2.0)
    _, binned = plots.bin_episodes(steps, returns, np.ones_like(steps))
    np.testing.assert_allclose(binned, [[2, 2, np.nan, np.nan], [2, 2, 2, 2]])


def _curves(heights):
    steps = np.linspace(0, 1000, 10)
    noise = np.random.default_rng(2).normal(size=(3, 10))
    return [plots.Curve(f"at {height}", steps, height + noise) for height in heights]


def _named(figure):
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def test_few_curves_are_named_in_a_legend(tmp_path):
    figure = plots.learning_curves(_curves([1, 2]))
    assert len(figure.axes) == 1
    assert _named(figure) == ["at 1", "at 2"]
    plots.save(figure, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 5_000


def test_of_many_curves_the_best_are_named_and_the_others_grey():
    heights = [*range(12), np.nan]  # the last has diverged from the start
    figure = plots.learning_curves(_curves(np.random.default_rng(0).permutation(heights).tolist()))
    assert _named(figure) == ["at 11.0", "at 10.0", "at 9.0", "at 8.0", "at 7.0", "the other 8"]
    colours = [line.get_color() for line in figure.axes[0].lines]
    assert colours == ["C0", "C1", "C2", "C3", "C4"] + ["0.75"] * 8


def test_smoothing_is_the_mean_of_what_is_around():
    returns = np.random.default_rng(0).normal(size=(2, 50))
    returns[1, :7] = np.nan
    smooth = plots.smoothed(plots.Curve("", np.arange(50.0), returns)).returns
    for row in range(2):
        for i in range(50):
            around = returns[row, max(0, i - 2) : i + 3]  # 50 // 24 = 2 to each side
            expected = np.nan if np.isnan(returns[row, i]) else np.nanmean(around)
            np.testing.assert_allclose(smooth[row, i], expected, rtol=1e-12)


def test_unknown_figure_format(tmp_path):
    figure = plots.learning_curves(_curves([0]))
    with pytest.raises(ValueError, match=r"curve\.xyz.*png"):
        plots.save(figure, tmp_path / "curve.xyz")


def test_bands_of_few_runs_are_what_was_seen():
    steps, returns = np.arange(3.0), np.array([[0.0, 5.0, np.nan], [1.0, 9.0, 4.0]])
    axes = plots.learning_curves([plots.Curve("", steps, returns)]).axes[0]
    (band,) = axes.collections
    expected = {(0, 0), (1, 5), (2, 4), (0, 1), (1, 9)}
    assert set(map(tuple, band.get_paths()[0].vertices.tolist())) == expected
    assert axes.get_title("right") == "bands: range of the runs"

    returns = np.arange(5.0)[:, None] * np.ones(3)
    axes = plots.learning_curves([plots.Curve("", steps, returns)]).axes[0]
    (band,) = axes.collections
    heights = np.unique(np.round(band.get_paths()[0].vertices[:, 1], 6))
    np.testing.assert_allclose(heights, np.ravel(mean_ci(returns[:, 0])[1:]), atol=1e-5)
    assert axes.get_title("right") == "bands: 95 % t interval of the mean"


def test_a_single_run_has_no_band_to_explain():
    axes = plots.learning_curves([plots.Curve("", np.arange(3.0), np.ones((1, 3)))]).axes[0]
    assert axes.get_title("right") == ""
