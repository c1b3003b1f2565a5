"""Agents that learn from recorded steps, in batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxrl import spaces
from jaxrl.agent import Agent, Tag, derive, shared, static, traced
from jaxrl.parts import replay
from jaxrl.parts.networks import Network
from jaxrl.parts.normalize import RunningMoments
from jaxrl.parts.replay import Batch, Dataset, Replay
from jaxrl.parts.rollout import Actors


class OfflineState(NamedTuple):
    key: jax.Array  # the run's root key; never changes
    learner: Any  # parameters and optimiser states: what gradient steps change
    replay: Replay | None  # what an off-policy agent records itself, else None
    actors: Actors | None  # likewise
    obs_moments: RunningMoments  # of anything only if normalize_observations


class Offline(Agent):
    """Takes `num_updates` gradient steps an iteration on batches of a dataset.

    Its `total_steps` are gradient steps. A subclass implements `init_learner`, `update`, `policy`.
    """

    data: Dataset | None = shared()
    num_updates: int = static(100, "[1, inf)", "gradient steps per iteration")
    batch_size: int = static(256, "[1, inf)", "steps that each gradient step samples")
    normalize_observations: bool = static(False, None, "by mean and std, clipped to +-10")

    # What a subclass provides -----------------------------------------------------------------

    def init_learner(self, key: jax.Array, obs: jax.Array) -> Any:
        """Fresh parameters and optimiser states, given one observation."""
        raise NotImplementedError

    def update(
        self, learner: Any, batch: Batch, key: jax.Array, n: jax.Array
    ) -> tuple[Any, dict[str, jax.Array]]:
        """Gradient step number n (never batched) on a batch, and scalar metrics."""
        raise NotImplementedError

    # The loop ---------------------------------------------------------------------------------

    def check(self) -> None:
        super().check()
        if self.data is None:
            raise ValueError(f"{self.name}: learns from recorded data only: give it --data FILE")

    @property
    def steps_per_iteration(self) -> int:
        return self.num_updates

    @property
    def action_space(self) -> Any:
        return self.env.action_space(self.env_params)

    @property
    def discrete(self) -> bool:
        return spaces.is_discrete(self.action_space)

    def env_action(self, action: jax.Array) -> jax.Array:
        """An action in the environment's own units."""
        return action if self.discrete else spaces.to_box(self.action_space, action)

    def learned(self, state: OfflineState) -> Any:
        return state.learner

    def normalize(self, moments: RunningMoments, obs: jax.Array) -> jax.Array:
        return moments.normalize(obs) if self.normalize_observations else obs

    def init(self, key: jax.Array) -> OfflineState:
        assert self.data is not None
        obs = self.data.obs
        moments = RunningMoments.of_shape(obs.shape[1:])
        return OfflineState(
            key=key,
            learner=self.init_learner(derive(key, Tag.INIT), obs[0]),
            replay=None,
            actors=None,
            obs_moments=moments.update(obs) if self.normalize_observations else moments,
        )

    def step(self, state: OfflineState, t: jax.Array) -> tuple[OfflineState, dict[str, jax.Array]]:
        learner, metrics = self.learn(state.learner, state.key, t, self.draw, state.obs_moments)
        return state._replace(learner=learner), metrics

    def learn(
        self,
        learner: Any,
        key: jax.Array,
        t: jax.Array,
        draw: Callable[[jax.Array], Batch],
        moments: RunningMoments,
    ) -> tuple[Any, dict[str, jax.Array]]:
        """The gradient steps of iteration t, each on its own `draw(key)`."""
        key = derive(key, Tag.LEARN, t)

        def update(learner, i):
            draw_key, update_key = jax.random.split(jax.random.fold_in(key, i))
            batch = draw(draw_key)
            batch = batch._replace(
                obs=self.normalize(moments, batch.obs),
                next_obs=self.normalize(moments, batch.next_obs),
            )
            return self.update(learner, batch, update_key, t * self.num_updates + i)

        learner, metrics = lax.scan(update, learner, jnp.arange(self.num_updates))
        return learner, jax.tree.map(jnp.nanmean, metrics)

    def draw(self, key: jax.Array) -> Batch:
        """The recorded steps of one gradient step."""
        assert self.data is not None
        return replay.draw(key, self.data, self.batch_size)


