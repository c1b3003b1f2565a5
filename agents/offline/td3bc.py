"""TD3+BC: A Minimalist Approach to Offline RL (Fujimoto & Gu 2021, arXiv:2106.06860)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxrl import spaces
from jaxrl.agent import static, traced
from jaxrl.loops.offline import OfflineActorCritic, OfflineState, polyak
from jaxrl.parts.replay import Batch


class TD3BCLearner(NamedTuple):
    actor: Any
    target_actor: Any
    critics: Any
    target_critics: Any
    actor_opt: Any
    critic_opt: Any


class TD3BC(OfflineActorCritic):
    """TD3 whose actor also stays near the recorded actions.

    Actor: max lambda Q(s, mu(s)) - |mu(s) - a|^2 with lambda = alpha / mean |Q|.
    """

    alpha: float = traced(2.5, "[0, inf)", "weight of Q against cloning")
    policy_noise: float = traced(0.2, "[0, inf)", "of the target's actions")
    noise_clip: float = traced(0.5, "[0, inf)", "bound of that noise")
    policy_delay: int = static(2, "[1, inf)", "gradient steps of the critics to one of the actor")
    normalize_observations: bool = static(True, None, "by mean and std, clipped to +-10")

    def check(self) -> None:
        super().check()
        spaces.require(self.action_space, "continuous", self.name, self.env)

    def act(self, actor: Any, obs: jax.Array) -> jax.Array:
        return jnp.tanh(self.make_actor().apply(actor, obs))

    def init_learner(self, key: jax.Array, obs: jax.Array) -> TD3BCLearner:
        actor_key, critic_key = jax.random.split(key)
        actor, critics = self.make_actor().init(actor_key, obs), self.init_critics(critic_key, obs)
        return TD3BCLearner(
            actor=actor,
            target_actor=jax.tree.map(jnp.copy, actor),  # the carry is donated: no aliases
            critics=critics,
            target_critics=jax.tree.map(jnp.copy, critics),
            actor_opt=self.optimizer().init(actor),
            critic_opt=self.optimizer().init(critics),
        )

    def update(
        self, learner: TD3BCLearner, batch: Batch, key: jax.Array, n: jax.Array
    ) -> tuple[TD3BCLearner, dict[str, jax.Array]]:
        noise = self.policy_noise * jax.random.normal(key, batch.action.shape)
        noise = jnp.clip(noise, -self.noise_clip, self.noise_clip)
        next_action = jnp.clip(self.act(learner.target_actor, batch.next_obs) + noise, -1, 1)
        next_q = self.q_values(learner.target_critics, batch.next_obs, next_action).min(axis=0)
        target = self.backup(batch, next_q)
        critics, critic_opt, metrics = self.fit_critics(
            learner.critics, learner.critic_opt, batch, target
        )
        learner = learner._replace(critics=critics, critic_opt=critic_opt)

        def loss_fn(actor):
            action = self.act(actor, batch.obs)
            q = self.q_values(critics, batch.obs, action)[0]
            scale = self.alpha / lax.stop_gradient(jnp.abs(q).mean())
            return -scale * q.mean() + ((action - batch.action) ** 2).mean()

        def move():
            loss, grads = jax.value_and_grad(loss_fn)(learner.actor)
            updates, actor_opt = self.optimizer().update(grads, learner.actor_opt)
            actor = optax.apply_updates(learner.actor, updates)
            moved = learner._replace(
                actor=actor,
                actor_opt=actor_opt,
                target_actor=polyak(learner.target_actor, actor, self.tau),
                target_critics=polyak(learner.target_critics, critics, self.tau),
            )
            return moved, loss

        turn = n % self.policy_delay == 0
        learner, loss = lax.cond(turn, move, lambda: (learner, jnp.full((), jnp.nan)))
        return learner, {**metrics, "actor_loss": loss}

    def policy(self, state: OfflineState, deterministic: bool = True) -> Any:
        """The actor; it has no other mode."""

        def act(obs: jax.Array, key: jax.Array) -> jax.Array:
            obs = self.normalize(state.obs_moments, obs)
            return self.env_action(self.act(state.learner.actor, obs))

        return act
