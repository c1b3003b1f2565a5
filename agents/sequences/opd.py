"""OPD: "Post-Training is About States, Not Tokens: A State Distribution View of SFT, RL, and
On-Policy Distillation", 2026, arXiv:2605.22731.

A state is a prompt with what has been written so far. The states of `state_source=dataset` are
those of right answers, as in supervised fine-tuning and in distillation off the policy (Hinton et
al. 2015, arXiv:1503.02531); those of `learner` are the policy's own, as in on-policy distillation
(Agarwal et al. 2024, "On-Policy Distillation of Language Models", arXiv:2306.13649; Gu et al. 2024,
"MiniLLM", arXiv:2306.08543) and in RL. What is learnt there, `supervision` says:

- demonstrations: the cross-entropy of the right token. At the learner's states the right one is
  that which the demonstration has in its place (scheduled sampling without a schedule: Bengio et
  al. 2015, arXiv:1506.03099).
- teacher: KL(policy || teacher) over all tokens, or the reverse of it. The teacher is what the
  policy at the start becomes by `teacher_steps` of cross-entropy on the same prompts.
- rewards: GRPO's clipped surrogate (Shao et al. 2024, arXiv:2402.03300), of its own answers only.

All are sums over an answer's tokens. So at the learner's states the expected loss of the teacher is
KL(policy || teacher) of whole answers; its gradient has two terms, that of the divergences at the
states, and that of which states are reached. As usual the second is left out, unless `state_term`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrl.agent import Tag, derive, static, traced
from jaxrl.loops.sequence import Answers, Sequence, SequenceState
from jaxrl.parts.distributions import Categorical
from jaxrl.parts.losses import beyond_clip
from jaxrl.parts.optimize import clipped_adam, descend
from jaxrl.parts.sequences import (
    answer_mask,
    clipped_surrogate,
    group_z_score,
    masked_mean,
    mean_of_tokens,
    others_mean,
    sum_of_later,
)


class Memory(NamedTuple):
    prompts: Any  # (D, P), the dataset's; () where each iteration has new ones
    teacher: Any  # its parameters; () where there is none


class Lesson(NamedTuple):
    """States, and what is to be learnt at them, (B, ...); () for what has no use.

    Attributes:
        prompt: (B, P).
        tokens: int32 (B, L), which with the prompt are the states.
        mask: (B, L), 1 at the states that there are.
        right: int32 (B, L), the demonstration's tokens.
        teacher: logits (B, L, V).
        later: (B, L), the divergence at the states after this one, beyond that of other answers.
        log_prob: (B, L), of the policy that wrote the tokens.
        advantage: (B, 1), of the answer.
    """

    prompt: Any
    tokens: jax.Array
    mask: jax.Array
    right: Any = ()
    teacher: Any = ()
    later: Any = ()
    log_prob: Any = ()
    advantage: Any = ()


class OPD(Sequence):
    """On-policy distillation; SFT and RL by the same loss at other states or other supervision.

    Metrics are of answers that the policy itself writes, whatever it learns from.
    """

    supervision: str = static(
        "teacher",
        ("demonstrations", "teacher", "rewards"),
        "right tokens (SFT); a teacher's distribution (distillation); the verifier (GRPO)",
    )
    state_source: str = static(
        "learner", ("dataset", "learner"), "states of right answers; those of the policy's own"
    )
    dataset_size: int = static(
        0, "[0, inf)", "prompts, drawn once, that all is learnt from; 0: new ones each time"
    )
    divergence: str = static(
        "reverse",
        ("reverse", "forward"),
        "KL(policy || teacher), which seeks a mode; KL(teacher || policy), which covers all",
    )
    state_term: bool = static(
        False, None, "the gradient also of which states are reached, by the likelihood ratio"
    )
    teacher_steps: int = static(
        200, "[1, inf)", "gradient steps on demonstrations by which the policy becomes the teacher"
    )
    teacher_learning_rate: float = traced(1e-2, "(0, inf)", "Adam's step size in them")
    clip_low: float = traced(0.2, "(0, 1]", "the probability ratio stays above 1 - this")
    clip_high: float = traced(0.2, "(0, inf)", "the probability ratio stays below 1 + this")

    # Networks ---------------------------------------------------------------------------------

    def unused(self) -> dict[str, str]:
        why = super().unused()
        if self.state_source == "dataset":
            why["state_term"] = "with state_source=dataset, where no state depends on the policy"
        if self.supervision != "teacher":
            of_teacher = ("divergence", "state_term", "teacher_steps", "teacher_learning_rate")
            why |= dict.fromkeys(of_teacher, f"with supervision={self.supervision}")
        if self.supervision == "rewards":
            why["state_source"] = "with supervision=rewards, which are of the policy's own answers"
        else:
            why |= dict.fromkeys(("clip_low", "clip_high"), f"with supervision={self.supervision}")
        return why

    # Init -------------------------------------------------------------------------------------

    def begun(self, key: jax.Array, params: Any) -> SequenceState:
        """The state at the start, with the dataset and a teacher that starts from `params`."""
        state = super().begun(key, params)
        if getattr(self.env, "acts_only", False):  # an exported policy has no prompts
            return state
        pool: Any = ()
        if self.dataset_size:
            pool = self.fresh_prompts(derive(key, Tag.INIT, 2), self.dataset_size)
        is_taught = self.supervision == "teacher"
        teacher = self.taught(params, pool, derive(key, Tag.INIT, 3)) if is_taught else ()
        return state._replace(memory=Memory(pool, teacher))

    def taught(self, params: Any, pool: Any, key: jax.Array) -> Any:
        """What becomes of parameters by cross-entropy on demonstrations: the teacher's."""
        optimizer = clipped_adam(self.teacher_learning_rate, self.max_grad_norm)

        def update(learner, key):
            prompt_key, right_key = jax.random.split(key)
            prompts = self.drawn(pool, prompt_key)
            right = self.demonstrations(right_key, prompts)
            loss = lambda params: (self.cross_entropy(params, prompts, right), ())  # noqa: E731
            return descend(optimizer, loss, *learner)[:2], ()

        keys = jax.random.split(key, self.teacher_steps)
        return lax.scan(update, (params, optimizer.init(params)), keys)[0][0]

    # Update -----------------------------------------------------------------------------------

    def drawn(self, pool: Any, key: jax.Array) -> Any:
        """Prompts (N, ...) of the dataset, with replacement; without one, new ones."""
        if not self.dataset_size:
            return self.fresh_prompts(key)
        rows = jax.random.randint(key, (self.num_prompts,), 0, self.dataset_size, jnp.int32)
        return jax.tree.map(lambda x: x[rows], pool)

    def prompts(self, state: SequenceState, key: jax.Array) -> Any:
        return self.drawn(state.memory.prompts, key)

    def batch(
        self, state: SequenceState, answers: Answers, key: jax.Array
    ) -> tuple[Any, Any, dict[str, jax.Array]]:
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), answers)
        lesson = Lesson(flat.prompt, flat.tokens, flat.mask)
        if self.supervision == "rewards":
            advantage = group_z_score(answers.verdict.reward).reshape(-1, 1)
            lesson = lesson._replace(log_prob=flat.log_prob, advantage=advantage)
            return lesson, state.memory, {}
        right = self.demonstrations(key, flat.prompt)
        if self.state_source == "dataset":
            lesson = lesson._replace(tokens=right, mask=answer_mask(right, self.env.end_token))
        return self.supervised(state, lesson, right), state.memory, {}

    def supervised(self, state: SequenceState, lesson: Lesson, right: jax.Array) -> Lesson:
        """The lesson with what its states are supervised by, wherever they come from."""
        if self.supervision == "demonstrations":
            return lesson._replace(right=right)
        states = lesson.prompt, lesson.tokens
        teacher = self.distribution(state.memory.teacher, *states)
        lesson = lesson._replace(teacher=teacher.logits)
        if not self.state_term:
            return lesson
        cost = self.divergences(self.distribution(state.params, *states), teacher) * lesson.mask
        later = sum_of_later(cost).reshape(self.num_prompts, self.group_size, -1)
        # What stands after other answers' tokens does not depend on this one's: no bias.
        return lesson._replace(later=(later - others_mean(later)).reshape(cost.shape))

    def divergences(self, policy: Categorical, teacher: Categorical) -> jax.Array:
        """Of all tokens at each state, (B, L)."""
        return policy.kl(teacher) if self.divergence == "reverse" else teacher.kl(policy)

    def loss(
        self, params: Any, batch: Lesson, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The mean over answers of the sum over their tokens of what the supervision says."""
        policy, mask = self.distribution(params, batch.prompt, batch.tokens), batch.mask
        metrics = {}
        if self.supervision == "demonstrations":
            losses = -policy.log_prob(batch.right)
        elif self.supervision == "teacher":
            losses = self.divergences(policy, Categorical(batch.teacher))
            metrics["teacher_kl"] = masked_mean(losses, mask)
            if self.state_term:
                losses += batch.later * policy.log_prob(batch.tokens)
        else:
            ratio = jnp.exp((policy.log_prob(batch.tokens) - batch.log_prob) * mask)
            limits = self.clip_low, self.clip_high
            losses = -clipped_surrogate(ratio, batch.advantage, *limits)
            beyond = beyond_clip(ratio, batch.advantage, *limits).astype(jnp.float32)
            metrics["clip_fraction"] = masked_mean(beyond, mask)
        loss = mean_of_tokens(losses, mask, "sum")
        return loss, {"loss": loss} | metrics
