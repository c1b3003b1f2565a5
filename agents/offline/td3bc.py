"""TD3+BC: A Minimalist Approach to Offline RL (Fujimoto & Gu 2021, arXiv:2106.06860)."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxrl import spaces
from jaxrl.agent import OWN, Policy, memoryless, static, traced
from jaxrl.loops.learner import Learner, LearnerState
from jaxrl.parts.losses import td_target
from jaxrl.parts.networks import Network, body_of, require_body
from jaxrl.parts.optimize import MISSING, copy_of, descend, polyak
from jaxrl.parts.replay import Batch


class TD3BCLearner(NamedTuple):
    actor: Any
    target_actor: Any
    critics: Any  # two
    target_critics: Any
    actor_opt: Any
    critic_opt: Any


class TD3BC(Learner):
    """TD3 whose actor also stays near the recorded actions; recorded data, continuous actions.

    Actor: max lambda Q(s, mu(s)) - |mu(s) - a|^2 with lambda = alpha / mean |Q|.
    """

    offline_only: ClassVar[bool] = True

    num_updates: int = static(100, "[1, inf)", "gradient steps per iteration")
    normalize_observations: bool = static(True, None, "by mean and std + 0.001 of the data")
    learning_rate: float = traced(3e-4, "(0, inf)", "Adam's step size, of all networks")
    gamma: float = traced(0.99, "[0, 1]", "discount")
    tau: float = traced(0.005, "(0, 1]", "how far target networks move when they do")
    alpha: float = traced(2.5, "[0, inf)", "weight of Q against cloning")
    policy_noise: float = traced(0.2, "[0, inf)", "of the target's actions")
    noise_clip: float = traced(0.5, "[0, inf)", "bound of that noise")
    policy_delay: int = static(2, "[1, inf)", "gradient steps of the critics to one of the actor")
    reward_scale: float = traced(1.0, "(0, inf)", "factor on rewards")
    network: Any = static("mlp", ("mlp", OWN), "or a body of yours, of every network")
    hidden_sizes: tuple[int, ...] = static((256, 256), "[1, inf)", "widths of every network")

    # Networks ---------------------------------------------------------------------------------

    def check(self) -> None:
        super().check()
        spaces.require(self.action_space, "continuous", self.name, self.env)
        require_body(self.network, self.obs_shape, self.name)

    def make_actor(self) -> Network:
        """From an observation to an action before the tanh that bounds it."""
        return Network(
            outputs=spaces.action_size(self.action_space),
            obs_ndim=len(self.obs_shape),
            precision=self.precision,
            hidden_sizes=self.hidden_sizes,
            activation="relu",
            body=body_of(self.network),
            output_scale=0.01,
        )

    def make_critic(self) -> Network:
        """Q of an observation and an action."""
        return Network(
            outputs=1,
            obs_ndim=len(self.obs_shape),
            precision=self.precision,
            hidden_sizes=self.hidden_sizes,
            activation="relu",
            body=body_of(self.network),
        )

    def act(self, actor: Any, obs: jax.Array) -> jax.Array:
        """The policy's actions (B, D), within [-1, 1]."""
        return jnp.tanh(self.make_actor().apply(actor, obs))

    def q_values(self, critics: Any, obs: jax.Array, action: jax.Array) -> jax.Array:
        """Both critics' values (2, B)."""
        critic = self.make_critic()
        return jnp.stack([critic.apply(params, obs, action)[:, 0] for params in critics])

    def optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.learning_rate)

    # Init -------------------------------------------------------------------------------------

    def init_learner(self, key: jax.Array, obs: jax.Array) -> TD3BCLearner:
        actor_key, critic_key = jax.random.split(key)
        actor = self.make_actor().init(actor_key, obs)
        inputs = obs, jnp.zeros((spaces.action_size(self.action_space),))
        critics = tuple(self.make_critic().init(k, *inputs) for k in jax.random.split(critic_key))
        return TD3BCLearner(
            actor=actor,
            target_actor=copy_of(actor),
            critics=critics,
            target_critics=copy_of(critics),
            actor_opt=self.optimizer().init(actor),
            critic_opt=self.optimizer().init(critics),
        )

    # Update -----------------------------------------------------------------------------------

    def update(
        self, learner: TD3BCLearner, batch: Batch, key: jax.Array, n: jax.Array
    ) -> tuple[TD3BCLearner, dict[str, jax.Array]]:
        # Critics, towards r + gamma min Q'(s', mu'(s') + clipped noise).
        noise = self.policy_noise * jax.random.normal(key, batch.action.shape, jnp.float32)
        noise = jnp.clip(noise, -self.noise_clip, self.noise_clip)
        next_action = jnp.clip(self.act(learner.target_actor, batch.next_obs) + noise, -1, 1)
        next_q = self.q_values(learner.target_critics, batch.next_obs, next_action).min(axis=0)
        reward = self.reward_scale * batch.reward
        target = td_target(reward, batch.terminated, next_q, self.gamma)

        def critic_loss(critics):
            q = self.q_values(critics, batch.obs, batch.action)
            return 0.5 * ((q - target) ** 2).sum(axis=0).mean(), q.mean()

        critics, critic_opt, critic_loss_value, q_mean = descend(
            self.optimizer(), critic_loss, learner.critics, learner.critic_opt
        )
        learner = learner._replace(critics=critics, critic_opt=critic_opt)

        # Actor, and all targets, every `policy_delay` steps: up the first critic, near the data.
        def actor_loss(actor):
            action = self.act(actor, batch.obs)
            q = self.q_values(critics, batch.obs, action)[0]
            scale = self.alpha / lax.stop_gradient(jnp.abs(q).mean())
            return -scale * q.mean() + ((action - batch.action) ** 2).mean(), ()

        def improve():
            actor, actor_opt, loss, _ = descend(
                self.optimizer(), actor_loss, learner.actor, learner.actor_opt
            )
            improved = learner._replace(
                actor=actor,
                actor_opt=actor_opt,
                target_actor=polyak(learner.target_actor, actor, self.tau),
                target_critics=polyak(learner.target_critics, critics, self.tau),
            )
            return improved, loss

        turn = n % self.policy_delay == 0
        learner, actor_loss_value = lax.cond(turn, improve, lambda: (learner, jnp.float32(MISSING)))
        return learner, {
            "critic_loss": critic_loss_value,
            "q_mean": q_mean,
            "actor_loss": actor_loss_value,
        }

    # Acting -----------------------------------------------------------------------------------

    def policy(self, state: LearnerState, deterministic: bool = True) -> Policy:
        """The actor; it has no other mode."""

        @memoryless
        def policy(obs: jax.Array, key: jax.Array) -> jax.Array:
            obs = self.normalize(state.obs_moments, obs)
            return self.env_action(self.act(state.learner.actor, obs))

        return policy
