"""Active sampling against quadrature, on a bandit of one normal action; limits and fits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from jaxrl.parts.active_sampling import DefensiveMixture, limited, moved, score, weighted_moments
from jaxrl.parts.distributions import Categorical, Normal

STD = 0.5
REWARDS = {
    "quadratic": lambda a: -((a - 1.2) ** 2),
    "linear": lambda a: a,
    "peaked": lambda a: np.exp(-0.5 * ((a - 0.85) / 0.4) ** 2),
}
GRID = np.linspace(-9, 9, 18_001)
STEP = GRID[1] - GRID[0]


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def policy():
    return Normal(jnp.zeros(1), jnp.log(jnp.full(1, STD)))


def nodes(reward):
    """Actions (n, 1), the policy's weights (n,) of a quadrature, advantages (n,), scores (n, 2)."""
    action = jnp.asarray(GRID)[:, None]
    weight = np.asarray(jnp.exp(policy().log_prob(action))) * STEP
    values = REWARDS[reward](GRID)
    return action, weight, values - (weight * values).sum(), np.asarray(score(policy(), action))


def fitted(reward):
    """The normal nearest to the best density."""
    action, weight, advantage, scores = nodes(reward)
    size = np.abs(advantage) * np.linalg.norm(scores, axis=-1)
    residual = weighted_moments(policy(), action, jnp.asarray(weight * size))
    return moved(policy(), residual)


@pytest.mark.parametrize(
    ("reward", "own_share", "ratio"),
    [
        ("quadratic", 0.0, 0.175),
        ("quadratic", 0.1, 0.187),
        ("linear", 0.0, 0.223),
        ("linear", 0.1, 0.238),
        ("peaked", 0.0, 0.427),
        ("peaked", 0.1, 0.449),
    ],
)
def test_variance_beside_that_of_the_policys_own_actions(reward, own_share, ratio):
    action, weight, advantage, scores = nodes(reward)
    mixture = DefensiveMixture(policy(), fitted(reward), own_share)
    pi_over_q = np.exp(policy().log_prob(action) - mixture.log_prob(action))
    gradients = advantage[:, None] * scores
    mean = (weight[:, None] * gradients).sum(axis=0)
    second = (gradients**2).sum(axis=-1)

    def variance(weights):
        return (weights * second).sum() - (mean**2).sum()

    assert variance(weight * pi_over_q) / variance(weight) == pytest.approx(ratio, rel=0.015)


@pytest.mark.parametrize("own_share", [0.1, 0.5])
def test_samples_are_those_of_its_density_and_the_estimate_has_no_bias(own_share):
    """Moments of samples, and the mean of weighted gradients, against quadrature."""
    action, weight, advantage, scores = nodes("peaked")
    mixture = DefensiveMixture(policy(), fitted("peaked"), own_share)
    density = np.exp(mixture.log_prob(action)) * STEP
    np.testing.assert_allclose(density.sum(), 1, atol=1e-9)
    keys, n = jax.random.split(jax.random.key(0)), 200_000
    noise = jax.random.uniform(keys[0], (n,)), Normal.noise(keys[1], (n, 1))
    samples = np.asarray(mixture.sample_by(noise))

    def agrees(values, expected):
        error = values.std(axis=0) / n**0.5
        assert (np.abs(values.mean(axis=0) - expected) < 4 * error).all()

    for power in (1, 2, 4):
        agrees(samples[:, 0] ** power, (density * GRID**power).sum())
    ratio = np.exp(policy().log_prob(samples) - mixture.log_prob(samples))
    assert ratio.max() <= 1 / own_share
    of_samples = np.interp(samples[:, 0], GRID, advantage)
    gradients = (ratio * of_samples)[:, None] * np.asarray(score(policy(), samples))
    agrees(gradients, (weight[:, None] * advantage[:, None] * scores).sum(axis=0))


