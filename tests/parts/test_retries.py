"""The best of several draws: enumeration, Monte Carlo, and its gradient."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.parts.retries import expected_improvement, expected_maximum

RNG = np.random.default_rng(0)
VALUES = RNG.normal(size=(3, 4))
PROBS = RNG.dirichlet(np.ones(4), size=3)
VALUES[1, 2] = VALUES[1, 0]  # a tie
PROBS[2, np.argmin(VALUES[2])] = 0.0  # what is never drawn
PROBS[2] /= PROBS[2].sum()


def enumerated(function, probs, draws):
    """E function(indices of M draws) in float64."""
    tuples = itertools.product(range(len(probs)), repeat=draws)
    return sum(np.prod(probs[list(t)]) * function(list(t)) for t in tuples)


@pytest.mark.parametrize("draws", [1, 2, 3])
def test_expected_maximum_is_that_of_all_draws(draws):
    expected = [
        enumerated(lambda t, v=values: v[t].max(), probs, draws)
        for values, probs in zip(VALUES, PROBS, strict=True)
    ]
    actual = expected_maximum(jnp.asarray(VALUES), jnp.asarray(PROBS), draws)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_expected_maximum_of_many_draws_is_their_mean():
    draws, samples = 8, 200_000
    best = VALUES[0][RNG.choice(4, size=(samples, draws), p=PROBS[0])].max(axis=1)
    error = best.std() / np.sqrt(samples)
    actual = float(expected_maximum(jnp.asarray(VALUES[0]), jnp.asarray(PROBS[0]), draws))
    assert actual == pytest.approx(best.mean(), abs=4 * error)


def test_two_draws_are_a_quadratic_form():
    larger = np.maximum(VALUES[:, :, None], VALUES[:, None, :])
    expected = np.einsum("na,nab,nb->n", PROBS, larger, PROBS)
    actual = expected_maximum(jnp.asarray(VALUES), jnp.asarray(PROBS), 2)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("draws", [0, 1, 2, 3])
def test_expected_improvement_is_that_on_all_draws(draws):
    def best(values, t):
        return values[t].max() if t else values.min()

    expected = [
        [enumerated(lambda t, v=values, x=x: max(x - best(v, t), 0), probs, draws) for x in values]
        for values, probs in zip(VALUES, PROBS, strict=True)
    ]
    actual = expected_improvement(jnp.asarray(VALUES), jnp.asarray(PROBS), draws)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("draws", [1.0, 1.2, 3.5])
def test_improvements_are_the_gradient_of_the_maximum(draws):
    """By logits: M pi_a (EI_a - sum_b pi_b EI_b) over M - 1 draws, also where M is not whole."""
    values, logits = jnp.asarray(VALUES[0]), jnp.log(jnp.asarray(PROBS[0]))

    def objective(logits):
        return expected_maximum(values, jax.nn.softmax(logits), draws)

    probs = jax.nn.softmax(logits)
    improvement = expected_improvement(values, probs, draws - 1)
    expected = draws * probs * (improvement - probs @ improvement)
    np.testing.assert_allclose(jax.grad(objective)(logits), expected, rtol=1e-4, atol=1e-6)


def test_one_draw_is_greedy():
    """The gradient in p of a single attempt is the values themselves, but for a constant."""
    gradient = jax.grad(lambda p: expected_maximum(jnp.asarray(VALUES[0]), p, 1.0))
    pull = np.asarray(gradient(jnp.asarray(PROBS[0])))
    np.testing.assert_allclose(pull - pull.min(), VALUES[0] - VALUES[0].min(), rtol=1e-5)


def test_a_sure_policy_has_nothing_to_gain_and_nothing_overflows():
    probs = jnp.array([0.0, 1.0, 0.0])  # S reaches 1 before the last action
    values = jnp.array([1.0, 3.0, 2.0])
    np.testing.assert_array_equal(expected_improvement(values, probs, 1.5), [0, 0, 0])
    assert expected_maximum(values, probs, 1.5) == 3.0
