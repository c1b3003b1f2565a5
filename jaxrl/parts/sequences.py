"""Learning from verified answers: masks, group advantages, divergences, the clipped surrogate.

Shapes: N prompts, G answers to each, L tokens of an answer, B = N x G answers in a batch.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

SPREAD = 1e-4  # added to standard deviations of a group (Shao et al. 2024's released code)


class Verdict(NamedTuple):
    """What a verifier says of one answer.

    Attributes:
        reward: () that a scalar method learns from.
        correct: () 1 where the answer is right, else 0.
        rewards: (C,) of several channels, or (m, C) where an answer is a set of m.
        answer: int32 () that stands for what was answered: equal where two answers agree.
    """

    reward: jax.Array
    correct: jax.Array
    rewards: jax.Array
    answer: jax.Array


# Masks ------------------------------------------------------------------------------------------


def answer_mask(tokens: jax.Array, end_token: int) -> jax.Array:
    """1.0 for the tokens (..., L) up to and with the first `end_token`, 0.0 after it.

    >>> answer_mask(jnp.array([[4, 9, 9, 1], [1, 2, 3, 4]]), end_token=9).tolist()
    [[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]
    """
    ended = jnp.cumsum(tokens == end_token, axis=-1) - (tokens == end_token)
    return (ended == 0).astype(jnp.float32)


def masked_mean(x: jax.Array, mask: jax.Array, axis: int | None = None) -> jax.Array:
    """Mean of x where the mask is 1; 0 where it is nowhere.

    >>> float(masked_mean(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([1.0, 1.0, 0.0])))
    2.0
    """
    total = jnp.where(mask > 0, x, 0).sum(axis)
    return total / jnp.maximum(mask.sum(axis), 1)


def mean_of_tokens(x: jax.Array, mask: jax.Array, weigh: str) -> jax.Array:
    """The mean () over the tokens (B, L) of a batch, of which the mask says which count.

    Args:
        weigh: "token": all alike (DAPO: Yu et al. 2025, eq. 8). "answer": all answers alike, the
            tokens of one by its length (GRPO: Shao et al. 2024, eq. 3). "sum": as many times as
            there are answers, whatever their length (Dr. GRPO: Liu et al. 2025, section 3.2), the
            only one whose gradient is that of the expected reward.

    >>> x, mask = jnp.array([[2.0, 2.0], [8.0, 0.0]]), jnp.array([[1.0, 1.0], [1.0, 0.0]])
    >>> [float(mean_of_tokens(x, mask, weigh)) for weigh in ("token", "answer", "sum")]
    [4.0, 5.0, 6.0]
    """
    if weigh == "token":
        return masked_mean(x, mask)
    counts = jnp.maximum((mask.sum(axis=-1) > 0).sum(), 1)
    if weigh == "answer":
        return masked_mean(x, mask, axis=-1).sum() / counts
    return jnp.where(mask > 0, x, 0).sum() / counts


def sum_of_later(x: jax.Array) -> jax.Array:
    """Of numbers (..., L) of tokens, the sum of those after each one, (..., L).

    >>> sum_of_later(jnp.array([1.0, 2.0, 4.0])).tolist()
    [6.0, 4.0, 0.0]
    """
    return jnp.flip(jnp.cumsum(jnp.flip(x, -1), axis=-1), -1) - x


# Advantages -------------------------------------------------------------------------------------


def group_z_score(rewards: jax.Array, axis: int = 1) -> jax.Array:
    """(r - mean) / (std + 1e-4) over the G answers of each group (Shao et al. 2024, eq. 3).

    Rewards (N, G), or (N, G, C) of several channels, each by itself.

    >>> group_z_score(jnp.array([[0.0, 1.0], [1.0, 1.0]])).round(2).tolist()
    [[-1.0, 1.0], [0.0, 0.0]]
    """
    centred = rewards - rewards.mean(axis, keepdims=True)
    return centred / (rewards.std(axis, keepdims=True) + SPREAD)


def others_mean(rewards: jax.Array) -> jax.Array:
    """For each of the rewards (N, G) the mean of the others of its group (RLOO's baseline).

    (Kool et al. 2019; Ahmadian et al. 2024, arXiv:2402.14740, eq. 8.) It does not depend on the
    answer itself: the gradient remains unbiased.

    >>> others_mean(jnp.array([[1.0, 2.0, 6.0]])).tolist()
    [[4.0, 3.5, 1.5]]
    """
    group = rewards.shape[1]
    return (rewards.sum(axis=1, keepdims=True) - rewards) / (group - 1)


def group_advantages(rewards: jax.Array, baseline: str, divide: bool) -> jax.Array:
    """Advantages (N, G) from rewards (N, G).

    Args:
        baseline: "mean" of the group, the answer itself among it: the gradient is the exact one
            times 1 - 1/G; mean of the "others" (RLOO), unbiased; or "none".
        divide: by the group's standard deviation + 1e-4: biased, as the deviation depends on the
            answers.

    >>> group_advantages(jnp.array([[0.0, 1.0]]), "mean", divide=False).tolist()
    [[-0.5, 0.5]]
    >>> group_advantages(jnp.array([[0.0, 1.0]]), "others", divide=False).tolist()
    [[-1.0, 1.0]]
    """
    if baseline == "mean":
        advantage = rewards - rewards.mean(axis=1, keepdims=True)
    else:
        advantage = rewards - others_mean(rewards) if baseline == "others" else rewards
    return advantage / (rewards.std(axis=1, keepdims=True) + SPREAD) if divide else advantage


def has_spread(rewards: jax.Array) -> jax.Array:
    """Which groups (N, 1) of rewards (N, G) are not all alike (DAPO's dynamic sampling).

    >>> has_spread(jnp.array([[0.0, 1.0], [1.0, 1.0]])).tolist()
    [[True], [False]]
    """
    return rewards.max(axis=1, keepdims=True) > rewards.min(axis=1, keepdims=True)


# Sets of answers, by several objectives -----------------------------------------------------------


def set_score(rewards: jax.Array, weights: jax.Array) -> jax.Array:
    """Mean over K weights of the best of m answers, mean_k max_j w_k . r_j, (...).

    (Bahlous-Boldi et al. 2026, VPO.) Never less than max_j of the mean over weights.

    Args:
        rewards: (..., m, C) of C objectives.
        weights: (..., K, C), whose leading axes are those of the rewards or 1.

    >>> rewards = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> float(set_score(rewards, jnp.array([[0.75, 0.25], [0.5, 0.5]])))
    0.625
    """
    worth = jnp.einsum("...jc,...kc->...kj", rewards, weights)
    return worth.max(axis=-1).mean(axis=-1)


def non_dominated(rewards: jax.Array) -> jax.Array:
    """Which of m answers (..., m) none of the others is better than; of equal ones the first.

    One is better than another if it is in one of the objectives, and in none worse (Pareto).

    Args:
        rewards: (..., m, C) of C objectives.

    >>> rewards = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.9], [1.0, 0.0]])
    >>> non_dominated(rewards).tolist()
    [True, True, False, False]
    """
    mine, other = rewards[..., :, None, :], rewards[..., None, :, :]
    better = (other >= mine).all(axis=-1) & (other > mine).any(axis=-1)
    order = jnp.arange(rewards.shape[-2])
    again = (other == mine).all(axis=-1) & (order < order[:, None])
    return ~(better | again).any(axis=-1)


# Divergences and the surrogate -------------------------------------------------------------------


def kl_estimate(log_ratio: jax.Array, estimator: str) -> jax.Array:
    """KL(p || q) from samples of p, elementwise, with log_ratio = log p - log q.

    (Schulman 2020, "Approximating KL Divergence".) k1 = d is unbiased and may be negative; k2 =
    d^2 / 2 is biased, and its gradient is that of KL; k3 = exp(-d) - 1 + d is unbiased and never
    negative.

    >>> d = jnp.array(0.5)
    >>> [round(float(kl_estimate(d, k)), 4) for k in ("k1", "k2", "k3")]
    [0.5, 0.125, 0.1065]
    """
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return 0.5 * log_ratio**2
    return jnp.expm1(-log_ratio) + log_ratio


def sequence_log_ratio(log_ratio: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean log-ratio (B, 1) of an answer's tokens (B, L) (GSPO: Zheng et al. 2025, eq. 7).

    >>> sequence_log_ratio(jnp.array([[0.2, 0.4, 9.0]]), jnp.array([[1.0, 1.0, 0.0]])).tolist()
    [[0.3]]
    """
    return masked_mean(log_ratio, mask, axis=-1)[..., None]


