"""Off-policy evaluation: the value of a policy from episodes that another one recorded.

All take arrays (n, H) of n episodes padded to H steps, `mask` 1 where there is a step, and
`ratio` = pi(a|s) / b(a|s), the target policy's probability of what was done over the behaviour
policy's. They estimate E[sum_t gamma^t r_t] of the target policy.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def importance_sampling(
    reward: jax.Array,
    ratio: jax.Array,
    mask: jax.Array,
    gamma: float | jax.Array,
    weighted: bool = False,
) -> jax.Array:
    """Each episode's return times the product of all its ratios (Precup et al. 2000).

    `weighted` divides by the sum of those products instead of by n: biased, of less variance.
    """
    weight = jnp.where(mask, ratio, 1).prod(axis=1)
    returns = (_discounts(reward, gamma) * jnp.where(mask, reward, 0)).sum(axis=1)
    return (weight * returns).sum() / (_sum(weight) if weighted else len(reward))


def per_decision(
    reward: jax.Array,
    ratio: jax.Array,
    mask: jax.Array,
    gamma: float | jax.Array,
    weighted: bool = False,
) -> jax.Array:
    """Each reward times the product of the ratios up to it (Precup et al. 2000).

    `weighted` divides each time step by the sum of its products over episodes, those that have
    ended keeping their last one.
    """
    weight = jnp.cumprod(jnp.where(mask, ratio, 1), axis=1)
    scale = _sum(weight) if weighted else len(reward)
    terms = _discounts(reward, gamma) * weight * jnp.where(mask, reward, 0) / scale
    return terms.sum()


def doubly_robust(
    reward: jax.Array,
    ratio: jax.Array,
    mask: jax.Array,
    gamma: float | jax.Array,
    q: jax.Array,
    v: jax.Array,
) -> jax.Array:
    """V_t = v(s_t) + ratio_t (r_t + gamma V_{t+1} - q(s_t, a_t)), from behind (Jiang & Li 2016).

    Unbiased whatever `q` (n, H) is, if `v` (n, H) is its mean over the target policy's actions.
    """

    def back(after: jax.Array, row: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        r, rho, there, q_t, v_t = row
        return jnp.where(there, v_t + rho * (r + gamma * after - q_t), 0), None

    rows = tuple(jnp.swapaxes(x, 0, 1) for x in (reward, ratio, mask, q, v))
    value, _ = lax.scan(back, jnp.zeros_like(reward[:, 0]), rows, reverse=True)
    return value.mean()


def _discounts(reward: jax.Array, gamma: float | jax.Array) -> jax.Array:
    return jnp.power(gamma, jnp.arange(reward.shape[1]))


def _sum(weight: jax.Array) -> jax.Array:
    """Over episodes; never 0, where every weight is."""
    return jnp.maximum(weight.sum(axis=0), jnp.finfo(weight.dtype).tiny)
