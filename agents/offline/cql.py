"""CQL: Conservative Q-Learning for Offline RL (Kumar et al. 2020, arXiv:2006.04779).

SAC whose critics are pushed down where the policy might go and up where the data is. Where released
codes differ, this one takes the paper: the squared error counts half (in codes where it counts
whole, `cql_alpha` is twice ours); targets hold no entropy; the sampled log-sum-exp is
importance-weighted; its gap is taken for each critic on its own. As in those codes the log-sum-exp
sums over samples and does not average: it is log(3 num_actions), 3.40, above that of the integral,
which `target_gap` and the metric `gap` include, and no gradient sees.

The authors' code also differs in what follows. With `lagrange` it multiplies the gap by its weight
(`min_q_weight`, our `cql_alpha`) before it subtracts the target; here the target is of the gap
itself. On D4RL's MuJoCo sets its actor clones the data for the first 40,000 gradient steps
(`policy_eval_start`); here `bc_steps` is 0. It has three hidden layers of 256, here there are two.
The step sizes are its own: 1e-4 for the actor, 3e-4 for the critics.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxrl import spaces
from jaxrl.agent import OWN, Policy, memoryless, static, traced
from jaxrl.loops.learner import Learner, LearnerState
from jaxrl.parts.distributions import TanhNormal
from jaxrl.parts.losses import td_target
from jaxrl.parts.networks import Network, body_of, require_body
from jaxrl.parts.optimize import copy_of, descend, polyak
from jaxrl.parts.replay import Batch, valid_mean

LOG_STD_RANGE = (-5.0, 2.0)  # that the policy's log-deviation is clipped to
LOG_FACTOR_RANGE = (-math.log(1e6), math.log(1e6))  # that the factor on cql_alpha stays in
EDGE = 1 - 1e-5  # of cloned actions: where the log-density of tanh is still finite


class CQLLearner(NamedTuple):
    actor: Any
    critics: Any  # two
    target_critics: Any
    log_temperature: jax.Array
    log_factor: jax.Array  # on cql_alpha; moves only with `lagrange`
    actor_opt: Any
    critic_opt: Any
    temperature_opt: Any
    factor_opt: Any


class CQL(Learner):
    """Conservative Q-Learning: SAC with critics held down away from the data; continuous actions.

    CQL(H) takes the soft maximum of Q over actions, CQL(rho) the mean of Q over the policy's
    actions weighted by exp Q. With `lagrange` the term's weight is learnt: it rises while the gap
    between Q there and Q of the data is above `target_gap`. Meant for recorded data.
    """

    num_updates: int = static(100, "[1, inf)", "gradient steps per iteration")
    learning_rate: float = traced(3e-4, "(0, inf)", "Adam's step size of critics and factor")
    actor_learning_rate: float = traced(1e-4, "(0, inf)", "Adam's step size of the actor")
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
    cql_alpha: float = traced(5.0, "[0, inf)", "weight of the conservative term")
    variant: str = static("h", ("h", "rho"), "h: log-sum-exp of Q; rho: exp(Q)-weighted mean")
    num_actions: int = static(10, "[1, inf)", "actions from each source of the log-sum-exp")
    importance_sampling: bool = static(True, None, "weigh samples by their density; else all alike")
    cql_temperature: float = traced(1.0, "(0, inf)", "of the log-sum-exp")
    lagrange: bool = static(False, None, "learn a factor on cql_alpha")
    target_gap: float = traced(5.0, "(-inf, inf)", "that the factor holds the gap at")
    max_target: bool = static(False, None, "back up the best of num_actions next actions")
    backup_entropy: bool = static(False, None, "the entropy term in targets, as SAC has it")
    bc_steps: int = static(0, "[0, inf)", "gradient steps in which the actor clones the data")

    # Networks ---------------------------------------------------------------------------------

    def check(self) -> None:
        super().check()
        spaces.require(self.action_space, "continuous", self.name, self.env)
        require_body(self.network, self.obs_shape, self.name)

    def unused(self) -> dict[str, str]:
        why = super().unused()
        if not self.lagrange:
            why["target_gap"] = "without lagrange"
        if self.backup_entropy:
            why["max_target"] = "with backup_entropy"
        return why

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

    def distribution(self, actor: Any, obs: jax.Array) -> TanhNormal:
        """The policy at (normalised) observations."""
        mean, log_std = jnp.split(self.make_actor().apply(actor, obs), 2, axis=-1)
        return TanhNormal(mean, jnp.clip(log_std, *LOG_STD_RANGE))

    def q_values(self, critics: Any, obs: jax.Array, action: jax.Array) -> jax.Array:
        """Both critics' values (2, B)."""
        critic = self.make_critic()
        return jnp.stack([critic.apply(params, obs, action)[:, 0] for params in critics])

    def q_of_many(self, critics: Any, obs: jax.Array, actions: jax.Array) -> jax.Array:
        """Both critics' values (2, S, B) of S actions (S, B, D) at each observation."""
        samples, batch = actions.shape[:2]
        repeated = jnp.broadcast_to(obs, (samples, *obs.shape)).reshape(-1, *obs.shape[1:])
        q = self.q_values(critics, repeated, actions.reshape(samples * batch, -1))
        return q.reshape(2, samples, batch)

    def optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.learning_rate)

    def actor_optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.actor_learning_rate)

    def temperature_optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.temperature_learning_rate)

    # Init -------------------------------------------------------------------------------------

    def init_learner(self, key: jax.Array, obs: jax.Array) -> CQLLearner:
        actor_key, critic_key = jax.random.split(key)
        actor = self.make_actor().init(actor_key, obs)
        inputs = obs, jnp.zeros((spaces.action_size(self.action_space),))
        critics = tuple(self.make_critic().init(k, *inputs) for k in jax.random.split(critic_key))
        log_temperature = jnp.log(jnp.asarray(self.temperature, jnp.float32))
        log_factor = jnp.zeros((), jnp.float32)
        return CQLLearner(
            actor=actor,
            critics=critics,
            target_critics=copy_of(critics),
            log_temperature=log_temperature,
            log_factor=log_factor,
            actor_opt=self.actor_optimizer().init(actor),
            critic_opt=self.optimizer().init(critics),
            temperature_opt=self.temperature_optimizer().init(log_temperature),
            factor_opt=self.optimizer().init(log_factor),
        )

    # Update -----------------------------------------------------------------------------------

    def update(
        self, learner: CQLLearner, batch: Batch, key: jax.Array, n: jax.Array
    ) -> tuple[CQLLearner, dict[str, jax.Array]]:
        critic_key, actor_key = jax.random.split(key)
        learner, critic_metrics = self.critic_step(learner, batch, critic_key)
        learner, actor_metrics = self.actor_step(learner, batch, actor_key, n)
        return learner, critic_metrics | actor_metrics

    def critic_step(
        self, learner: CQLLearner, batch: Batch, key: jax.Array
    ) -> tuple[CQLLearner, dict[str, jax.Array]]:
        """Bellman error, plus Q where the policy might go minus Q of the data (eq. 4)."""
        target = self.bellman_target(learner, batch, key)
        actions, log_density = self.proposals(learner, batch, jax.random.fold_in(key, 1))
        factor = jnp.exp(learner.log_factor)

        def critic_loss(critics):
            q = self.q_values(critics, batch.obs, batch.action)
            q_of_proposals = self.q_of_many(critics, batch.obs, actions)
            if not self.importance_sampling:
                q_of_proposals = jnp.concatenate([q_of_proposals, q[:, None]], axis=1)
            gap = self.soft_maximum(q_of_proposals, log_density) - q
            gap = jax.vmap(valid_mean, in_axes=(0, None))(gap, batch.valid)  # of each critic
            errors = valid_mean(0.5 * ((q - target) ** 2).sum(axis=0), batch.valid)
            excess = gap - self.target_gap if self.lagrange else gap
            return errors + factor * self.cql_alpha * excess.sum(), (errors, gap, q.mean())

        critics, critic_opt, critic_loss_value, (errors, gap, q_mean) = descend(
            self.optimizer(), critic_loss, learner.critics, learner.critic_opt
        )

        if self.lagrange:
            learner = self.factor_step(learner, gap)
        learner = learner._replace(
            critics=critics,
            target_critics=polyak(learner.target_critics, critics, self.tau),
            critic_opt=critic_opt,
        )
        return learner, {
            "critic_loss": critic_loss_value,
            "bellman_error": errors,
            "q_mean": q_mean,
            "gap": gap.mean(),
            "cql_factor": factor,
        }

    def factor_step(self, learner: CQLLearner, gap: jax.Array) -> CQLLearner:
        """The factor, up while the critics' mean gap (of each, (2,)) is above its target."""

        def factor_loss(log_factor):
            excess = (gap - self.target_gap).mean()
            return -jnp.exp(log_factor) * self.cql_alpha * excess, ()

        log_factor, factor_opt, _, _ = descend(
            self.optimizer(), factor_loss, learner.log_factor, learner.factor_opt
        )
        # Kept in its range here: a clip in the loss has no gradient, and no way back.
        log_factor = jnp.clip(log_factor, *LOG_FACTOR_RANGE)
        return learner._replace(log_factor=log_factor, factor_opt=factor_opt)

    def bellman_target(self, learner: CQLLearner, batch: Batch, key: jax.Array) -> jax.Array:
        """r + gamma (1 - terminated) V(s') (B,), V of one action or of the best of several."""
        dist = self.distribution(learner.actor, batch.next_obs)
        if self.backup_entropy:
            action, log_prob = dist.sample_and_log_prob(key)
            q = self.q_values(learner.target_critics, batch.next_obs, action).min(axis=0)
            value = q - jnp.exp(learner.log_temperature) * log_prob
        else:
            keys = jax.random.split(key, self.num_actions if self.max_target else 1)
            actions = jax.vmap(dist.sample)(keys)
            q = self.q_of_many(learner.target_critics, batch.next_obs, actions).min(axis=0)
            value = q.max(axis=0)
        reward = self.reward_scale * batch.reward
        return td_target(reward, batch.terminated, value, self.gamma)

    def proposals(
        self, learner: CQLLearner, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Actions (S, B, D) at the batch's observations, and their log-densities (S, B).

        CQL(H): `num_actions` each from the whole box, the policy there, and the policy at the next
        observation. CQL(rho): from the policy there. The policy's network is evaluated once per
        observation, whatever the number of samples.
        """
        uniform_key, here_key, next_key = jax.random.split(key, 3)

        def from_policy(obs, key):
            dist = self.distribution(learner.actor, obs)
            return jax.vmap(dist.sample_and_log_prob)(jax.random.split(key, self.num_actions))

        here, here_density = from_policy(batch.obs, here_key)
        if self.variant == "rho":
            return here, here_density
        following, following_density = from_policy(batch.next_obs, next_key)
        uniform = jax.random.uniform(uniform_key, here.shape, minval=-1.0, maxval=1.0)
        uniform_density = jnp.full(here.shape[:-1], -here.shape[-1] * math.log(2.0))
        return (
            jnp.concatenate([uniform, here, following]),
            jnp.concatenate([uniform_density, here_density, following_density]),
        )

    def soft_maximum(self, q: jax.Array, log_density: jax.Array) -> jax.Array:
        """What stands for the maximum of Q over actions (2, B), of values (2, S, B)."""
        scaled = q / self.cql_temperature
        if self.variant == "rho":
            weights = lax.stop_gradient(jax.nn.softmax(scaled, axis=1))
            return (weights * q).sum(axis=1)
        if self.importance_sampling:
            scaled = scaled - log_density
        return self.cql_temperature * jax.nn.logsumexp(scaled, axis=1)

    def actor_step(
        self, learner: CQLLearner, batch: Batch, key: jax.Array, n: jax.Array
    ) -> tuple[CQLLearner, dict[str, jax.Array]]:
        """E[temperature log pi(a|s) - min Q(s, a)]; log pi of the data for Q in cloning steps."""
        temperature = jnp.exp(learner.log_temperature)

        def actor_loss(actor):
            dist = self.distribution(actor, batch.obs)
            action, log_prob = dist.sample_and_log_prob(key)

            def clone():
                return dist.log_prob(jnp.clip(batch.action, -EDGE, EDGE))

            def improve():
                return self.q_values(learner.critics, batch.obs, action).min(axis=0)

            gain = lax.cond(n < self.bc_steps, clone, improve) if self.bc_steps else improve()
            return (temperature * log_prob - gain).mean(), -log_prob.mean()

        actor, actor_opt, actor_loss_value, entropy = descend(
            self.actor_optimizer(), actor_loss, learner.actor, learner.actor_opt
        )

        # Temperature, up while the entropy is below its target.
        target_entropy = self.target_entropy * spaces.action_size(self.action_space)
        move, temperature_opt = self.temperature_optimizer().update(
            entropy - target_entropy, learner.temperature_opt
        )
        learner = learner._replace(
            actor=actor,
            log_temperature=learner.log_temperature + move,
            actor_opt=actor_opt,
            temperature_opt=temperature_opt,
        )
        return learner, {
            "actor_loss": actor_loss_value,
            "temperature": temperature,
            "entropy": entropy,
        }

    # Acting -----------------------------------------------------------------------------------

    def explore(
        self, learner: CQLLearner, obs: jax.Array, key: jax.Array, progress: jax.Array
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
