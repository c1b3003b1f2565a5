"""Diffusion samplers with few noisy steps, what it costs to control them, and exact targets."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl.parts.bridge import step_cost
from jaxrl.parts.distributions import Normal


class Mixture(NamedTuple):
    """Normals of one deviation: `log_weights` (J,), normalised, `means` (J, D), `std` ().

    >>> peaks = Mixture(jnp.log(jnp.array([0.25, 0.75])), jnp.array([[-1.0], [1.0]]), 0.5)
    >>> float(peaks.log_prob(jnp.array([1.0])))
    -0.513
    """

    log_weights: jax.Array
    means: jax.Array
    std: jax.Array | float

    def log_probs(self, x: jax.Array) -> jax.Array:
        """log (weight x density) of each normal at x (..., D): (..., J)."""
        normals = Normal(self.means, jnp.log(self.std) + jnp.zeros_like(self.means))
        return self.log_weights + normals.log_prob(x[..., None, :])

    def log_prob(self, x: jax.Array) -> jax.Array:
        """Log-density (...) at x (..., D)."""
        return jax.nn.logsumexp(self.log_probs(x), axis=-1)

    def sample(self, key: jax.Array, shape: tuple[int, ...] = ()) -> jax.Array:
        """Samples (*shape, D)."""
        which_key, noise_key = jax.random.split(key)
        which = jax.random.categorical(which_key, self.log_weights, shape=shape)
        noise = jax.random.normal(noise_key, (*shape, self.means.shape[1]), self.means.dtype)
        return self.means[which] + self.std * noise

    def noised(self, signal: jax.Array, noise: jax.Array) -> Mixture:
        """The law of signal x_0 + noise eps, x_0 of this mixture and eps normal."""
        std = jnp.sqrt((signal * self.std) ** 2 + noise**2)
        return Mixture(self.log_weights, signal * self.means, std)

    def denoise(
        self, x: jax.Array, signal: jax.Array, noise: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Mean (..., D) of x_0 given x = signal x_0 + noise eps (..., D), and its variance (...).

        The mean is Tweedie's, (x + noise^2 score(x)) / signal, of the exact score; written so that
        it also holds without any signal. The variance is the mean of the D dimensions'.
        """
        chance = jax.nn.softmax(self.noised(signal, noise).log_probs(x))[..., None]  # (..., J, 1)
        gain = signal * self.std**2 / ((signal * self.std) ** 2 + noise**2)
        means = self.means + gain * (x[..., None, :] - signal * self.means)  # (..., J, D)
        mean = (chance * means).sum(axis=-2)
        between = (chance * (means - mean[..., None, :]) ** 2).sum(axis=-2).mean(axis=-1)
        return mean, (1 - signal * gain) * self.std**2 + between

    def tilted(self, slope: jax.Array) -> tuple[Mixture, jax.Array]:
        """The mixture of density p(x) exp(slope . x) / Z for a slope (D,), and log Z.

        >>> peaks = Mixture(jnp.zeros(1), jnp.zeros((1, 2)), 0.5)
        >>> tilted, log_partition = peaks.tilted(jnp.array([4.0, 0.0]))
        >>> tilted.means.tolist(), float(log_partition)
        ([[1.0, 0.0]], 2.0)
        """
        log_weights = self.log_weights + self.means @ slope
        log_sum = jax.nn.logsumexp(log_weights)
        log_partition = log_sum + 0.5 * self.std**2 * (slope**2).sum()
        means = self.means + self.std**2 * slope
        return Mixture(log_weights - log_sum, means, self.std), log_partition


def cosine_levels(num_steps: int) -> tuple[jax.Array, jax.Array]:
    """Signal and noise (K + 1,) of x_k = signal_k x_0 + noise_k eps, whose squares add up to 1.

    They are cos and sin of pi k / 2 K: at k = 0 there is no noise, at k = K no signal.
    """
    angle = jnp.linspace(0, jnp.pi / 2, num_steps + 1, dtype=jnp.float32)
    signal, noise = jnp.cos(angle), jnp.sin(angle)
    return signal.at[-1].set(0), noise.at[0].set(0)


