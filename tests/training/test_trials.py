"""Optuna asks, a population answers; on a problem whose best value is known."""

import sys

import numpy as np
import pytest

import jaxrl
from jaxrl import Lin, Log
from jaxrl.training.trials import _distribution
from tests.helpers import StopAt, Toy
from tests.training.tuned import ENV, Tuned, tuned


class Paid(Tuned):
    """An agent that the environment pays for the sign of its skill: see `policy`."""


def paid(**changes):
    return Paid(ENV, ENV.default_params, total_steps=40, **changes)


def test_without_optuna_it_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ValueError, match=r"optuna is not installed: pip install -e '.\[optuna\]'"):
        jaxrl.optuna_search(paid(), {"rate": Log(1e-6, 1.0)}, trials=4, batch=2)


@pytest.fixture
def optuna():
    module = pytest.importorskip("optuna")
    module.logging.set_verbosity(module.logging.WARNING)
    return module


def test_a_batch_is_one_population_and_results_are_told(optuna):
    """The reward is 1 where the skill is positive: rates above 0.001 and below 0.1, else -1."""
    populations = []
    Tuned.traces = 0
    result = jaxrl.optuna_search(
        paid(), {"rate": Log(1e-6, 1.0)}, trials=12, batch=4, episodes=2,
        callbacks=[lambda progress: populations.append(len(progress.members))],
    )  # fmt: skip
    assert Tuned.traces == 1  # one program for all batches
    assert set(populations) == {4}
    trials = result.study.trials
    assert len(trials) == 12
    for trial in trials:
        assert trial.value == (1.0 if 1e-3 < trial.params["rate"] < 1e-1 else -1.0)
    assert len({trial.params["rate"] for trial in trials}) == 12
    assert result.best == result.study.best_params
    assert result.best in [{"rate": row["rate"]} for row in result.population.table]
    # The same seed asks for the same.
    again = jaxrl.optuna_search(paid(), {"rate": Log(1e-6, 1.0)}, trials=4, batch=4, episodes=2)
    assert [t.params for t in again.study.trials] == [t.params for t in trials[:4]]


def test_it_comes_nearer_with_every_batch(optuna):
    agent = Toy(ENV, ENV.default_params, total_steps=8)
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.TPESampler(seed=1, constant_liar=True)
    )
    # The reward of an episode is 1 or -1 plus the bonus: the largest bonus is the best.
    jaxrl.optuna_search(
        agent, {"env.bonus": Lin(0.0, 100.0)}, trials=48, batch=8, episodes=2, study=study
    )
    bonus = np.array([trial.params["env.bonus"] for trial in study.trials])
    assert bonus[-16:].mean() > 70 > 65 > bonus[:8].mean()
    assert study.best_params["env.bonus"] > 95


def test_trials_that_diverge_have_failed(optuna):
    space = {"rate": [1e-2, 1e-5, 2.0]}
    with pytest.warns(UserWarning, match="not finite"):
        result = jaxrl.optuna_search(paid(), space, trials=6, batch=6, episodes=2)
    for trial in result.study.trials:
        diverges = trial.params["rate"] == 2.0
        assert trial.state.name == ("FAIL" if diverges else "COMPLETE")
    with (
        pytest.warns(UserWarning, match="not finite"),
        pytest.raises(ValueError, match="every trial has diverged"),
    ):
        jaxrl.optuna_search(paid(), {"rate": [2.0]}, trials=2, batch=2, episodes=2)


def test_seeds_are_averaged(optuna):
    result = jaxrl.optuna_search(
        paid(), {"rate": [1e-2, 1e-5]}, trials=2, batch=2, seeds=3, episodes=2
    )
    assert len(result.population) == 6


def test_a_search_that_is_stopped_keeps_what_it_has(optuna):
    study = optuna.create_study(direction="maximize")
    jaxrl.optuna_search(paid(), {"rate": [1e-2]}, trials=2, batch=2, episodes=2, study=study)
    with pytest.raises(KeyboardInterrupt):
        jaxrl.optuna_search(
            paid(), {"rate": [1e-2]}, trials=2, batch=2, study=study, callbacks=[StopAt(1)]
        )
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 2 + ["FAIL"] * 2


def test_axes_are_distributions(optuna):
    of = optuna.distributions
    agent = paid()
    cases = [
        ("rate", Lin(0.1, 0.2), of.FloatDistribution(0.1, 0.2)),
        ("rate", Log(0.1, 0.2), of.FloatDistribution(0.1, 0.2, log=True)),
        ("width", Lin(1, 8), of.IntDistribution(1, 8)),
        ("width", Log(1, 8), of.IntDistribution(1, 8, log=True)),
        ("env.max_steps_in_episode", Lin(1, 8), of.IntDistribution(1, 8)),
        ("env.bonus", Lin(0, 8), of.FloatDistribution(0, 8)),
        ("rate", np.array([0.1, 0.2]), of.CategoricalDistribution((0.1, 0.2))),
    ]
    for name, axis, expected in cases:
        assert _distribution(agent, name, axis).distribution == expected
    sizes = _distribution(agent, "hidden_sizes", [(64, 64), (32,)])
    assert sizes.distribution == of.CategoricalDistribution(("64x64", "32"))
    assert sizes.value("64x64") == (64, 64)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"trials": 5}, "trials=5 must be a multiple of batch=2"),
        ({"batch": 0}, "must be a multiple of batch=0"),
        ({"space": {"rate": 0.1}}, "give a list of values, jaxrl.Lin or jaxrl.Log"),
        ({"space": {"rate": []}}, "give a list of values"),
        ({"space": {"rate": Log(0.0, 1.0)}}, "is no range"),
        ({"space": {"rat": [1.0]}}, "did you mean rate"),
        ({"checkpoints": 1}, "takes no checkpoints"),
        ({"study": "minimize"}, "has to maximise"),
    ],
)
def test_one_line_refuses(optuna, changes, line):
    arguments = {"space": {"rate": [0.1]}, "trials": 4, "batch": 2} | changes
    if "study" in changes:
        arguments["study"] = optuna.create_study(direction=changes["study"])
    with pytest.raises(ValueError, match=line):
        jaxrl.optuna_search(tuned(), arguments.pop("space"), **arguments)


def test_the_best_is_of_these_trials_also_where_the_study_has_better_ones(optuna):
    study = optuna.create_study(direction="maximize")
    distribution = optuna.distributions.CategoricalDistribution((1e-5, 1e-6))
    better = optuna.trial.create_trial(
        params={"rate": 1e-5}, distributions={"rate": distribution}, value=100.0
    )
    study.add_trial(better)
    result = jaxrl.optuna_search(
        paid(), {"rate": [1e-5, 1e-6]}, trials=2, batch=2, episodes=2, study=study
    )
    assert result.best["rate"] in (1e-5, 1e-6)
    assert study.best_value == 100
