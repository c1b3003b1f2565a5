"""The best of several draws: what an action is worth to one who may try again.

Values v and probabilities p of K actions lie along the last axis. M actions are drawn
independently, and the best of them counts; M is any number that is not negative. With v sorted in
descending order, and S_i the probability of the i best (Nishimori et al. 2026, ReMax):

    E max(v_A1, ..., v_AM) = v_(1) - sum_{i<K} (v_(i) - v_(i+1)) (1 - S_i)^M
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def expected_maximum(values: jax.Array, probs: jax.Array, draws: float | jax.Array) -> jax.Array:
    """E max of the values of `draws` independent actions, shape (...) from (..., K).

    One draw gives the mean, infinitely many the greatest value. Its gradient in p is, but for a
    constant, M times the expected improvement on M - 1 draws.

    >>> values, probs = jnp.array([1.0, 5.0]), jnp.array([0.75, 0.25])
    >>> [float(expected_maximum(values, probs, m)) for m in (1, 2)]
    [2.0, 2.75]
    """
    _, best, losses = _descending(values, probs, draws)
    return best - losses.sum(axis=-1)


def expected_improvement(
    values: jax.Array, probs: jax.Array, draws: float | jax.Array
) -> jax.Array:
    """E (v_a - max(v_A1, ..., v_AM))_+ for every action a, shape (..., K): what a adds to M draws.

    From the sorted formula, since only what is worse than a is improved on:

        EI_(j) = sum_{j<=i<K} (v_(i) - v_(i+1)) (1 - S_i)^M

    Nothing is drawn at M = 0: then it is v_a - min v.

    >>> values, probs = jnp.array([1.0, 5.0]), jnp.array([0.75, 0.25])
    >>> [expected_improvement(values, probs, m).tolist() for m in (0, 1)]
    [[0.0, 4.0], [0.0, 3.0]]
    """
    order, best, losses = _descending(values, probs, draws)
    improvement = jax.lax.cumsum(losses, axis=losses.ndim - 1, reverse=True)
    improvement = jnp.concatenate([improvement, jnp.zeros_like(best)[..., None]], axis=-1)
    return jnp.take_along_axis(improvement, jnp.argsort(order, axis=-1), axis=-1)


def _descending(
    values: jax.Array, probs: jax.Array, draws: float | jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The order of actions (..., K), the greatest value, and each term of the sum (..., K - 1)."""
    order = jnp.argsort(-values, axis=-1)
    values, probs = (jnp.take_along_axis(x, order, axis=-1) for x in (values, probs))
    # 1 - S_i as the sum of what is left: rounding cannot make it negative.
    left = jax.lax.cumsum(probs[..., 1:], axis=probs.ndim - 1, reverse=True)
    return order, values[..., 0], (values[..., :-1] - values[..., 1:]) * left**draws
