"""SAC: Soft Actor-Critic Algorithms and Applications (Haarnoja et al. 2018, arXiv:1812.05905)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import spaces
from jaxrl.agent import OWN, Policy, memoryless, static, traced
from jaxrl.loops.learner import Learner, LearnerState
from jaxrl.parts.distributions import TanhNormal
from jaxrl.parts.losses import td_target
from jaxrl.parts.networks import Network, body_of, require_body
from jaxrl.parts.optimize import copy_of, descend, polyak
from jaxrl.parts.replay import Batch, valid_mean

LOG_STD_RANGE = (-5.0, 2.0)  # that the policy's log-deviation is clipped to


class SACLearner(NamedTuple):
    actor: Any
    critics: Any  # two
    target_critics: Any
    log_temperature: jax.Array
    actor_opt: Any
    critic_opt: Any
    temperature_opt: Any


class SAC(Learner):
    """Soft Actor-Critic with twin critics and a learnt temperature; continuous actions."""

    learning_rate: float = traced(3e-4, "(0, inf)", "Adam's step size, of actor and critics")
    gamma: float = traced(0.99, "[0, 1]", "discount")
    tau: float = traced(0.005, "(0, 1]", "how far the target critics move at each gradient step")
    temperature: float = traced(1.0, "(0, inf)", "weight of the entropy, at the start if learnt")
    temperature_learning_rate: float = traced(3e-4, "[0, inf)", "Adam's step size; 0: fixed")
    target_entropy: float = traced(-1.0, "(-inf, inf)", "of the policy, per action dimension")
    reward_scale: float = traced(1.0, "(0, inf)", "factor on rewards in the targets")
    network: Any = static("mlp", ("mlp", OWN), "or a body of yours, of the actor and each critic")
    hidden_sizes: tuple[int, ...] = static((256, 256), "[1, inf)", "widths, actor and critics each")
    activation: str = static("relu", ("tanh", "relu", "swish"), "of the hidden layers")
    layer_norm: bool = static(False, None, "LayerNorm in the critics")

    # Networks ---------------------------------------------------------------------------------

    def check(self) -> None:
        super().check()
        spaces.require(self.action_space, "continuous", self.name, self.env)
        require_body(self.network, self.obs_shape, self.name)

    def make_actor(self) -> Network:
        return Network(
            outputs=2 * spaces.action_size(self.action_space),
            obs_ndim=len(self.obs_shape),
            precision=self.precision,
            hidden_sizes=self.hidden_sizes,
            activation=self.activation,
            body=body_of(self.network),
            output_scale=0.01,
        )

    def make_critic(self) -> Network:
        return Network(
            outputs=1,
            obs_ndim=1 if self.network == "mlp" else len(self.obs_shape),
            precision=self.precision,
            hidden_sizes=self.hidden_sizes,
            activation=self.activation,
            body=body_of(self.network),
            layer_norm=self.layer_norm,
        )

    def distribution(self, actor: Any, obs: jax.Array) -> TanhNormal:
        """The policy at (normalised) observations."""
        mean, log_std = jnp.split(self.make_actor().apply(actor, obs), 2, axis=-1)
        return TanhNormal(mean, jnp.clip(log_std, *LOG_STD_RANGE))

    def q_values(self, critics: Any, obs: jax.Array, action: jax.Array) -> jax.Array:
        """Both critics' values (2, B)."""
        inputs = self.critic_inputs(obs, action)
        return jnp.stack([self.make_critic().apply(critic, *inputs)[:, 0] for critic in critics])

    def critic_inputs(self, obs: jax.Array, action: jax.Array) -> tuple[jax.Array, ...]:
        """Observations with their actions; apart for a body of one's own, which sees the former."""
        if self.network != "mlp":
            return obs, action
        return (jnp.concatenate([obs.reshape(len(action), -1), action], axis=-1),)

    def optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.learning_rate)

    def temperature_optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.temperature_learning_rate)

    # Init -------------------------------------------------------------------------------------

    def init_learner(self, key: jax.Array, obs: jax.Array) -> SACLearner:
        actor_key, critic_key = jax.random.split(key)
        actor = self.make_actor().init(actor_key, obs)
        size, is_own = spaces.action_size(self.action_space), self.network != "mlp"
        inputs = (obs, jnp.zeros((size,))) if is_own else (jnp.zeros((obs.size + size,)),)
        critics = tuple(self.make_critic().init(k, *inputs) for k in jax.random.split(critic_key))
        log_temperature = jnp.log(jnp.asarray(self.temperature, jnp.float32))
        return SACLearner(
            actor=actor,
            critics=critics,
            target_critics=copy_of(critics),
            log_temperature=log_temperature,
            actor_opt=self.optimizer().init(actor),
            critic_opt=self.optimizer().init(critics),
            temperature_opt=self.temperature_optimizer().init(log_temperature),
        )

    # Update -----------------------------------------------------------------------------------

    def update(
        self, learner: SACLearner, batch: Batch, key: jax.Array, n: jax.Array
    ) -> tuple[SACLearner, dict[str, jax.Array]]:
        next_key, actor_key = jax.random.split(key)
        temperature = jnp.exp(learner.log_temperature)

        # Critics, towards r + gamma (1 - terminated) [min Q'(s', a') - temperature log pi(a'|s')].
        next_dist = self.distribution(learner.actor, batch.next_obs)
        next_action, next_log_prob = next_dist.sample_and_log_prob(next_key)
        next_q = self.q_values(learner.target_critics, batch.next_obs, next_action).min(axis=0)
        next_value = next_q - temperature * next_log_prob
        reward = self.reward_scale * batch.reward
        target = td_target(reward, batch.terminated, next_value, self.gamma)

        def critic_loss(critics):
            q = self.q_values(critics, batch.obs, batch.action)
            errors = 0.5 * ((q - target) ** 2).sum(axis=0)
            return valid_mean(errors, batch.valid), q.mean()

        critics, critic_opt, critic_loss_value, q_mean = descend(
            self.optimizer(), critic_loss, learner.critics, learner.critic_opt
        )

        # Actor: E[temperature log pi(a|s) - min Q(s, a)] by reparameterisation (eq. 9).
        def actor_loss(actor):
            action, log_prob = self.distribution(actor, batch.obs).sample_and_log_prob(actor_key)
            q = self.q_values(critics, batch.obs, action).min(axis=0)
            return (temperature * log_prob - q).mean(), -log_prob.mean()

        actor, actor_opt, actor_loss_value, entropy = descend(
            self.optimizer(), actor_loss, learner.actor, learner.actor_opt
        )

        # Temperature, up while the entropy is below its target: the gradient of
        # log_temperature * (entropy - target), whose sign is all that Adam takes from its scale.
        target_entropy = self.target_entropy * spaces.action_size(self.action_space)
        move, temperature_opt = self.temperature_optimizer().update(
            entropy - target_entropy, learner.temperature_opt
        )
        metrics = {
            "critic_loss": critic_loss_value,
            "q_mean": q_mean,
            "actor_loss": actor_loss_value,
            "temperature": temperature,
            "entropy": entropy,
        }
        return SACLearner(
            actor=actor,
            critics=critics,
            target_critics=polyak(learner.target_critics, critics, self.tau),
            log_temperature=learner.log_temperature + move,
            actor_opt=actor_opt,
            critic_opt=critic_opt,
            temperature_opt=temperature_opt,
        ), metrics

    # Acting -----------------------------------------------------------------------------------

    def explore(
        self, learner: SACLearner, obs: jax.Array, key: jax.Array, progress: jax.Array
    ) -> jax.Array:
        return self.distribution(learner.actor, obs).sample(key)

    def log_prob(self, state: LearnerState, obs: jax.Array, action: jax.Array) -> jax.Array:
        obs = self.normalize(state.obs_moments, obs)
        return self.distribution(state.learner.actor, obs).log_prob(action)

    def policy(self, state: LearnerState, deterministic: bool = True) -> Policy:
        """The mode of the policy, or a sample."""

        @memoryless
        def policy(obs: jax.Array, key: jax.Array) -> jax.Array:
            obs = self.normalize(state.obs_moments, obs)
            dist = self.distribution(state.learner.actor, obs)
            return self.env_action(dist.mode() if deterministic else dist.sample(key))

        return policy
