"""Returns and advantages over time-major arrays.

Every argument is an array of shape (T, ...), time first; the trailing axes are independent.
`next_values[t]` is the value of the state that step t led to *before any reset*, so a time limit
bootstraps from the state it interrupted. `terminated[t]` ends the future reward; a trace is cut
where the episode ended for either reason (`terminated` or `truncated`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def gae(
    rewards: jax.Array,
    values: jax.Array,
    next_values: jax.Array,
    terminated: jax.Array,
    truncated: jax.Array,
    gamma: float | jax.Array,
    lam: float | jax.Array,
) -> jax.Array:
    """Generalised advantage estimates (Schulman et al. 2016, eq. 16), shape (T, ...).

    delta_t = r_t + gamma (1 - terminated_t) V(s'_t) - V(s_t)
    A_t     = delta_t + gamma lam (1 - done_t) A_{t+1}

    >>> ones, no = jnp.ones(3), jnp.zeros(3, bool)
    >>> gae(ones, 0 * ones, 0 * ones, no, no, gamma=0.5, lam=1.0).tolist()
    [1.75, 1.5, 1.0]
    """
    deltas = rewards + _after(terminated, gamma * next_values) - values
    decays = gamma * lam * (1 - (terminated | truncated))

    def backward(advantage, row):
        delta, decay = row
        advantage = delta + jnp.where(decay == 0, 0, decay * advantage)
        return advantage, advantage

    return jax.lax.scan(backward, jnp.zeros_like(deltas[0]), (deltas, decays), reverse=True)[1]


def vtrace(
    rewards: jax.Array,
    values: jax.Array,
    next_values: jax.Array,
    ratios: jax.Array,
    terminated: jax.Array,
    truncated: jax.Array,
    gamma: float | jax.Array,
    lam: float | jax.Array,
    max_ratio: float | jax.Array = 1.0,
    max_trace: float | jax.Array = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """V-trace (Espeholt et al. 2018, arXiv:1802.01561, eq. 1, remark 2): advantages and errors.

    Steps were taken by another policy q; `ratios` are pi(a_t|s_t) / q(a_t|s_t). With the temporal
    difference delta_t as in `gae`,

    E_t = min(max_ratio, ratio_t) delta_t
          + gamma lam min(max_trace, ratio_t) (1 - done_t) E_{t+1}      errors: targets are V + E
    A_t = delta_t + gamma lam (1 - done_t) E_{t+1}                      advantages of the a_t taken

    Both have shape (T, ...). An advantage corrects for the actions after its own; its own is the
    gradient's to weigh. V becomes that of pi where no ratio is above `max_ratio`; `max_trace`
    changes how fast, not what. With ratios of 1 both are `gae`.

    >>> ones, no = jnp.ones(3), jnp.zeros(3, bool)
    >>> ratios = jnp.array([4.0, 0.5, 1.0])
    >>> [x.tolist() for x in vtrace(ones, 0 * ones, 0 * ones, ratios, no, no, gamma=0.5, lam=1.0)]
    [[1.375, 1.5, 1.0], [1.375, 0.75, 1.0]]
    """
    deltas = rewards + _after(terminated, gamma * next_values) - values
    decays = gamma * lam * (1 - (terminated | truncated))

    def backward(error, row):
        delta, decay, ratio = row
        future = jnp.where(decay == 0, 0, decay * error)
        error = jnp.minimum(max_ratio, ratio) * delta + jnp.minimum(max_trace, ratio) * future
        return error, (delta + future, error)

    rows = (deltas, decays, ratios)
    return jax.lax.scan(backward, jnp.zeros_like(deltas[0]), rows, reverse=True)[1]


def lambda_returns(
    rewards: jax.Array,
    next_values: jax.Array,
    terminated: jax.Array,
    truncated: jax.Array,
    gamma: float | jax.Array,
    lam: float | jax.Array,
    length: int | jax.Array | None = None,
) -> jax.Array:
    """Lambda-returns (Peng's Q(lambda) with V = max Q; Gallici et al. 2025), shape (T, ...).

    G_t = r_t + gamma (1 - terminated_t) [lam_t G_{t+1} + (1 - lam_t) V(s'_t)],
    where lam_t is lam, and 0 where the episode ended or the rollout did. `length` (traced) says
    how many of the T rows count; the rows after it are meaningless.

    A time limit bootstraps from the value of the state that it interrupted, a terminal state has
    no future:

    >>> rewards, values = jnp.array([1.0, 1.0]), jnp.array([10.0, 10.0])
    >>> no, last = jnp.array([False, False]), jnp.array([False, True])
    >>> lambda_returns(rewards, values, no, last, gamma=0.5, lam=1.0).tolist()
    [4.0, 6.0]
    >>> lambda_returns(rewards, values, last, no, gamma=0.5, lam=1.0).tolist()
    [1.5, 1.0]
    """
    last = (rewards.shape[0] if length is None else length) - 1
    steps = jnp.arange(rewards.shape[0]).reshape(-1, *[1] * (rewards.ndim - 1))
    lams = lam * (1 - (terminated | truncated)) * (steps < last)

    def backward(future, row):
        reward, value, ended, lam_t = row
        # Where lam_t is 0 the future is another episode's, which may not be finite.
        mixed = jnp.where(lam_t == 0, 0, lam_t * future) + (1 - lam_t) * value
        future = reward + _after(ended, gamma * mixed)
        return future, future

    rows = (rewards, next_values, terminated, lams)
    return jax.lax.scan(backward, jnp.zeros_like(rewards[0]), rows, reverse=True)[1]


def n_step_returns(
    rewards: jax.Array,
    next_values: jax.Array,
    terminated: jax.Array,
    truncated: jax.Array,
    gamma: float | jax.Array,
    n: int,
) -> jax.Array:
    """n-step returns (Sutton & Barto 2018, eq. 7.1), shape (T, ...).

    The sum is cut and bootstrapped early where the episode or the rollout ends.

    >>> rewards, values, no = jnp.ones(3), jnp.full(3, 8.0), jnp.zeros(3, bool)
    >>> n_step_returns(rewards, values, no, no, gamma=0.5, n=2).tolist()
    [3.5, 3.5, 5.0]
    """
    one_step = rewards + _after(terminated, gamma * next_values)
    last = jnp.arange(rewards.shape[0]) == rewards.shape[0] - 1
    cut = terminated | truncated | last.reshape(-1, *[1] * (rewards.ndim - 1))

    def extend(_, returns):
        return jnp.where(cut, one_step, rewards + gamma * jnp.roll(returns, -1, axis=0))

    return jax.lax.fori_loop(0, n - 1, extend, one_step)


def bootstrap_values(
    value_fn: Callable[[Any], jax.Array],
    values: jax.Array,
    last_obs: Any,
    final_obs: Any,
    terminated: jax.Array,
    truncated: jax.Array,
    length: int | jax.Array | None = None,
) -> jax.Array:
    """`next_values` of a rollout: V of the state each step led to, before any reset, (T, N).

    Mostly that is the next row of `values` (T, N). Only where a time limit cut an episode is the
    value of `final_obs` (T, N, ...) needed: one pass of `value_fn` over one row per environment
    for each truncation an environment had in this rollout, so none at all in most rollouts.
    `last_obs` (N, ...) follows the last row, which is row `length - 1` where `length` is given.
    Both may be pytrees: what `value_fn` takes, such as an observation with a memory.

    >>> values, final_obs = jnp.array([[1.0], [2.0]]), jnp.array([[7.0], [8.0]])
    >>> no, cut = jnp.array([[False], [False]]), jnp.array([[True], [False]])
    >>> value_fn, last_obs = lambda obs: obs, jnp.array([3.0])
    >>> bootstrap_values(value_fn, values, last_obs, final_obs, no, cut).ravel().tolist()
    [7.0, 3.0]
    """
    num_steps, num_envs = values.shape
    length = num_steps if length is None else length
    next_values = jnp.roll(values, -1, axis=0).at[length - 1].set(value_fn(last_obs))
    counts = (jnp.arange(num_steps) < length)[:, None]
    cut = truncated & ~terminated & counts
    ordinal = jnp.cumsum(cut, axis=0)

    def unfinished(carry):
        return carry[0] <= ordinal.max()

    def fill(carry):
        j, filled = carry
        hit = cut & (ordinal == j)
        step = jnp.argmax(hit, axis=0)
        rows = jax.tree.map(lambda x: x[step, jnp.arange(num_envs)], final_obs)
        return j + 1, jnp.where(hit, value_fn(rows), filled)

    return jax.lax.while_loop(unfinished, fill, (jnp.ones((), ordinal.dtype), next_values))[1]


def episode_discount(length: float | jax.Array) -> jax.Array:
    """1 - 5 / length within [0.95, 0.995], a discount for episodes of so many steps; float32.

    Its horizon is a fifth of the episode (Hansen et al. 2024's heuristic, as in XQC's code).

    >>> [round(float(episode_discount(length)), 3) for length in (50, 200, 1000)]
    [0.95, 0.975, 0.995]
    """
    return jnp.clip(1 - 5 / jnp.asarray(length, jnp.float32), 0.95, 0.995)


def _after(terminated: jax.Array, value: jax.Array) -> jax.Array:
    """The value of what follows a step: none where it terminated, not even one that is NaN."""
    return jnp.where(terminated, 0, value)
