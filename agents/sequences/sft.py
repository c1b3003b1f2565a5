"""SFT: supervised fine-tuning on right answers, by cross-entropy; what RL starts from.

The answers that the policy itself writes are only counted: they show how far it has come.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl.agent import Hyperparameter, traced
from jaxrl.loops.sequence import PRETRAINING, Answers, Sequence, SequenceState
from jaxrl.parts.sequences import repeated

WITHOUT = ("pretraining_steps", *PRETRAINING)  # it is that itself


class Demonstrations(NamedTuple):
    prompt: Any  # (B, P)
    tokens: jax.Array  # (B, L)
    wanted: jax.Array  # bool (B,), false where nothing more is to be learnt


class SFT(Sequence):
    """Supervised fine-tuning of a sequence policy on right answers.

    Each iteration has as many demonstrations as answers. It learns as long as the share of right
    answers that it samples is below `target_accuracy`: less than 1 is a start for RL.
    """

    target_accuracy: float = traced(1.0, "(0, 1]", "share of right answers up to which it learns")

    @classmethod
    def hyperparameters(cls) -> list[Hyperparameter]:
        return [h for h in super().hyperparameters() if h.name not in WITHOUT]

    def unused(self) -> dict[str, str]:
        return super().unused() | dict.fromkeys(WITHOUT, "on sft, which is that itself")

    # Update -----------------------------------------------------------------------------------

    def batch(
        self, state: SequenceState, answers: Answers, key: jax.Array
    ) -> tuple[Any, Any, dict[str, jax.Array]]:
        prompts = jax.tree.map(lambda x: x[:, 0], answers.prompt)
        prompts = repeated(prompts, self.group_size)
        tokens = self.demonstrations(key, prompts)
        reached = answers.verdict.correct.mean() >= self.target_accuracy
        wanted = jnp.broadcast_to(~reached, tokens.shape[:1])
        return Demonstrations(prompts, tokens, wanted), state.memory, {}

    def learn(
        self, params: Any, opt_state: Any, batch: Demonstrations, key: jax.Array
    ) -> tuple[Any, Any, dict[str, jax.Array]]:
        *new, metrics = super().learn(params, opt_state, batch, key)
        choose = partial(jnp.where, batch.wanted[0])
        params, opt_state = jax.tree.map(choose, tuple(new), (params, opt_state))
        return params, opt_state, metrics

    def loss(
        self, params: Any, batch: Demonstrations, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """-log pi of the right tokens."""
        loss = self.cross_entropy(params, batch.prompt, batch.tokens)
        return loss, {"loss": loss}
