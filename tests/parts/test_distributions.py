"""Distributions against quadrature, scipy and their own samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxrl.parts.distributions import (
    Beta,
    Categorical,
    Normal,
    TanhNormal,
    exploration,
    project_to_atoms,
)

SHAPES = [(0.0, 0.0), (0.7, -1.0), (-1.2, 0.5)]  # mean, log_std


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def one_dim(kind, mean, log_std):
    return kind(jnp.array([mean]), jnp.array([log_std]))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("mean", "log_std"), SHAPES)
def test_normal_by_quadrature(mean, log_std):
    dist = one_dim(Normal, mean, log_std)
    x = jnp.linspace(mean - 12 * np.exp(log_std), mean + 12 * np.exp(log_std), 20_001)
    log_prob = dist.log_prob(x[:, None])
    assert jnp.trapezoid(jnp.exp(log_prob), x) == pytest.approx(1, abs=1e-9)
    entropy = jnp.trapezoid(-jnp.exp(log_prob) * log_prob, x)
    assert dist.entropy() == pytest.approx(float(entropy), abs=1e-9)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("mean", "log_std"), SHAPES)
def test_tanh_normal_by_quadrature(mean, log_std):
    dist = one_dim(TanhNormal, mean, log_std)
    # Dense towards the edges, where the density is steep.
    action = jnp.tanh(jnp.linspace(-12, 12, 200_001))
    density = jnp.exp(dist.log_prob(action[:, None]))
    assert jnp.trapezoid(density, action) == pytest.approx(1, abs=1e-6)


@pytest.mark.usefixtures("float64")
def test_several_dimensions_are_independent():
    mean, log_std = jnp.array([0.3, -1.0]), jnp.array([-0.5, 0.2])
    action = jnp.array([[0.1, 0.4], [-0.9, 0.8]])
    for kind in (Normal, TanhNormal):
        parts = [
            one_dim(kind, mean[i], log_std[i]).log_prob(action[:, i : i + 1]) for i in range(2)
        ]
        np.testing.assert_allclose(kind(mean, log_std).log_prob(action), sum(parts), rtol=1e-12)
    expected = scipy.stats.multivariate_normal(mean, np.diag(np.exp(2 * log_std)))
    np.testing.assert_allclose(Normal(mean, log_std).log_prob(action), expected.logpdf(action))
    assert Normal(mean, log_std).entropy() == pytest.approx(expected.entropy())


def test_one_log_std_serves_a_batch_of_means():
    dist = Normal(jnp.zeros((5, 3)), jnp.full((3,), 0.5))
    assert dist.entropy().shape == (5,)
    np.testing.assert_allclose(
        dist.entropy(), 3 * (0.5 + 0.5 * np.log(2 * np.pi * np.e)), rtol=1e-6
    )
    assert dist.log_prob(dist.sample(jax.random.key(0))).shape == (5,)


def test_samples_have_the_moments_of_the_distribution():
    dist = Normal(jnp.full((40_000, 1), 2.0), jnp.array([-0.7]))
    sample = dist.sample(jax.random.key(0))
    assert sample.mean() == pytest.approx(2, abs=0.01)
    assert sample.std() == pytest.approx(np.exp(-0.7), abs=0.01)
    squashed = TanhNormal(*dist).sample(jax.random.key(0))
    np.testing.assert_allclose(squashed, jnp.tanh(sample), rtol=1e-6)


@pytest.mark.usefixtures("float64")
def test_tanh_normal_sample_comes_with_its_log_prob():
    dist = TanhNormal(jnp.linspace(-2, 2, 500)[:, None], jnp.array([-0.3]))
    action, log_prob = dist.sample_and_log_prob(jax.random.key(1))
    np.testing.assert_array_equal(action, dist.sample(jax.random.key(1)))
    np.testing.assert_allclose(log_prob, dist.log_prob(action), atol=1e-7)


def test_extreme_values_stay_finite():
    """In float32, where tanh rounds to 1 and a logit's probability to 0."""
    edge = jnp.array([[-1.0], [1.0], [0.999_999_9]])
    for mean in (-30.0, 0.0, 30.0):
        dist = one_dim(TanhNormal, mean, -5.0)
        action, log_prob = dist.sample_and_log_prob(jax.random.key(0))
        assert jnp.abs(action) <= 1
        assert jnp.isfinite(log_prob)
        assert jnp.isfinite(dist.log_prob(edge)).all()

    def squashed(mean):
        return one_dim(TanhNormal, mean, 0.0).sample_and_log_prob(jax.random.key(0))[1]

    assert jnp.isfinite(jax.grad(squashed)(30.0))

    def peaked(logits):
        dist = Categorical(logits)
        return dist.log_prob(jnp.array(1)) + dist.entropy()

    logits = jnp.array([1e4, -1e4, 0.0])
    assert jnp.isfinite(peaked(logits))
    assert jnp.isfinite(jax.grad(peaked)(logits)).all()
    assert Categorical(logits).entropy() == 0


