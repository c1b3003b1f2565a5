"""Figures of performance profiles."""

import numpy as np

from jaxrl.report.profiles import Scores, of_settings, profile_figure


def test_a_profile_falls_where_a_run_is_and_intervals_stand_beside_it():
    strata = [np.array([0.0, 1.0, 2.0]), np.array([3.0, np.nan, 4.0])]
    low = Scores("low", [np.zeros(3), np.full(3, 1.0)])
    figure = profile_figure([Scores("high", strata), low], "title", label="score", names="agent")
    left, right = figure.axes
    at, share = left.lines[0].get_data()
    for x, y in zip(at, share, strict=True):
        np.testing.assert_allclose(y, np.mean(np.array([0.0, 1, 2, 3, 4]) > x))
    assert len(left.collections) == 2  # a band each
    assert left.get_xlabel() == "score $x$"
    assert right.get_ylabel() == "agent"
    assert [text.get_text() for text in right.get_yticklabels()] == ["high", "low"]
    bar = right.patches[0]
    iqm, start, end = Scores("high", strata).iqm
    np.testing.assert_allclose([bar.get_x(), bar.get_x() + bar.get_width()], [start, end])
    np.testing.assert_allclose(right.lines[0].get_xdata(), [iqm, iqm])
    colours = [line.get_color() for line in left.lines]
    assert colours == [line.get_color() for line in right.lines] == ["C0", "C1"]


def test_few_runs_have_no_bands_and_equal_ones_an_axis():
    figure = profile_figure([Scores("a", [np.full(4, 5.0)]), Scores("b", [np.full(9, 5.0)])])
    assert not figure.axes[0].collections
    low, high = figure.axes[0].get_xlim()
    assert low < 5 < high
    alone = profile_figure([Scores("a", [np.zeros(1)])])
    assert not alone.axes[1].patches  # no interval


def test_of_many_settings_the_best_are_shown():
    settings = [{"rate": i / 10, "n": 3} for i in range(10)]
    returns = [np.array([float(i), i + 2.0]) for i in range(9)] + [np.full(2, np.nan)]
    labels = [scores.label for scores in of_settings(settings, returns, "ppo")]
    assert labels == ["0.8", "0.7", "0.6", "0.5", "0.4"]
    assert [scores.label for scores in of_settings(settings[:3], returns[:3], "ppo")] == [
        "0",
        "0.1",
        "0.2",
    ]
    assert [scores.label for scores in of_settings([{}], returns[:1], "ppo")] == ["ppo"]
