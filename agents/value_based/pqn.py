"""PQN: Simplifying Deep Temporal Difference Learning (Gallici et al. 2025, arXiv:2407.04811)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import spaces
from jaxrl.agent import Agent, Tag, derive, static, traced
from jaxrl.parts.distributions import epsilon_greedy
from jaxrl.parts.networks import Network, q_network
from jaxrl.parts.optimize import linear_schedule, minibatch_epochs
from jaxrl.parts.returns import bootstrap_values, lambda_returns
from jaxrl.parts.rollout import Actors, Transition, reset, rollout


class PQNState(NamedTuple):
    key: jax.Array  # the run's root key; never changes
    params: Any
    opt_state: Any
    actors: Actors


class Batch(NamedTuple):
    obs: jax.Array
    action: jax.Array
    target: jax.Array


class QLambda(Agent):
    """What PQN and its adaptive form share: network, behaviour, targets, loss."""

    num_envs: int = static(128, "[1, inf)", "environments stepped in parallel")
    learning_rate: float = traced(5e-4, "(0, inf)", "RAdam's step size at the start")
    learning_rate_end: float = traced(0.0, "[0, inf)", "its fraction left at the end (linear)")
    gamma: float = traced(0.99, "[0, 1]", "discount")
    q_lambda: float = traced(0.65, "[0, 1]", "lambda of the returns that Q is fitted to")
    epsilon_start: float = traced(1.0, "[0, 1]", "share of random actions at the start")
    epsilon_end: float = traced(0.05, "[0, 1]", "share of random actions once it has decayed")
    epsilon_fraction: float = traced(0.1, "(0, 1]", "part of training over which it decays")
    reward_scale: float = traced(1.0, "(0, inf)", "factor on rewards in the returns")
    max_grad_norm: float = traced(10.0, "(0, inf]", "global norm that gradients are clipped to")
    network: str = static("mlp", ("mlp", "cnn"), "cnn: a 3x3 convolution on (H, W, C) first")
    hidden_sizes: tuple[int, ...] = static((256, 256), "[1, inf)", "widths of the hidden layers")
    residual_blocks: int = static(0, "[0, inf)", "multi-skip blocks after them (5 and 10 in ABS)")
    layer_norm: bool = static(True, None, "LayerNorm before each activation")

    # Structure --------------------------------------------------------------------------------

    def check(self) -> None:
        super().check()
        spaces.require(self.action_space, "discrete", self.name, self.env)
        self.make_network()

    @property
    def action_space(self) -> Any:
        return self.env.action_space(self.env_params)

    def make_network(self) -> Network:
        return q_network(
            self.network,
            self.env,
            self.env_params,
            self.name,
            self.hidden_sizes,
            self.layer_norm,
            self.residual_blocks,
        )

    def optimizer(self, progress: jax.Array | float = 0.0) -> optax.GradientTransformation:
        end = self.learning_rate_end * self.learning_rate
        learning_rate = linear_schedule(self.learning_rate, end, progress)
        clip = optax.clip_by_global_norm(self.max_grad_norm)
        return optax.chain(clip, optax.radam(learning_rate))

    def q_values(self, params: Any, obs: jax.Array) -> jax.Array:
        return self.make_network().apply(params, obs)

    def begin(self, key: jax.Array) -> tuple[Any, Any, Actors]:
        """Fresh parameters, optimiser state and environments."""
        actors = reset(derive(key, Tag.RESET), self.env, self.env_params, self.num_envs)
        params = self.make_network().init(derive(key, Tag.INIT), actors.obs[0])
        return params, self.optimizer().init(params), actors

    def collect(
        self,
        state: Any,
        t: jax.Array,
        progress: jax.Array,
        num_steps: int,
        length: jax.Array | None = None,
    ) -> tuple[Actors, Transition, dict[str, jax.Array]]:
        """An epsilon-greedy rollout; each transition's extras are max_a Q(s_t, a)."""
        epsilon = linear_schedule(
            self.epsilon_start, self.epsilon_end, progress, self.epsilon_fraction
        )

        def act(obs, key):
            q = self.q_values(state.params, obs)
            action = epsilon_greedy(key, q, epsilon)
            return action, action, q.max(-1)

        actors, steps, episodes = rollout(
            derive(state.key, Tag.ROLLOUT, t),
            self.env,
            self.env_params,
            state.actors,
            act,
            num_steps,
            length,
        )
        return actors, steps, {"epsilon": epsilon, **episodes.metrics()}

    def batch(
        self, params: Any, steps: Transition, actors: Actors, length: jax.Array | None = None
    ) -> Batch:
        """What Q is fitted to: the lambda-return of each step, flattened over time and envs."""
        ended = steps.terminated, steps.truncated

        def value_fn(obs):
            return self.q_values(params, obs).max(-1)

        next_values = bootstrap_values(
            value_fn, steps.extras, actors.obs, steps.final_obs, *ended, length
        )
        rewards = self.reward_scale * steps.reward
        target = lambda_returns(rewards, next_values, *ended, self.gamma, self.q_lambda, length)
        batch = Batch(steps.obs, steps.action, target)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)

    def loss_and_grad(
        self, params: Any, batch: Batch, count: int | jax.Array, valid: jax.Array | None = None
    ) -> tuple[jax.Array, Any]:
        """Sum of 0.5 (Q(s, a) - target)^2 over the (valid) rows, divided by `count`, and gradient.

        The divisor is given so that parts of a minibatch add up to the whole one's gradient.
        """

        def loss_fn(params):
            q = self.q_values(params, batch.obs)
            chosen = jnp.take_along_axis(q, batch.action[:, None], axis=-1)[:, 0]
            errors = 0.5 * (chosen - batch.target) ** 2
            return (errors if valid is None else jnp.where(valid, errors, 0)).sum() / count

        return jax.value_and_grad(loss_fn)(params)

    def policy(self, state: Any, deterministic: bool = True) -> Any:
        """Greedy, or with `epsilon_end` random actions if not deterministic."""

        def act(obs: jax.Array, key: jax.Array) -> jax.Array:
            q = self.q_values(state.params, obs)
            return q.argmax(-1) if deterministic else epsilon_greedy(key, q, self.epsilon_end)

        return act


