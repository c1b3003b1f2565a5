"""Targets and losses: closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.parts.losses import (
    action_value,
    beyond_clip,
    clipped_value_loss,
    expectile_loss,
    huber,
    keep_probability,
    kept_beyond_clip,
    kept_by_noise,
    n_step_target,
    prefix_targets,
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


def test_n_step_target():
    """Two windows of three steps, one that ended after two, and one that terminated after one."""
    reward = jnp.array([[1.0, 2.0, 4.0], [1.0, 2.0, jnp.nan], [5.0, jnp.inf, jnp.nan]])
    next_value = jnp.array([8.0, 8.0, jnp.nan])
    args = reward, jnp.array([3, 2, 1]), jnp.array([False, False, True]), next_value
    np.testing.assert_array_equal(n_step_target(*args, 0.5), [1 + 1 + 1 + 1, 1 + 1 + 2, 5])
    np.testing.assert_array_equal(n_step_target(*args, 1.0), [15, 11, 5])
    single = reward[:, 0], None, *args[2:], 0.5
    np.testing.assert_array_equal(n_step_target(*single), [5, 5, 5])


@pytest.mark.parametrize("terminal", [False, True])
def test_prefix_targets_are_those_of_a_loop(terminal):
    """Windows of 1 to 4 steps; rewards beyond them and values of terminal states do not count."""
    rng, gamma, size = np.random.default_rng(0), 0.9, 4
    reward, value = rng.normal(size=(2, 4, size)).astype(np.float32)
    num_steps = np.arange(1, 5)
    ended = terminal & (np.arange(size) >= num_steps[:, None] - 1)
    found = prefix_targets(reward, jnp.asarray(num_steps), ended, value, gamma)
    for b, h in np.ndindex(4, size):
        count = min(h + 1, num_steps[b])
        total = sum(gamma**i * reward[b, i] for i in range(count))
        expected = total if ended[b, h] else total + gamma ** (h + 1) * value[b, h]
        assert float(found[b, h]) == pytest.approx(expected, rel=1e-5)


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


# Clipping ---------------------------------------------------------------------------------------

LOW, HIGH, NOISE = 0.2, 0.28, 0.2


def test_beyond_the_clip_range_the_surrogate_is_flat():
    ratio, advantage = jnp.linspace(0.5, 1.6, 56), jnp.array([[-1.5], [0.0], [2.0]])

    def surrogate(ratio, advantage):
        clipped = jnp.clip(ratio, 1 - LOW, 1 + HIGH)
        return jnp.minimum(ratio * advantage, clipped * advantage)

    slope = jax.vmap(jax.vmap(jax.grad(surrogate), (0, None)), (None, 0))(ratio, advantage[:, 0])
    beyond = beyond_clip(ratio, advantage, LOW, HIGH)
    np.testing.assert_array_equal(slope[::2] == 0, beyond[::2])
    assert not beyond[1].any()


def test_keep_probabilities_are_those_of_a_table():
    """For e = delta = 0.2 and A > 0; and by hand for A < 0, where u >= 0.8 / r keeps."""
    ratio = jnp.array([1.25, 1.3, 1.4, 1.5, 1.6, 1.1, 0.5])
    expected = [0.4, 0.3077, 0.1429, 0, 0, 0, 0]
    actual = keep_probability(ratio, jnp.ones(7), 0.2, 0.2, 0.2)
    np.testing.assert_allclose(actual, expected, atol=1e-4)
    ratio = jnp.array([0.79, 0.7, 0.66, 0.9, 1.5])
    expected = [(1.2 - 0.8 / r) / 0.4 for r in (0.79, 0.7)] + [0, 0, 0]
    actual = keep_probability(ratio, -jnp.ones(5), 0.2, 0.2, 0.2)
    np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_noise_keeps_as_often_as_it_should():
    """Also with other limits above than below; never in the range, never far beyond it."""
    ratio = jnp.linspace(0.55, 1.75, 49)
    for sign in (-1.0, 0.0, 1.0):
        advantage = jnp.full(49, sign)
        keys = jax.random.split(KEY, 4000)
        draws = jax.vmap(lambda k, a=advantage: kept_by_noise(k, ratio, a, LOW, HIGH, NOISE))(keys)
        p = np.asarray(keep_probability(ratio, advantage, LOW, HIGH, NOISE))
        error = np.sqrt(p * (1 - p) / len(keys))
        assert (np.abs(np.asarray(draws).mean(axis=0) - p) <= 4.5 * error).all()
        assert ((p > 0.05).sum() > 3) == (sign != 0)


def test_without_noise_nothing_is_kept():
    """Not even where rounding takes a ratio to the edge of the range."""
    for sign, edge in ((1.0, 1 + HIGH), (-1.0, 1 - LOW)):
        ratio = jnp.full(3, edge) * (1 + sign * jnp.array([1e-7, 1e-6, 0.1]))
        advantage = jnp.full(3, sign)
        assert beyond_clip(ratio, advantage, LOW, HIGH).any()
        np.testing.assert_array_equal(keep_probability(ratio, advantage, LOW, HIGH, 0.0), 0)
        assert not kept_by_noise(KEY, ratio, advantage, LOW, HIGH, 0.0).any()


def test_no_gradient_flows_into_what_is_kept():
    ratio, advantage = jnp.array([1.35, 0.75]), jnp.array([1.0, -1.0])
    share = keep_probability(ratio, advantage, LOW, HIGH, NOISE)
    assert ((share > 0) & (share < 1)).all()
    slope = jax.grad(lambda r: keep_probability(r, advantage, LOW, HIGH, NOISE).sum())(ratio)
    np.testing.assert_array_equal(slope, np.zeros(2))


# Values -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0.5, 2.0, np.inf])
def test_huber_and_its_slope(threshold):
    """A half square with slope e, then a line of slope +-threshold that goes on from it."""
    error = np.linspace(-5, 5, 41)
    by_cases = [
        0.5 * e**2 if abs(e) <= threshold else threshold * (abs(e) - 0.5 * threshold) for e in error
    ]
    value, slope = jax.vmap(jax.value_and_grad(huber), in_axes=(0, None))(
        jnp.asarray(error, jnp.float32), threshold
    )
    np.testing.assert_allclose(value, by_cases, rtol=1e-6)
    np.testing.assert_allclose(slope, np.clip(error, -threshold, threshold), rtol=1e-6)


def test_without_a_threshold_the_value_loss_is_ppo_s_to_the_bit():
    value, old, target = jax.random.normal(KEY, (3, 257)) * 3

    def released(value, limit):
        clipped = old + jnp.clip(value - old, -limit, limit)
        return 0.5 * jnp.maximum((value - target) ** 2, (clipped - target) ** 2).mean()

    for limit in (0.2, np.inf):
        expected = jax.value_and_grad(released)(value, limit)
        actual = jax.value_and_grad(clipped_value_loss)(value, old, target, limit)
        assert any(np.any(x) for x in expected)
        for a, b in zip(actual, expected, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("limit", [0.2, np.inf])
@pytest.mark.parametrize("threshold", [0.5, np.inf])
def test_clipped_value_loss_step_by_step(limit, threshold):
    value, old, target = np.random.default_rng(0).normal(0, 2, (3, 50))
    losses = []
    for v, o, r in zip(value, old, target, strict=True):
        moved = o + min(max(v - o, -limit), limit)
        sizes = abs(v - r), abs(moved - r)
        losses.append(
            max(0.5 * e**2 if e <= threshold else threshold * e - 0.5 * threshold**2 for e in sizes)
        )
    actual = clipped_value_loss(*map(jnp.asarray, (value, old, target)), limit, threshold)
    assert actual == pytest.approx(np.mean(losses), rel=1e-5)


def test_unequal_limits_keep_each_on_its_own_side():
    """With 0.1 below and 0.4 above: what is kept beyond each is what that limit alone gives."""
    ratio = jnp.asarray(np.random.default_rng(0).uniform(0.5, 2.0, 4000), jnp.float32)
    for advantage in (jnp.ones(4000), -jnp.ones(4000)):
        side = 0.4 if advantage[0] > 0 else 0.1
        for key in (KEY, None):
            both = kept_beyond_clip(key, ratio, advantage, 0.1, 0.4, 0.2)
            alone = kept_beyond_clip(key, ratio, advantage, side, side, 0.2)
            np.testing.assert_array_equal(both, alone)
        assert np.any(both)
