"""Active importance sampling: acting so that a policy gradient varies least.

E_pi[A grad log pi] is estimated by (pi / q) A grad log pi, of actions of another policy q. Its
covariance has the least trace where q is proportional to pi |A| ||grad log pi|| (Papini et al.
2024, arXiv:2405.05630). Policies are those of `parts.distributions`, with batch axes (...).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl.parts.distributions import Categorical, Normal

HALVINGS = 8  # of the span in which `limited` looks for the share of a residual
NARROWEST = 0.05  # deviation, in the policy's, that `weighted_moments` can give


class DefensiveMixture(NamedTuple):
    """q = b pi + (1 - b) beta: ratios pi / q are at most 1 / b.

    >>> policy, active = Normal(jnp.zeros(1), jnp.zeros(1)), Normal(jnp.full(1, 9.0), jnp.zeros(1))
    >>> action = jnp.zeros(1)
    >>> float(policy.log_prob(action) - DefensiveMixture(policy, active, 0.1).log_prob(action))
    2.303
    """

    policy: Categorical | Normal
    active: Categorical | Normal
    share: float | jax.Array  # of the policy, b

    def sample_by(self, noise: tuple[jax.Array, jax.Array]) -> jax.Array:
        """The sample that a uniform number (...) and one policy's noise make."""
        choice, of_action = noise
        own, other = self.policy.sample_by(of_action), self.active.sample_by(of_action)
        is_own = choice < self.share
        return jnp.where(is_own.reshape(*choice.shape, *[1] * (own.ndim - choice.ndim)), own, other)

    def log_prob(self, action: jax.Array) -> jax.Array:
        return jnp.logaddexp(
            jnp.log(self.share) + self.policy.log_prob(action),
            jnp.log1p(-self.share) + self.active.log_prob(action),
        )


def score(policy: Categorical | Normal, action: jax.Array) -> jax.Array:
    """grad log pi(a|s) by the policy's outputs (..., K): logits, or mean and log-deviation.

    >>> score(Normal(jnp.zeros(1), jnp.log(jnp.full(1, 2.0))), jnp.array([4.0])).tolist()
    [1.0, 3.0]
    >>> score(Categorical(jnp.zeros(2)), jnp.array(1)).tolist()
    [-0.5, 0.5]
    """
    if isinstance(policy, Categorical):
        chosen = jax.nn.one_hot(action, policy.logits.shape[-1], dtype=policy.logits.dtype)
        return chosen - jax.nn.softmax(policy.logits)
    z = (action - policy.mean) * jnp.exp(-policy.log_std)
    return jnp.concatenate([z * jnp.exp(-policy.log_std), z**2 - 1], axis=-1)


def moved(
    policy: Categorical | Normal, residual: jax.Array, share: float | jax.Array = 1.0
) -> Categorical | Normal:
    """The policy moved by a share (..., 1) of a residual (..., K).

    Of logits a summand, of a normal the shift of the mean in deviations and the logarithm of a
    factor on the deviation.
    """
    if isinstance(policy, Categorical):
        return Categorical(policy.logits + share * residual)
    shift, widening = jnp.split(share * residual, 2, axis=-1)
    mean = policy.mean + jnp.exp(policy.log_std) * shift
    return Normal(mean, policy.log_std + widening)


def limited(
    policy: Categorical | Normal, residual: jax.Array, max_kl: float | jax.Array
) -> Categorical | Normal:
    """The policy moved by as much of a residual as keeps KL(moved, policy) within `max_kl` (...).

    The divergence grows with the share, so that halving finds the share, from below.
    """
    none = jnp.zeros_like(policy.entropy())

    def fits(share: jax.Array) -> jax.Array:
        dist: Any = moved(policy, residual, share[..., None])
        return dist.kl(policy) <= max_kl

    low, high = none, none + 1
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        inside = fits(middle)
        low, high = jnp.where(inside, middle, low), jnp.where(inside, high, middle)
    share = jnp.where(fits(none + 1), 1.0, low)
    return moved(policy, residual, share[..., None])


def weighted_moments(policy: Normal, action: jax.Array, weight: jax.Array) -> jax.Array:
    """The residual (2 D,) of the weighted maximum likelihood of actions (B, D), weights (B,).

    No residual where all weights are 0.
    """
    z = (action - policy.mean) * jnp.exp(-policy.log_std)
    total = weight.sum()
    share = weight[:, None] / jnp.where(total > 0, total, 1)
    mean = (share * z).sum(axis=0)
    std = jnp.sqrt((share * (z - mean) ** 2).sum(axis=0))
    residual = jnp.concatenate([mean, jnp.log(jnp.maximum(std, NARROWEST))])
    return jnp.where(total > 0, residual, 0)
