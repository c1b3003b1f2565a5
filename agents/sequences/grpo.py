"""GRPO: DeepSeekMath (Shao et al. 2024, arXiv:2402.03300), section 4.1.

Its successors are choices of the same file:

- DAPO (Yu et al. 2025, arXiv:2503.14476): clip_high=0.28, drop_uniform=true, weigh=token, no KL.
- Dr. GRPO (Liu et al. 2025, arXiv:2503.20783): divide_by_std=false, weigh=sum.
- RLOO (Ahmadian et al. 2024, arXiv:2402.14740): baseline=others, divide_by_std=false, weigh=sum.
- GSPO (Zheng et al. 2025, arXiv:2507.18071): ratio_of=answer, whose clip range is far smaller.
- NSR, noisy clipping: clip_rule=noise, at the level of tokens or answers.

Codes differ in the mean over tokens: here `weigh` says which, by default all tokens alike. The
penalty is Schulman's k3 estimator, as in the paper, unless `kl_estimator` says otherwise.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxrl.agent import static, traced
from jaxrl.loops.sequence import Answers, Batch, Sequence, SequenceState
from jaxrl.parts.losses import beyond_clip, keep_probability, kept_by_noise
from jaxrl.parts.sequences import (
    clipped_surrogate,
    group_advantages,
    has_spread,
    kl_estimate,
    masked_mean,
    mean_of_tokens,
    sequence_log_ratio,
)


class GRPO(Sequence):
    """Group relative policy optimization of a sequence policy by verified answers.

    An answer's advantage is its reward relative to the other answers to the same prompt.
    """

    baseline: str = static(
        "mean", ("mean", "others", "none"), "of the group; of its other answers (RLOO); none"
    )
    divide_by_std: bool = static(True, None, "advantages by the group's standard deviation")
    drop_uniform: bool = static(False, None, "leave out groups whose rewards are all alike (DAPO)")
    weigh: str = static(
        "token",
        ("token", "answer", "sum"),
        "all tokens alike; all answers alike; sums over answers, not divided by their length",
    )
    ratio_of: str = static(
        "token", ("token", "answer"), "probability ratios, clipped: of tokens; of answers (GSPO)"
    )
    clip_low: float = traced(0.2, "(0, 1]", "the probability ratio stays above 1 - this")
    clip_high: float = traced(0.2, "(0, inf)", "the probability ratio stays below 1 + this")
    clip_rule: str = static(
        "hard",
        ("hard", "noise", "decay"),
        "gradient beyond the clip range: none; all of it, at random (NSR); or that in expectation",
    )
    clip_noise: float = traced(
        0.2, "[0, 1)", "a token is kept if its ratio x U(1 +- this) is within the clip range"
    )
    kl_coef: float = traced(0.0, "[0, inf)", "weight of the KL divergence from the policy at first")
    kl_estimator: str = static("k3", ("k1", "k2", "k3"), "of that divergence, from samples")
    entropy_coef: float = traced(0.0, "[0, inf)", "weight of the entropy bonus")

    # Networks ---------------------------------------------------------------------------------

    def unused(self) -> dict[str, str]:
        why = super().unused()
        if self.clip_rule == "hard":
            why["clip_noise"] = "with clip_rule=hard"
        return why

    # Update -----------------------------------------------------------------------------------

    def advantages(
        self, state: SequenceState, answers: Answers, key: jax.Array
    ) -> tuple[jax.Array, Any, dict[str, jax.Array]]:
        reward = answers.verdict.reward
        advantage = group_advantages(reward, self.baseline, self.divide_by_std)
        spread = has_spread(reward)
        return advantage, state.memory, {"group_spread": spread.mean(dtype=jnp.float32)}

    def batch(
        self, state: SequenceState, answers: Answers, key: jax.Array
    ) -> tuple[Any, Any, dict[str, jax.Array]]:
        if self.drop_uniform:  # their tokens count in no mean
            kept = has_spread(answers.verdict.reward)[..., None]
            answers = answers._replace(mask=answers.mask * kept)
        return super().batch(state, answers, key)

    def loss(
        self, params: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Clipped surrogate - KL penalty + entropy bonus (eq. 3, with minus)."""
        answers, mask = batch.answers, batch.answers.mask
        dist = self.distribution(params, answers.prompt, answers.tokens)
        log_prob = dist.log_prob(answers.tokens)
        log_ratio = (log_prob - answers.log_prob) * mask
        if self.ratio_of == "answer":  # the same for all tokens of an answer
            ratio = jnp.exp(sequence_log_ratio(log_ratio, mask))
            advantage = masked_mean(batch.advantage, mask, axis=-1)[..., None]
            counts = mask.max(axis=-1, keepdims=True)
        else:
            ratio, advantage, counts = jnp.exp(log_ratio), batch.advantage, mask
        limits = self.clip_low, self.clip_high
        kept, of_rule = self.kept(ratio, advantage, counts, key)
        surrogate = clipped_surrogate(ratio, advantage, *limits, kept)
        policy_loss = -mean_of_tokens(surrogate, counts, self.weigh)

        drift = kl_estimate(log_prob - answers.reference_log_prob, self.kl_estimator)
        penalty = mean_of_tokens(drift, mask, self.weigh)
        entropy = mean_of_tokens(dist.entropy(), mask, self.weigh)
        loss = policy_loss + self.kl_coef * penalty - self.entropy_coef * entropy
        beyond = beyond_clip(ratio, advantage, *limits).astype(jnp.float32)
        return loss, {
            "policy_loss": policy_loss,
            "approx_kl": masked_mean(jnp.expm1(log_ratio) - log_ratio, mask),
            "clip_fraction": masked_mean(beyond, counts),
            **of_rule,
        }

    def kept(
        self, ratio: jax.Array, advantage: jax.Array, counts: jax.Array, key: jax.Array
    ) -> tuple[jax.Array | float, dict[str, jax.Array]]:
        """The share of the gradient that stays although the hard rule would cut it."""
        limits = self.clip_low, self.clip_high, self.clip_noise
        if self.clip_rule == "hard":
            return 0.0, {}
        if self.clip_rule == "noise":
            kept = kept_by_noise(key, ratio, advantage, *limits).astype(jnp.float32)
        else:
            kept = keep_probability(ratio, advantage, *limits)
        return kept, {"kept_fraction": masked_mean(kept, counts)}
