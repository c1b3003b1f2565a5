"""CQL: Conservative Q-Learning for Offline RL (Kumar et al. 2020, arXiv:2006.04779).

SAC whose critics are pushed down where the policy might go and up where the data is. Where released
codes differ, this one takes the paper: the squared error counts half (in codes where it counts
whole, `cql_alpha` is twice ours); targets hold no entropy; the sampled log-sum-exp is
importance-weighted; its gap is taken for each critic on its own. As in those codes the log-sum-exp
sums over samples and does not average: it is log(3 num_actions), 3.40, above that of the integral,
which `target_gap` and the metric `gap` include, and no gradient sees.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import optax
from jax import lax

from agents.off_policy.soft import SAC, SACLearner
from jaxrl.agent import static, traced
from jaxrl.parts.replay import Batch, valid_mean


class CQL(SAC):
    """SAC with a conservative term in the critics' loss; meant for recorded data.

    CQL(H) takes the soft maximum of Q over actions, CQL(rho) the mean of Q over the policy's
    actions weighted by exp Q. With `lagrange` the term's weight is learnt: it rises while the gap
    between Q there and Q of the data is above `target_gap`.
    """

    num_updates: int = static(100, "[1, inf)", "gradient steps per iteration")
    actor_learning_rate: float = traced(1e-4, "(0, inf)", "Adam's step size of the actor")
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

    def actor_optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.actor_learning_rate)

    def init_learner(self, key: jax.Array, obs: jax.Array) -> SACLearner:
        learner = super().init_learner(key, obs)
        if not self.lagrange:
            return learner
        log_factor = jnp.zeros(())
        return learner._replace(extra=(log_factor, self.critic_optimizer().init(log_factor)))

    # Critics ----------------------------------------------------------------------------------

    def bellman_target(self, learner: SACLearner, batch: Batch, key: jax.Array) -> jax.Array:
        if self.backup_entropy:
            return super().bellman_target(learner, batch, key)
        dist = self.distribution(learner.actor, batch.next_obs)
        keys = jax.random.split(key, self.num_actions if self.max_target else 1)
        actions = jax.vmap(dist.sample)(keys)
        q = self.q_of_many(learner.target_critics, batch.next_obs, actions).min(axis=0)
        value = q.max(axis=0)
        return self.reward_scale * batch.reward + self.gamma * (1 - batch.terminated) * value

    def update_critics(
        self, learner: SACLearner, batch: Batch, key: jax.Array
    ) -> tuple[SACLearner, dict[str, jax.Array]]:
        target = self.bellman_target(learner, batch, key)
        actions, log_density = self.proposals(learner, batch, jax.random.fold_in(key, 1))
        factor = jnp.ones(())
        if self.lagrange:
            factor = jnp.clip(jnp.exp(learner.extra[0]), 0, 1e6)

        def loss_fn(critics):
            q = self.q_values(critics, batch.obs, batch.action)
            many = self.q_of_many(critics, batch.obs, actions)
            if not self.importance_sampling:
                many = jnp.concatenate([many, q[:, None]], axis=1)
            above = self.soft_maximum(many, log_density)
            gap = jax.vmap(valid_mean, in_axes=(0, None))(above - q, batch.valid)  # of each critic
            errors = valid_mean(0.5 * ((q - target) ** 2).sum(axis=0), batch.valid)
            excess = gap - self.target_gap if self.lagrange else gap
            return errors + factor * self.cql_alpha * excess.sum(), (errors, gap, q.mean())

        learner, loss, (errors, gap, q_mean) = self.descend_critics(learner, loss_fn)
        if self.lagrange:
            learner = self.update_factor(learner, gap)
        metrics = {"critic_loss": loss, "bellman_error": errors, "q_mean": q_mean}
        return learner, metrics | {"gap": gap.mean(), "cql_factor": factor}

    def q_of_many(self, critics: tuple, obs: jax.Array, actions: jax.Array) -> jax.Array:
        """Both critics' values (2, S, B) of S actions (S, B, D) at each observation."""
        samples, batch = actions.shape[:2]
        repeated = jnp.broadcast_to(obs, (samples, *obs.shape)).reshape(-1, *obs.shape[1:])
        q = self.q_values(critics, repeated, actions.reshape(samples * batch, -1))
        return q.reshape(2, samples, batch)

    def proposals(
        self, learner: SACLearner, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Actions (S, B, D) at the batch's observations, and their log-densities (S, B).

        CQL(H): `num_actions` each from the whole box, the policy there, and the policy at the next
        observation. CQL(rho): from the policy there. The policy's network is evaluated once per
        observation, whatever the number of samples.
        """
        uniform_key, *policy_keys = jax.random.split(key, 3)
        n = self.num_actions
        found = []
        for source, source_key in zip((batch.obs, batch.next_obs), policy_keys, strict=True):
            dist = self.distribution(learner.actor, source)
            found.append(jax.vmap(dist.sample_and_log_prob)(jax.random.split(source_key, n)))
        if self.variant == "rho":
            return found[0]
        action = jax.random.uniform(uniform_key, found[0][0].shape, minval=-1.0, maxval=1.0)
        log_density = jnp.full(action.shape[:-1], -self.action_size * math.log(2.0))
        actions, densities = zip((action, log_density), *found, strict=True)
        return jnp.concatenate(actions), jnp.concatenate(densities)

    def soft_maximum(self, q: jax.Array, log_density: jax.Array) -> jax.Array:
        """What stands for the maximum of Q over actions (2, B), of values (2, S, B)."""
        scaled = q / self.cql_temperature
        if self.variant == "rho":
            weights = lax.stop_gradient(jax.nn.softmax(scaled, axis=1))
            return (weights * q).sum(axis=1)
        if self.importance_sampling:
            scaled = scaled - log_density
        return self.cql_temperature * jax.nn.logsumexp(scaled, axis=1)

    def update_factor(self, learner: SACLearner, gap: jax.Array) -> SACLearner:
        """Up while the critics' mean gap is above its target."""
        log_factor, opt = learner.extra

        def loss_fn(log_factor):
            factor = jnp.clip(jnp.exp(log_factor), 0, 1e6)
            return -factor * self.cql_alpha * (gap - self.target_gap).mean()

        move, opt = self.critic_optimizer().update(jax.grad(loss_fn)(log_factor), opt)
        return learner._replace(extra=(log_factor + move, opt))

    # Actor ------------------------------------------------------------------------------------

    def update_actor(
        self, learner: SACLearner, batch: Batch, key: jax.Array, n: jax.Array
    ) -> tuple[SACLearner, dict[str, jax.Array]]:
        if not self.bc_steps:
            return super().update_actor(learner, batch, key, n)

        def clone():
            temperature = jnp.exp(learner.log_temperature)
            edge = 1 - 1e-5  # where the log-density of tanh is still finite
            action = jnp.clip(batch.action, -edge, edge)

            def loss_fn(actor):
                dist = self.distribution(actor, batch.obs)
                _, log_prob = dist.sample_and_log_prob(key)
                loss = (temperature * log_prob - dist.log_prob(action)).mean()
                return loss, {"penalty": log_prob.mean(), "entropy": -log_prob.mean()}

            return self.descend_actor(learner, loss_fn)

        improve = super().update_actor
        return lax.cond(n < self.bc_steps, clone, lambda: improve(learner, batch, key, n))