def clipped_surrogate(
    ratio: jax.Array,
    advantage: jax.Array,
    low: float | jax.Array,
    high: float | jax.Array,
    kept: float | jax.Array = 0.0,
) -> jax.Array:
    """min(r A, clip(r, 1 - low, 1 + high) A) + kept (r - clip(r)) A, elementwise; to be maximised.

    (Schulman et al. 2017, eq. 7; with low and high apart, DAPO.) `kept` is the share of the
    gradient that stays where the hard rule cuts it: 0 for that rule, `losses.kept_by_noise` (NSR)
    or its expectation `losses.keep_probability`.

    >>> ratio, advantage = jnp.array([0.5, 1.1, 1.5]), jnp.array([1.0, 1.0, 1.0])
    >>> clipped_surrogate(ratio, advantage, 0.2, 0.28).tolist()
    [0.5, 1.1, 1.28]
    """
    clipped = jnp.clip(ratio, 1 - low, 1 + high)
    surrogate = jnp.minimum(ratio * advantage, clipped * advantage)
    return surrogate + lax.stop_gradient(kept) * (ratio - clipped) * advantage


def distinct(answers: jax.Array) -> jax.Array:
    """How many different numbers there are along the last axis, (...) from (..., G).

    >>> distinct(jnp.array([[3, 3, 1], [2, 2, 2]])).tolist()
    [2, 1]
    """
    ordered = jnp.sort(answers, axis=-1)
    return 1 + (ordered[..., 1:] != ordered[..., :-1]).sum(axis=-1)


def best_of(rewards: jax.Array, k: int) -> jax.Array:
    """The expected best of k among the G answers drawn, (...) from (..., G), without bias.

    Of k drawn without replacement from the G (Chen et al. 2021, arXiv:2107.03374, eq. 1, for
    rewards of any size). Raises: ValueError unless 1 <= k <= G.

    >>> float(best_of(jnp.array([0.0, 0.0, 1.0]), k=2)), float(best_of(jnp.array([1.0, 4.0]), k=2))
    (0.667, 4.0)
    """
    group = rewards.shape[-1]
    if not 1 <= k <= group:
        raise ValueError(f"best_of: k={k} is not from 1 to the {group} answers")
    # The i-th smallest is the best of C(i, k-1) of the C(G, k) choices.
    chances = [math.comb(i, k - 1) / math.comb(group, k) for i in range(group)]
    return jnp.sort(rewards, axis=-1) @ jnp.asarray(chances, rewards.dtype)


def repeated(tree: Any, times: int) -> Any:
    """Every row of arrays (N, ...) so many times in turn, (N x times, ...).

    >>> repeated(jnp.array([1, 2]), 2).tolist()
    [1, 1, 2, 2]
    """
    return jax.tree.map(lambda x: jnp.repeat(x, times, axis=0), tree)