class OfflineCritic(Offline):
    """Fits Q(s, a) to targets: what FQE, IQL, AWAC and TD3+BC share."""

    learning_rate: float = traced(3e-4, "(0, inf)", "Adam's step size, of all networks")
    gamma: float = traced(0.99, "[0, 1]", "discount")
    tau: float = traced(0.005, "(0, 1]", "how far target networks move when they do")
    hidden_sizes: tuple[int, ...] = static((256, 256), "[1, inf)", "widths of every network")

    def optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.learning_rate)

    def make_network(self, outputs: int, of_action: bool = False, scale: float = 1.0) -> Network:
        """Of an observation, or of one and an action in a row."""
        obs_ndim = len(self.env.observation_space(self.env_params).shape)
        return Network(
            outputs=outputs,
            obs_ndim=1 if of_action else obs_ndim,
            hidden_sizes=self.hidden_sizes,
            activation="relu",
            output_scale=scale,
        )

    def make_critic(self) -> Network:
        """Q of every action where they are discrete, else of the one that goes in with s."""
        if self.discrete:
            return self.make_network(spaces.action_size(self.action_space))
        return self.make_network(1, of_action=True)

    def init_critic(self, key: jax.Array, obs: jax.Array) -> Any:
        size = spaces.action_size(self.action_space)
        inputs = obs if self.discrete else jnp.zeros((obs.size + size,))
        return self.make_critic().init(key, inputs)

    def q_value(self, critic: Any, obs: jax.Array, action: jax.Array) -> jax.Array:
        """Q (B,) of actions as they are recorded: integers (B,), or (B, D) within [-1, 1]."""
        if self.discrete:
            q = self.make_critic().apply(critic, obs)
            return jnp.take_along_axis(q, action[:, None], axis=-1)[:, 0]
        inputs = jnp.concatenate([obs.reshape(len(obs), -1), action], axis=-1)
        return self.make_critic().apply(critic, inputs)[:, 0]


class OfflineActorCritic(OfflineCritic):
    """An actor and two critics: what IQL, AWAC and TD3+BC share."""

    reward_scale: float = traced(1.0, "(0, inf)", "factor on rewards")

    def make_actor(self) -> Network:
        """From an observation to logits, or to an action before the tanh that bounds it."""
        return self.make_network(spaces.action_size(self.action_space), scale=0.01)

    def init_critics(self, key: jax.Array, obs: jax.Array) -> Any:
        return tuple(self.init_critic(k, obs) for k in jax.random.split(key))

    def q_values(self, critics: Any, obs: jax.Array, action: jax.Array) -> jax.Array:
        """Both critics' values (2, B)."""
        return jnp.stack([self.q_value(critic, obs, action) for critic in critics])

    def backup(self, batch: Batch, next_value: jax.Array) -> jax.Array:
        """r + gamma V(s') (B,), without V where the episode has ended."""
        return self.reward_scale * batch.reward + self.gamma * (1 - batch.terminated) * next_value

    def fit_critics(
        self, critics: Any, opt: Any, batch: Batch, target: jax.Array
    ) -> tuple[Any, Any, dict[str, jax.Array]]:
        """One gradient step of both critics towards targets (B,)."""

        def loss_fn(critics):
            q = self.q_values(critics, batch.obs, batch.action)
            return 0.5 * ((q - target) ** 2).sum(axis=0).mean(), q.mean()

        (loss, q_mean), grads = jax.value_and_grad(loss_fn, has_aux=True)(critics)
        updates, opt = self.optimizer().update(grads, opt)
        return optax.apply_updates(critics, updates), opt, {"critic_loss": loss, "q_mean": q_mean}


def polyak(target: Any, online: Any, tau: float | jax.Array) -> Any:
    """Target parameters moved by a share `tau` towards the online ones."""
    return jax.tree.map(lambda old, new: old + tau * (new - old), target, online)
