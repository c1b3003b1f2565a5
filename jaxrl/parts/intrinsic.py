"""Learning from answers without a verifier: rewards of several channels, and covariance rules.

Shapes as in `sequences`: N prompts, G answers to each, C channels, L tokens of an answer, B = N x G
answers in a batch, V tokens there are.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from jaxrl.parts.sequences import SPREAD, group_z_score, masked_mean

# Rewards ----------------------------------------------------------------------------------------


def agreement(answers: jax.Array) -> jax.Array:
    """The share of each group of answers (N, G) that gives the same one (N, G).

    What a majority vote would choose earns most (Zuo et al. 2025, TTRL, arXiv:2504.16084, softly).

    >>> agreement(jnp.array([[7, 7, 7, 2]])).tolist()
    [[0.75, 0.75, 0.75, 0.25]]
    """
    return (answers[:, :, None] == answers[:, None, :]).mean(-1, dtype=jnp.float32)


def self_certainty(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """How far a policy is from uniform on its own answers, (...): mean KL(U || pi) over tokens.

    (Kang et al. 2025, arXiv:2502.18581; Zhao et al. 2025, Intuitor, arXiv:2505.19590.)
    Logits (..., L, V), mask (..., L). 0 for a uniform policy, without bound as pi nears one token.

    >>> float(self_certainty(jnp.log(jnp.array([[0.25, 0.75]])), jnp.ones(1)))
    0.144
    """
    log_probs = jax.nn.log_softmax(logits)
    surplus = -log_probs.mean(axis=-1) - jnp.log(jnp.asarray(logits.shape[-1], logits.dtype))
    return masked_mean(surplus, mask, axis=-1)


# Advantages -------------------------------------------------------------------------------------


def channel_advantages(rewards: jax.Array, weights: jax.Array, normalize: str) -> jax.Array:
    """Advantages (N, G) from rewards (N, G, C) of channels that weigh (C,).

    Args:
        normalize: "channels": each by itself within the group, then their weighed sum (GDPO: Liu et
            al. 2026, arXiv:2601.05242), so that neither the scale of a channel nor what
            another one does changes its part. "sum": the weighed sum within the group, as in GRPO,
            where different combinations of rewards may have the same advantages.

    >>> rewards = jnp.array([[[0.0, 0.0], [1.0, 1.0]]])
    >>> for normalize in ("sum", "channels"):
    ...     channel_advantages(rewards, jnp.ones(2), normalize).round(2).tolist()
    [[-1.0, 1.0]]
    [[-2.0, 2.0]]
    """
    if normalize == "channels":
        return group_z_score(rewards) @ weights
    return group_z_score(rewards @ weights)


def batch_z_score(advantages: jax.Array) -> jax.Array:
    """(a - mean) / (std + 1e-4) over all that there are (GDPO): as large with more channels.

    >>> batch_z_score(jnp.array([[-2.0, 2.0], [0.0, 0.0]])).round(2).tolist()
    [[-1.41, 1.41], [0.0, 0.0]]
    """
    return (advantages - advantages.mean()) / (advantages.std() + SPREAD)


# Covariance of tokens -----------------------------------------------------------------------------


def token_covariance(advantage: jax.Array, log_prob: jax.Array, mask: jax.Array) -> jax.Array:
    """Each token's (..., L) share in Cov(log pi, A), the mean of which it is; without gradient.

    (Cui et al. 2025, "The Entropy Mechanism of Reinforcement Learning for Reasoning Language
    Models", arXiv:2505.22617, section 4.) A natural policy gradient step lowers the entropy by this
    covariance times its size: tokens that are likely and good are what ends exploration.

    >>> advantage, log_prob = jnp.array([[1.0, -1.0]]), jnp.array([[-1.0, -3.0]])
    >>> token_covariance(advantage, log_prob, jnp.ones((1, 2))).tolist()
    [[1.0, 1.0]]
    """
    product = (advantage - masked_mean(advantage, mask)) * (log_prob - masked_mean(log_prob, mask))
    return lax.stop_gradient(product)


def greatest(x: jax.Array, mask: jax.Array, number: float | jax.Array) -> jax.Array:
    """1.0 for so many of the greatest x where the mask is 1, else 0.0; all, if there are no more.

    The number is rounded down, but is 1 at least; of equal ones the first.

    >>> x, mask = jnp.array([3.0, 9.0, 5.0, 4.0]), jnp.array([1.0, 0.0, 1.0, 1.0])
    >>> greatest(x, mask, 2.7).tolist()
    [0.0, 0.0, 1.0, 1.0]
    """
    order = jnp.argsort(jnp.where(mask > 0, -x, jnp.inf).ravel())
    first = jnp.arange(x.size) < jnp.maximum(jnp.floor(number), 1)
    chosen = jnp.zeros(x.size, jnp.float32).at[order].set(first.astype(jnp.float32))
    return chosen.reshape(x.shape) * mask


def kl_cov_tokens(covariance: jax.Array, mask: jax.Array, share: float | jax.Array) -> jax.Array:
    """Which tokens KL-Cov penalises, 1.0 or 0.0: the share with the greatest covariance.

    >>> covariance = jnp.array([[0.1, 2.0, -3.0, 0.5]])
    >>> kl_cov_tokens(covariance, jnp.ones((1, 4)), share=0.5).tolist()
    [[0.0, 1.0, 0.0, 1.0]]
    """
    return greatest(covariance, mask, share * mask.sum())


def clip_cov_tokens(
    key: jax.Array,
    covariance: jax.Array,
    mask: jax.Array,
    share: float | jax.Array,
    low: float | jax.Array,
    high: float | jax.Array,
) -> jax.Array:
    """Which tokens Clip-Cov detaches, 1.0 or 0.0: a share of all tokens, at random.

    They are drawn among those whose covariance is in [`low`, `high`], as far as there are so many.

    >>> covariance, ones = jnp.array([[0.1, 2.0, -3.0, 7.0]]), jnp.ones((1, 4))
    >>> clip_cov_tokens(jax.random.key(0), covariance, ones, 0.5, low=1.0, high=5.0).tolist()
    [[0.0, 1.0, 0.0, 0.0]]
    """
    within = mask * ((covariance >= low) & (covariance <= high))
    noise = jax.random.uniform(key, covariance.shape, jnp.float32)
    return greatest(noise, within, share * mask.sum())
