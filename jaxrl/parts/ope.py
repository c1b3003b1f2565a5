"""Off-policy evaluation: the value of a policy from episodes that another one recorded.

All take arrays (n, H) of n episodes padded to H steps: `mask` true where there is a step, and
`log_ratio` = log pi(a|s) - log b(a|s), the target policy's log-probability of what was done less
the behaviour policy's. They estimate E[sum_t gamma^t r_t] of the target policy.

Products of ratios over hundreds of steps leave single precision, so they are kept as sums of
logarithms, and the largest of them is taken off before weights are compared.

An episode whose recording stops before its end is worth more than what was recorded: `last_value`
(n,) says what of it is missing, an estimate of the value of the state after the last step; 0 (the
default) where episodes end.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def importance_sampling(
    reward: jax.Array,
    log_ratio: jax.Array,
    mask: jax.Array,
    gamma: float | jax.Array,
    last_value: jax.Array | float = 0.0,
    weighted: bool = False,
) -> jax.Array:
    """Each episode's return times the product of all its ratios (Precup et al. 2000).

    `weighted` divides by the sum of those products instead of by n: biased, of less variance.

    >>> reward, mask = jnp.ones((2, 3)), jnp.ones((2, 3), bool)
    >>> print(importance_sampling(reward, jnp.log(2.0) * reward, mask, 1.0))
    24.0
    >>> print(importance_sampling(reward, jnp.log(2.0) * reward, mask, 1.0, weighted=True))
    3.0
    """
    rewards, log_weights = _with_last(reward, log_ratio, mask, last_value)
    returns = (_discounts(rewards, gamma) * rewards).sum(axis=1)
    return _estimate(returns, log_weights[:, -1], weighted)


def per_decision(
    reward: jax.Array,
    log_ratio: jax.Array,
    mask: jax.Array,
    gamma: float | jax.Array,
    last_value: jax.Array | float = 0.0,
    weighted: bool = False,
) -> jax.Array:
    """Each reward times the product of the ratios up to it (Precup et al. 2000).

    `weighted` divides each time step by the sum of its products over episodes, those that have
    ended keeping their last one.

    >>> reward, mask = jnp.ones((2, 3)), jnp.ones((2, 3), bool)
    >>> print(per_decision(reward, jnp.log(2.0) * reward, mask, 1.0))  # 2 + 4 + 8
    14.0
    """
    rewards, log_weights = _with_last(reward, log_ratio, mask, last_value)
    of_steps = jax.vmap(_estimate, in_axes=(1, 1, None))(rewards, log_weights, weighted)
    return (_discounts(rewards, gamma) * of_steps).sum()


def doubly_robust(
    reward: jax.Array,
    log_ratio: jax.Array,
    mask: jax.Array,
    gamma: float | jax.Array,
    q: jax.Array,
    v: jax.Array,
    last_value: jax.Array | float = 0.0,
) -> jax.Array:
    """V_t = v(s_t) + ratio_t (r_t + gamma V_{t+1} - q(s_t, a_t)), backwards (Jiang & Li 2016).

    Unbiased whatever `q` (n, H) is, if `v` (n, H) is its mean over the target policy's actions, and
    `last_value` the value of the state at which a recording stops.

    >>> ten, mask = jnp.full((1, 3), 10.0), jnp.ones((1, 3), bool)
    >>> print(doubly_robust(jnp.ones((1, 3)), jnp.zeros((1, 3)), mask, 0.9, ten, ten, ten[:, 0]))
    10.0
    """

    def backward(after: jax.Array, row: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        r, rho, there, q_t, v_t = row
        return jnp.where(there, v_t + rho * (r + gamma * after - q_t), after), None

    ratio, mask = jnp.exp(_real(log_ratio)), jnp.asarray(mask, bool)
    rows = tuple(jnp.swapaxes(x, 0, 1) for x in (_real(reward), ratio, mask, _real(q), _real(v)))
    last = jnp.broadcast_to(_real(last_value), mask.shape[:1])
    value, _ = lax.scan(backward, last, rows, reverse=True)
    return value.mean()


def effective_sample_size(log_weights: jax.Array) -> jax.Array:
    """(sum w)^2 / sum w^2 of log-weights (n,): how many episodes a weighted estimate rests on.

    >>> print(effective_sample_size(jnp.zeros(4)), effective_sample_size(jnp.array([0.0, -1e3])))
    4.0 1.0
    """
    weights = jax.nn.softmax(log_weights)
    return 1 / (weights**2).sum()


def _with_last(
    reward: jax.Array, log_ratio: jax.Array, mask: jax.Array, last_value: jax.Array | float
) -> tuple[jax.Array, jax.Array]:
    """Rewards (n, H + 1) with the last value after each episode; sums of log-ratios likewise."""
    one_more = (0, 0), (0, 1)
    rewards, log_ratio = (jnp.pad(_real(x), one_more) for x in (reward, log_ratio))
    mask = jnp.pad(jnp.asarray(mask, bool), one_more)
    after = jnp.arange(mask.shape[1]) == mask.sum(axis=1, keepdims=True)
    last = jnp.broadcast_to(_real(last_value), mask.shape[:1])
    rewards = jnp.where(mask, rewards, jnp.where(after, last[:, None], 0))
    return rewards, jnp.cumsum(jnp.where(mask, log_ratio, 0), axis=1)


def _estimate(values: jax.Array, log_weights: jax.Array, weighted: bool) -> jax.Array:
    """Mean of values (n,) by weights (n,); `weighted` divides by their sum instead of by n."""
    largest = jnp.max(log_weights)
    largest = jnp.where(jnp.isfinite(largest), largest, 0)  # -inf: every ratio is 0
    weights = jnp.exp(log_weights - largest)
    total = (weights * values).sum()
    if weighted:
        return jnp.where(weights.sum() > 0, total / jnp.maximum(weights.sum(), 1e-30), 0)
    return jnp.where(total == 0, 0, jnp.exp(largest) * total / len(values))  # inf * 0 is no value


def _real(x: jax.Array | float) -> jax.Array:
    """Numbers of any kind as floating-point ones."""
    return jnp.asarray(x, jnp.result_type(x, jnp.float32))


def _discounts(rewards: jax.Array, gamma: float | jax.Array) -> jax.Array:
    steps = jnp.arange(rewards.shape[1])
    return jnp.asarray(gamma, rewards.dtype) ** steps
