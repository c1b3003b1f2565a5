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
