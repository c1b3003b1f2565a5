"""POISE: policy optimization with internal state value estimation.

Choi, Lim, Ahn, Oh, Shim and Jo 2026, arXiv:2605.07579. The policy's own hidden states, which it has
at no cost, tell how likely a prompt is to be answered rightly: a linear probe reads it off, and two
answers to a prompt are enough for a baseline.

The baseline of an answer comes from what the policy thought while it wrote the *other* answers to
its prompt. They are independent of it, so the gradient remains unbiased; read off the answer itself
(`baseline=self`) it does not. What the probe learns is our choice: from one answer to predict the
rewards of the others (`targets=cross`), so that it tells how hard the prompt is and not how this
answer turned out. The probe is ridge regression on the last batches, solved anew after each.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrl.agent import static, traced
from jaxrl.loops.sequence import Answers, Batch, Sequence, SequenceState
from jaxrl.parts.linalg import cho_solve, cholesky
from jaxrl.parts.losses import beyond_clip
from jaxrl.parts.sequences import (
    SPREAD,
    clipped_surrogate,
    masked_mean,
    mean_of_tokens,
    others_mean,
)


class Probe(NamedTuple):
    """A linear prediction of rewards from a constant and D features, and what it follows from."""

    weights: jax.Array  # (1 + D,)
    gram: jax.Array  # (W, 1 + D, 1 + D), X'X of each of the last W batches
    product: jax.Array  # (W, 1 + D), X'y of each


class POISE(Sequence):
    """Policy gradient whose baseline a probe reads off the hidden states of the other answers.

    Otherwise DAPO's clipped surrogate, with many prompts and few answers to each.
    """

    num_prompts: int = static(128, "[1, inf)", "prompts per iteration")
    group_size: int = static(2, "[2, inf)", "answers to each prompt")
    baseline: str = static(
        "cross", ("cross", "self"), "read off the prompt's other answers; off the answer itself"
    )
    targets: str = static(
        "cross", ("cross", "self"), "the probe learns the rewards of the others; of the answer"
    )
    ridge: float = traced(1.0, "(0, inf)", "penalty on the probe's squared weights")
    probe_batches: int = static(8, "[1, inf)", "the last batches, from which the probe learns")
    whiten: bool = static(True, None, "advantages to mean 0 and standard deviation 1 in a batch")
    weigh: str = static(
        "token",
        ("token", "answer", "sum"),
        "all tokens alike; all answers alike; sums over answers, not divided by their length",
    )
    clip_low: float = traced(0.2, "(0, 1]", "the probability ratio stays above 1 - this")
    clip_high: float = traced(0.28, "(0, inf)", "the probability ratio stays below 1 + this")

    # Networks ---------------------------------------------------------------------------------

    def features(self, params: Any, answers: Answers) -> jax.Array:
        """What the policy has in itself of answers (N, G, ...): (N, G, D), without gradient."""
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), answers)
        hidden = self.outputs(params, flat.prompt, flat.tokens, read_last=True).hidden
        features = answer_features(hidden, flat.entropy, flat.mask)
        return lax.stop_gradient(features.reshape(*answers.mask.shape[:2], -1))

    # Init -------------------------------------------------------------------------------------

    def init_memory(self, key: jax.Array) -> Probe:
        hidden = self.vocabulary if self.network == "tabular" else self.width
        size = 1 + 3 * hidden + 3
        zeros = jnp.zeros((self.probe_batches, size), jnp.float32)
        return Probe(zeros[0], jnp.zeros((*zeros.shape, size), jnp.float32), zeros)

    # Update -----------------------------------------------------------------------------------

    def advantages(
        self, state: SequenceState, answers: Answers, key: jax.Array
    ) -> tuple[jax.Array, Any, dict[str, jax.Array]]:
        """Reward - baseline, by the probe as earlier batches left it; then these teach it."""
        reward = answers.verdict.reward
        features = self.features(state.params, answers)
        inputs = jnp.concatenate([jnp.ones_like(features[..., :1]), features], axis=-1)
        values = inputs @ state.memory.weights  # (N, G)
        baseline = others_mean(values) if self.baseline == "cross" else values
        error = reward - baseline
        targets = others_mean(reward) if self.targets == "cross" else reward
        probe = taught(state.memory, inputs, targets, self.ridge)
        advantage = (error - error.mean()) / (error.std() + SPREAD) if self.whiten else error
        centred, spread = reward - reward.mean(), reward.var()
        spread = jnp.where(spread > 0, spread, jnp.nan)
        return (
            advantage,
            probe,
            {
                "explained_variance": 1 - error.var() / spread,
                "explainable_variance": (centred * others_mean(centred)).mean() / spread,
            },
        )

    def loss(
        self, params: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Minus the clipped surrogate."""
        answers, mask = batch.answers, batch.answers.mask
        dist = self.distribution(params, answers.prompt, answers.tokens)
        log_ratio = (dist.log_prob(answers.tokens) - answers.log_prob) * mask
        ratio, limits = jnp.exp(log_ratio), (self.clip_low, self.clip_high)
        surrogate = clipped_surrogate(ratio, batch.advantage, *limits)
        loss = -mean_of_tokens(surrogate, mask, self.weigh)
        beyond = beyond_clip(ratio, batch.advantage, *limits).astype(jnp.float32)
        return loss, {
            "policy_loss": loss,
            "approx_kl": masked_mean(jnp.expm1(log_ratio) - log_ratio, mask),
            "clip_fraction": masked_mean(beyond, mask),
        }


