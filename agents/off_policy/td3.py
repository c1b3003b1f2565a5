"""TD3: Addressing Function Approximation Error in Actor-Critic Methods (Fujimoto et al. 2018).

arXiv:1802.09477. DDPG (Lillicrap et al. 2016, arXiv:1509.02971) is a choice of hyper-parameters,
`num_critics=1 policy_delay=1 policy_noise=0`, up to the noise to explore with, which is normal here
as in TD3, and an Ornstein-Uhlenbeck process in DDPG.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import spaces
from jaxrl.agent import OWN, Policy, memoryless, static, traced
from jaxrl.loops.learner import Learner, LearnerState
from jaxrl.parts.losses import n_step_target
from jaxrl.parts.networks import Network, body_of, require_body
from jaxrl.parts.optimize import copy_of, descend, learn_every, polyak
from jaxrl.parts.replay import Batch, valid_mean


class TD3Learner(NamedTuple):
    actor: Any
    target_actor: Any
    critics: Any  # a tuple of num_critics
    target_critics: Any
    actor_opt: Any
    critic_opt: Any


class TD3(Learner):
    """Twin delayed deep deterministic policy gradient, and DDPG; continuous actions.

    The actor climbs the first critic; targets take the least of all, at the target actor's actions
    with noise.
    """

    takes_windows: ClassVar[bool] = True

    learning_rate: float = traced(1e-3, "(0, inf)", "Adam's step size of the critics")
    actor_learning_rate: float = traced(1e-3, "(0, inf)", "Adam's step size of the actor")
    gamma: float = traced(0.99, "[0, 1]", "discount")
    tau: float = traced(0.005, "(0, 1]", "how far target networks move when they do")
    exploration_noise: float = traced(0.1, "[0, inf)", "std of normal noise on actions of [-1, 1]")
    policy_noise: float = traced(0.2, "[0, inf)", "std of that on the target's actions")
    noise_clip: float = traced(0.5, "[0, inf)", "bound of the target's noise")
    policy_delay: int = static(2, "[1, inf)", "gradient steps of the critics to one of the actor")
    num_critics: int = static(2, "[1, inf)", "critics, each with a target of its own")
    reward_scale: float = traced(1.0, "(0, inf)", "factor on rewards in the targets")
    network: Any = static("mlp", ("mlp", OWN), "or a body of yours, of every network")
    hidden_sizes: tuple[int, ...] = static((256, 256), "[1, inf)", "widths, actor and critics each")
    activation: str = static("relu", ("tanh", "relu", "swish"), "of the hidden layers")
    layer_norm: bool = static(False, None, "LayerNorm in the critics")

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
            activation=self.activation,
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
            activation=self.activation,
            body=body_of(self.network),
            layer_norm=self.layer_norm,
        )

    def act(self, actor: Any, obs: jax.Array) -> jax.Array:
        """The actor's actions (B, D), within [-1, 1]."""
        return jnp.tanh(self.make_actor().apply(actor, obs))

    def q_values(self, critics: Any, obs: jax.Array, action: jax.Array) -> jax.Array:
        """All critics' values (N, B)."""
        module = self.make_critic()
        return jnp.stack([module.apply(critic, obs, action)[:, 0] for critic in critics])

    def optimizer(self) -> optax.GradientTransformation:
        """The critics'."""
        return optax.adam(self.learning_rate)

    def actor_optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.actor_learning_rate)

    # Init -------------------------------------------------------------------------------------

    def init_learner(self, key: jax.Array, obs: jax.Array) -> TD3Learner:
        actor_key, critic_key = jax.random.split(key)
        actor = self.make_actor().init(actor_key, obs)
        inputs = obs, jnp.zeros((spaces.action_size(self.action_space),))
        critic_keys = jax.random.split(critic_key, self.num_critics)
        critics = tuple(self.make_critic().init(k, *inputs) for k in critic_keys)
        return TD3Learner(
            actor=actor,
            target_actor=copy_of(actor),
            critics=critics,
            target_critics=copy_of(critics),
            actor_opt=self.actor_optimizer().init(actor),
            critic_opt=self.optimizer().init(critics),
        )

    # Update -----------------------------------------------------------------------------------

    def update(
        self, learner: TD3Learner, batch: Batch, key: jax.Array, n: jax.Array
    ) -> tuple[TD3Learner, dict[str, jax.Array]]:
        # Critics, towards r + gamma (1 - terminated) min Q'(s', mu'(s') + clipped noise) (eq. 14).
        noise = self.policy_noise * jax.random.normal(key, batch.action.shape, jnp.float32)
        noise = jnp.clip(noise, -self.noise_clip, self.noise_clip)
        next_action = jnp.clip(self.act(learner.target_actor, batch.next_obs) + noise, -1, 1)
        next_q = self.q_values(learner.target_critics, batch.next_obs, next_action).min(axis=0)
        reward = self.reward_scale * batch.reward
        target = n_step_target(reward, batch.num_steps, batch.terminated, next_q, self.gamma)

        def critic_loss(critics):
            q = self.q_values(critics, batch.obs, batch.action)
            errors = 0.5 * ((q - target) ** 2).sum(axis=0)
            return valid_mean(errors, batch.valid), q.mean()

        critics, critic_opt, critic_loss_value, q_mean = descend(
            self.optimizer(), critic_loss, learner.critics, learner.critic_opt
        )
        learner = learner._replace(critics=critics, critic_opt=critic_opt)

        # Actor, and all targets, at every policy_delay-th gradient step: up the first critic.
        def actor_loss(actor):
            return -self.q_values(critics[:1], batch.obs, self.act(actor, batch.obs)).mean(), ()

        def improve(learner):
            actor, actor_opt, loss, _ = descend(
                self.actor_optimizer(), actor_loss, learner.actor, learner.actor_opt
            )
            improved = learner._replace(
                actor=actor,
                actor_opt=actor_opt,
                target_actor=polyak(learner.target_actor, actor, self.tau),
                target_critics=polyak(learner.target_critics, critics, self.tau),
            )
            return improved, {"actor_loss": loss}

        learner, actor_metrics = learn_every(self.policy_delay, n, improve, learner)
        return learner, {"critic_loss": critic_loss_value, "q_mean": q_mean} | actor_metrics

    # Acting -----------------------------------------------------------------------------------

    def noisy(self, actor: Any, obs: jax.Array, key: jax.Array) -> jax.Array:
        """The actor's actions with the noise to explore with, clipped to the box."""
        action = self.act(actor, obs)
        noise = jax.random.normal(key, action.shape, jnp.float32)
        return jnp.clip(action + self.exploration_noise * noise, -1, 1)

    def explore(
        self, learner: TD3Learner, obs: jax.Array, key: jax.Array, progress: jax.Array
    ) -> jax.Array:
        return self.noisy(learner.actor, obs, key)

    def policy(self, state: LearnerState, deterministic: bool = True) -> Policy:
        """The actor, or with the noise that it explores with."""

        @memoryless
        def policy(obs: jax.Array, key: jax.Array) -> jax.Array:
            obs, actor = self.normalize(state.obs_moments, obs), state.learner.actor
            return self.env_action(
                self.act(actor, obs) if deterministic else self.noisy(actor, obs, key)
            )

        return policy
