"""AWAC: Accelerating Online RL with Offline Datasets (Nair et al. 2020, arXiv:2006.09359).

The paper weighs cloned actions by exp(advantage / temperature), which is clipped here; the released
code by a softmax of that over the batch (`softmax_weights`).
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import spaces
from jaxrl.agent import OWN, Policy, memoryless, static, traced
from jaxrl.loops.learner import Learner, LearnerState
from jaxrl.parts.distributions import Categorical, Normal
from jaxrl.parts.losses import (
    action_value,
    softmax_cloning_loss,
    td_target,
    weighted_cloning_loss,
)
from jaxrl.parts.networks import Network, body_of, require_body
from jaxrl.parts.optimize import copy_of, descend, polyak
from jaxrl.parts.replay import Batch

LOG_STD_RANGE = (-5.0, 2.0)  # that the policy's log-deviation is kept in


class AWACLearner(NamedTuple):
    actor: Any
    critics: Any  # two
    target_critics: Any
    actor_opt: Any
    critic_opt: Any


class AWAC(Learner):
    """Advantage-weighted actor-critic from recorded data; discrete and continuous actions.

    Q is that of the policy itself, which clones recorded actions by their advantage over it.
    """

    offline_only: ClassVar[bool] = True

    num_updates: int = static(100, "[1, inf)", "gradient steps per iteration")
    learning_rate: float = traced(3e-4, "(0, inf)", "Adam's step size, of all networks")
    gamma: float = traced(0.99, "[0, 1]", "discount")
    tau: float = traced(0.005, "(0, 1]", "how far target networks move when they do")
    temperature: float = traced(1 / 3, "(0, inf)", "of the weights exp(advantage / temperature)")
    softmax_weights: bool = static(False, None, "weights that are a softmax over the batch")
    max_weight: float = traced(100.0, "(0, 1e6]", "that weights are clipped to")
    reward_scale: float = traced(1.0, "(0, inf)", "factor on rewards")
    network: Any = static("mlp", ("mlp", OWN), "or a body of yours, of every network")
    hidden_sizes: tuple[int, ...] = static((256, 256), "[1, inf)", "widths of every network")

    # Networks ---------------------------------------------------------------------------------

    def check(self) -> None:
        super().check()
        require_body(self.network, self.obs_shape, self.name)

    def unused(self) -> dict[str, str]:
        why = super().unused()
        if self.softmax_weights:
            why["max_weight"] = "with softmax_weights"
        return why

    def make_network(self, outputs: int, output_scale: float = 1.0) -> Network:
        return Network(
            outputs=outputs,
            obs_ndim=len(self.obs_shape),
            precision=self.precision,
            hidden_sizes=self.hidden_sizes,
            activation="relu",
            body=body_of(self.network),
            output_scale=output_scale,
        )

    def make_actor(self) -> Network:
        """From an observation to logits, or to a mean before the tanh that bounds it."""
        return self.make_network(spaces.action_size(self.action_space), output_scale=0.01)

    def make_critic(self) -> Network:
        """Q of every action where they are discrete, else of an observation and an action."""
        return self.make_network(spaces.action_size(self.action_space) if self.discrete else 1)

    def distribution(self, actor: Any, obs: jax.Array) -> Normal | Categorical:
        """The policy at (normalised) observations."""
        output = self.make_actor().apply(actor["net"], obs)
        if self.discrete:
            return Categorical(output)
        return Normal(jnp.tanh(output), jnp.broadcast_to(actor["log_std"], output.shape))

    def q_values(self, critics: Any, obs: jax.Array, action: jax.Array) -> jax.Array:
        """Both critics' values (2, B) of actions as they are recorded."""
        critic = self.make_critic()
        if self.discrete:
            return jnp.stack([action_value(critic.apply(c, obs), action) for c in critics])
        return jnp.stack([critic.apply(c, obs, action)[:, 0] for c in critics])

    def optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.learning_rate)

    # Init -------------------------------------------------------------------------------------

    def init_learner(self, key: jax.Array, obs: jax.Array) -> AWACLearner:
        actor_key, critic_key = jax.random.split(key)
        size = spaces.action_size(self.action_space)
        actor = {"net": self.make_actor().init(actor_key, obs)}
        if not self.discrete:  # a log-deviation that is the same everywhere
            actor["log_std"] = jnp.zeros(size, jnp.float32)
        inputs = (obs,) if self.discrete else (obs, jnp.zeros((size,)))
        critics = tuple(self.make_critic().init(k, *inputs) for k in jax.random.split(critic_key))
        return AWACLearner(
            actor=actor,
            critics=critics,
            target_critics=copy_of(critics),
            actor_opt=self.optimizer().init(actor),
            critic_opt=self.optimizer().init(critics),
        )

    # Update -----------------------------------------------------------------------------------

    def update(
        self, learner: AWACLearner, batch: Batch, key: jax.Array, n: jax.Array
    ) -> tuple[AWACLearner, dict[str, jax.Array]]:
        next_key, advantage_key = jax.random.split(key)

        def value(critics, obs, key):
            """min Q of an action of the policy (B,)."""
            action = self.distribution(learner.actor, obs).sample(key)
            if not self.discrete:
                action = jnp.clip(action, -1, 1)
            return self.q_values(critics, obs, action).min(axis=0)

        # Critics, towards r + gamma min Q'(s', a') with a' of the policy.
        next_value = value(learner.target_critics, batch.next_obs, next_key)
        reward = self.reward_scale * batch.reward
        target = td_target(reward, batch.terminated, next_value, self.gamma)

        def critic_loss(critics):
            q = self.q_values(critics, batch.obs, batch.action)
            return 0.5 * ((q - target) ** 2).sum(axis=0).mean(), q.mean()

        critics, critic_opt, critic_loss_value, q_mean = descend(
            self.optimizer(), critic_loss, learner.critics, learner.critic_opt
        )

        # Actor, cloning with weights exp(advantage / temperature).
        q = self.q_values(critics, batch.obs, batch.action).min(axis=0)
        advantage = q - value(critics, batch.obs, advantage_key)

        def actor_loss(actor):
            log_prob = self.distribution(actor, batch.obs).log_prob(batch.action)
            log_weight = advantage / self.temperature
            if self.softmax_weights:
                return softmax_cloning_loss(log_prob, log_weight)
            return weighted_cloning_loss(log_prob, log_weight, self.max_weight)

        actor, actor_opt, actor_loss_value, weight = descend(
            self.optimizer(), actor_loss, learner.actor, learner.actor_opt
        )
        metrics = {
            "critic_loss": critic_loss_value,
            "q_mean": q_mean,
            "actor_loss": actor_loss_value,
            "weight": weight,
        }
        return AWACLearner(
            actor=bounded(actor),
            critics=critics,
            target_critics=polyak(learner.target_critics, critics, self.tau),
            actor_opt=actor_opt,
            critic_opt=critic_opt,
        ), metrics

    # Acting -----------------------------------------------------------------------------------

    def log_prob(self, state: LearnerState, obs: jax.Array, action: jax.Array) -> jax.Array | None:
        if not self.discrete:
            return None  # samples are clipped to the box
        obs = self.normalize(state.obs_moments, obs)
        return self.distribution(state.learner.actor, obs).log_prob(action)

    def policy(self, state: LearnerState, deterministic: bool = True) -> Policy:
        """The mode of the policy, or a sample, within the box."""

        @memoryless
        def policy(obs: jax.Array, key: jax.Array) -> jax.Array:
            dist = self.distribution(state.learner.actor, self.normalize(state.obs_moments, obs))
            return self.env_action(dist.mode() if deterministic else dist.sample(key))

        return policy


def bounded(actor: dict[str, Any]) -> dict[str, Any]:
    """The actor with its log-deviation, if it has one, within its range.

    Kept there after each step: a clip in the loss has no gradient, and no way back.
    """
    if "log_std" not in actor:
        return actor
    return actor | {"log_std": jnp.clip(actor["log_std"], *LOG_STD_RANGE)}
