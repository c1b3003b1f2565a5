"""Figures of what a sweep found."""

from itertools import pairwise

import numpy as np
import pytest

from jaxrl.report.sweeps import sweep_figure, varied

SEEDS = np.array([-1.0, 0.0, 1.0])


def figure_of(settings, heights):
    return sweep_figure(settings, [height + SEEDS for height in heights], title="ppo on X")


def dots(axes):
    (line,) = [x for x in axes.lines if x.get_alpha() == 0.45]
    return sorted(zip(*(np.round(values, 6).tolist() for values in line.get_data()), strict=True))


def band_of(axes):
    """Its lowest and highest point."""
    (band,) = axes.collections
    box = band.get_datalim(axes.transData)
    return box.ymin, box.ymax


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def ring(axes):
    (line,) = [x for x in axes.lines if x.get_color() == "tab:red"]
    return tuple(float(values[0]) for values in line.get_data())


def test_one_number_over_its_own_axis():
    rates = [1e-2, 1e-4, 1e-3]
    figure = figure_of([{"rate": rate, "kind": "x"} for rate in rates], [2.0, 1.0, 3.0])
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("rate", "final return")
    expected = [(1e-4, h) for h in (0, 1, 2)] + [(1e-3, h) for h in (2, 3, 4)]
    assert dots(axes) == expected + [(1e-2, h) for h in (1, 2, 3)]
    assert ring(axes) == (1e-3, 3.0)
    (mean,) = [x for x in axes.lines if x.get_linestyle() == "-" and len(x.get_xdata()) == 3]
    np.testing.assert_allclose(mean.get_ydata(), [1.0, 3.0, 2.0])
    # The t interval of three members reaches far beyond them: the band is what was seen.
    assert band_of(axes) == (0.0, 4.0)
    assert axes.get_ylim() == pytest.approx((-0.24, 4.24))
    assert legend(axes) == ["one seed", "mean", "range of the seeds", "best setting"]


def test_five_members_have_an_interval():
    five = np.array([-1.0, 0.0, 0.0, 0.0, 1.0])
    figure = sweep_figure([{"a": 1}, {"a": 2}], [1 + five, np.append(2 + five[1:], np.nan)])
    (axes,) = figure.axes
    assert legend(axes) == ["one seed", "mean", "95 % t interval of the mean", "best setting"]
    # t of 4 degrees of freedom times s / sqrt(5), with s = sqrt(1/2); of 3, s = 1/2 over sqrt(4).
    low, high = 1 - 2.776445 / 10**0.5, 2.25 + 3.182446 / 4
    assert band_of(axes) == pytest.approx((low, high))


def test_the_band_of_members_that_diverged_is_of_the_others():
    figure = sweep_figure([{"a": 1}, {"a": 2}], [np.array([np.nan, 4.0]), np.array([1.0, 3.0])])
    assert band_of(figure.axes[0]) == (1.0, 4.0)


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([1e-4, 1e-3, 1e-2], "log"),
        ([4, 8, 64], "log"),
        ([0.01, 0.03, 0.05, 0.07, 0.1], "linear"),  # as drawn from a uniform range
        ([1, 2, 3], "linear"),  # less than a decade
        ([-1, 1, 100], "linear"),
    ],
)
def test_the_axis_on_which_values_stand_evenly(values, scale):
    figure = figure_of([{"a": value} for value in values], range(len(values)))
    assert figure.axes[0].get_xscale() == scale


@pytest.mark.parametrize("last", [1.5e-3, 4.5e-3, 0.05, 1.0])
def test_numbers_along_an_axis_are_read_apart(last):
    rates = np.geomspace(1.9e-4, last, 6)
    settings = [{"rate": float(rate), "n": i % 3, "d": i % 2} for i, rate in enumerate(rates)]
    figure = figure_of(settings, rates)
    figure.draw_without_rendering()
    axis = figure.axes[0].xaxis
    ticks = axis.get_major_ticks() + axis.get_minor_ticks()
    low, high = axis.get_view_interval()
    labels = [tick.label1 for tick in ticks if low <= tick.get_loc() <= high]
    boxes = sorted((x.get_window_extent() for x in labels if x.get_text()), key=lambda b: b.x0)
    assert len(boxes) >= 2
    assert all(a.x1 < b.x0 for a, b in pairwise(boxes))


def test_choices_stand_side_by_side():
    figure = figure_of([{"sizes": [8, 8]}, {"sizes": [64]}], [1.0, 2.0])
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["8x8", "64"]
    assert ring(axes) == (1.0, 2.0)
    assert legend(axes) == ["one seed", "mean", "range of the seeds", "best setting"]


def test_a_grid_of_two_is_a_heat_map_with_its_best_cell_framed():
    settings = [{"rate": rate, "n": n} for n in (4, 2) for rate in (0.1, 0.3, 0.2)]
    figure = figure_of(settings, [1.0, 2.0, 3.0, 40.0, 60.0, 50.0])
    axes = figure.axes[0]
    np.testing.assert_allclose(axes.images[0].get_array(), [[40, 50, 60], [1, 3, 2]])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("rate", "n")
    (frame,) = axes.patches
    assert frame.get_xy() == (1.5, -0.5)
    assert [text.get_text() for text in axes.texts] == ["40", "50", "60", "1", "3", "2"]


def test_others_have_a_panel_each_with_a_dot_for_each_setting():
    rng = np.random.default_rng(0)
    settings = [{"rate": float(rng.uniform()), "n": i % 2, "d": i % 3 == 0} for i in range(6)]
    figure = figure_of(settings, range(6))
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_xlabel() for axes in shown] == ["rate", "n", "d"]
    assert dots(shown[1]) == [(0, 0), (0, 2), (0, 4), (1, 1), (1, 3), (1, 5)]
    assert not any(axes.collections for axes in shown)  # settings are no independent runs
    assert ring(shown[0]) == (settings[5]["rate"], 5.0)
    assert legend(shown[0]) == ["mean of one setting", "mean", "best setting"]
    best = f"best: rate={settings[5]['rate']:.3g}, n=1, d=False"
    assert figure.get_suptitle().replace("\n", " ") == f"ppo on X {best}"


def test_members_that_diverged_are_left_out():
    figure = sweep_figure([{"a": 1}, {"a": 2}], [np.array([np.nan, np.nan]), np.array([1.0, 3.0])])
    assert ring(figure.axes[0]) == (2.0, 2.0)
    figure = sweep_figure([{"a": 1}, {"a": 2}], [np.full(2, np.nan)] * 2)
    assert not [x for x in figure.axes[0].lines if x.get_color() == "tab:red"]


def test_settings_that_do_not_differ():
    assert varied([{"a": 1}, {"a": 1}]) == {}
    with pytest.raises(ValueError, match="nothing to compare"):
        sweep_figure([{"a": 1}], [SEEDS])