class Step(NamedTuple):
    """A step of a sampler, x = mean + spread z + noise eps with z and eps standard normal.

    The first of them is the clean point that the step heads for, and what is controlled: instead of
    N(0, 1), z is drawn from a policy's N(shift, scale^2).

    Attributes:
        mean: (..., D).
        spread, noise: (...).
    """

    mean: jax.Array
    spread: jax.Array
    noise: jax.Array

    def controlled(self, shift: jax.Array, scale: jax.Array) -> Normal:
        """The law of x (..., D) where z is N(shift, scale^2), both (..., D)."""
        spread, noise = self.spread[..., None], self.noise[..., None]
        variance = noise**2 + (spread * scale) ** 2
        return Normal(self.mean + spread * shift, 0.5 * jnp.log(variance))

    def cost(self, shift: jax.Array, scale: jax.Array) -> jax.Array:
        """KL divergence (...) of the controlled step from this one; 0 for shift 0 and scale 1.

        With the share r = spread^2 / (spread^2 + noise^2) of the variance that is controlled,

            1/2 sum_d [r (scale^2 - 1) - log(1 + r (scale^2 - 1)) + r shift^2],

        which is never more than the divergence of z itself, where r is 1.

        >>> step = Step(jnp.zeros(1), spread=jnp.array(1.0), noise=jnp.array(1.0))
        >>> float(step.cost(shift=jnp.array([2.0]), scale=jnp.array([1.0])))
        1.0
        """
        share = (self.spread**2 / (self.spread**2 + self.noise**2))[..., None]
        variance = 1 + share * (scale**2 - 1)
        return step_cost(jnp.sqrt(variance), share * shift**2)


def ddim_step(
    x: jax.Array,
    clean: jax.Array,
    variance: jax.Array,
    signal: jax.Array,
    noise: jax.Array,
    eta: float | jax.Array = 1.0,
) -> Step:
    """The step from x (..., D) at one noise level to the next lower.

    DDIM's (Song, Meng & Ermon 2021, arXiv:2010.02502, eq. 12), with noise `eta` times that of DDPM,
    heads for the predicted clean point x_0. Here x_0 is drawn, with the mean and the variance that
    it has given x: (Bao et al. 2022, arXiv:2201.06503, for eta = 1). So a step of any length is
    exact for a normal of equal deviations, and the last one has noise, too.

    Args:
        clean: the mean (..., D) of x_0 given x.
        variance: and its variance (...) in each dimension.
        signal, noise: (2,), of the next level and of that of x.
    """
    to, at = noise
    ddpm = (to / at) * jnp.sqrt(jnp.maximum(1 - (signal[1] / signal[0]) ** 2, 0))
    own = eta * ddpm
    direction = jnp.sqrt(jnp.maximum(to**2 - own**2, 0)) / at
    pull = signal[0] - direction * signal[1]
    spread = pull * jnp.sqrt(variance)
    return Step(pull * clean + direction * x, spread, jnp.broadcast_to(own, spread.shape))


def square_grid(axis: jax.Array) -> jax.Array:
    """The points (A, A, 2) of a grid over two dimensions: (i, j) is (axis[i], axis[j])."""
    return jnp.stack(jnp.meshgrid(axis, axis, indexing="ij"), axis=-1)


def next_density(density: jax.Array, step: Normal, axis: jax.Array) -> jax.Array:
    """The density (A, A) on a square grid after a step from a density (A, A) on it.

    An integral over the grid, which is as good as exact where cells are no wider than the step's
    deviations and nothing lies outside. That of a normal is a product, so the sum over all pairs of
    points is a product of matrices.

    Args:
        step: the law (A, A, 2) of where each point goes.
        axis: (A,), evenly spaced, of the `square_grid`.
    """
    cell = (axis[1] - axis[0]) ** 2
    mean, log_std = (x.reshape(-1, 1, 2) for x in step)
    there = jnp.stack([axis, axis], axis=-1)  # (A, 2): both dimensions at once
    apart = (there - mean) * jnp.exp(-log_std)  # (A A, A, 2)
    kernels = jnp.exp(-0.5 * apart**2 - log_std) * (2 * jnp.pi) ** -0.5
    weighted = kernels[..., 0] * (cell * density.reshape(-1, 1))
    return weighted.T @ kernels[..., 1]


def grid_kl(density: jax.Array, log_density: jax.Array, axis: jax.Array) -> jax.Array:
    """KL divergence () of a density (A, A) on a square grid from another, whose logarithm this is.

    >>> axis = jnp.linspace(-6, 6, 61)
    >>> log_density = -0.5 * (axis[:, None] ** 2 + axis**2) - jnp.log(2 * jnp.pi)
    >>> shifted = jnp.exp(log_density + axis - 0.5)  # by 1, in one dimension
    >>> float(grid_kl(shifted, log_density, axis))
    0.5
    """
    least = jnp.finfo(density.dtype).tiny
    log_ratio = jnp.log(jnp.maximum(density, least)) - log_density
    cell = (axis[1] - axis[0]) ** 2
    return cell * jnp.where(density > least, density * log_ratio, 0).sum()
