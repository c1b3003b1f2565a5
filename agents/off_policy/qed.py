"""QED: Behavior-Consistent Deep RL (Hussing, d'Aliberti, Voelcker, Eysenbach, Eaton 2026).

Two runs whose critics differ by at most eps at a state have Boltzmann policies exp(Q / alpha) / Z
whose KL divergence is at most min(2 eps / alpha, eps^2 / (2 alpha^2)). So the temperature follows
the disagreement: alpha(s) = d(s) / c bounds the divergence by min(2 c, c^2 / 2), and cools where
critics agree. d is an expectile over actions of |Q_1 - Q_2|, a soft supremum.

The two critics stand for two runs. They share nothing, and each learns from steps of its own draw;
with `target=own` also from targets of its own. What the summary of the paper that we have leaves
open is a hyper-parameter.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxrl import spaces
from jaxrl.agent import OWN, Policy, memoryless, static, traced
from jaxrl.loops.learner import Learner, LearnerState
from jaxrl.parts.distributions import TanhNormal
from jaxrl.parts.losses import expectile_loss, td_target
from jaxrl.parts.networks import Network, body_of, require_body
from jaxrl.parts.optimize import copy_of, descend, polyak
from jaxrl.parts.replay import Batch, valid_mean

LOG_STD_RANGE = (-5.0, 2.0)  # that the policy's log-deviation is clipped to


class QEDLearner(NamedTuple):
    actor: Any
    critics: Any  # two
    target_critics: Any
    disagreement: Any  # of the critics, as a function of states
    actor_opt: Any
    critic_opt: Any
    disagreement_opt: Any


class QED(Learner):
    """Soft actor-critic as hot as its critics disagree, at each state; continuous actions."""

    learning_rate: float = traced(3e-4, "(0, inf)", "Adam's step size, of all networks")
    gamma: float = traced(0.99, "[0, 1]", "discount")
    tau: float = traced(0.005, "(0, 1]", "how far the target critics move at each gradient step")
    disagreement_ratio: float = traced(
        1.0, "(0, inf)", "c, of disagreement to temperature: the divergence is at most c^2 / 2"
    )
    expectile: float = traced(0.9, "[0.5, 1)", "of disagreement over actions; near 1, its maximum")
    min_temperature: float = traced(1e-3, "(0, inf)", "that it never falls below")
    max_temperature: float = traced(float("inf"), "(0, inf]", "that it never exceeds")
    own_share: float = traced(0.5, "(0, 1]", "of each batch that a critic draws to learn from")
    target: str = static(
        "minimum", ("minimum", "own"), "next value that a critic learns: the smaller, or its own"
    )
    reward_scale: float = traced(1.0, "(0, inf)", "factor on rewards in the targets")
    network: Any = static("mlp", ("mlp", OWN), "or a body of yours, of every network")
    hidden_sizes: tuple[int, ...] = static((256, 256), "[1, inf)", "widths, of each network")
    activation: str = static("relu", ("tanh", "relu", "swish"), "of the hidden layers")
    layer_norm: bool = static(False, None, "LayerNorm in the critics")

    # Networks ---------------------------------------------------------------------------------

    def check(self) -> None:
        super().check()
        spaces.require(self.action_space, "continuous", self.name, self.env)
        require_body(self.network, self.obs_shape, self.name)
        low, high = self.min_temperature, self.max_temperature
        if isinstance(low, float) and isinstance(high, float) and low > high:
            raise ValueError(f"qed: min_temperature={low} is above max_temperature={high}")

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
            obs_ndim=len(self.obs_shape),
            precision=self.precision,
            hidden_sizes=self.hidden_sizes,
            activation=self.activation,
            body=body_of(self.network),
            layer_norm=self.layer_norm,
        )

    def make_disagreement(self) -> Network:
        return Network(
            outputs=1,
            obs_ndim=len(self.obs_shape),
            precision=self.precision,
            hidden_sizes=self.hidden_sizes,
            activation=self.activation,
            body=body_of(self.network),
        )

    def distribution(self, actor: Any, obs: jax.Array) -> TanhNormal:
        """The policy at (normalised) observations."""
        mean, log_std = jnp.split(self.make_actor().apply(actor, obs), 2, axis=-1)
        return TanhNormal(mean, jnp.clip(log_std, *LOG_STD_RANGE))

    def q_values(self, critics: Any, obs: jax.Array, action: jax.Array) -> jax.Array:
        """Both critics' values (2, B)."""
        critic = self.make_critic()
        return jnp.stack([critic.apply(params, obs, action)[:, 0] for params in critics])

    def disagreement(self, params: Any, obs: jax.Array) -> jax.Array:
        """d(s) (B,), at least 0."""
        return jax.nn.softplus(self.make_disagreement().apply(params, obs)[..., 0])

    def temperature(self, disagreement: jax.Array) -> jax.Array:
        """alpha(s) = d(s) / c within its bounds, in the shape of d; nothing learns through it."""
        alpha = lax.stop_gradient(disagreement) / self.disagreement_ratio
        return jnp.clip(alpha, self.min_temperature, self.max_temperature)

    def optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.learning_rate)

    # Init -------------------------------------------------------------------------------------

    def init_learner(self, key: jax.Array, obs: jax.Array) -> QEDLearner:
        actor_key, critic_key, disagreement_key = jax.random.split(key, 3)
        actor = self.make_actor().init(actor_key, obs)
        inputs = obs, jnp.zeros((spaces.action_size(self.action_space),))
        critics = tuple(self.make_critic().init(k, *inputs) for k in jax.random.split(critic_key))
        disagreement = self.make_disagreement().init(disagreement_key, obs)
        return QEDLearner(
            actor=actor,
            critics=critics,
            target_critics=copy_of(critics),
            disagreement=disagreement,
            actor_opt=self.optimizer().init(actor),
            critic_opt=self.optimizer().init(critics),
            disagreement_opt=self.optimizer().init(disagreement),
        )

    # Update -----------------------------------------------------------------------------------

    def update(
        self, learner: QEDLearner, batch: Batch, key: jax.Array, n: jax.Array
    ) -> tuple[QEDLearner, dict[str, jax.Array]]:
        next_key, own_key, actor_key = jax.random.split(key, 3)

        # Critics, towards r + gamma (1 - terminated) [Q'(s', a') - alpha(s') log pi(a'|s')], each
        # from the steps that it has drawn.
        next_dist = self.distribution(learner.actor, batch.next_obs)
        next_action, next_log_prob = next_dist.sample_and_log_prob(next_key)
        next_q = self.q_values(learner.target_critics, batch.next_obs, next_action)  # (2, B)
        if self.target == "minimum":
            next_q = jnp.broadcast_to(next_q.min(axis=0), next_q.shape)
        next_alpha = self.temperature(self.disagreement(learner.disagreement, batch.next_obs))
        reward = self.reward_scale * batch.reward
        next_value = next_q - next_alpha * next_log_prob
        target = td_target(reward, batch.terminated, next_value, self.gamma)
        own = batch.valid & jax.random.bernoulli(own_key, self.own_share, target.shape)

        def critic_loss(critics):
            q = self.q_values(critics, batch.obs, batch.action)
            errors = 0.5 * (q - target) ** 2
            return jax.vmap(valid_mean)(errors, own).sum(), q

        critics, critic_opt, critic_loss_value, q = descend(
            self.optimizer(), critic_loss, learner.critics, learner.critic_opt
        )

        # Actor: E[alpha(s) log pi(a|s) - min Q(s, a)] by reparameterisation.
        alpha = self.temperature(self.disagreement(learner.disagreement, batch.obs))

        def actor_loss(actor):
            action, log_prob = self.distribution(actor, batch.obs).sample_and_log_prob(actor_key)
            q = self.q_values(critics, batch.obs, action)
            return (alpha * log_prob - q.min(axis=0)).mean(), (-log_prob.mean(), gap(q))

        actor, actor_opt, actor_loss_value, (entropy, policy_gap) = descend(
            self.optimizer(), actor_loss, learner.actor, learner.actor_opt
        )

        # Disagreement: an expectile of |Q_1 - Q_2|, over actions of the policy and of the replay.
        def disagreement_loss(params):
            d = self.disagreement(params, batch.obs)
            losses = [expectile_loss(x - d, self.expectile) for x in (policy_gap, gap(q))]
            return losses[0].mean() + valid_mean(losses[1], batch.valid), d

        disagreement, disagreement_opt, disagreement_loss_value, d = descend(
            self.optimizer(), disagreement_loss, learner.disagreement, learner.disagreement_opt
        )
        metrics = {
            "critic_loss": critic_loss_value,
            "q_mean": q.mean(),
            "actor_loss": actor_loss_value,
            "temperature": alpha.mean(),
            "entropy": entropy,
            "disagreement": d.mean(),
            "disagreement_loss": disagreement_loss_value,
            "kl_bound": kl_bound(d, alpha).mean(),
        }
        return QEDLearner(
            actor=actor,
            critics=critics,
            target_critics=polyak(learner.target_critics, critics, self.tau),
            disagreement=disagreement,
            actor_opt=actor_opt,
            critic_opt=critic_opt,
            disagreement_opt=disagreement_opt,
        ), metrics

    # Acting -----------------------------------------------------------------------------------

    def explore(
        self, learner: QEDLearner, obs: jax.Array, key: jax.Array, progress: jax.Array
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


def gap(q: jax.Array) -> jax.Array:
    """|Q_1 - Q_2| (B,) of both critics' values (2, B); nothing learns through it."""
    return jnp.abs(lax.stop_gradient(q[0] - q[1]))


def kl_bound(disagreement: jax.Array, temperature: jax.Array) -> jax.Array:
    """The most that softmax(Q_1 / alpha) can diverge from softmax(Q_2 / alpha), elementwise.

    min(2 eps / alpha, eps^2 / (2 alpha^2)) for |Q_1 - Q_2| <= eps: the log-ratio D lies within
    2 eps / alpha, and KL is the integral over t in [0, 1] of t Var_t(D), Var_t <= (eps / alpha)^2.
    """
    ratio = disagreement / temperature
    return jnp.minimum(2 * ratio, ratio**2 / 2)
