"""Soft Actor-Critic for Discrete Action Settings (Christodoulou 2019, arXiv:1910.07207).

Where SAC samples actions, its expectations over them are sums here: critics give Q of all actions,
the policy their probabilities. Targets move at every step, as SAC's do.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import masks, spaces
from jaxrl.agent import OWN, Policy, memoryless, static, traced
from jaxrl.loops.learner import Learner, LearnerState
from jaxrl.parts.distributions import Categorical
from jaxrl.parts.losses import action_value, n_step_target
from jaxrl.parts.networks import Network, body_of, require_body
from jaxrl.parts.optimize import copy_of, descend, polyak
from jaxrl.parts.replay import Batch, valid_mean


class DiscreteSACLearner(NamedTuple):
    actor: Any
    critics: Any  # two
    target_critics: Any
    log_temperature: jax.Array
    actor_opt: Any
    critic_opt: Any
    temperature_opt: Any


class DiscreteSAC(Learner):
    """Soft Actor-Critic with exact expectations over its actions; discrete actions."""

    takes_masks = True
    takes_windows: ClassVar[bool] = True

    learning_rate: float = traced(3e-4, "(0, inf)", "Adam's step size, of actor and critics")
    gamma: float = traced(0.99, "[0, 1]", "discount")
    tau: float = traced(0.005, "(0, 1]", "how far the target critics move at each gradient step")
    temperature: float = traced(1.0, "(0, inf)", "weight of the entropy, at the start if learnt")
    temperature_learning_rate: float = traced(3e-4, "[0, inf)", "Adam's step size; 0: fixed")
    target_entropy: float = traced(0.98, "[0, 1]", "of the policy, as a share of uniform actions'")
    reward_scale: float = traced(1.0, "(0, inf)", "factor on rewards in the targets")
    network: Any = static(
        "mlp", ("mlp", "cnn", OWN), "cnn: a 3x3 convolution on (H, W, C) first; or a body of yours"
    )
    hidden_sizes: tuple[int, ...] = static((256, 256), "[1, inf)", "widths, actor and critics each")
    activation: str = static("relu", ("tanh", "relu", "swish"), "of the hidden layers")
    layer_norm: bool = static(False, None, "LayerNorm in the critics")

    # Networks ---------------------------------------------------------------------------------

    def check(self) -> None:
        super().check()
        spaces.require(self.action_space, "discrete", self.name, self.env)
        if self.network == "cnn":
            spaces.require_image(self.obs_shape, self.name)
        require_body(self.network, self.obs_shape, self.name)

    def make_network(self, layer_norm: bool, output_scale: float) -> Network:
        """A number for every action."""
        return Network(
            outputs=spaces.action_size(self.action_space),
            obs_ndim=len(self.obs_shape),
            precision=self.precision,
            hidden_sizes=self.hidden_sizes,
            activation=self.activation,
            conv_features=16 if self.network == "cnn" else 0,
            body=body_of(self.network),
            layer_norm=layer_norm,
            output_scale=output_scale,
        )

    def make_actor(self) -> Network:
        return self.make_network(layer_norm=False, output_scale=0.01)

    def make_critic(self) -> Network:
        return self.make_network(self.layer_norm, output_scale=1.0)

    def distribution(self, actor: Any, obs: Any) -> Categorical:
        """The policy at (normalised) observations, over the actions that may be taken."""
        obs, mask = masks.split(obs)
        return Categorical(masks.masked(self.make_actor().apply(actor, obs), mask))

    def q_values(self, critics: Any, obs: Any) -> jax.Array:
        """Both critics' values (2, B, A) of all actions."""
        obs, _ = masks.split(obs)
        return jnp.stack([self.make_critic().apply(critic, obs) for critic in critics])

    def optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.learning_rate)

    def temperature_optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.temperature_learning_rate)

    # Init -------------------------------------------------------------------------------------

    def init_learner(self, key: jax.Array, obs: jax.Array) -> DiscreteSACLearner:
        actor_key, critic_key = jax.random.split(key)
        actor = self.make_actor().init(actor_key, obs)
        critics = tuple(self.make_critic().init(k, obs) for k in jax.random.split(critic_key))
        log_temperature = jnp.log(jnp.asarray(self.temperature, jnp.float32))
        return DiscreteSACLearner(
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
        self, learner: DiscreteSACLearner, batch: Batch, key: jax.Array, n: jax.Array
    ) -> tuple[DiscreteSACLearner, dict[str, jax.Array]]:
        temperature = jnp.exp(learner.log_temperature)

        # Critics, towards r + gamma (1 - terminated) V(s') with V of their targets (eq. 3, 10).
        next_dist = self.distribution(learner.actor, batch.next_obs)
        next_q = self.q_values(learner.target_critics, batch.next_obs).min(axis=0)
        next_value = soft_value(next_dist, next_q, temperature)
        reward = self.reward_scale * batch.reward
        target = n_step_target(reward, batch.num_steps, batch.terminated, next_value, self.gamma)

        def critic_loss(critics):
            all_q = self.q_values(critics, batch.obs)
            q = jax.vmap(action_value, in_axes=(0, None))(all_q, batch.action)
            errors = 0.5 * ((q - target) ** 2).sum(axis=0)
            return valid_mean(errors, batch.valid), q.mean()

        critics, critic_opt, critic_loss_value, q_mean = descend(
            self.optimizer(), critic_loss, learner.critics, learner.critic_opt
        )

        # Actor: up V, the expectation of min Q plus the entropy, both exact (eq. 12).
        q = self.q_values(critics, batch.obs).min(axis=0)

        def actor_loss(actor):
            dist = self.distribution(actor, batch.obs)
            return -soft_value(dist, q, temperature).mean(), dist.entropy().mean()

        actor, actor_opt, actor_loss_value, entropy = descend(
            self.optimizer(), actor_loss, learner.actor, learner.actor_opt
        )

        # Temperature, up while the entropy is below its target (eq. 11): the gradient of
        # log_temperature * (entropy - target), whose sign is all that Adam takes from its scale.
        move, temperature_opt = self.temperature_optimizer().update(
            entropy - self.target_entropy * self.uniform_entropy(batch.obs), learner.temperature_opt
        )
        metrics = {
            "critic_loss": critic_loss_value,
            "q_mean": q_mean,
            "actor_loss": actor_loss_value,
            "temperature": temperature,
            "entropy": entropy,
        }
        return DiscreteSACLearner(
            actor=actor,
            critics=critics,
            target_critics=polyak(learner.target_critics, critics, self.tau),
            log_temperature=learner.log_temperature + move,
            actor_opt=actor_opt,
            critic_opt=critic_opt,
            temperature_opt=temperature_opt,
        ), metrics

    def uniform_entropy(self, obs: Any) -> jax.Array:
        """Mean entropy of uniform actions, log A of those that may be taken."""
        _, mask = masks.split(obs)
        if mask is None:
            return jnp.log(jnp.float32(spaces.action_size(self.action_space)))
        return jnp.log(masks.allowed(mask).sum(axis=-1).astype(jnp.float32)).mean()

    # Acting -----------------------------------------------------------------------------------

    def explore(
        self, learner: DiscreteSACLearner, obs: Any, key: jax.Array, progress: jax.Array
    ) -> jax.Array:
        return self.distribution(learner.actor, obs).sample(key)

    def log_prob(self, state: LearnerState, obs: jax.Array, action: jax.Array) -> jax.Array:
        obs = self.normalize(state.obs_moments, obs)
        return self.distribution(state.learner.actor, obs).log_prob(action)

    def policy(self, state: LearnerState, deterministic: bool = True) -> Policy:
        """The likeliest action, or a sample."""

        @memoryless
        def policy(obs: jax.Array, key: jax.Array) -> jax.Array:
            dist = self.distribution(state.learner.actor, self.normalize(state.obs_moments, obs))
            return self.env_action(dist.mode() if deterministic else dist.sample(key))

        return policy


def soft_value(dist: Categorical, q: jax.Array, temperature: jax.Array | float) -> jax.Array:
    """V (B,) = sum_a pi(a|s) [Q(s, a) - temperature log pi(a|s)], of values (B, A) (eq. 10).

    Q of actions that may not be taken has to be finite, and does not count.
    """
    probs = jax.nn.softmax(dist.logits)
    # Of what is never taken, a temperature above 1 would make an infinite number of log pi.
    log_probs = jnp.where(probs > 0, jax.nn.log_softmax(dist.logits), 0)
    return (probs * (q - temperature * log_probs)).sum(axis=-1)
