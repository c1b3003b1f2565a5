"""Random Fourier features, and a normal whose deviation rises where there was no data."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrl.parts.distributions import Normal


class RandomFeatures(NamedTuple):
    """phi(h) = sqrt(2 / K) cos(V^T h + b), with V and b drawn once (Rahimi & Recht 2007).

    phi(h)^T phi(g) is exp(-|h - g|^2 / 2) and |phi(h)|^2 is 1, wherever h and g are, up to
    O(1 / sqrt(K)).

    >>> features = RandomFeatures.draw(jax.random.key(0), inputs=3, number=1000)
    >>> features(jnp.array([5.0, -7.0, 9.0])).shape
    (1000,)
    """

    weights: jax.Array  # V (inputs, K), standard normal
    phases: jax.Array  # b (K,), uniform on [0, 2 pi)

    @classmethod
    def draw(cls, key: jax.Array, inputs: int, number: int) -> RandomFeatures:
        weight_key, phase_key = jax.random.split(key)
        weights = jax.random.normal(weight_key, (inputs, number), jnp.float32)
        phases = jax.random.uniform(phase_key, (number,), jnp.float32, maxval=2 * math.pi)
        return cls(weights, phases)

    def __call__(self, h: jax.Array) -> jax.Array:
        """Features (..., K) of h (..., inputs)."""
        number = self.phases.shape[0]
        return math.sqrt(2 / number) * jnp.cos(h @ self.weights + self.phases)


def stationary_normal(
    phi: jax.Array, mean: jax.Array, log_variance: jax.Array, min_std: float | jax.Array
) -> Normal:
    """N(mean^T phi, phi^T diag(exp(log_variance)) phi + min_std^2) of features phi (..., K).

    What a linear model with independent normal weights of these variances predicts (Watson, Huang &
    Heess 2023; XQCfD 2026). As |phi| is 1 everywhere, its variance is near that at the start where
    the features are not those that the variances were fitted to. No gradient reaches the features
    by way of the variance.

    Args:
        mean, log_variance: (K, D).

    >>> dist = stationary_normal(jnp.array([0.6, 0.8]), jnp.ones((2, 1)), jnp.zeros((2, 1)), 0.0)
    >>> [round(float(x[0]), 3) for x in dist]
    [1.4, 0.0]
    """
    variance = lax.stop_gradient(phi) ** 2 @ jnp.exp(log_variance) + min_std**2
    return Normal(phi @ mean, 0.5 * jnp.log(variance))