def test_ratios_stay_below_the_inverse_share():
    """Also far outside, where the active policy has no mass; without the share they explode."""
    far, narrow = jnp.full((1,), 3.0), jnp.log(jnp.full((1,), 0.1))
    for own_share in (0.05, 0.1, 1.0):
        mixture = DefensiveMixture(policy(), Normal(far, narrow), own_share)
        action = jnp.asarray(GRID)[:, None]
        ratio = np.exp(policy().log_prob(action) - mixture.log_prob(action))
        assert ratio.max() <= 1 / own_share * (1 + 1e-12)
        assert ratio.max() == pytest.approx(1 / own_share)
    active = Normal(jnp.zeros(1), narrow)
    alone = DefensiveMixture(policy(), active, 0.0)
    np.testing.assert_allclose(alone.log_prob(action), active.log_prob(action))


def test_a_mixture_of_discrete_policies():
    own, active = Categorical(jnp.array([0.0, 1.0, 2.0])), Categorical(jnp.array([3.0, 0.0, 0.0]))
    mixture = DefensiveMixture(own, active, 0.3)
    expected = 0.3 * jax.nn.softmax(own.logits) + 0.7 * jax.nn.softmax(active.logits)
    np.testing.assert_allclose(np.exp(jax.vmap(mixture.log_prob)(jnp.arange(3))), expected)
    keys, n = jax.random.split(jax.random.key(0)), 100_000
    noise = jax.random.uniform(keys[0], (n,)), Categorical.noise(keys[1], (n, 3))
    drawn = np.bincount(mixture.sample_by(noise), minlength=3) / n
    np.testing.assert_allclose(drawn, expected, atol=0.01)


def test_score_is_the_gradient():
    rng = np.random.default_rng(0)
    mean, log_std, action = rng.normal(size=(3, 2))
    of_outputs = jax.grad(lambda x: Normal(*jnp.split(x, 2)).log_prob(action))
    expected = of_outputs(jnp.concatenate([mean, log_std]))
    # The first D are by the mean, the rest by the log-deviation.
    np.testing.assert_allclose(score(Normal(mean, log_std), action), expected)
    logits = jnp.asarray(rng.normal(size=4))
    expected = jax.grad(lambda x: Categorical(x).log_prob(jnp.array(2)))(logits)
    np.testing.assert_allclose(score(Categorical(logits), jnp.array(2)), expected, atol=1e-12)


def test_weighted_moments_are_the_weighted_maximum_likelihood():
    rng = np.random.default_rng(0)
    dist = Normal(jnp.asarray(rng.normal(size=(50, 2))), jnp.array([0.3, -0.7]))
    action, weight = jnp.asarray(rng.normal(size=(50, 2))), jnp.asarray(rng.random(50))

    @jax.jit
    @jax.value_and_grad
    def loss(residual):
        return -(weight * moved(dist, residual).log_prob(action)).mean()

    best = minimize(lambda x: tuple(map(np.asarray, loss(x))), np.zeros(4), jac=True, tol=1e-12)
    np.testing.assert_allclose(weighted_moments(dist, action, weight), best.x, atol=1e-5)
    assert not weighted_moments(dist, action, 0 * weight).any()


@pytest.mark.parametrize("max_kl", [0.0, 0.5])
@pytest.mark.parametrize("kind", ["normal", "categorical"])
def test_the_limit_is_held_and_all_of_it_is_used(kind, max_kl):
    rng = np.random.default_rng(0)
    residual = jnp.asarray(rng.normal(size=(200, 4)) * rng.exponential(size=(200, 1)))
    if kind == "normal":
        dist = Normal(jnp.asarray(rng.normal(size=(200, 2))), jnp.array([0.3, -0.7]))
    else:
        dist = Categorical(jnp.asarray(rng.normal(size=(200, 4))))
    kl = np.asarray(limited(dist, residual, max_kl).kl(dist))
    free = np.asarray(moved(dist, residual).kl(dist))
    within = free <= max_kl
    assert (kl <= max_kl + 1e-12).all()
    np.testing.assert_allclose(kl[within], free[within])
    # Elsewhere a share larger by one part in 256 would be too much.
    assert (kl[~within] >= max_kl * 0.9 - 0.01).all()
    assert (~within).any()
    if max_kl == 0.5:
        assert within.any()
