"""Self-play: Pu et al. 2026, "Survive or Collapse: The Asymmetric Roles of Data Gating and Reward
Grounding in Self-Play RL", arXiv:2605.22217.

One network has both roles, as in Absolute Zero (Zhao et al. 2025, arXiv:2505.03335): after a start
token it proposes a task (inputs and an expression) with the value that it claims for it; after a
task it answers. The executor says which proposals are tasks at all. They enter the pool that the
solver learns from; the others do with probability `gate_leak`, and then have a random value. Each
role's reward is either grounded in the executor's value or intrinsic. GRPO for both: answers to one
task are a group, and so are the proposals of an iteration.

A proposal that the gate refuses earns nothing. `total_steps` counts the answers that the solver
learns from, not those that proposals are judged by.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl import spaces
from jaxrl.agent import Tag, derive, static, traced
from jaxrl.loops.sequence import Sequence, SequenceState
from jaxrl.parts.intrinsic import agreement
from jaxrl.parts.losses import beyond_clip
from jaxrl.parts.sequences import clipped_surrogate, group_z_score

VALIDATION = 2026  # the seed of the tasks that measure progress: the same for all runs


class Pool(NamedTuple):
    """Tasks (S, ...) in a ring, the newest over the oldest."""

    tasks: jax.Array  # int32 (S, P), as prompts
    values: jax.Array  # int32 (S,), what the right answer is held to be
    valid: jax.Array  # bool (S,), whether the executor accepts the task
    admitted: jax.Array  # int32 (), tasks so far, those at the start among them


class Memory(NamedTuple):
    pool: Pool
    validation: jax.Array  # (T, P), fixed tasks


class Proposals(NamedTuple):
    """What the proposer wrote, (N, ...)."""

    tokens: jax.Array  # int32 (N, P + 1): a task and the value claimed for it
    log_prob: jax.Array  # (N, P + 1)
    values: jax.Array  # int32 (N,): the executor's; a random one where there is none
    valid: jax.Array  # bool (N,)


class Lesson(NamedTuple):
    """N tasks with G answers each, and N proposals."""

    prompt: jax.Array  # (N, P)
    answers: jax.Array  # (N, G)
    log_prob: jax.Array  # (N, G)
    advantage: jax.Array  # (N, G)
    proposals: Proposals
    proposal_advantage: jax.Array  # (N,)


class SelfPlay(Sequence):
    """Self-play of a proposer and a solver, with a gate that may leak tasks that are none.

    Written for tasks that an executor checks: `sequences/dsl`.
    """

    pretraining_steps: int = static(
        1000, "[0, inf)", "gradient steps on tasks and their values before training, at most"
    )
    gate_leak: float = traced(0.0, "[0, 1]", "chance that a proposal which is no task is admitted")
    solver_reward: str = static(
        "grounded",
        ("grounded", "intrinsic"),
        "1 if the value is right; share of the group that answers the same",
    )
    proposer_reward: str = static(
        "grounded",
        ("grounded", "intrinsic"),
        "share of wrong answers to the proposal, by its value; by the value that it claims",
    )
    proposer_coef: float = traced(1.0, "[0, inf)", "weight of the proposer's loss")
    pool_size: int = static(256, "[1, inf)", "newest tasks, which prompts are drawn from")
    seed_tasks: int = static(24, "[1, inf)", "tasks of the environment in the pool at the start")
    validation_tasks: int = static(128, "[1, inf)", "fixed ones of the environment, for metrics")
    clip_low: float = traced(0.2, "(0, 1]", "the probability ratio stays above 1 - this")
    clip_high: float = traced(0.2, "(0, inf)", "the probability ratio stays below 1 + this")

    # Networks ---------------------------------------------------------------------------------

    def check(self) -> None:
        super().check()
        if getattr(self.env, "acts_only", False):
            return
        name = spaces.name_of(self.env)
        for needed in ("run", "values"):
            if not hasattr(self.env, needed):
                raise ValueError(
                    f"selfplay: {name} has no {needed}: it needs an executor, as sequences/dsl has"
                )
        if self.env.answer_length != 1:
            raise ValueError(f"selfplay: {name} has answers of {self.env.answer_length} tokens")
        if self.num_prompts % self.num_minibatches:
            raise ValueError(
                f"selfplay: num_minibatches={self.num_minibatches} does not divide "
                f"num_prompts={self.num_prompts}"
            )
        least = max(self.num_prompts, self.seed_tasks)
        if self.pool_size < least:
            raise ValueError(
                f"selfplay: pool_size={self.pool_size} is less than {least}, the greater of "
                f"num_prompts {self.num_prompts} and seed_tasks {self.seed_tasks}"
            )

    def start(self, number: int) -> jax.Array:
        """What proposals (B, 1) follow: the last token, which begins no prompt."""
        return jnp.full((number, 1), self.vocabulary - 1, jnp.int32)

    def cross_entropy(self, params: Any, prompts: Any, tokens: jax.Array) -> jax.Array:
        """Of right answers (B, 1), and of proposing the same tasks with the same values."""
        proposals = jnp.concatenate([prompts, tokens], axis=-1)
        of_solver = super().cross_entropy(params, prompts, tokens)
        return of_solver + super().cross_entropy(params, self.start(len(tokens)), proposals)

    # Init -------------------------------------------------------------------------------------

    def init_memory(self, key: jax.Array) -> Any:
        """The pool with its first tasks; the rest of the ring is not drawn from.

        Validation tasks are, up to chance, as many with each number of operators, which the
        environment draws uniformly.
        """
        if getattr(self.env, "acts_only", False):  # an exported policy has no tasks
            return ()
        validation = self.fresh_prompts(jax.random.key(VALIDATION), self.validation_tasks)
        tasks = self.fresh_prompts(key, self.seed_tasks)
        values, valid = self.execute(tasks)
        empty = Pool(
            jnp.zeros((self.pool_size, tasks.shape[1]), jnp.int32),
            jnp.zeros(self.pool_size, jnp.int32),
            jnp.zeros(self.pool_size, bool),
            jnp.int32(0),
        )
        pool = added(empty, tasks, values, valid, jnp.ones(self.seed_tasks, bool))
        return Memory(pool, validation)

    # Update -----------------------------------------------------------------------------------

    def step(
        self, state: SequenceState, t: jax.Array
    ) -> tuple[SequenceState, dict[str, jax.Array]]:
        keys = jax.random.split(derive(state.key, Tag.ROLLOUT, t), 5)
        proposals = self.propose(state.params, keys[0])
        admit = admitted(keys[1], proposals.valid, self.gate_leak)
        new = proposals.tokens[:, :-1], proposals.values, proposals.valid
        pool = added(state.memory.pool, *new, admit)
        failed = self.failed(state.params, proposals, keys[2])
        proposer_reward = jnp.where(admit, failed, 0.0)

        rows = drawn_rows(keys[3], pool, self.num_prompts)
        prompts, values = pool.tasks[rows], pool.values[rows]
        answers = self.answers(state, prompts, keys[4])
        tokens = answers.tokens[..., 0]
        right, agree = (tokens == values[:, None]).astype(jnp.float32), agreement(tokens)
        reward = right if self.solver_reward == "grounded" else agree
        verdict = answers.verdict._replace(reward=reward, correct=right)
        validation = state.memory.validation
        validated = self.verify(validation, self.sample(state.params, validation, None)[0])
        metrics = self.measures(state, prompts, answers._replace(verdict=verdict))
        metrics |= {
            "agreement": agree.mean(),
            "reward_gap": agree.mean() - right.mean(),
            "validation_accuracy": validated.correct.mean(),
            "valid_proposals": proposals.valid.mean(dtype=jnp.float32),
            "valid_tasks": pool.valid[rows].mean(dtype=jnp.float32),
            "proposer_reward": proposer_reward.mean(),
        }
        lesson = Lesson(
            prompts,
            tokens,
            answers.log_prob[..., 0],
            group_z_score(reward),
            proposals,
            group_z_score(proposer_reward[None])[0],
        )
        learn_key = derive(state.key, Tag.LEARN, t)
        params, opt_state, of_loss = self.learn(state.params, state.opt_state, lesson, learn_key)
        memory = Memory(pool, validation)
        state = SequenceState(state.key, params, opt_state, state.reference, memory)
        return state, metrics | of_loss

    def execute(self, tasks: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The values (N,) of tasks (N, P), and which are valid."""
        return jax.vmap(self.env.run)(tasks[:, 2:], tasks[:, 0], tasks[:, 1])

    def propose(self, params: Any, key: jax.Array) -> Proposals:
        """As many proposals as prompts."""
        key, value_key = jax.random.split(key)
        length = self.env.prompt_length + 1
        tokens, log_prob, _ = self.sample(params, self.start(1), key, self.num_prompts, length)
        values, valid = self.execute(tokens[:, :-1])
        noise = jax.random.randint(value_key, values.shape, 0, self.env.values, jnp.int32)
        return Proposals(tokens, log_prob, jnp.where(valid, values, noise), valid)

    def failed(self, params: Any, proposals: Proposals, key: jax.Array) -> jax.Array:
        """The share (N,) of `group_size` answers to each proposal that are not its value."""
        tasks, claims = proposals.tokens[:, :-1], proposals.tokens[:, -1]
        answers = self.sample(params, tasks, key, self.group_size)[0].reshape(len(tasks), -1)
        wanted = proposals.values if self.proposer_reward == "grounded" else claims
        return (answers != wanted[:, None]).mean(axis=-1, dtype=jnp.float32)

    def loss(
        self, params: Any, batch: Lesson, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Minus the clipped surrogates of answers and of proposals, all tokens of each alike."""
        proposals = batch.proposals
        # Answers are one token: what stands before it is read once for all of a group.
        log_probs = jax.nn.log_softmax(
            self.distribution(params, batch.prompt, batch.answers[:, :1]).logits[:, 0]
        )
        answered = jnp.take_along_axis(log_probs, batch.answers, axis=-1)  # (N, G)
        start = self.start(len(proposals.tokens))
        proposed = self.distribution(params, start, proposals.tokens).log_prob(proposals.tokens)

        surrogate = partial(clipped_surrogate, low=self.clip_low, high=self.clip_high)
        ratio = jnp.exp(answered - batch.log_prob)
        policy_loss = -surrogate(ratio, batch.advantage).mean()
        proposal_ratio = jnp.exp(proposed - proposals.log_prob)
        proposer_loss = -surrogate(proposal_ratio, batch.proposal_advantage[:, None]).mean()
        beyond = beyond_clip(ratio, batch.advantage, self.clip_low, self.clip_high)
        return policy_loss + self.proposer_coef * proposer_loss, {
            "policy_loss": policy_loss,
            "proposer_loss": proposer_loss,
            "clip_fraction": beyond.mean(dtype=jnp.float32),
        }


def admitted(key: jax.Array, valid: jax.Array, leak: float | jax.Array) -> jax.Array:
    """Which tasks (N,) pass the gate: the valid ones, and each other with probability `leak`."""
    return valid | (jax.random.uniform(key, valid.shape, jnp.float32) < leak)


def added(
    pool: Pool, tasks: jax.Array, values: jax.Array, valid: jax.Array, admit: jax.Array
) -> Pool:
    """The pool with those of N <= S tasks that are admitted in place of the oldest."""
    size = len(pool.values)
    number = jnp.cumsum(admit, dtype=jnp.int32)
    place = jnp.where(admit, (pool.admitted + number - 1) % size, size)
    return Pool(
        pool.tasks.at[place].set(tasks, mode="drop"),
        pool.values.at[place].set(values, mode="drop"),
        pool.valid.at[place].set(valid, mode="drop"),
        pool.admitted + number[-1],
    )


def drawn_rows(key: jax.Array, pool: Pool, number: int) -> jax.Array:
    """Rows (N,) of the pool's tasks, uniform, with replacement."""
    there = jnp.minimum(pool.admitted, len(pool.values))
    return jax.random.randint(key, (number,), 0, there, jnp.int32)