def test_categorical_is_a_softmax():
    logits = np.array([[0.3, -1.0, 2.0], [0.0, 0.0, 0.0]], np.float32)
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    dist = Categorical(jnp.asarray(logits))
    for action in range(3):
        log_prob = dist.log_prob(jnp.full((2,), action))
        np.testing.assert_allclose(log_prob, np.log(probabilities[:, action]), rtol=1e-5)
    expected = [scipy.stats.entropy(row) for row in probabilities]
    np.testing.assert_allclose(dist.entropy(), expected, rtol=1e-5)
    assert dist.mode()[0] == 2


def test_noise_drawn_before_makes_the_same_samples():
    key, logits = jax.random.key(2), jnp.array([[0.1, 1.0, -2.0], [3.0, 0.0, 0.5]])
    for dist in (Categorical(logits), Normal(logits, 0.3 * logits)):
        by_noise = dist.sample_by(type(dist).noise(key, logits.shape))
        np.testing.assert_array_equal(by_noise, dist.sample(key))


def test_exploration_has_its_probability():
    explore, random = exploration(jax.random.key(1), (2000, 50, 4), 0.3)
    assert explore.shape == random.shape == (2000, 50)
    assert explore.mean() == pytest.approx(0.3, abs=4 * (0.21 / 100_000) ** 0.5)
    shares = np.bincount(np.ravel(random), minlength=4) / random.size
    np.testing.assert_allclose(shares, 0.25, atol=0.006)
    assert np.corrcoef(np.ravel(explore), np.ravel(random))[0, 1] == pytest.approx(0, abs=0.013)


def test_categorical_samples_with_its_probabilities():
    logits = jnp.array([0.3, -1.0, 2.0])
    sample = Categorical(jnp.broadcast_to(logits, (30_000, 3))).sample(jax.random.key(0))
    frequency = np.bincount(sample, minlength=3) / 30_000
    np.testing.assert_allclose(frequency, jax.nn.softmax(logits), atol=0.01)


@pytest.mark.usefixtures("float64")
def test_projection_keeps_mass_and_mean():
    atoms = jnp.linspace(-2.0, 2.0, 9)
    rng = np.random.default_rng(0)
    probs, places = rng.dirichlet(np.ones(9), 5), rng.uniform(-2, 2, (5, 9))
    moved = project_to_atoms(jnp.asarray(probs), jnp.asarray(places), atoms)
    np.testing.assert_allclose(moved.sum(-1), 1)
    np.testing.assert_allclose(moved @ atoms, (probs * places).sum(-1))
    outside = project_to_atoms(jnp.ones((1, 1)), jnp.array([[7.0]]), atoms)
    np.testing.assert_allclose(outside, [[0] * 8 + [1]])
    np.testing.assert_allclose(
        project_to_atoms(jnp.ones((1, 1)), jnp.array([[0.125]]), atoms)[0, 4:6], [0.75, 0.25]
    )


# Beta -------------------------------------------------------------------------------------------

ALPHAS, BETAS = np.array([1.0, 1.5, 3.0, 40.0]), np.array([1.0, 4.0, 1.2, 25.0])


