"""The study of the recipes: what stands beside what was published, in its table and its figures."""

import json

import numpy as np
import pytest

from experiments.runs import recipes
from experiments.runs.recipes import Published, Recipe
from experiments.studies import recipes as module
from experiments.studies import study
from experiments.studies.reproduce import KEPT

POINTS = ((40, 9.0), (80, 30.0))
AIM = Published(30.0, 80, "3 episodes", "A paper", "table 1", 2.0, "5 seeds", POINTS)
LATER = Published(40.0, 1_000, "sampled", "A later one", "figure 2")
RECIPE = Recipe("ppo", "Here-v0", 100, "", {}, {}, (AIM, LATER))
RETURNS = [28.0, 30.0, 32.0, 34.0]
CURVE = {"steps": [25, 75], "returns": [[1.0, 20.0], [3.0, 24.0], [2.0, None], [2.0, 22.0]]}
CELL = {"measures": {"final_return": RETURNS}, "env_steps": 400}


@pytest.fixture
def drawn():
    """The axes of a recipe's figure, and its lines by the first words of their labels."""

    def draw(recipe, cell):
        figure = module.figure(recipe, cell)
        (axes,) = figure.axes
        handles, labels = axes.get_legend_handles_labels()
        (legend,) = figure.legends
        assert [text.get_text() for text in legend.get_texts()] == labels
        return axes, dict(zip(labels, handles, strict=True))

    return draw


def found(handles, start):
    (handle,) = [handle for label, handle in handles.items() if label.startswith(start)]
    return handle


def test_our_curve_is_the_mean_over_seeds(drawn):
    axes, handles = drawn(RECIPE, CELL | {"curve": CURVE})
    line = found(handles, "jaxrl, 4 seeds: training episodes")
    np.testing.assert_allclose(line.get_xydata(), [[25, 2.0], [75, 22.0]])
    diamond, _, (bar,) = found(handles, "jaxrl, final policies: evaluation episodes, deterministic")
    np.testing.assert_allclose(diamond.get_xydata(), [[100, 31.0]])
    half = 3.1824 * np.std(RETURNS, ddof=1) / 2  # of Student's t with three degrees of freedom
    expected = [[100, 31 - half], [100, 31 + half]]
    np.testing.assert_allclose(bar.get_segments()[0], expected, rtol=1e-4)
    assert axes.get_xlabel() == "environment steps"
    assert axes.get_ylabel() == "return"
    assert axes.get_title("right") == "jaxrl: mean and 95 % t interval over seeds"


def test_published_points_are_on_the_same_axes(drawn):
    axes, handles = drawn(RECIPE, CELL | {"curve": CURVE})
    label = "A paper: 30 $\\pm$ 2 over 5 seeds, after 80 steps\n(3 episodes)"
    mark, _, (bar,) = handles[label]
    np.testing.assert_allclose(mark.get_xydata(), [[80, 30.0]])
    np.testing.assert_allclose(bar.get_segments()[0], [[80, 28.0], [80, 32.0]])
    lines = [line.get_xydata().tolist() for line in axes.lines]
    assert [[40, 9.0], [80, 30.0]] in lines


def test_what_was_measured_beyond_the_axis_is_a_level(drawn):
    axes, handles = drawn(RECIPE, CELL | {"curve": CURVE})
    line = handles["A later one: 40, after 1,000 steps\n(sampled)"]
    assert set(line.get_ydata()) == {40.0}
    low, high = axes.get_ylim()
    assert low < 1.0
    assert 40.0 < high < 45.0
    assert axes.get_xlim()[1] < 110


def test_without_a_curve_there_is_a_dot_for_each_seed(drawn):
    axes, handles = drawn(RECIPE, CELL)
    assert not any("training episodes" in label for label in handles)
    dots = [line.get_ydata().tolist() for line in axes.lines if line.get_marker() == "o"]
    assert dots == [RETURNS]


def test_figures_are_those_that_the_cells_allow(monkeypatch):
    plain = Recipe("ppo", "Plain-v0", 100, "", {}, {})
    monkeypatch.setattr(recipes, "everything", lambda: [RECIPE, plain])
    with_curve = CELL | {"curve": CURVE}
    both = {"ppo/Here-v0": with_curve, "ppo/Plain-v0": with_curve}
    assert set(module.STUDY.figures(both)) == {"ppo/Here-v0/curve", "ppo/Plain-v0/curve"}
    neither = {"ppo/Here-v0": CELL, "ppo/Plain-v0": CELL}
    assert set(module.STUDY.figures(neither)) == {"ppo/Here-v0/final"}


def test_tables_say_where_published_numbers_stand(monkeypatch):
    monkeypatch.setattr(recipes, "everything", lambda: [RECIPE])
    reached, published = module.STUDY.tables({"ppo/Here-v0": CELL})
    (row,) = reached.rows
    assert row[:4] == ["ppo/Here-v0", "100", "4", "31.00"]
    assert row[5:] == ["30 +- 2", "within the interval", "3 episodes, after 80 steps", "A paper"]
    assert len(reached.columns) == len(row)
    assert [row[1:] for row in published.rows] == [
        ["30 +- 2", "5 seeds", "80", "3 episodes", "A paper", "table 1"],
        ["40", "-", "1,000", "sampled", "A later one", "figure 2"],
    ]


def test_what_is_kept_of_a_run(tmp_path, monkeypatch):
    """When, by which code and how long is the run's, not that of copying it."""
    members = [{"final_return": 1.0}, {"final_return": 2.0}]
    summary = {"unit": "environment steps", "members": members, "env_steps": 200}
    seconds = {"compile_seconds": 1.0, "run_seconds": 20.0, "evaluation_seconds": 0.5}
    config = {"created": "2026-01-02T10:00:00+00:00", "git_commit": "abc", "versions": {}}
    (tmp_path / "summary.json").write_text(json.dumps(summary | seconds))
    (tmp_path / "config.json").write_text(json.dumps(config | {"device": "1 x cpu"}))
    monkeypatch.setattr(module, "curve_of", lambda run: CURVE)
    kept = module.of_run(tmp_path)
    assert kept["measures"] == {"final_return": [1.0, 2.0]}
    assert (kept["date"], kept["seconds"], kept["commit"]) == ("2026-01-02", 21.5, "abc")
    assert (kept["env_steps"], kept["curve"]) == (200, CURVE)
    assert "unit" not in kept


def test_kept_curves_are_those_of_the_kept_returns():
    """As many seeds, over the budget, and at the end near what the final policies return."""
    cells = study.read(module.STUDY, "full", KEPT)
    curves = {name: cell for name, cell in cells.items() if "curve" in cell}
    assert len(curves) >= 7
    for cell in curves.values():
        steps, returns = cell["curve"]["steps"], np.asarray(cell["curve"]["returns"], float)
        assert returns.shape == (cell["settings"]["seeds"], len(steps))
        assert (np.diff(steps) > 0).all()
        assert steps[-1] <= cell["settings"]["steps"]
        last = np.nanmean(returns[:, -5:])
        spread = np.nanmax(returns) - np.nanmin(returns)
        assert abs(last - np.mean(cell["measures"]["final_return"])) < 0.25 * spread
