"""Random features against their kernel, and the head whose deviation rises off the data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.parts.losses import faithful_loss
from jaxrl.parts.random_features import RandomFeatures, stationary_normal

KEY = jax.random.key(0)


@pytest.mark.parametrize("number", [64, 4096])
def test_features_have_unit_length_in_and_out_of_distribution(number):
    """|phi|^2 - 1 is a mean of K cosines: of deviation 1 / sqrt(2 K), wherever h is."""
    features = RandomFeatures.draw(KEY, 8, number)
    near = jax.random.normal(jax.random.key(1), (200, 8))
    for h in (near, 100 * near, near + 1000):
        excess = (features(h) ** 2).sum(axis=-1) - 1
        assert np.abs(excess).max() < 5 / np.sqrt(2 * number)
        assert np.std(excess) < 2 / np.sqrt(2 * number)


def test_features_have_the_gaussian_kernel():
    features = RandomFeatures.draw(KEY, 3, 40_000)
    h = jnp.array([[0.0, 0.0, 0.0], [0.5, 0.0, 0.0], [0.0, 1.0, 1.0], [3.0, 3.0, 3.0]]) + 7.0
    phi = features(h)
    distances = ((h[:, None] - h[None]) ** 2).sum(axis=-1)
    np.testing.assert_allclose(phi @ phi.T, jnp.exp(-distances / 2), atol=0.025)


def test_the_head_is_a_linear_model_with_normal_weights():
    """Mean and variance of predictions with drawn weights, in double precision."""
    rng = np.random.default_rng(0)
    phi, mean = rng.normal(size=(2, 4)), rng.normal(size=(4, 3))
    log_variance = rng.normal(size=(4, 3))
    drawn = mean + np.exp(0.5 * log_variance) * rng.normal(size=(200_000, 4, 3))
    predicted = np.einsum("bk,nkd->nbd", phi, drawn) + 0.5 * rng.normal(size=(200_000, 2, 3))
    dist = stationary_normal(*map(jnp.asarray, (phi, mean, log_variance)), 0.5)
    np.testing.assert_allclose(dist.mean, predicted.mean(axis=0), atol=0.03)
    np.testing.assert_allclose(jnp.exp(dist.log_std), predicted.std(axis=0), rtol=0.01)


def test_no_gradient_reaches_features_by_the_variance():
    phi, ones = jnp.array([0.6, 0.8]), jnp.ones((2, 1))
    of_std = jax.grad(lambda phi: stationary_normal(phi, ones, ones, 0.1).log_std.sum())(phi)
    of_mean = jax.grad(lambda phi: stationary_normal(phi, ones, ones, 0.1).mean.sum())(phi)
    np.testing.assert_array_equal(of_std, 0)
    np.testing.assert_array_equal(of_mean, 1)


def test_the_faithful_loss_learns_the_mean_as_least_squares_do():
    """d/d mean = mean - y whatever the deviation; d/d log std = 1 - ((y - mean) / std)^2."""
    mean, target = jnp.array([[0.5, -1.0]]), jnp.array([[2.0, 0.0]])
    for log_std in (jnp.full((1, 2), -3.0), jnp.array([[0.0, 2.0]])):
        by_mean, by_std = jax.grad(lambda m, s: faithful_loss(m, s, target).sum(), (0, 1))(
            mean, log_std
        )
        np.testing.assert_allclose(by_mean, mean - target, rtol=1e-6)
        expected = 1 - ((target - mean) * jnp.exp(-log_std)) ** 2
        np.testing.assert_allclose(by_std, expected, rtol=1e-5)