class PQN(QLambda):
    """Q(lambda) on parallel environments: no replay, no target network, but LayerNorm."""

    num_steps: int = static(32, "[1, inf)", "steps per environment and iteration")
    num_epochs: int = static(2, "[1, inf)", "passes over each rollout")
    num_minibatches: int = static(32, "[1, inf)", "gradient steps per pass; divides the batch")

    def check(self) -> None:
        super().check()
        batch = self.steps_per_iteration
        if batch % self.num_minibatches:
            raise ValueError(
                f"pqn: num_minibatches={self.num_minibatches} does not divide the batch of "
                f"{batch} = num_envs {self.num_envs} x num_steps {self.num_steps}"
            )

    @property
    def steps_per_iteration(self) -> int:
        return self.num_envs * self.num_steps

    def init(self, key: jax.Array) -> PQNState:
        return PQNState(key, *self.begin(key))

    def step(self, state: PQNState, t: jax.Array) -> tuple[PQNState, dict[str, jax.Array]]:
        progress = self.progress(state, t)
        actors, steps, metrics = self.collect(state, t, progress, self.num_steps)
        batch = self.batch(state.params, steps, actors)
        optimizer = self.optimizer(progress)

        def update(carry, minibatch):
            params, opt_state = carry
            loss, grads = self.loss_and_grad(params, minibatch, minibatch.target.shape[0])
            updates, opt_state = optimizer.update(grads, opt_state)
            return (optax.apply_updates(params, updates), opt_state), loss

        (params, opt_state), losses = minibatch_epochs(
            derive(state.key, Tag.LEARN, t),
            update,
            (state.params, state.opt_state),
            batch,
            self.num_epochs,
            self.num_minibatches,
        )
        metrics |= {"loss": losses.mean(), "q_mean": steps.extras.mean()}
        return PQNState(state.key, params, opt_state, actors), metrics
