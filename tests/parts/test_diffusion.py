"""Mixtures, steps of samplers and what they cost, against closed forms, autodiff and quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxrl.parts.diffusion import Mixture, Step, cosine_levels, ddim_step, grid_kl, next_density
from jaxrl.parts.distributions import Normal

pytestmark = pytest.mark.usefixtures("compiled_quickly")

WEIGHTS, MEANS, STD = np.array([0.3, 0.7]), np.array([[1.0, -0.5], [-0.8, 0.4]]), 0.6
KEY = jax.random.key(0)


@pytest.fixture
def mixture():
    with jax.enable_x64():
        yield Mixture(jnp.log(jnp.asarray(WEIGHTS)), jnp.asarray(MEANS), STD)


def plain_density(x, signal=1.0, noise=0.0):
    std = np.hypot(signal * STD, noise)
    each = [stats.norm.pdf(x, signal * mean, std).prod(axis=-1) for mean in MEANS]
    return sum(w * p for w, p in zip(WEIGHTS, each, strict=True))


def grid(extent=5.0, points=121):
    axis = np.linspace(-extent, extent, points)
    return axis, np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1)


def test_density_of_a_mixture_with_noise(mixture):
    x = np.array([[0.2, -1.0], [3.0, 0.5]])
    np.testing.assert_allclose(np.exp(mixture.log_prob(x)), plain_density(x), rtol=1e-12)
    noised = mixture.noised(0.8, 0.5)
    np.testing.assert_allclose(np.exp(noised.log_prob(x)), plain_density(x, 0.8, 0.5), rtol=1e-12)


def test_samples_have_the_moments(mixture):
    x = np.asarray(mixture.sample(KEY, (20_000,)))
    mean = WEIGHTS @ MEANS
    spread = (MEANS - mean).T @ (WEIGHTS[:, None] * (MEANS - mean)) + STD**2 * np.eye(2)
    np.testing.assert_allclose(x.mean(axis=0), mean, atol=0.03)
    np.testing.assert_allclose(np.cov(x.T), spread, atol=0.03)


def test_denoising_is_tweedies_of_the_exact_score(mixture):
    """E[x_0 | x] = (x + b^2 score) / a, and cov = b^2 / a^2 (1 + b^2 grad score)."""
    signal, noise, x = 0.7, 0.9, jnp.array([0.4, -0.3])
    log_prob = mixture.noised(signal, noise).log_prob
    mean, variance = mixture.denoise(x, signal, noise)
    score, bend = jax.grad(log_prob)(x), jax.hessian(log_prob)(x)
    np.testing.assert_allclose(mean, (x + noise**2 * score) / signal, rtol=1e-12)
    covariance = (noise / signal) ** 2 * (np.eye(2) + noise**2 * bend)
    np.testing.assert_allclose(variance, np.trace(covariance) / 2, rtol=1e-12)


def test_without_signal_the_clean_point_is_any(mixture):
    mean, variance = mixture.denoise(jnp.array([3.0, 1.0]), jnp.array(0.0), jnp.array(1.0))
    np.testing.assert_allclose(mean, WEIGHTS @ MEANS, rtol=1e-12)
    between = (WEIGHTS[:, None] * (MEANS - WEIGHTS @ MEANS) ** 2).sum(axis=0)
    np.testing.assert_allclose(variance, STD**2 + between.mean(), rtol=1e-12)


def test_tilted_mixture(mixture):
    """p exp(slope . x) / Z, by quadrature."""
    slope = jnp.array([0.9, -1.4])
    tilted, log_partition = mixture.tilted(slope)
    axis, x = grid(8.0, 201)
    weighted = plain_density(x) * np.exp(x @ np.asarray(slope))
    partition = weighted.sum() * (axis[1] - axis[0]) ** 2
    np.testing.assert_allclose(np.exp(log_partition), partition, rtol=1e-9)
    np.testing.assert_allclose(np.exp(tilted.log_prob(x)), weighted / partition, rtol=1e-9)


def test_levels():
    signal, noise = cosine_levels(4)
    assert signal.dtype == noise.dtype == jnp.float32
    np.testing.assert_allclose(signal**2 + noise**2, 1, rtol=1e-6)
    assert (float(signal[0]), float(noise[0])) == (1, 0)
    assert (float(signal[-1]), float(noise[-1])) == (0, 1)
    assert bool((jnp.diff(noise) > 0).all())


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("num_steps", [1, 3])
def test_steps_are_exact_for_a_normal(eta, num_steps):
    """From N(0, 1) to N(mean, std^2), by moments that are carried along."""
    with jax.enable_x64():
        levels = cosine_levels(num_steps)
        goal, std = np.array([[1.5, -0.5]]), 0.4
        one = Mixture(jnp.zeros(1), jnp.asarray(goal), std)
        mean, variance = np.zeros(2), 1.0
        for k in range(num_steps, 0, -1):
            signal, noise = (x[k - 1 : k + 1].astype(float) for x in levels)

            def step(x, signal=signal, noise=noise):
                clean = one.denoise(x, signal[1], noise[1])
                return ddim_step(x, *clean, signal, noise, eta)

            law = step(jnp.asarray(mean))
            slope = np.asarray(step(jnp.asarray(mean + 1)).mean - law.mean)
            np.testing.assert_allclose(slope, slope[0])  # it is linear, and in both alike
            mean = np.asarray(law.mean)
            variance = slope[0] ** 2 * variance + float(law.spread**2 + law.noise**2)
        np.testing.assert_allclose(mean, goal[0], rtol=1e-6)
        np.testing.assert_allclose(variance, std**2, rtol=1e-6)


def test_eta_says_how_much_of_the_noise_is_the_steps_own():
    with jax.enable_x64():
        signal, noise = jnp.array([0.8, 0.5]), jnp.sqrt(1 - jnp.array([0.8, 0.5]) ** 2)
        step = ddim_step(jnp.ones(2), jnp.zeros(2), jnp.array(0.5), signal, noise, 0.5)
    noise = np.asarray(noise)
    ddpm = noise[0] / noise[1] * np.sqrt(1 - (0.5 / 0.8) ** 2)
    np.testing.assert_allclose(step.noise, 0.5 * ddpm, rtol=1e-12)
    direction = np.sqrt(noise[0] ** 2 - (0.5 * ddpm) ** 2)  # eq. 12: a_s x_0 + direction eps
    np.testing.assert_allclose(step.mean, np.ones(2) * direction / noise[1], rtol=1e-12)
    pull = 0.8 - direction * 0.5 / noise[1]
    np.testing.assert_allclose(step.spread, pull * np.sqrt(0.5), rtol=1e-12)


def test_a_controlled_step_and_its_cost():
    with jax.enable_x64():
        step = Step(jnp.array([0.3, -1.0]), jnp.array(0.7), jnp.array(0.4))
        own = step.controlled(jnp.zeros(2), jnp.ones(2))
        np.testing.assert_allclose(jnp.exp(2 * own.log_std), 0.49 + 0.16)
        assert float(step.cost(jnp.zeros(2), jnp.ones(2))) == 0
        shift, scale = jnp.array([1.2, -0.4]), jnp.array([0.5, 1.8])
        law = step.controlled(shift, scale)
        np.testing.assert_allclose(law.mean, np.array([0.3, -1.0]) + 0.7 * shift)
        np.testing.assert_allclose(jnp.exp(2 * law.log_std), 0.16 + 0.49 * scale**2)
        cost = float(step.cost(shift, scale))
        np.testing.assert_allclose(cost, law.kl(own), rtol=1e-12)
        control = Normal(shift, jnp.log(scale)).kl(Normal(jnp.zeros(2), jnp.zeros(2)))
        assert cost < float(control)
        np.testing.assert_allclose(
            Step(step.mean, step.spread, jnp.array(0.0)).cost(shift, scale), control, rtol=1e-12
        )


def test_the_density_after_a_step_is_an_integral(mixture):
    """A linear step of a mixture, whose law is known; and mass stays."""
    axis, x = grid()
    step = Normal(0.5 * jnp.asarray(x) + 0.2, jnp.full(x.shape, np.log(0.3)))
    after = next_density(jnp.asarray(plain_density(x)), step, jnp.asarray(axis))
    expected = plain_density(x - 0.2, 0.5, 0.3)
    np.testing.assert_allclose(after, expected, atol=1e-9)
    assert float(after.sum()) * (axis[1] - axis[0]) ** 2 == pytest.approx(1)


def test_the_density_after_a_step_by_a_plain_loop():
    rng = np.random.default_rng(0)
    axis, x = grid(1.0, 4)
    density, mean, std = rng.random((4, 4)), rng.normal(size=x.shape), rng.uniform(1, 2, x.shape)
    expected = np.zeros((4, 4))
    for i, j, a, b in np.ndindex(4, 4, 4, 4):
        kernel = stats.norm.pdf(x[a, b], mean[i, j], std[i, j]).prod()
        expected[a, b] += density[i, j] * kernel * (axis[1] - axis[0]) ** 2
    with jax.enable_x64():
        step = Normal(jnp.asarray(mean), jnp.log(jnp.asarray(std)))
        found = next_density(jnp.asarray(density), step, jnp.asarray(axis))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_divergence_on_a_grid_where_a_density_vanishes():
    axis = jnp.linspace(-1, 1, 3)
    density = jnp.zeros((3, 3)).at[1, 1].set(1.0)
    assert float(grid_kl(density, jnp.full((3, 3), -0.5), axis)) == 0.5
