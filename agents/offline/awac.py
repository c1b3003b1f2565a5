"""AWAC: Accelerating Online RL with Offline Datasets (Nair et al. 2020, arXiv:2006.09359)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from agents.offline.iql import WeightedCloning
from jaxrl.agent import traced
from jaxrl.loops.offline import polyak
from jaxrl.parts.replay import Batch


class AWACLearner(NamedTuple):
    actor: Any
    critics: Any
    target_critics: Any
    actor_opt: Any
    critic_opt: Any


class AWAC(WeightedCloning):
    """Q of the policy itself; the policy clones recorded actions by their advantage over it."""

    temperature: float = traced(1 / 3, "(0, inf)", "of the weights exp(advantage / temperature)")

    def init_learner(self, key: jax.Array, obs: jax.Array) -> AWACLearner:
        actor_key, critic_key = jax.random.split(key)
        actor, critics = self.init_actor(actor_key, obs), self.init_critics(critic_key, obs)
        return AWACLearner(
            actor=actor,
            critics=critics,
            target_critics=jax.tree.map(jnp.copy, critics),  # the carry is donated: no aliases
            actor_opt=self.optimizer().init(actor),
            critic_opt=self.optimizer().init(critics),
        )

    def update(
        self, learner: AWACLearner, batch: Batch, key: jax.Array, n: jax.Array
    ) -> tuple[AWACLearner, dict[str, jax.Array]]:
        next_key, here_key = jax.random.split(key)

        def value(critics, obs, key):
            """Q of an action of the policy, the lesser of both critics' (B,)."""
            action = self.distribution(learner.actor, obs).sample(key)
            if not self.discrete:
                action = jnp.clip(action, -1, 1)
            return self.q_values(critics, obs, action).min(axis=0)

        next_value = value(learner.target_critics, batch.next_obs, next_key)
        target = self.backup(batch, next_value)
        critics, critic_opt, critic_metrics = self.fit_critics(
            learner.critics, learner.critic_opt, batch, target
        )
        q = self.q_values(critics, batch.obs, batch.action).min(axis=0)
        advantage = q - value(critics, batch.obs, here_key)
        actor, actor_opt, actor_metrics = self.clone(
            learner.actor, learner.actor_opt, batch, advantage / self.temperature
        )
        learner = AWACLearner(
            actor=actor,
            critics=critics,
            target_critics=polyak(learner.target_critics, critics, self.tau),
            actor_opt=actor_opt,
            critic_opt=critic_opt,
        )
        return learner, {**critic_metrics, **actor_metrics}
