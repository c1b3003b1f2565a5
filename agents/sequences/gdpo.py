"""GDPO: Liu et al. 2026, "GDPO: Group reward-Decoupled Normalization Policy Optimization for
Multi-reward RL Optimization", arXiv:2601.05242; with the covariance rules of Cui et al. 2025, "The
Entropy Mechanism of Reinforcement Learning for Reasoning Language Models", arXiv:2505.22617.

Together, with rewards=intrinsic, they are RL from internal feedback (multi-reward RLIF): no
verifier, but how many of a group agree and how certain the policy is of what it writes. Either
reward alone collapses, which the study `collapse` shows.

- KL-Cov: cov_rule=kl. As in the released code its surrogate is not clipped, and the penalty is the
  absolute log-ratio to the policy that wrote the answers, whose gradient is 0 at the first of an
  iteration's gradient steps. Released: cov_share=0.002, cov_coef=1; RLIF: 0.02 and 0.0005 to 0.1.
- Clip-Cov: cov_rule=clip, of the clipped surrogate. Released: cov_share=0.0002.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxrl import spaces
from jaxrl.agent import static, traced
from jaxrl.loops.sequence import Answers, Batch, Sequence, SequenceState
from jaxrl.parts.intrinsic import (
    agreement,
    batch_z_score,
    channel_advantages,
    clip_cov_tokens,
    kl_cov_tokens,
    self_certainty,
    token_covariance,
)
from jaxrl.parts.losses import beyond_clip
from jaxrl.parts.sequences import clipped_surrogate, masked_mean


class GDPO(Sequence):
    """GRPO from several rewards, each normalised by itself; with KL-Cov or Clip-Cov.

    The rewards are the channels of the verifier, or the policy's own: agreement and certainty.
    """

    rewards: str = static(
        "verified",
        ("verified", "intrinsic"),
        "the verifier's channels, all alike; agreement within the group and self-certainty",
    )
    agreement_weight: float = traced(1.0, "[0, inf)", "of the share of the group that agrees")
    certainty_weight: float = traced(1.0, "[0, inf)", "of the mean KL(uniform || policy) of tokens")
    normalize: str = static(
        "channels", ("channels", "sum"), "within the group: each channel; their sum, as GRPO does"
    )
    normalize_batch: bool = static(True, None, "advantages once more, over the whole iteration")
    clip_low: float = traced(0.2, "(0, 1]", "the probability ratio stays above 1 - this")
    clip_high: float = traced(0.2, "(0, inf)", "the probability ratio stays below 1 + this")
    cov_rule: str = static(
        "none",
        ("none", "kl", "clip"),
        "against the loss of entropy, on some tokens: none; KL-Cov, a penalty; Clip-Cov, no "
        "gradient",
    )
    cov_share: float = traced(0.02, "(0, 1]", "of the tokens it is applied to, among all")
    cov_coef: float = traced(0.1, "[0, inf)", "weight of KL-Cov's absolute log-ratio")
    cov_low: float = traced(1.0, "(-inf, inf)", "the least covariance that Clip-Cov detaches")
    cov_high: float = traced(5.0, "(-inf, inf)", "the greatest one")

    # Networks ---------------------------------------------------------------------------------

    def check(self) -> None:
        super().check()
        if self.cov_rule == "kl" and self.num_epochs * self.num_minibatches == 1:
            raise ValueError(
                "gdpo: cov_rule='kl' has no effect with one gradient step per iteration, where all "
                "log-ratios are 0; set num_minibatches or num_epochs"
            )
        is_standin = getattr(self.env, "acts_only", False)
        if self.rewards == "verified" and not is_standin:
            answer = jax.ShapeDtypeStruct((self.env.answer_length,), jnp.int32)
            prompt = jax.eval_shape(self.env.prompt, jax.random.key(0), self.env_params)
            channels = jax.eval_shape(self.env.verify, prompt, answer, self.env_params).rewards
            if channels.ndim != 1:
                raise ValueError(
                    f"gdpo: {spaces.name_of(self.env)} has rewards {channels.shape} of a set of "
                    "answers; rewards='verified' takes one number for each channel"
                )

    def unused(self) -> dict[str, str]:
        why = super().unused()
        if self.rewards == "verified":
            weights = ("agreement_weight", "certainty_weight")
            why |= dict.fromkeys(weights, "with rewards=verified")
        of_rules = {
            "none": ("cov_share", "cov_coef", "cov_low", "cov_high"),
            "kl": ("cov_low", "cov_high", "clip_low", "clip_high"),
            "clip": ("cov_coef",),
        }
        return why | dict.fromkeys(of_rules[self.cov_rule], f"with cov_rule={self.cov_rule}")

    # Update -----------------------------------------------------------------------------------

    def advantages(
        self, state: SequenceState, answers: Answers, key: jax.Array
    ) -> tuple[jax.Array, Any, dict[str, jax.Array]]:
        metrics: dict[str, jax.Array] = {}
        if self.rewards == "verified":
            rewards = answers.verdict.rewards
            weights = jnp.ones(rewards.shape[-1], rewards.dtype)
        else:
            rewards, metrics = self.intrinsic(state, answers)
            weights = jnp.array([self.agreement_weight, self.certainty_weight], rewards.dtype)
        advantage = channel_advantages(rewards, weights, self.normalize)
        if self.normalize_batch:
            advantage = batch_z_score(advantage)
        everything = answers.verdict.answer.reshape(1, -1)
        metrics["commonest_share"] = agreement(everything).max()
        return advantage, state.memory, metrics

    def intrinsic(
        self, state: SequenceState, answers: Answers
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Agreement and self-certainty (N, G, 2)."""
        prompts, tokens = jax.tree.map(
            lambda x: x.reshape(-1, *x.shape[2:]), (answers.prompt, answers.tokens)
        )
        logits = self.distribution(state.params, prompts, tokens).logits
        certain = self_certainty(logits.reshape(*answers.tokens.shape, -1), answers.mask)
        agree = agreement(answers.verdict.answer)
        metrics = {"agreement": agree.mean(), "self_certainty": certain.mean()}
        return jnp.stack([agree, certain], axis=-1), metrics

    def loss(
        self, params: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Minus the surrogate, all tokens alike, under the covariance rule (Cui et al., 4.2)."""
        answers, mask, advantage = batch.answers, batch.answers.mask, batch.advantage
        dist = self.distribution(params, answers.prompt, answers.tokens)
        log_prob = dist.log_prob(answers.tokens)
        log_ratio = (log_prob - answers.log_prob) * mask
        ratio = jnp.exp(log_ratio)
        covariance = token_covariance(advantage, log_prob, mask)
        metrics = {
            "covariance": masked_mean(covariance, mask),
            "approx_kl": masked_mean(jnp.expm1(log_ratio) - log_ratio, mask),
        }
        if self.cov_rule == "kl":
            chosen = kl_cov_tokens(covariance, mask, self.cov_share)
            surrogate = ratio * advantage - self.cov_coef * chosen * jnp.abs(log_ratio)
        else:
            limits = self.clip_low, self.clip_high
            surrogate = clipped_surrogate(ratio, advantage, *limits)
            beyond = beyond_clip(ratio, advantage, *limits).astype(jnp.float32)
            metrics["clip_fraction"] = masked_mean(beyond, mask)
        if self.cov_rule == "clip":
            bounds = self.cov_share, self.cov_low, self.cov_high
            chosen = clip_cov_tokens(key, covariance, mask, *bounds)
            surrogate = surrogate * (1 - chosen)
        if self.cov_rule != "none":
            metrics["chosen_fraction"] = masked_mean(chosen, mask)
        loss = -masked_mean(surrogate, mask)
        return loss, {"policy_loss": loss} | metrics
