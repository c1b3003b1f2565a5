"""Rewards without a verifier, their advantages, and covariance rules, against loops and theory."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.parts import intrinsic as i
from jaxrl.parts.distributions import Categorical

RNG = np.random.default_rng(0)
ONES = jnp.ones(2)


# Rewards ----------------------------------------------------------------------------------------


def test_agreement_is_the_share_of_the_same_answer():
    split = jnp.array([[4] * 5 + [9] * 3, [1] * 8])
    np.testing.assert_allclose(i.agreement(split), [[0.625] * 5 + [0.375] * 3, [1.0] * 8])
    answers = RNG.integers(0, 4, (6, 9))
    expected = [[list(row).count(x) / 9 for x in row] for row in answers]
    np.testing.assert_allclose(i.agreement(jnp.asarray(answers)), expected, rtol=1e-6)


def test_self_certainty():
    mask = np.array([[1, 1, 1], [1, 0, 0]])
    assert np.abs(i.self_certainty(jnp.full((2, 3, 5), 0.7), jnp.asarray(mask))).max() < 1e-6
    logits = RNG.normal(size=(2, 3, 5)) * 2
    expected = []
    for row, counts in zip(logits, mask, strict=True):
        divergences = []
        for token in row[counts == 1]:
            chances = np.exp(token) / np.exp(token).sum()
            divergences.append(sum(0.2 * math.log(0.2 / p) for p in chances))
        expected.append(np.mean(divergences))
    got = i.self_certainty(jnp.asarray(logits, jnp.float32), jnp.asarray(mask))
    np.testing.assert_allclose(got, expected, rtol=1e-5)


# Advantages -------------------------------------------------------------------------------------


def test_gdpo_tells_totals_apart_that_are_one_to_grpo():
    """Two binary rewards of two answers: totals (0, 1), and totals (0, 2)."""
    rewards = jnp.array([[[0.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [1.0, 1.0]]])
    grpo = i.channel_advantages(rewards, ONES, "sum")
    np.testing.assert_allclose(grpo[0], grpo[1], atol=2e-4)
    gdpo = i.channel_advantages(rewards, ONES, "channels")
    np.testing.assert_allclose(gdpo[1], 2 * gdpo[0], rtol=1e-6)
    assert float(gdpo[0, 1]) == pytest.approx(1, abs=1e-3)


def test_the_scale_of_a_channel_does_not_matter_to_gdpo():
    rewards = jnp.asarray(RNG.normal(size=(4, 6, 2)), jnp.float32)
    scaled = rewards * jnp.array([100.0, 1.0])
    one, other = (i.channel_advantages(x, ONES, "channels") for x in (rewards, scaled))
    np.testing.assert_allclose(one, other, atol=1e-3)
    one, other = (i.channel_advantages(x, ONES, "sum") for x in (rewards, scaled))
    assert np.abs(one - other).max() > 0.3


@pytest.mark.parametrize("normalize", ["channels", "sum"])
def test_channel_advantages(normalize):
    rewards, weights = RNG.normal(size=(3, 5, 2)), np.array([0.3, 2.0])
    expected = np.zeros((3, 5))
    for n in range(3):
        channels = [rewards[n, :, c] for c in range(2)]
        if normalize == "sum":
            channels = [weights[0] * channels[0] + weights[1] * channels[1]]
        for c, channel in enumerate(channels):
            weight = 1 if normalize == "sum" else weights[c]
            expected[n] += weight * (channel - channel.mean()) / (channel.std() + 1e-4)
    got = i.channel_advantages(jnp.asarray(rewards), jnp.asarray(weights), normalize)
    np.testing.assert_allclose(got, expected, atol=1e-4)
    whole = (expected - expected.mean()) / (expected.std() + 1e-4)
    np.testing.assert_allclose(i.batch_z_score(jnp.asarray(expected)), whole, atol=1e-4)


# Covariance -------------------------------------------------------------------------------------


def random_tokens(shape=(7, 5)):
    """Advantages, log-probabilities, and which count."""
    advantage, log_prob = RNG.normal(size=shape), -RNG.exponential(size=shape)
    return advantage, log_prob, (RNG.random(shape) < 0.7).astype(float)


def test_token_covariance():
    advantage, log_prob, mask = random_tokens()
    a, lp = (x[mask == 1] for x in (advantage, log_prob))
    got = i.token_covariance(*map(jnp.asarray, (advantage, log_prob, mask)))
    np.testing.assert_allclose(got[mask == 1], (a - a.mean()) * (lp - lp.mean()), rtol=1e-4)
    np.testing.assert_allclose(got[mask == 1].mean(), np.cov(a, lp, ddof=0)[0, 1], rtol=1e-4)
    of_both = jax.grad(lambda a, lp: i.token_covariance(a, lp, mask).sum(), (0, 1))
    assert all(not x.any() for x in of_both(jnp.asarray(advantage), jnp.asarray(log_prob)))


@pytest.mark.parametrize("share", [0.001, 0.3, 1.0])
def test_kl_cov_takes_the_greatest_covariances(share):
    advantage, log_prob, mask = random_tokens()
    covariance = np.asarray(i.token_covariance(*map(jnp.asarray, (advantage, log_prob, mask))))
    chosen = i.kl_cov_tokens(jnp.asarray(covariance), jnp.asarray(mask), share)
    there = [place for place in np.ndindex(mask.shape) if mask[place]]
    number = max(int(share * len(there)), 1)
    expected = np.zeros(mask.shape)
    for place in sorted(there, key=lambda place: -covariance[place])[:number]:
        expected[place] = 1
    np.testing.assert_array_equal(chosen, expected)


def test_equal_covariances_do_not_add_to_the_number():
    """As where all advantages are 0."""
    mask = jnp.ones((4, 5))
    assert float(i.kl_cov_tokens(jnp.zeros((4, 5)), mask, 0.25).sum()) == 5


def test_clip_cov_draws_within_its_bounds():
    covariance = jnp.asarray(RNG.normal(size=(6, 10)) * 3, jnp.float32)
    mask = jnp.asarray(RNG.random((6, 10)) < 0.8, jnp.float32)
    within = np.asarray((covariance >= 1) & (covariance <= 5) & (mask > 0))
    number = int(0.1 * mask.sum())
    assert 0 < number < within.sum() - 2
    draw = jax.jit(jax.vmap(lambda key: i.clip_cov_tokens(key, covariance, mask, 0.1, 1.0, 5.0)))
    drawn = np.asarray(draw(jax.random.split(jax.random.key(0), 2000)))
    assert (drawn.sum((1, 2)) == number).all()
    assert not drawn[:, ~within].any()
    shares = drawn[:, within].mean(0)  # each as often as the others
    chance = number / within.sum()
    np.testing.assert_allclose(shares, chance, atol=4 * math.sqrt(chance * (1 - chance) / 2000))
    few = i.clip_cov_tokens(jax.random.key(0), covariance, mask, 0.9, 1.0, 5.0)
    np.testing.assert_array_equal(few, within)


def test_entropy_falls_by_the_covariance():
    """What KL-Cov rests on: dH = -eta Cov(log pi, A) of a natural policy gradient step.

    And -eta Cov(log pi, pi A) of a plain one, for a softmax of logits (Cui et al. 2025, section 3).
    """
    counts = np.array([5, 3, 1, 1])  # tokens in the very proportions of the policy
    tokens = np.repeat(np.arange(4), counts)
    with jax.enable_x64(True):
        logits = jnp.log(jnp.asarray(counts / 10, jnp.float64))
        pi, value = jnp.exp(logits), jnp.array([0.7, -0.2, 1.5, -3.0], jnp.float64)
        advantage = value - pi @ value
        plain = jax.grad(lambda x: jax.nn.log_softmax(x) @ (pi * advantage))  # pi held still

        def covariance(of):
            rows = (of[tokens][None], logits[tokens][None], jnp.ones((1, 10)))
            return float(i.token_covariance(*rows).mean())

        def change(direction, eta):
            before, after = (Categorical(x).entropy() for x in (logits, logits + eta * direction))
            return float(after - before) / eta

        steps = [(advantage, advantage), (plain(logits), pi * advantage)]
        for direction, of in steps:
            slope = -covariance(of)
            assert abs(slope) > 0.01
            errors = [abs(change(direction, eta) - slope) for eta in (1e-3, 1e-4)]
            assert errors[1] < 1e-3
            assert errors[1] / errors[0] == pytest.approx(0.1, rel=0.1)  # of first order
        assert abs(covariance(advantage) - covariance(pi * advantage)) > 0.01
