"""FQE: fitted Q evaluation of a given policy from recorded steps (Le et al. 2019)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import spaces
from jaxrl.agent import static, traced
from jaxrl.networks import Network
from jaxrl.offline import Offline, OfflineState, polyak
from jaxrl.replay import Batch


class FQELearner(NamedTuple):
    params: Any
    target_params: Any
    opt_state: Any


class FQE(Offline):
    """Q regressed on r + gamma Q'(s', a') with a' from `target`, a policy `(obs, key) -> action`.

    `target` acts in the environment's own units, like `agent.policy(state)`; it is part of the
    program's identity. `value` is what it is all for.
    """

    target: Callable[[jax.Array, jax.Array], jax.Array] | None = dataclasses.field(
        default=None, metadata={"static": True}
    )
    learning_rate: float = traced(3e-4, "(0, inf)", "Adam's step size")
    gamma: float = traced(0.99, "[0, 1]", "discount")
    tau: float = traced(0.005, "(0, 1]", "how far the target network moves at each gradient step")
    hidden_sizes: tuple[int, ...] = static((256, 256), "[1, inf)", "widths of the hidden layers")

    def check(self) -> None:
        super().check()
        if self.normalize_observations:
            raise ValueError("fqe: normalize_observations=True: its target sees them as they are")
        if self.target is None:
            raise ValueError("fqe: target=None: give it the policy that is to be evaluated")

    @property
    def discrete(self) -> bool:
        return spaces.is_discrete(self.action_space)

    def make_network(self) -> Network:
        """Q of every action where they are discrete, else of the one that goes in with s."""
        shape = self.env.observation_space(self.env_params).shape
        return Network(
            outputs=spaces.action_size(self.action_space) if self.discrete else 1,
            obs_ndim=len(shape) if self.discrete else 1,
            hidden_sizes=self.hidden_sizes,
            activation="relu",
        )

    def optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.learning_rate)

    def q_values(self, params: Any, obs: jax.Array, action: jax.Array) -> jax.Array:
        """Q (B,) of actions as they are recorded: integers, or within [-1, 1]."""
        network = self.make_network()
        if self.discrete:
            q = network.apply(params, obs)
            return jnp.take_along_axis(q, action[:, None], axis=-1)[:, 0]
        inputs = jnp.concatenate([obs.reshape(len(obs), -1), action], axis=-1)
        return network.apply(params, inputs)[:, 0]

    def act(self, obs: jax.Array, key: jax.Array) -> jax.Array:
        """The target policy's actions, as they would be recorded, at raw observations (B, ...)."""
        assert self.target is not None
        action = jax.vmap(self.target)(obs, jax.random.split(key, len(obs)))
        return action if self.discrete else spaces.from_box(self.action_space, action)

    def init_learner(self, key: jax.Array, obs: jax.Array) -> FQELearner:
        size = 0 if self.discrete else spaces.action_size(self.action_space)
        inputs = obs if self.discrete else jnp.zeros((obs.size + size,))
        params = self.make_network().init(key, inputs)
        # A copy: the carry is donated, and one buffer cannot be donated twice.
        return FQELearner(params, jax.tree.map(jnp.copy, params), self.optimizer().init(params))

    def update(
        self, learner: FQELearner, batch: Batch, key: jax.Array, n: jax.Array
    ) -> tuple[FQELearner, dict[str, jax.Array]]:
        next_q = self.q_values(learner.target_params, batch.next_obs, self.act(batch.next_obs, key))
        target = batch.reward + self.gamma * (1 - batch.terminated) * next_q

        def loss_fn(params):
            q = self.q_values(params, batch.obs, batch.action)
            return 0.5 * ((q - target) ** 2).mean(), q.mean()

        (loss, q_mean), grads = jax.value_and_grad(loss_fn, has_aux=True)(learner.params)
        updates, opt_state = self.optimizer().update(grads, learner.opt_state)
        params = optax.apply_updates(learner.params, updates)
        target_params = polyak(learner.target_params, params, self.tau)
        return FQELearner(params, target_params, opt_state), {"loss": loss, "q_mean": q_mean}

    def value(self, state: OfflineState, key: jax.Array) -> jax.Array:
        """The target policy's mean value of the states that recorded episodes began in."""
        assert self.data is not None
        ended = self.data.terminated | self.data.truncated
        first = jnp.concatenate([jnp.ones(1, bool), ended[:-1]])
        q = self.q_values(state.learner.params, self.data.obs, self.act(self.data.obs, key))
        return jnp.where(first, q, 0).sum() / first.sum()

    def policy(self, state: OfflineState, deterministic: bool = True) -> Any:
        """The policy that is evaluated."""
        return self.target