@pytest.mark.usefixtures("float64")
def test_beta_is_scipy_s_on_the_box():
    """Each dimension by itself, and what a distribution of several sums up."""
    dist = Beta(jnp.asarray(ALPHAS), jnp.asarray(BETAS))
    reference = scipy.stats.beta(ALPHAS, BETAS, loc=-1, scale=2)
    alone = Beta(dist.alpha[:, None], dist.beta[:, None])
    action = np.linspace(-0.99, 0.99, 23)[:, None]
    log_prob = alone.log_prob(jnp.asarray(action)[..., None])
    np.testing.assert_allclose(log_prob, reference.logpdf(action), rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(alone.entropy(), reference.entropy(), rtol=1e-7, atol=1e-7)
    together = dist.log_prob(jnp.broadcast_to(jnp.asarray(action), (23, 4)))
    np.testing.assert_allclose(together, reference.logpdf(action).sum(-1), rtol=1e-7)
    assert dist.entropy() == pytest.approx(reference.entropy().sum())


@pytest.mark.usefixtures("float64")
def test_the_mode_of_beta_is_its_densest_action():
    alone = Beta(jnp.asarray(ALPHAS)[:, None], jnp.asarray(BETAS)[:, None])
    action = jnp.linspace(-1, 1, 40_001)
    density = alone.log_prob(action[:, None, None])
    densest = action[density.argmax(axis=0)]
    np.testing.assert_allclose(alone.mode()[1:, 0], densest[1:], atol=1e-4)
    assert alone.mode()[0, 0] == 0  # of the uniform one


@pytest.mark.usefixtures("float64")
def test_divergence_of_beta_by_quadrature():
    rng = np.random.default_rng(0)
    one, other = (Beta(*jnp.asarray(1 + rng.gamma(2.0, size=(2, 5, 1)))) for _ in range(2))
    # Gauss-Legendre: the integrand is smooth, or nearly.
    points, weights = np.polynomial.legendre.leggauss(400)
    action = jnp.asarray(points)[:, None, None]
    log_one, log_other = one.log_prob(action), other.log_prob(action)
    expected = (weights[:, None] * jnp.exp(log_one) * (log_one - log_other)).sum(axis=0)
    np.testing.assert_allclose(one.kl(other), expected, rtol=1e-4)
    np.testing.assert_allclose(one.kl(one), 0, atol=1e-12)
    both = Beta(one.alpha[:2, 0], one.beta[:2, 0]).kl(Beta(other.alpha[:2, 0], other.beta[:2, 0]))
    assert both == pytest.approx(float(expected[:2].sum()), rel=1e-4)


def test_samples_of_beta_are_of_its_distribution_and_within_the_box():
    keys = Beta.noise(jax.random.key(0), (2, 20_000, 3))
    assert keys.shape == (2,)
    alpha, beta = jnp.array([1.5, 3.0, 40.0]), jnp.array([4.0, 1.2, 25.0])
    dist = Beta(jnp.broadcast_to(alpha, (20_000, 3)), jnp.broadcast_to(beta, (20_000, 3)))
    sample, other = (np.asarray(dist.sample_by(key)) for key in keys)
    assert (sample != other).any()
    for i in range(3):
        reference = scipy.stats.beta(alpha[i], beta[i], loc=-1, scale=2)
        assert scipy.stats.kstest(sample[:, i], reference.cdf).pvalue > 1e-3


def test_the_edges_of_beta_s_box_are_finite():
    dist = Beta(jnp.array([5.0]), jnp.array([3.0]))
    log_prob, slope = jax.vmap(jax.value_and_grad(lambda a: dist.log_prob(a)))(
        jnp.array([[-1.0], [1.0]])
    )
    assert np.isfinite(log_prob).all()
    assert np.isfinite(slope).all()
    extreme = Beta.of_outputs(jnp.array([60.0, -60.0]))
    np.testing.assert_allclose([extreme.alpha[0], extreme.beta[0]], [61, 1], rtol=1e-6)
    sample = extreme.sample(jax.random.key(0))
    assert abs(sample.item()) < 1
    assert np.isfinite(extreme.log_prob(sample))