# The probe --------------------------------------------------------------------------------------


def answer_features(hidden: jax.Array, entropy: jax.Array, mask: jax.Array) -> jax.Array:
    """What a probe reads of answers (B, 3 W + 3).

    The means of the hidden states (B, P + L, W) after the tokens of the prompt and after those of
    the answer, the last one of the answer; mean, maximum and standard deviation of its tokens'
    entropies (B, L). The mask (B, L) says which tokens the answer has.
    """
    first = hidden.shape[1] - mask.shape[1]
    of_prompt, of_answer = hidden[:, :first], hidden[:, first:]
    last = jnp.maximum(mask.sum(axis=-1).astype(jnp.int32) - 1, 0)
    mean = masked_mean(entropy, mask, axis=-1)
    spread = masked_mean((entropy - mean[:, None]) ** 2, mask, axis=-1) ** 0.5
    statistics = jnp.stack([mean, jnp.where(mask > 0, entropy, 0).max(axis=-1), spread], axis=-1)
    return jnp.concatenate(
        [
            of_prompt.mean(axis=1),
            masked_mean(of_answer, mask[..., None], axis=1),
            jnp.take_along_axis(of_answer, last[:, None, None], axis=1)[:, 0],
            statistics,
        ],
        axis=-1,
    )


def taught(probe: Probe, inputs: jax.Array, targets: jax.Array, ridge: Any) -> Probe:
    """The probe with one more batch, inputs (N, G, 1 + D) and targets (N, G), for the oldest."""
    rows, y = inputs.reshape(-1, inputs.shape[-1]), targets.reshape(-1)
    gram = jnp.concatenate([probe.gram[1:], (rows.T @ rows)[None]])
    product = jnp.concatenate([probe.product[1:], (rows.T @ y)[None]])
    return Probe(ridge_weights(gram.sum(axis=0), product.sum(axis=0), ridge), gram, product)


def ridge_weights(gram: jax.Array, product: jax.Array, penalty: Any) -> jax.Array:
    """The w (D,) with the least |X w - y|^2 + penalty |w_2...D|^2, from X'X (D, D) and X'y (D,).

    (Hoerl and Kennard 1970.) The first column of X is the constant: it is not penalised.
    """
    is_penalised = (jnp.arange(len(product)) > 0).astype(gram.dtype)
    penalties = jnp.asarray(penalty, gram.dtype) * is_penalised
    return cho_solve(cholesky(gram + jnp.diag(penalties)), product)
