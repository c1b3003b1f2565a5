"""SAC: Soft Actor-Critic Algorithms and Applications (Haarnoja et al. 2018, arXiv:1812.05905)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import spaces
from jaxrl.agent import static, traced
from jaxrl.loops.offline import OfflineState, polyak
from jaxrl.loops.offpolicy import OffPolicy
from jaxrl.parts.distributions import TanhNormal
from jaxrl.parts.networks import Network
from jaxrl.parts.replay import Batch, valid_mean

LOG_STD_RANGE = (-5.0, 2.0)

QFunction = Callable[[jax.Array, jax.Array], jax.Array]  # obs (B, ...), action (B, D) -> (B,)


class SACLearner(NamedTuple):
    actor: Any
    critics: Any
    target_critics: Any
    log_temperature: jax.Array
    actor_opt: Any
    critic_opt: Any
    temperature_opt: Any
    extra: Any = ()  # what a subclass learns besides


LossFn = Callable[[Any], tuple[jax.Array, Any]]  # parameters -> loss, and whatever goes with it


class SoftActorCritic(OffPolicy):
    """Twin critics and a learnt temperature, for a policy that is yet to be given.

    The policy pays a *penalty* for each action, weighted by the temperature, which rises while the
    penalty is above its target: log pi(a|s) in SAC, with minus the target entropy as its target.

    A subclass implements `init_actor`, `act`, `penalty_target`, `actor_loss` and `soft_value`.
    """

    learning_rate: float = traced(3e-4, "(0, inf)", "Adam's step size, of actor and critics")
    gamma: float = traced(0.99, "[0, 1]", "discount")
    tau: float = traced(0.005, "(0, 1]", "how far the target critics move at each gradient step")
    temperature: float = traced(1.0, "(0, inf)", "weight of the entropy, at the start if learnt")
    temperature_learning_rate: float = traced(3e-4, "[0, inf)", "Adam's step size; 0: fixed")
    reward_scale: float = traced(1.0, "(0, inf)", "factor on rewards in the targets")
    hidden_sizes: tuple[int, ...] = static((256, 256), "[1, inf)", "widths, actor and critics each")
    activation: str = static("relu", ("tanh", "relu", "swish"), "of the hidden layers")
    layer_norm: bool = static(False, None, "LayerNorm in the critics")

    # Structure --------------------------------------------------------------------------------

    def check(self) -> None:
        super().check()
        spaces.require(self.action_space, "continuous", self.name, self.env)

    @property
    def action_size(self) -> int:
        return spaces.action_size(self.action_space)

    def make_critic(self) -> Network:
        return Network(
            outputs=1,
            obs_ndim=1,
            hidden_sizes=self.hidden_sizes,
            activation=self.activation,
            layer_norm=self.layer_norm,
        )

    def actor_optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.learning_rate)

    def critic_optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.learning_rate)

    # What a subclass provides -----------------------------------------------------------------

    def init_actor(self, key: jax.Array, obs: jax.Array) -> Any:
        """Fresh parameters of the policy, given one observation."""
        raise NotImplementedError

    def act(self, actor: Any, obs: jax.Array, key: jax.Array, deterministic: bool) -> jax.Array:
        """Actions within [-1, 1] at (normalised) observations."""
        raise NotImplementedError

    @property
    def penalty_target(self) -> float | jax.Array:
        """Where the temperature holds the mean penalty."""
        raise NotImplementedError

    def actor_loss(
        self, actor: Any, q: QFunction, obs: jax.Array, temperature: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """E[temperature * penalty - Q], and metrics of which "penalty" moves the temperature."""
        raise NotImplementedError

    def soft_value(
        self, actor: Any, q: QFunction, obs: jax.Array, temperature: jax.Array, key: jax.Array
    ) -> jax.Array:
        """An estimate of E_a[Q(s, a) - temperature * penalty], shape (B,)."""
        raise NotImplementedError

    # Critics ----------------------------------------------------------------------------------

    def q_values(self, critics: Any, obs: jax.Array, action: jax.Array) -> jax.Array:
        """Both critics' values (2, B)."""
        inputs = jnp.concatenate([obs.reshape(len(action), -1), action], axis=-1)
        return jnp.stack([self.make_critic().apply(critic, inputs)[:, 0] for critic in critics])

    def min_q(self, critics: Any) -> QFunction:
        return lambda obs, action: self.q_values(critics, obs, action).min(axis=0)

    def init_critics(self, key: jax.Array, obs: jax.Array) -> Any:
        inputs = jnp.zeros((obs.size + self.action_size,))
        return tuple(self.make_critic().init(k, inputs) for k in jax.random.split(key))

    def bellman_target(self, learner: SACLearner, batch: Batch, key: jax.Array) -> jax.Array:
        """r + gamma (1 - terminated) V(s') with the soft value of the target critics (B,)."""
        temperature = jnp.exp(learner.log_temperature)
        next_q = self.min_q(learner.target_critics)
        value = self.soft_value(learner.actor, next_q, batch.next_obs, temperature, key)
        return self.reward_scale * batch.reward + self.gamma * (1 - batch.terminated) * value

    def update_critics(
        self, learner: SACLearner, batch: Batch, key: jax.Array
    ) -> tuple[SACLearner, dict[str, jax.Array]]:
        """One gradient step of the critics, after which their targets follow."""
        target = self.bellman_target(learner, batch, key)

        def loss_fn(critics):
            q = self.q_values(critics, batch.obs, batch.action)
            errors = 0.5 * ((q - target) ** 2).sum(axis=0)
            return valid_mean(errors, batch.valid), q.mean()

        learner, loss, q_mean = self.descend_critics(learner, loss_fn)
        return learner, {"critic_loss": loss, "q_mean": q_mean}

    def descend_critics(
        self, learner: SACLearner, loss_fn: LossFn
    ) -> tuple[SACLearner, jax.Array, Any]:
        """The critics one gradient step down a loss, and their targets after them."""
        (loss, aux), grads = jax.value_and_grad(loss_fn, has_aux=True)(learner.critics)
        updates, critic_opt = self.critic_optimizer().update(grads, learner.critic_opt)
        critics = optax.apply_updates(learner.critics, updates)
        target_critics = polyak(learner.target_critics, critics, self.tau)
        learner = learner._replace(
            critics=critics, target_critics=target_critics, critic_opt=critic_opt
        )
        return learner, loss, aux

    # Training ---------------------------------------------------------------------------------

    def init_learner(self, key: jax.Array, obs: jax.Array) -> SACLearner:
        actor_key, critic_key = jax.random.split(key)
        actor, critics = self.init_actor(actor_key, obs), self.init_critics(critic_key, obs)
        log_temperature = jnp.log(jnp.asarray(self.temperature, jnp.float32))
        return SACLearner(
            actor=actor,
            critics=critics,
            target_critics=jax.tree.map(jnp.copy, critics),  # the carry is donated: no aliases
            log_temperature=log_temperature,
            actor_opt=self.actor_optimizer().init(actor),
            critic_opt=self.critic_optimizer().init(critics),
            temperature_opt=optax.adam(self.temperature_learning_rate).init(log_temperature),
        )

    def explore(
        self, learner: SACLearner, obs: jax.Array, key: jax.Array, progress: jax.Array
    ) -> jax.Array:
        return self.act(learner.actor, obs, key, deterministic=False)

    def update(
        self, learner: SACLearner, batch: Batch, key: jax.Array, n: jax.Array
    ) -> tuple[SACLearner, dict[str, jax.Array]]:
        critic_key, actor_key = jax.random.split(key)
        learner, metrics = self.update_critics(learner, batch, critic_key)
        learner, actor_metrics = self.update_actor(learner, batch, actor_key, n)
        return learner, metrics | actor_metrics

    def update_actor(
        self, learner: SACLearner, batch: Batch, key: jax.Array, n: jax.Array
    ) -> tuple[SACLearner, dict[str, jax.Array]]:
        """One gradient step of the actor, and one of the temperature."""
        temperature = jnp.exp(learner.log_temperature)
        q = self.min_q(learner.critics)
        return self.descend_actor(
            learner, lambda actor: self.actor_loss(actor, q, batch.obs, temperature, key)
        )

    def descend_actor(
        self, learner: SACLearner, loss_fn: LossFn
    ) -> tuple[SACLearner, dict[str, jax.Array]]:
        """The actor one step down a loss; the temperature by the "penalty" that comes with it."""
        (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(learner.actor)
        updates, actor_opt = self.actor_optimizer().update(grads, learner.actor_opt)
        actor = optax.apply_updates(learner.actor, updates)

        # The gradient of log_temperature * (target - penalty), whose sign is all that Adam takes
        # over from its scale.
        slope = self.penalty_target - metrics["penalty"]
        optimizer = optax.adam(self.temperature_learning_rate)
        move, temperature_opt = optimizer.update(slope, learner.temperature_opt)
        temperature = jnp.exp(learner.log_temperature)
        learner = learner._replace(
            actor=actor,
            actor_opt=actor_opt,
            log_temperature=learner.log_temperature + move,
            temperature_opt=temperature_opt,
        )
        return learner, {"actor_loss": loss, "temperature": temperature, **metrics}

    def policy(self, state: OfflineState, deterministic: bool = True) -> Any:
        """The mode of the policy, or a sample."""

        def act(obs: jax.Array, key: jax.Array) -> jax.Array:
            obs = self.normalize(state.obs_moments, obs)
            action = self.act(state.learner.actor, obs, key, deterministic)
            return self.env_action(action)

        return act


class SAC(SoftActorCritic):
    """tanh of a diagonal normal as the policy, whose penalty is log pi(a|s)."""

    target_entropy: float = traced(-1.0, "(-inf, inf)", "of the policy, per action dimension")

    @property
    def actor_outputs(self) -> int:
        """Numbers that the policy's network puts out."""
        return 2 * self.action_size

    def make_actor(self) -> Network:
        return Network(
            outputs=self.actor_outputs,
            obs_ndim=len(self.env.observation_space(self.env_params).shape),
            hidden_sizes=self.hidden_sizes,
            activation=self.activation,
            output_scale=0.01,
        )

    def init_actor(self, key: jax.Array, obs: jax.Array) -> Any:
        return self.make_actor().init(key, obs)

    def distribution(self, actor: Any, obs: jax.Array) -> Any:
        """The policy at (normalised) observations."""
        mean, log_std = jnp.split(self.make_actor().apply(actor, obs), 2, axis=-1)
        return TanhNormal(mean, jnp.clip(log_std, *LOG_STD_RANGE))

    def act(self, actor: Any, obs: jax.Array, key: jax.Array, deterministic: bool) -> jax.Array:
        dist = self.distribution(actor, obs)
        return dist.mode() if deterministic else dist.sample(key)

    @property
    def penalty_target(self) -> float | jax.Array:
        return -self.target_entropy * self.action_size

    def actor_loss(
        self, actor: Any, q: QFunction, obs: jax.Array, temperature: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        dist = self.distribution(actor, obs)
        loss, log_prob = policy_loss(dist, lambda action: q(obs, action), temperature, key)
        return loss, {"penalty": log_prob.mean(), "entropy": -log_prob.mean()}

    def soft_value(
        self, actor: Any, q: QFunction, obs: jax.Array, temperature: jax.Array, key: jax.Array
    ) -> jax.Array:
        action, log_prob = self.distribution(actor, obs).sample_and_log_prob(key)
        return q(obs, action) - temperature * log_prob


def policy_loss(
    dist: TanhNormal, q: Callable[[jax.Array], jax.Array], temperature: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """E[temperature * log pi(a) - Q(a)] by reparameterisation (eq. 9), and log pi (B,).

    Args:
        dist: the policy at B states.
        q: actions (B, D) in [-1, 1] to values (B,).
    """
    action, log_prob = dist.sample_and_log_prob(key)
    return (temperature * log_prob - q(action)).mean(), log_prob
