"""Targets and losses that several algorithms share, of batches of steps (B,)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def action_value(q: jax.Array, action: jax.Array) -> jax.Array:
    """Q(s, a) (B,) of the actions (B,) taken, from the values (B, A) of all actions.

    >>> action_value(jnp.array([[1.0, 5.0], [7.0, 8.0]]), jnp.array([1, 0])).tolist()
    [5.0, 7.0]
    """
    return jnp.take_along_axis(q, action[:, None], axis=-1)[:, 0]


def td_target(
    reward: jax.Array,
    terminated: jax.Array,
    next_value: jax.Array,
    gamma: float | jax.Array,
) -> jax.Array:
    """r + gamma V(s'), or r where the step terminated (Sutton & Barto 2018, eq. 6.2).

    Shapes (B, ...). A time limit does not terminate. The value of a terminal state counts for
    nothing, even where it is not finite.

    >>> reward, terminated = jnp.array([1.0, 2.0]), jnp.array([False, True])
    >>> td_target(reward, terminated, next_value=jnp.array([4.0, 6.0]), gamma=0.5).tolist()
    [3.0, 2.0]
    """
    return reward + jnp.where(terminated, 0, gamma * next_value)


def n_step_target(
    reward: jax.Array,
    num_steps: jax.Array | None,
    terminated: jax.Array,
    next_value: jax.Array,
    gamma: float | jax.Array,
) -> jax.Array:
    """sum_{i<k} gamma^i r_i + gamma^k V(s_k), shape (B,) (Sutton & Barto 2018, eq. 7.1).

    Nothing corrects for the policy that took the steps after the first.

    Args:
        reward: rewards (B, n) of windows of steps; (B,) of single ones.
        num_steps: how many of them count, k (B,); None of single ones, then `td_target`.
        terminated: whether the last of them did (B,).
        next_value: V of the state that the last of them led to (B,).

    >>> reward, no = jnp.array([[1.0, 2.0, 4.0]] * 2), jnp.array([False, False])
    >>> n_step_target(reward, jnp.array([3, 2]), no, jnp.array([8.0, 8.0]), gamma=0.5).tolist()
    [4.0, 4.0]
    """
    if num_steps is None:
        return td_target(reward, terminated, next_value, gamma)
    i, k = jnp.arange(reward.shape[1], dtype=reward.dtype), num_steps.astype(reward.dtype)
    total = jnp.where(i < k[:, None], gamma**i * reward, 0).sum(axis=1)
    return td_target(total, terminated, next_value, gamma**k)


def prefix_targets(
    reward: jax.Array,
    num_steps: jax.Array,
    terminated: jax.Array,
    next_value: jax.Array,
    gamma: float | jax.Array,
) -> jax.Array:
    """The `n_step_target` (B, n) of every prefix of a window: h = 1, ..., n steps.

        sum_{i<min(h,k)} gamma^i r_i + gamma^h V(s_h), the latter where step h did not terminate

    Args:
        reward: rewards (B, n) of windows of steps.
        num_steps: how many of them count, k (B,).
        terminated: whether the episode had ended by the end of each step (B, n).
        next_value: V of the state that each step led to (B, n).

    >>> reward, no = jnp.array([[1.0, 2.0, 4.0]]), jnp.zeros((1, 3), bool)
    >>> prefix_targets(reward, jnp.array([3]), no, jnp.full((1, 3), 8.0), gamma=0.5).tolist()
    [[5.0, 4.0, 4.0]]
    """
    i = jnp.arange(reward.shape[1], dtype=reward.dtype)
    counted = i < num_steps.astype(reward.dtype)[:, None]
    total = jnp.cumsum(jnp.where(counted, gamma**i * reward, 0), axis=1)
    return td_target(total, terminated, next_value, gamma ** (i + 1))


def q_targets(
    reward: jax.Array,
    terminated: jax.Array,
    next_q: jax.Array,
    chooser: jax.Array,
    gamma: float | jax.Array,
) -> jax.Array:
    """r + gamma (1 - terminated) Q'(s', argmax_a Q_c(s', a)), shape (B,).

    (Mnih et al. 2015; with another chooser, Double DQN: van Hasselt et al. 2016, eq. 4.)

    Args:
        next_q: the target network's values (B, A).
        chooser: the values (B, A) whose greedy action is taken: the same, or with Double DQN the
            online network's.

    >>> next_q, chooser = jnp.array([[1.0, 5.0]]), jnp.array([[3.0, 2.0]])
    >>> q_targets(jnp.ones(1), jnp.array([False]), next_q, next_q, 0.5).tolist()
    [3.5]
    >>> q_targets(jnp.ones(1), jnp.array([False]), next_q, chooser, 0.5).tolist()
    [1.5]
    """
    value = action_value(next_q, chooser.argmax(-1))
    return td_target(reward, terminated, value, gamma)


def expectile_loss(difference: jax.Array, expectile: float | jax.Array) -> jax.Array:
    """|expectile - 1(d < 0)| d^2 (Kostrikov et al. 2021, eq. 5), in the shape of d.

    The v that minimises its mean over d = x - v is that expectile of x: the mean at 0.5, towards
    the maximum as it nears 1.

    >>> expectile_loss(jnp.array([-2.0, 2.0]), 0.75).tolist()
    [1.0, 3.0]
    """
    return jnp.where(difference < 0, 1 - expectile, expectile) * difference**2


def weighted_cloning_loss(
    log_prob: jax.Array, log_weight: jax.Array, max_weight: float | jax.Array
) -> tuple[jax.Array, jax.Array]:
    """-E[w log pi(a|s)] with w = min(exp(log_weight), max_weight); and the mean weight.

    The policy's step of AWAC (Nair et al. 2020) and of IQL (Kostrikov et al. 2021, eq. 7), whose
    log-weights (B,) are scaled advantages. No gradient flows into the weights.

    >>> log_prob, log_weight = jnp.array([-1.0, -2.0]), jnp.array([0.0, 9.0])
    >>> [float(x) for x in weighted_cloning_loss(log_prob, log_weight, max_weight=4.0)]
    [4.5, 2.5]
    """
    weight = lax.stop_gradient(jnp.minimum(jnp.exp(log_weight), max_weight))
    return -(weight * log_prob).mean(), weight.mean()


def softmax_cloning_loss(log_prob: jax.Array, log_weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """-E[w log pi(a|s)] with w = B softmax(log_weight) over the batch; and the largest weight.

    AWAC's step as its released code has it: weights of mean 1, whatever the advantages' offset. No
    gradient flows into them.

    >>> log_prob, log_weight = jnp.array([-1.0, -2.0]), jnp.log(jnp.array([1.0, 3.0]))
    >>> [float(x) for x in softmax_cloning_loss(log_prob, log_weight)]
    [1.75, 1.5]
    """
    weight = lax.stop_gradient(len(log_weight) * jax.nn.softmax(log_weight))
    return -(weight * log_prob).mean(), weight.max()


def faithful_loss(mean: jax.Array, log_std: jax.Array, target: jax.Array) -> jax.Array:
    """Of a normal (..., D), summed over D: half the squared error, and the deviation's likelihood.

        1/2 (y - mu)^2 + 1/2 (y - stop(mu))^2 / sigma^2 + log sigma

    (Stirn et al. 2023, "Faithful Heteroscedastic Regression"): the mean learns as if the deviation
    were 1 everywhere, so that it is not given up where the deviation is large; the deviation is
    fitted to the mean's errors.

    >>> zeros = jnp.zeros(1)
    >>> float(faithful_loss(zeros, zeros, jnp.array([2.0])))
    4.0
    """
    error = target - mean
    scaled = lax.stop_gradient(error) * jnp.exp(-log_std)
    return (0.5 * error**2 + 0.5 * scaled**2 + log_std).sum(axis=-1)


def huber(error: jax.Array, threshold: float | jax.Array) -> jax.Array:
    """Half the square of errors up to a threshold, beyond it linear (Huber 1964), in their shape.

        c (|e| - c / 2) with c = min(|e|, threshold)

    >>> huber(jnp.array([0.5, -3.0]), threshold=1.0).tolist()
    [0.125, 2.5]
    """
    size = jnp.abs(error)
    cut = jnp.minimum(size, threshold)
    return 0.5 * (cut * (2 * size - cut))


def clipped_value_loss(
    value: jax.Array,
    old: jax.Array,
    target: jax.Array,
    limit: float | jax.Array,
    threshold: float | jax.Array = jnp.inf,
) -> jax.Array:
    """E max(h(V - R), h(V_old + clip(V - V_old, +-limit) - R)), of values (...), a scalar.

    With h = `huber`, which is half the square where the threshold is infinite: the value loss of
    PPO's released code (Schulman et al. 2017; with Huber's, Yu et al. 2022, arXiv:2103.01955).

    >>> value, old, target = jnp.array([3.0]), jnp.array([1.0]), jnp.array([4.0])
    >>> [float(clipped_value_loss(value, old, target, limit)) for limit in (0.5, jnp.inf)]
    [3.125, 0.5]
    """
    clipped = old + jnp.clip(value - old, -limit, limit)
    return jnp.maximum(huber(value - target, threshold), huber(clipped - target, threshold)).mean()


def beyond_clip(
    ratio: jax.Array, advantage: jax.Array, low: float | jax.Array, high: float | jax.Array
) -> jax.Array:
    """Where the clipped surrogate is flat: A > 0 and r > 1 + high, or A < 0 and r < 1 - low.

    It is min(r A, clip(r, 1 - low, 1 + high) A) (Schulman et al. 2017, eq. 7). Any shape: ratios of
    steps, of tokens or of whole sequences.

    >>> ratio, advantage = jnp.array([1.3, 1.3, 0.7, 0.7]), jnp.array([1.0, -1.0, 1.0, -1.0])
    >>> beyond_clip(ratio, advantage, low=0.2, high=0.2).tolist()
    [True, False, False, True]
    """
    return jnp.where(advantage > 0, ratio > 1 + high, (advantage < 0) & (ratio < 1 - low))


def kept_by_noise(
    key: jax.Array,
    ratio: jax.Array,
    advantage: jax.Array,
    low: float | jax.Array,
    high: float | jax.Array,
    noise: float | jax.Array,
) -> jax.Array:
    """Which ratios beyond the clip range noise brings back into it, as booleans (noisy clipping).

    Each is multiplied by a u of its own, uniform on [1 - noise, 1 + noise]. Where the product is no
    longer beyond the range, the step keeps the whole gradient of r A:

        surrogate = min(r A, clip(r) A) + kept (r - clip(r)) A

    False for all that the hard rule keeps. Nothing here has a gradient.

    >>> kept = kept_by_noise(jax.random.key(0), jnp.full(1000, 1.25), jnp.ones(1000), 0.2, 0.2, 0.2)
    >>> round(float(kept.mean()), 1)
    0.4
    """
    factor = 1 + noise * jax.random.uniform(key, ratio.shape, ratio.dtype, -1, 1)
    still = beyond_clip(ratio * factor, advantage, low, high)
    return beyond_clip(ratio, advantage, low, high) & ~still


def kept_beyond_clip(
    key: jax.Array | None,
    ratio: jax.Array,
    advantage: jax.Array,
    low: float | jax.Array,
    high: float | jax.Array,
    noise: float | jax.Array,
) -> jax.Array:
    """The share of a step's gradient that stays although the hard rule would cut it.

    `kept_by_noise` with a key, else its expectation, `keep_probability`.
    """
    if key is None:
        return keep_probability(ratio, advantage, low, high, noise)
    return kept_by_noise(key, ratio, advantage, low, high, noise)


def keep_probability(
    ratio: jax.Array,
    advantage: jax.Array,
    low: float | jax.Array,
    high: float | jax.Array,
    noise: float | jax.Array,
) -> jax.Array:
    """The probability of `kept_by_noise`, in the shape of the ratio; no gradient flows into it.

    For A > 0 and r > 1 + high it is clip(((1 + high) / r - (1 - noise)) / (2 noise), 0, 1): a half
    at the edge of the range, and 0 from r = (1 + high) / (1 - noise) on. For A < 0 likewise with
    1 - low, and 0 from r = (1 - low) / (1 + noise) down. As a weight in place of the draw it is the
    expected surrogate: a gradient that decays beyond the range.

    >>> ratio, advantage = jnp.array([1.25, 1.4, 1.6, 1.0]), jnp.ones(4)
    >>> [round(x, 3) for x in keep_probability(ratio, advantage, 0.2, 0.2, 0.2).tolist()]
    [0.4, 0.143, 0.0, 0.0]
    """
    edge = jnp.where(advantage > 0, 1 + high, 1 - low)
    inside = jnp.sign(advantage) * (edge / ratio - 1)  # how far u has to be on that side of 1
    # Without noise the probability is 0, also where rounding takes a ratio to its edge.
    width = jnp.maximum(2 * noise, jnp.finfo(ratio.dtype).tiny)
    share = jnp.clip((inside + noise) / width, 0, 1)
    return lax.stop_gradient(jnp.where(beyond_clip(ratio, advantage, low, high), share, 0))
