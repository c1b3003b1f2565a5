"""Maestro: Wu et al. 2026, "Maestro: Reinforcement Learning to Orchestrate Hierarchical Model-Skill
Ensembles", arXiv:2605.22177.

A policy calls experts, one after the other, until it stops. At each turn it sees the task, whom it
has called and what they have said, and calls an expert of a registry or stops. What it learns is
how an expert's features fit a state, and not who stands at which place: logits are dot products of
the two (`Pointer`). So a registry may be another one, and a larger one, than that of training:
`jaxrl.train(larger, start=run)` trains on there, and `larger.policy(run.state)` acts at once. An
expert who is not present is never called. The paper's pairs of model and skill are experts here.

An answer of this loop is a sequence of calls, its reward that of the outcome minus the costs, and
the update GRPO's (Shao et al. 2024, arXiv:2402.03300, section 4.1) without a KL penalty.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxrl import spaces
from jaxrl.agent import Hyperparameter, traced
from jaxrl.loops.sequence import Answers, Batch, Sequence, SequenceState
from jaxrl.parts.distributions import Categorical
from jaxrl.parts.losses import beyond_clip
from jaxrl.parts.sequence_networks import Pointer
from jaxrl.parts.sequences import clipped_surrogate, group_z_score, masked_mean

WITHOUT = ("network", "layers", "heads")
STATE = ("embedding", "turn", "said", "votes", "last")  # parts of an observation, as they are
PARTS = (*STATE, "asked", "features", "present")
NEVER = -1e9  # a logit that leaves no probability, and no NaN in an entropy at any temperature


class Maestro(Sequence):
    """Calls experts of a registry until it stops, by GRPO on the outcome.

    Written for tasks whose observations tell experts apart: `sequences/router`.
    """

    clip_low: float = traced(0.2, "(0, 1]", "the probability ratio stays above 1 - this")
    clip_high: float = traced(0.2, "(0, inf)", "the probability ratio stays below 1 + this")

    @classmethod
    def hyperparameters(cls) -> list[Hyperparameter]:
        return [h for h in super().hyperparameters() if h.name not in WITHOUT]

    # Networks ---------------------------------------------------------------------------------

    def check(self) -> None:
        super().check()
        parts = getattr(self.env, "parts", None) or {}
        missing = [name for name in PARTS if name not in parts]
        if missing:
            raise ValueError(
                f"maestro: {spaces.name_of(self.env)} has no {missing[0]} among the parts of its "
                "observations: it calls experts, as sequences/router has them"
            )

    def unused(self) -> dict[str, str]:
        return super().unused() | dict.fromkeys(WITHOUT, "on maestro, which scores experts")

    def init_params(self, key: jax.Array) -> Any:
        return Pointer(self.width).init(key, *self.seen(jnp.zeros(self.obs_shape, jnp.float32))[:2])

    def seen(self, obs: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Of observations (..., D): the state (..., S), features (..., E, F), presence (..., E).

        In the state stands the profile of whom it has asked instead of the number: it does not
        depend on the order of the registry.
        """
        parts = spaces.parts_of(self.env, obs)
        asked = parts["asked"] @ parts["features"]  # (..., L, F)
        rows = [parts[name] for name in STATE] + [asked]
        state = jnp.concatenate([x.reshape(*obs.shape[:-1], -1) for x in rows], axis=-1)
        return state, parts["features"], parts["present"] > 0.5

    def logits(self, params: Any, obs: jax.Array) -> jax.Array:
        """Of calling each expert and of stopping, (..., E + 1), at observations (..., D)."""
        state, features, present = self.seen(obs)
        logits = Pointer(self.width).apply(params, state, features)
        may = jnp.concatenate([present, jnp.ones_like(present[..., :1])], axis=-1)
        return jnp.where(may, logits, NEVER)

    def observed(self, tasks: Any, tokens: jax.Array, t: jax.Array) -> jax.Array:
        """What is seen (B, D) before call number t, after calls (B, L)."""
        observe = jax.vmap(self.env.observe, (0, 0, None, None))
        return observe(tasks, tokens, t, self.env_params)

    def distribution(self, params: Any, prompts: Any, tokens: jax.Array) -> Categorical:
        """The policy at each of given calls (B, L)."""
        turns = jnp.arange(tokens.shape[1], dtype=jnp.int32)
        obs = jax.vmap(self.observed, (None, None, 0), 1)(prompts, tokens, turns)
        return self.tempered(self.logits(params, obs))

    def begin(self, params: Any, prompts: Any) -> tuple[jax.Array, jax.Array]:
        """Before anybody is called: no calls (N, L) yet, and the logits (N, E + 1) of the first."""
        number = len(jax.tree.leaves(prompts)[0])
        tokens = jnp.zeros((number, self.env.answer_length), jnp.int32)
        return tokens, self.logits(params, self.observed(prompts, tokens, jnp.int32(0)))

    def advance(
        self, params: Any, memory: jax.Array, prompts: Any, token: jax.Array, t: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """After call number t, token (B,): the calls so far, and the logits of the next."""
        tokens = memory.at[:, t].set(token)
        return tokens, self.logits(params, self.observed(prompts, tokens, t + 1))

    def next_token(self, params: Any, obs: jax.Array) -> Categorical:
        return self.tempered(self.logits(params, obs))

    # Update -----------------------------------------------------------------------------------

    def advantages(
        self, state: SequenceState, answers: Answers, key: jax.Array
    ) -> tuple[jax.Array, Any, dict[str, jax.Array]]:
        is_call = answers.mask * (answers.tokens != self.env.end_token)
        calls = is_call.sum(axis=-1).mean()
        return group_z_score(answers.verdict.reward), state.memory, {"calls": calls}

    def loss(
        self, params: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Minus the clipped surrogate, all turns alike."""
        answers, mask = batch.answers, batch.answers.mask
        log_prob = self.distribution(params, answers.prompt, answers.tokens).log_prob(
            answers.tokens
        )
        log_ratio = (log_prob - answers.log_prob) * mask
        ratio, limits = jnp.exp(log_ratio), (self.clip_low, self.clip_high)
        loss = -masked_mean(clipped_surrogate(ratio, batch.advantage, *limits), mask)
        beyond = beyond_clip(ratio, batch.advantage, *limits).astype(jnp.float32)
        return loss, {
            "policy_loss": loss,
            "approx_kl": masked_mean(jnp.expm1(log_ratio) - log_ratio, mask),
            "clip_fraction": masked_mean(beyond, mask),
        }
