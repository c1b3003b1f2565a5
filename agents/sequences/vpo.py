"""VPO: vector policy optimization (Bahlous-Boldi et al. 2026, arXiv:2605.22817).

Rewards are vectors and an answer is a set of several: the policy learns to write sets that hold a
good one whatever the weights of the objectives will be. The score of a set is the expectation over
weights, w ~ Dirichlet, of its best w . r; the rest is GRPO. Weights are drawn once for each prompt:
its answers are compared under the same ones.

With sets of one answer it is GRPO by the mean weights. `grpo` on the same task, whose scalar reward
is the best of the set by fixed weights, is the paper's Multi-RLVR.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxrl.agent import static, traced
from jaxrl.loops.sequence import Answers, Batch, Sequence, SequenceState
from jaxrl.parts.losses import beyond_clip
from jaxrl.parts.sequences import (
    clipped_surrogate,
    group_z_score,
    has_spread,
    masked_mean,
    mean_of_tokens,
    non_dominated,
    set_score,
)


class VPO(Sequence):
    """GRPO for rewards that are vectors: by the best of a set of answers under random weights."""

    num_weights: int = static(64, "[1, inf)", "draws of the objectives' weights for each prompt")
    concentration: float = traced(
        1.0, "(0, inf)", "of the Dirichlet distribution of weights; 1: all mixtures are as likely"
    )
    weigh: str = static(
        "token",
        ("token", "answer", "sum"),
        "all tokens alike; all answers alike; sums over answers, not divided by their length",
    )
    clip_low: float = traced(0.2, "(0, 1]", "the probability ratio stays above 1 - this")
    clip_high: float = traced(0.2, "(0, inf)", "the probability ratio stays below 1 + this")
    entropy_coef: float = traced(0.0, "[0, inf)", "weight of the entropy bonus")

    # Networks ---------------------------------------------------------------------------------

    @property
    def objectives(self) -> int:
        """Channels of the task's rewards, C; 1 where there is no task and it only acts."""
        if not hasattr(self.env, "verify"):
            return 1
        answer = jax.ShapeDtypeStruct((self.env.answer_length,), jnp.int32)

        def verified(key: jax.Array, answer: jax.Array) -> jax.Array:
            prompt = self.env.prompt(key, self.env_params)
            return self.env.verify(prompt, answer, self.env_params).rewards

        return int(jax.eval_shape(verified, jax.random.key(0), answer).shape[-1])

    def unused(self) -> dict[str, str]:
        why = super().unused()
        if self.objectives == 1:
            why |= dict.fromkeys(("num_weights", "concentration"), "where rewards have one channel")
        return why

    # Update -----------------------------------------------------------------------------------

    def weights(self, key: jax.Array) -> jax.Array:
        """Of the objectives, (N, K, C), which sum to 1."""
        if self.objectives == 1:
            return jnp.ones((self.num_prompts, 1, 1), jnp.float32)
        alpha = jnp.full(self.objectives, self.concentration, jnp.float32)
        shape = self.num_prompts, self.num_weights
        return jax.random.dirichlet(key, alpha, shape, jnp.float32)

    def advantages(
        self, state: SequenceState, answers: Answers, key: jax.Array
    ) -> tuple[jax.Array, Any, dict[str, jax.Array]]:
        """Z-scores within the group of S = E_w max_j w . r_j."""
        rewards = answers.verdict.rewards
        if rewards.ndim == 3:  # an answer is a set of one
            rewards = rewards[:, :, None]
        score = set_score(rewards, self.weights(key)[:, None])
        return (
            group_z_score(score),
            state.memory,
            {
                "set_score": score.mean(),
                "non_dominated": non_dominated(rewards).sum(-1).mean(dtype=jnp.float32),
                "group_spread": has_spread(score).mean(dtype=jnp.float32),
            },
        )

    def loss(
        self, params: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Clipped surrogate + entropy bonus, with minus."""
        answers, mask = batch.answers, batch.answers.mask
        dist = self.distribution(params, answers.prompt, answers.tokens)
        log_ratio = (dist.log_prob(answers.tokens) - answers.log_prob) * mask
        ratio, limits = jnp.exp(log_ratio), (self.clip_low, self.clip_high)
        surrogate = clipped_surrogate(ratio, batch.advantage, *limits)
        policy_loss = -mean_of_tokens(surrogate, mask, self.weigh)
        entropy = mean_of_tokens(dist.entropy(), mask, self.weigh)
        beyond = beyond_clip(ratio, batch.advantage, *limits).astype(jnp.float32)
        return policy_loss - self.entropy_coef * entropy, {
            "policy_loss": policy_loss,
            "approx_kl": masked_mean(jnp.expm1(log_ratio) - log_ratio, mask),
            "clip_fraction": masked_mean(beyond, mask),
        }
