"""What a population says of its members: tables, the best, curves and figures."""

import jax
import numpy as np
import pandas as pd
import pytest

import jaxrl
from jaxrl.report.stats import iqm_ci, mean_ci
from jaxrl.training.history import History
from jaxrl.training.members import stack_agents
from tests.training.test_sweep import toy

RETURNS = {(0.1, 8): [1.0, 9.0, 2.0], (0.2, 8): [5.0, 6.0, 7.0], (0.1, 16): [np.nan] * 3}
NAN = np.nan


@pytest.fixture(scope="module")
def population():
    """Three settings of three seeds in two batches, as if they had been trained."""
    table = [
        {"rate": rate, "sizes": (size,), "seed": seed}
        for rate, size in RETURNS
        for seed in range(3)
    ]
    final = {
        "final_return": np.concatenate(list(RETURNS.values())),
        "final_length": np.full(9, 3.0),
    }
    batches = [([0, 1, 2, 3, 4, 5], run_of(6)), ([6, 7, 8], run_of(3, diverged_at=1.0))]
    return jaxrl.Population(table, batches, evaluated=final)


def run_of(members, diverged_at=NAN, **changes):
    steps = np.tile([8.0, 16.0, 24.0], (members, 1))
    returns = np.arange(members)[:, None] + np.array([0.0, 1.0, 2.0])
    history = History(
        steps,
        {"episode_return": returns, "episodes": np.ones_like(steps)},
        {"env_steps": np.zeros((members, 0)), "returns": np.zeros((members, 0, 4))},
        np.full(members, diverged_at),
    )
    agents = stack_agents([toy()] * members)
    return jaxrl.Run(agents, None, history._replace(**changes), 1.0, 2.0, False)


def test_a_row_for_each_member(population):
    frame = population.to_dataframe()
    assert frame.index.name == "member"
    columns = ["rate", "sizes", "seed", "final_return", "final_length", "env_steps", "diverged_at"]
    assert list(frame.columns) == columns
    assert frame["seed"].tolist() == [0, 1, 2] * 3
    assert frame["sizes"].tolist() == [(8,)] * 6 + [(16,)] * 3
    assert frame["final_return"].tolist()[:6] == [1, 9, 2, 5, 6, 7]
    assert frame["env_steps"].tolist() == [24] * 9
    assert frame["diverged_at"].isna().tolist() == [True] * 6 + [False] * 3


def test_a_row_for_each_setting_the_best_first(population):
    summary = population.summary()
    assert summary["rate"].tolist() == [0.2, 0.1, 0.1]
    assert summary["sizes"].tolist() == [(8,), (8,), (16,)]
    assert summary["seeds"].tolist() == [3, 3, 3]
    for row, returns in enumerate([[5.0, 6.0, 7.0], [1.0, 9.0, 2.0]]):
        for name, expected in (("mean", mean_ci(returns)), ("iqm", iqm_ci(returns))):
            found = summary.loc[row, [name, f"{name}_low", f"{name}_high"]].astype(float)
            np.testing.assert_allclose(found, expected)
    improvement = summary[["improvement", "improvement_low", "improvement_high"]].to_numpy()
    assert improvement[1, 0] == pytest.approx(6 / 9)  # 5, 6 and 7 are above 1 and 2, not above 9
    assert 0 <= improvement[1, 1] < 6 / 9 < improvement[1, 2] <= 1
    assert np.isnan(improvement[[0, 2]]).all()  # over itself; over what has diverged
    assert summary.loc[2, ["mean", "iqm"]].isna().all()


def test_the_best_is_of_the_best_setting_not_the_luckiest_seed(population):
    assert population.best_member == 5
    np.testing.assert_array_equal(population[5].history.metrics["episode_return"], [5.0, 6.0, 7.0])
    evaluated = {"final_return": np.where(np.arange(9) == 5, NAN, population.final["final_return"])}
    without = jaxrl.Population(population.table, population.batches, evaluated=evaluated)
    assert without.best_member == 4


def test_everything_has_diverged(population):
    evaluated = {"final_return": np.full(9, NAN)}
    gone = jaxrl.Population(population.table, population.batches, evaluated=evaluated)
    assert gone.best_member == 0
    assert gone.summary()["mean"].isna().all()
    with pytest.raises(ValueError, match="no run has a final return"):
        gone.plot("profile")
    assert gone.plot("sweep").axes


def test_a_curve_for_each_setting(population):
    curves = population.curves()
    assert [curve.label for curve in curves] == [
        "rate=0.1, sizes=8",
        "rate=0.2, sizes=8",
        "rate=0.1, sizes=16",
    ]
    np.testing.assert_array_equal(curves[1].returns, np.arange(3, 6)[:, None] + np.arange(3))
    np.testing.assert_array_equal(curves[1].steps, [4, 12, 20])


def test_figures(population):
    title = "toy on TimeLimit"
    sweep = population.plot()
    assert sweep.get_suptitle().splitlines() == [title, "best: rate=0.2, sizes=8"]
    assert {axes.get_xlabel() for axes in sweep.axes} == {"rate", "sizes"}
    curves = population.plot("curves").axes[0]
    assert (curves.get_title(), curves.get_xlabel()) == (title, "environment steps")
    profile, means = population.plot("profile").axes
    assert len(profile.lines) == 3
    assert [text.get_text() for text in means.get_yticklabels()] == ["0.1, 8", "0.2, 8", "0.1, 16"]
    with pytest.raises(ValueError, match=r"plot\('swep'\): it is one of sweep, curves, profile"):
        population.plot("swep")


def test_seeds_alone_are_plotted_as_curves():
    evaluated = {"final_return": np.arange(3.0)}
    seeds = [{"seed": seed} for seed in range(3)]
    alone = jaxrl.Population(seeds, [([0, 1, 2], run_of(3))], evaluated=evaluated)
    assert alone.plot().axes[0].get_ylabel() == "return of training episodes"
    assert alone.summary()["mean"].tolist() == [1.0]
    assert alone.plot("profile").axes
    with pytest.raises(ValueError, match="nothing to compare"):
        alone.plot("sweep")


def test_a_run_draws_its_curve():
    single = jaxrl.Population([{"seed": 0}, {"seed": 1}], [([0, 1], run_of(2))])[1]
    axes = single.plot().axes[0]
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), [1, 2, 3])
    assert axes.get_title() == "toy on TimeLimit"
    evaluations = {"env_steps": np.array([[8.0, 24.0]]), "returns": np.array([[[1.0, 3], [4, 6]]])}
    evaluated = run_of(1, metrics={}, evaluations=evaluations)
    axes = evaluated.plot().axes[0]
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), [[8, 2], [24, 5]])
    assert axes.get_ylabel() == "return of evaluations"
    with pytest.raises(ValueError, match="no returns to draw: it needs evaluations"):
        run_of(1, metrics={}).plot()


def test_what_was_trained_is_evaluated_once():
    trained = jaxrl.sweep(toy(iterations=2), {"rate": [0.3, 0.6]})
    returns = trained.evaluate(64).returns.mean(axis=1)
    frame = trained.to_dataframe()
    np.testing.assert_allclose(frame["final_return"], returns)
    assert trained.final is trained.final
    assert isinstance(trained.summary(), pd.DataFrame)
    assert trained.best().iteration == 2
    assert jax.tree.leaves(trained.best().state)
