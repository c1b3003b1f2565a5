"""IQL: Offline RL with Implicit Q-Learning (Kostrikov et al. 2021, arXiv:2110.06169)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxrl import spaces
from jaxrl.agent import traced
from jaxrl.loops.offline import OfflineActorCritic, OfflineState, polyak
from jaxrl.parts.distributions import Categorical, Normal
from jaxrl.parts.replay import Batch

LOG_STD_RANGE = (-5.0, 2.0)


class WeightedCloning(OfflineActorCritic):
    """A normal or categorical policy fitted to recorded actions, weighted by exp(advantage)."""

    max_weight: float = traced(100.0, "(0, inf]", "that weights are clipped to")

    def init_actor(self, key: jax.Array, obs: jax.Array) -> Any:
        """A network, and for continuous actions a log-deviation that is the same everywhere."""
        net = self.make_actor().init(key, obs)
        if self.discrete:
            return {"net": net}
        return {"net": net, "log_std": jnp.zeros(spaces.action_size(self.action_space))}

    def distribution(self, actor: Any, obs: jax.Array) -> Normal | Categorical:
        output = self.make_actor().apply(actor["net"], obs)
        if self.discrete:
            return Categorical(output)
        log_std = jnp.clip(actor["log_std"], *LOG_STD_RANGE)
        return Normal(jnp.tanh(output), jnp.broadcast_to(log_std, output.shape))

    def clone(
        self, actor: Any, opt: Any, batch: Batch, log_weight: jax.Array
    ) -> tuple[Any, Any, dict[str, jax.Array]]:
        """One gradient step on the weighted log-likelihood, given unclipped log-weights (B,)."""
        weight = jnp.minimum(jnp.exp(log_weight), self.max_weight)

        def loss_fn(actor):
            return -(weight * self.distribution(actor, batch.obs).log_prob(batch.action)).mean()

        loss, grads = jax.value_and_grad(loss_fn)(actor)
        updates, opt = self.optimizer().update(grads, opt)
        metrics = {"actor_loss": loss, "weight": weight.mean()}
        return optax.apply_updates(actor, updates), opt, metrics

    def policy(self, state: OfflineState, deterministic: bool = True) -> Any:
        """The mode of the policy, or a sample, within the box."""

        def act(obs: jax.Array, key: jax.Array) -> jax.Array:
            dist = self.distribution(state.learner.actor, self.normalize(state.obs_moments, obs))
            return self.env_action(dist.mode() if deterministic else dist.sample(key))

        return act


class IQLLearner(NamedTuple):
    actor: Any
    critics: Any
    target_critics: Any
    value: Any
    actor_opt: Any
    critic_opt: Any
    value_opt: Any


class IQL(WeightedCloning):
    """V an expectile of Q over recorded actions; Q backs up V; the policy clones by advantage."""

    expectile: float = traced(0.7, "(0, 1)", "of Q that V is fitted to (0.9 for mazes)")
    beta: float = traced(3.0, "[0, inf)", "inverse temperature of the weights (10 for mazes)")

    def init_learner(self, key: jax.Array, obs: jax.Array) -> IQLLearner:
        actor_key, critic_key, value_key = jax.random.split(key, 3)
        actor, critics = self.init_actor(actor_key, obs), self.init_critics(critic_key, obs)
        value = self.make_network(1).init(value_key, obs)
        return IQLLearner(
            actor=actor,
            critics=critics,
            target_critics=jax.tree.map(jnp.copy, critics),  # the carry is donated: no aliases
            value=value,
            actor_opt=self.optimizer().init(actor),
            critic_opt=self.optimizer().init(critics),
            value_opt=self.optimizer().init(value),
        )

    def state_values(self, value: Any, obs: jax.Array) -> jax.Array:
        return self.make_network(1).apply(value, obs)[:, 0]

    def update(
        self, learner: IQLLearner, batch: Batch, key: jax.Array, n: jax.Array
    ) -> tuple[IQLLearner, dict[str, jax.Array]]:
        q = self.q_values(learner.target_critics, batch.obs, batch.action).min(axis=0)

        def value_loss(value):
            v = self.state_values(value, batch.obs)
            return expectile_loss(q - v, self.expectile).mean(), v

        (v_loss, v), grads = jax.value_and_grad(value_loss, has_aux=True)(learner.value)
        updates, value_opt = self.optimizer().update(grads, learner.value_opt)
        value = optax.apply_updates(learner.value, updates)

        next_v = lax.stop_gradient(self.state_values(value, batch.next_obs))
        target = self.backup(batch, next_v)
        critics, critic_opt, critic_metrics = self.fit_critics(
            learner.critics, learner.critic_opt, batch, target
        )
        actor, actor_opt, actor_metrics = self.clone(
            learner.actor, learner.actor_opt, batch, self.beta * (q - v)
        )
        learner = IQLLearner(
            actor=actor,
            critics=critics,
            target_critics=polyak(learner.target_critics, critics, self.tau),
            value=value,
            actor_opt=actor_opt,
            critic_opt=critic_opt,
            value_opt=value_opt,
        )
        return learner, {**critic_metrics, **actor_metrics, "value_loss": v_loss}


def expectile_loss(difference: jax.Array, expectile: float | jax.Array) -> jax.Array:
    """|expectile - 1(d < 0)| d^2 (Kostrikov et al. 2021, equation 5)."""
    return jnp.where(difference < 0, 1 - expectile, expectile) * difference**2
