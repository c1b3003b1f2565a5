"""The loop of Q(lambda) agents: an epsilon-greedy rollout, and the lambda-returns of its steps."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from jaxrl import masks, spaces
from jaxrl.agent import Agent, Policy, Tag, derive, memoryless, static, traced
from jaxrl.parts.distributions import (
    epsilon_greedy,
    epsilon_greedy_log_prob,
    exploration,
    explored,
)
from jaxrl.parts.optimize import linear_schedule
from jaxrl.parts.returns import bootstrap_values, lambda_returns
from jaxrl.parts.rollout import Actors, Transition, reset, rollout


class Batch(NamedTuple):
    """Steps of a rollout (B, ...), flattened over time and environments.

    Attributes:
        target: the lambda-return, which Q(obs, action) is fitted to.
    """

    obs: Any
    action: jax.Array
    target: jax.Array


class QLambda(Agent):
    """What feeds PQN and its adaptive form: behaviour and targets, without replay.

    A subclass implements `q_values`, `init` and `step`, whose state has a field `params`.
    """

    takes_masks = True

    num_envs: int = static(128, "[1, inf)", "environments stepped in parallel")
    precision: str = static(
        "float32", ("float32", "bfloat16"), "operands of the networks' products; sums are float32"
    )
    gamma: float = traced(0.99, "[0, 1]", "discount")
    q_lambda: float = traced(0.65, "[0, 1]", "lambda of the returns that Q is fitted to")
    epsilon_start: float = traced(1.0, "[0, 1]", "share of random actions at the start")
    epsilon_end: float = traced(0.05, "[0, 1]", "share of random actions once it has decayed")
    epsilon_fraction: float = traced(0.1, "(0, 1]", "part of training over which it decays")
    reward_scale: float = traced(1.0, "(0, inf)", "factor on rewards in the returns")

    # What a subclass provides -----------------------------------------------------------------

    def q_values(self, params: Any, obs: Any) -> jax.Array:
        """The values (..., A) of all actions at encoded observations (..., *obs).

        Of `Masked` ones, those of actions that may not be taken are the lowest number.
        """
        raise NotImplementedError

    # The loop ---------------------------------------------------------------------------------

    def check(self) -> None:
        super().check()
        spaces.require(self.action_space, "discrete", self.name, self.env)

    def reset_envs(self, key: jax.Array) -> Actors:
        """Environments at the start of a run, from its root key."""
        reset_key = derive(key, Tag.RESET)
        return reset(reset_key, self.env, self.env_params, self.num_envs, self.reported)

    def collect(
        self,
        params: Any,
        actors: Actors,
        key: jax.Array,
        progress: jax.Array,
        num_steps: int,
        length: jax.Array | None = None,
    ) -> tuple[Actors, Batch, dict[str, jax.Array]]:
        """An epsilon-greedy rollout, its steps as a batch, and metrics.

        Args:
            num_steps: steps per environment, and rows of the batch over `num_envs`.
            length: a traced number of steps <= `num_steps` to take instead. The batch's first
                `length * num_envs` rows then count, the rest is meaningless.
        """
        epsilon = linear_schedule(
            self.epsilon_start, self.epsilon_end, progress, self.epsilon_fraction
        )

        def noise(key, num_steps):
            size = spaces.action_size(self.action_space)
            return exploration(key, (num_steps, self.num_envs, size), epsilon, self.masked)

        def act(obs, noise):
            q = self.q_values(params, self.encode(obs))
            action = explored(q, noise, masks.split(obs)[1])
            return action, action, {"max_q": q.max(-1)}

        actors, steps, episodes = rollout(
            key, self.env, self.env_params, actors, act, num_steps, length, noise=noise
        )
        taken = self.num_envs * (num_steps if length is None else length)
        metrics = {"epsilon": epsilon, "q_mean": steps.extras["max_q"].sum() / taken}
        batch = self.batch(params, steps, actors.obs, length)
        return actors, batch, metrics | episodes.metrics()

    def batch(
        self, params: Any, steps: Transition, last_obs: Any, length: jax.Array | None
    ) -> Batch:
        """A rollout's steps with their lambda-returns, flattened."""

        def value_fn(obs):
            return self.q_values(params, self.encode(obs)).max(-1)

        values, ended = steps.extras["max_q"], (steps.terminated, steps.truncated)
        next_values = bootstrap_values(value_fn, values, last_obs, steps.final_obs, *ended, length)
        rewards = self.reward_scale * steps.reward
        target = lambda_returns(rewards, next_values, *ended, self.gamma, self.q_lambda, length)
        batch = Batch(self.encode(steps.obs), steps.action, target)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)

    # Acting -----------------------------------------------------------------------------------

    def log_prob(self, state: Any, obs: jax.Array, action: jax.Array) -> jax.Array:
        q = self.q_values(state.params, self.encode(obs))
        return epsilon_greedy_log_prob(q, action, self.epsilon_end, masks.split(obs)[1])

    def policy(self, state: Any, deterministic: bool = True) -> Policy:
        """Greedy, or with `epsilon_end` random actions if not deterministic."""

        @memoryless
        def policy(obs: jax.Array, key: jax.Array) -> jax.Array:
            q = self.q_values(state.params, self.encode(obs))
            if deterministic:
                return q.argmax(-1)
            return epsilon_greedy(key, q, self.epsilon_end, masks.split(obs)[1])

        return policy
