"""Functions of verified answers against float64 loops and enumeration."""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.parts import sequences as s
from jaxrl.parts.losses import keep_probability

RNG = np.random.default_rng(0)


def test_an_answer_ends_with_its_first_end_token():
    tokens = RNG.integers(0, 3, (50, 6))
    mask = np.ones((50, 6))
    for row, out in zip(tokens, mask, strict=True):
        ends = [i for i in range(6) if row[i] == 2]
        if ends:
            out[ends[0] + 1 :] = 0
    np.testing.assert_array_equal(s.answer_mask(jnp.asarray(tokens), 2), mask)
    assert float(s.answer_mask(jnp.asarray(tokens), -1).min()) == 1


@pytest.mark.parametrize("weigh", ["token", "answer", "sum"])
def test_means_over_tokens(weigh):
    x = RNG.normal(size=(5, 4))
    mask = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0]])
    rows = [[x[i, j] for j in range(4) if mask[i, j]] for i in range(5)]
    rows = [row for row in rows if row]  # an answer that was left out counts in no mean
    expected = {
        "token": sum(map(sum, rows)) / sum(map(len, rows)),
        "answer": sum(sum(row) / len(row) for row in rows) / len(rows),
        "sum": sum(map(sum, rows)) / len(rows),
    }[weigh]
    got = s.mean_of_tokens(jnp.asarray(np.where(mask, x, np.nan)), jnp.asarray(mask), weigh)
    assert float(got) == pytest.approx(expected, abs=1e-6)
    nothing = s.mean_of_tokens(jnp.asarray(x), jnp.zeros((5, 4)), weigh)
    assert float(nothing) == 0


def test_what_is_masked_has_no_gradient():
    mask = jnp.array([[1.0, 0.0]])
    x = jnp.array([[2.0, jnp.inf]])
    for weigh in ("token", "answer", "sum"):
        gradient = jax.grad(partial(s.mean_of_tokens, mask=mask, weigh=weigh))(x)
        np.testing.assert_allclose(gradient, [[1.0, 0.0]])


@pytest.mark.parametrize("divide", [False, True])
@pytest.mark.parametrize("baseline", ["mean", "others", "none"])
def test_group_advantages(baseline, divide):
    rewards = RNG.normal(size=(3, 4))
    expected = np.empty_like(rewards)
    for i, j in itertools.product(range(3), range(4)):
        others = [rewards[i, k] for k in range(4) if k != j]
        base = {"mean": rewards[i].mean(), "others": np.mean(others), "none": 0.0}[baseline]
        expected[i, j] = (rewards[i, j] - base) / (rewards[i].std() + 1e-4 if divide else 1)
    got = s.group_advantages(jnp.asarray(rewards), baseline, divide)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_every_channel_has_its_own_scale():
    rewards = RNG.normal(size=(3, 4, 2))
    scaled = rewards * [1, 100]
    a, b = (s.group_z_score(jnp.asarray(x)) for x in (rewards, scaled))
    np.testing.assert_allclose(a[..., 0], b[..., 0], rtol=1e-5)
    np.testing.assert_allclose(a[..., 1], b[..., 1], rtol=2e-3, atol=1e-3)  # but for the 1e-4


def test_divergences_on_average():
    """k1 and k3 have the exact divergence as their mean, and the gradient of k2 is that of KL."""
    p, q = (jax.nn.log_softmax(jnp.asarray(RNG.normal(size=5))) for _ in "pq")
    exact = float((jnp.exp(p) * (p - q)).sum())
    for estimator in ("k1", "k3"):
        mean = (jnp.exp(p) * s.kl_estimate(p - q, estimator)).sum()
        assert float(mean) == pytest.approx(exact, rel=1e-5)

    def divergence(logits):
        log_p = jax.nn.log_softmax(logits)
        return (jnp.exp(log_p) * (log_p - q)).sum()

    def estimated(logits):  # samples of p, whose probabilities are not differentiated
        return (jnp.exp(p) * s.kl_estimate(jax.nn.log_softmax(logits) - q, "k2")).sum()

    np.testing.assert_allclose(jax.grad(estimated)(p), jax.grad(divergence)(p), atol=1e-6)


def test_the_surrogate_case_by_case():
    low, high = 0.2, 0.28
    for ratio, advantage in itertools.product((0.5, 0.9, 1.0, 1.2, 1.3, 2.0), (-2.0, 0.0, 3.0)):
        clipped = min(max(ratio, 1 - low), 1 + high)
        value, slope = jax.value_and_grad(
            lambda r: s.clipped_surrogate(r, advantage, low, high)  # noqa: B023
        )(ratio)
        assert float(value) == pytest.approx(min(ratio * advantage, clipped * advantage), rel=1e-6)
        cut = (advantage > 0 and ratio > 1 + high) or (advantage < 0 and ratio < 1 - low)
        assert float(slope) == (0 if cut else advantage)


def test_what_is_kept_beyond_the_range():
    def surrogate(ratio):
        kept = keep_probability(ratio, jnp.ones(()), 0.2, 0.2, 0.2)
        return s.clipped_surrogate(ratio, 1.0, 0.2, 0.2, kept)

    slopes = [float(jax.grad(surrogate)(jnp.asarray(r))) for r in (1.1, 1.25, 1.4, 1.6)]
    np.testing.assert_allclose(slopes, [1, 0.4, 1 / 7, 0], atol=1e-5)


def test_the_best_of_k_is_that_of_all_choices():
    rewards = RNG.normal(size=6)
    for k in (1, 2, 5, 6):
        best = [max(choice) for choice in itertools.combinations(rewards, k)]
        assert len(best) == math.comb(6, k)
        assert float(s.best_of(jnp.asarray(rewards), k)) == pytest.approx(np.mean(best), rel=1e-5)
    with pytest.raises(ValueError, match="k=7 is not from 1 to the 6 answers"):
        s.best_of(jnp.asarray(rewards), 7)
