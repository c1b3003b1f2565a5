"""What is not finite, wherever it comes from, marks its member and nobody else.

Parameters that become NaN in training: tests/training/test_sweep.py.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments.classic_control.cartpole import CartPole

import jaxrl
from jaxrl.parts.rollout import Episodes
from jaxrl.training.history import History, diverged
from tests.helpers import Toy


class Broken(CartPole):
    """Pays NaN where gravity is above 9.9, infinity where it is above 10."""

    def step_env(self, key, state, action, params):
        obs, state, reward, *rest = super().step_env(key, state, action, params)
        reward = jnp.where(params.gravity > 9.9, jnp.nan, reward)
        return obs, state, jnp.where(params.gravity > 10.0, jnp.inf, reward), *rest


class Deaf(Toy):
    """Learns nothing, whatever it is paid."""

    def learned(self, state):
        return jnp.zeros(())


def agent(iterations=20):
    return Deaf(Broken(), CartPole().default_params, total_steps=8 * iterations, rate=0.0)


GRAVITIES = [{"env.gravity": x} for x in (9.8, 9.95, 10.1)]


@pytest.mark.parametrize("evaluations", [0, 20])
def test_returns_that_are_not_finite_mark_the_member(evaluations):
    healthy = jaxrl.sweep(agent(), GRAVITIES[:1] * 3, evaluations=evaluations, episodes=2)
    with pytest.warns(UserWarning, match="has a loss, returns or parameters") as warned:
        population = jaxrl.sweep(agent(), GRAVITIES, evaluations=evaluations, episodes=2)
    assert len(warned) == 2
    history = population.history
    assert np.isnan(history.diverged_at).tolist() == [True, False, False]
    if evaluations:  # the first of them, after the first iteration
        assert history.diverged_at[1:].tolist() == [0, 0]
    else:  # the first episode that ended, which takes eight steps at least
        assert history.diverged_at.min(initial=99, where=[False, True, True]) >= 1
    for name, values in history.metrics.items():
        np.testing.assert_array_equal(values[0], healthy.history.metrics[name][0])
        for i in (1, 2):
            assert np.isnan(values[i, int(history.diverged_at[i]) + 1 :]).all()
    returns = population.evaluate(2).returns
    assert np.isnan(returns).all(axis=1).tolist() == [False, True, True]


def test_a_member_whose_final_returns_are_not_finite_has_none():
    """Training that is too short to see an episode end does not know."""
    population = jaxrl.sweep(agent(1), GRAVITIES, episodes=2)
    assert np.isnan(population.history.diverged_at).all()
    returns = population.evaluate(2).returns
    assert np.isnan(returns).all(axis=1).tolist() == [False, True, True]
    assert np.isfinite(returns[0]).all()


@pytest.mark.parametrize(
    ("returns", "ended", "expected"),
    [
        ([3.0, 0.0], [1.0, 0.0], 3.0),
        ([3.0, 5.0], [1.0, 1.0], 4.0),
        ([0.0, 0.0], [0.0, 0.0], np.nan),  # there is none
        ([np.nan, 5.0], [1.0, 1.0], np.inf),  # there is one, which is no number
        ([np.inf, -np.inf], [1.0, 1.0], np.inf),
        ([-np.inf, 5.0], [1.0, 1.0], -np.inf),
    ],
)
def test_nan_says_that_no_episode_ended_and_nothing_else(returns, ended, expected):
    zeros = jnp.zeros(2)
    metrics = Episodes(jnp.array(ended), jnp.array(returns), zeros).metrics()
    np.testing.assert_array_equal(metrics["episode_return"], expected)


def test_the_iteration_is_that_of_the_first_infinite_return():
    nan, inf = np.nan, np.inf
    metrics = {
        "episode_return": np.array([[1, nan, 2], [nan, inf, 2], [nan, nan, -inf], [nan, nan, nan]]),
        "return_of_something_else": np.full((4, 3), inf),
    }
    found = diverged(metrics, np.ones(4, bool), 3)
    np.testing.assert_array_equal(found, [nan, 1, 2, nan])


def test_an_evaluation_marks_the_iteration_before_it():
    chunk = History.of_chunk(0, np.array([[1.0, 2.0]] * 2), {}, np.ones(2, bool))
    history = History.empty(2, 3).then(chunk)
    history = history.evaluated({"returns": np.array([[1.0, 2.0, 3.0], [1.0, np.nan, 3.0]])})
    np.testing.assert_array_equal(history.diverged_at, [np.nan, 1])
    np.testing.assert_array_equal(history.evaluations["returns"][:, 0], [[1, 2, 3], [np.nan] * 3])
