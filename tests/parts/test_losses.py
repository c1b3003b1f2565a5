"""Targets and losses: closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.parts.losses import (
    action_value,
    expectile_loss,
    q_targets,
    softmax_cloning_loss,
    td_target,
    weighted_cloning_loss,
)

KEY = jax.random.key(0)


def test_action_value():
    q = jax.random.normal(KEY, (5, 3))
    action = jnp.array([0, 2, 1, 1, 0])
    np.testing.assert_array_equal(action_value(q, action), np.asarray(q)[np.arange(5), action])


def test_td_target():
    reward, next_value = jnp.array([1.0, 2.0, 3.0]), jnp.array([4.0, 6.0, 8.0])
    terminated = jnp.array([False, True, True])
    np.testing.assert_array_equal(td_target(reward, terminated, next_value, 0.5), [3, 2, 3])


def test_q_targets():
    reward, terminated = jnp.array([1.0, 2.0, 3.0]), jnp.array([False, True, False])
    next_q = jnp.array([[1.0, 5.0], [7.0, 8.0], [4.0, 2.0]])
    chooser = jnp.array([[3.0, 1.0], [0.0, 1.0], [0.0, 9.0]])
    np.testing.assert_allclose(
        q_targets(reward, terminated, next_q, next_q, 0.5), [1 + 2.5, 2, 3 + 2]
    )
    np.testing.assert_allclose(
        q_targets(reward, terminated, next_q, chooser, 0.5), [1 + 0.5, 2, 3 + 1]
    )


def test_double_estimates_are_less_biased_under_noise():
    """Values of no action differ but for noise: E max is above 0, a second opinion is not."""
    first, second = jax.random.normal(KEY, (2, 20_000, 10))
    zeros = jnp.zeros(20_000)
    plain = q_targets(zeros, zeros, first, first, 1.0).mean()
    double = q_targets(zeros, zeros, first, second, 1.0).mean()
    assert plain > 1.4
    assert abs(double) < 0.03


def test_expectiles():
    values = np.random.default_rng(0).normal(size=20_000)
    candidates = np.linspace(-2, 2, 401)
    for expectile, check in ((0.5, values.mean()), (0.999, None)):
        losses = [
            float(expectile_loss(jnp.asarray(values - v), expectile).mean()) for v in candidates
        ]
        best = candidates[int(np.argmin(losses))]
        assert best > 1.9 if check is None else best == pytest.approx(check, abs=0.02)


def test_weights_of_cloning_are_clipped_and_constant():
    log_weight = jnp.array([-1.0, 0.5, 3.0])
    weight = np.minimum(np.exp(np.asarray(log_weight)), 2.0)

    def loss(log_prob, log_weight):
        return weighted_cloning_loss(log_prob, log_weight, 2.0)

    log_prob = jnp.array([-0.5, -1.0, -2.0])
    grads, mean_weight = jax.grad(loss, argnums=(0, 1), has_aux=True)(log_prob, log_weight)
    np.testing.assert_allclose(grads[0], -weight / 3, rtol=1e-6)
    np.testing.assert_array_equal(grads[1], 0)
    assert mean_weight == pytest.approx(weight.mean())
    assert loss(log_prob, log_weight)[0] == pytest.approx(float(-(weight * log_prob).mean()))


def test_softmax_weights_are_those_of_a_loop_and_do_not_see_an_offset():
    rng = np.random.default_rng(0)
    log_prob, advantage = rng.normal(size=8), 5 * rng.normal(size=8)
    weight = 8 * np.exp(advantage) / np.exp(advantage).sum()
    for offset in (0.0, 500.0):  # whose exp overflows
        loss, largest = softmax_cloning_loss(jnp.asarray(log_prob), jnp.asarray(advantage + offset))
        np.testing.assert_allclose(loss, -(weight * log_prob).mean(), rtol=1e-4)
        np.testing.assert_allclose(largest, weight.max(), rtol=1e-4)
    flow = jax.grad(lambda a: softmax_cloning_loss(jnp.asarray(log_prob), a)[0])(advantage)
    np.testing.assert_array_equal(flow, np.zeros(8))
