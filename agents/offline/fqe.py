"""FQE: fitted Q evaluation of a given policy from recorded steps (Le et al. 2019)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import spaces
from jaxrl.loops.offline import OfflineCritic, OfflineState, polyak
from jaxrl.parts.replay import Batch


class FQELearner(NamedTuple):
    params: Any
    target_params: Any
    opt_state: Any


class FQE(OfflineCritic):
    """Q regressed on r + gamma Q'(s', a') with a' from `target`, a policy `(obs, key) -> action`.

    `target` acts in the environment's own units, like `agent.policy(state)`; it is part of the
    program's identity. `value` is what it is all for.
    """

    target: Callable[[jax.Array, jax.Array], jax.Array] | None = dataclasses.field(
        default=None, metadata={"static": True}
    )

    def check(self) -> None:
        super().check()
        if self.normalize_observations:
            raise ValueError("fqe: normalize_observations=True: its target sees them as they are")
        if self.target is None:
            raise ValueError("fqe: target=None: give it the policy that is to be evaluated")

    def act(self, obs: jax.Array, key: jax.Array) -> jax.Array:
        """The target policy's actions, as they would be recorded, at raw observations (B, ...)."""
        assert self.target is not None
        action = jax.vmap(self.target)(obs, jax.random.split(key, len(obs)))
        return action if self.discrete else spaces.from_box(self.action_space, action)

    def init_learner(self, key: jax.Array, obs: jax.Array) -> FQELearner:
        params = self.init_critic(key, obs)
        # A copy: the carry is donated, and one buffer cannot be donated twice.
        return FQELearner(params, jax.tree.map(jnp.copy, params), self.optimizer().init(params))

    def update(
        self, learner: FQELearner, batch: Batch, key: jax.Array, n: jax.Array
    ) -> tuple[FQELearner, dict[str, jax.Array]]:
        next_q = self.q_value(learner.target_params, batch.next_obs, self.act(batch.next_obs, key))
        target = batch.reward + self.gamma * (1 - batch.terminated) * next_q

        def loss_fn(params):
            q = self.q_value(params, batch.obs, batch.action)
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
        q = self.q_value(state.learner.params, self.data.obs, self.act(self.data.obs, key))
        return jnp.where(first, q, 0).sum() / first.sum()

    def policy(self, state: OfflineState, deterministic: bool = True) -> Any:
        """The policy that is evaluated."""
        return self.target
